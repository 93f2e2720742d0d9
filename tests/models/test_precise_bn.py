"""Recomputed batch-norm statistics are those of the clips."""

import copy

import pytest
import torch
from torch import nn

from tests.helpers import tiny_ucf101
from vidrobust.config import DataConfig
from vidrobust.data import eval_dataset, ucf101
from vidrobust.models import add_branches, build_backbone
from vidrobust.models.precise_bn import recompute_statistics
from vidrobust.utils.errors import UserError

CFG = DataConfig(frames=2, stride=2, short_side=20, size=16, workers=0)
CPU = torch.device("cpu")


def recompute(model, dataset, clips=99, **options):
    settings = {"clips": clips, "batch_size": 3, "workers": 0} | options
    return recompute_statistics(model, dataset, CPU, **settings)


@pytest.fixture
def clips(ucf):
    records, _ = ucf101(ucf, "train", 1)
    return eval_dataset(CFG, records, 1)


def pixels(dataset, indices):
    """Return (3, number of pixels) of some clips."""
    stacked = torch.stack([dataset[0, i]["clips"][0] for i in indices])
    return stacked.double().div(255).flatten(0, -2).T


def test_statistics_of_one_layer_are_the_mean_and_variance_over_all_clips(clips):
    """Also if the last batch is smaller than the others."""
    norm = nn.BatchNorm3d(3, momentum=0.1)
    assert recompute(norm, clips) == 8
    expected = pixels(clips, range(8))
    assert torch.allclose(norm.running_mean.double(), expected.mean(1), atol=1e-6)
    assert torch.allclose(norm.running_var.double(), expected.var(1, correction=0), atol=1e-6)
    assert norm.momentum == 0.1


def test_fewer_clips_are_spread_evenly_over_the_list(clips):
    norm = nn.BatchNorm3d(3)
    assert recompute(norm, clips, clips=2) == 2
    assert torch.allclose(norm.running_mean.double(), pixels(clips, [0, 4]).mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("branch", "changed"), [("clean", ["clean"]), ("adv", ["adv"]), ("average", ["clean", "adv"])]
)
def test_only_statistics_of_the_branch_change(clips, branch, changed):
    model = add_branches(build_backbone("r2plus1d_10", width=4)).train()
    model.trunk[0].eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    recompute(model, clips, branch=branch)
    different = [
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    ]
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert {key.rpartition(".")[2] for key in different} == set(kinds)
    assert {key.split(".branches.")[1].split(".")[0] for key in different} == set(changed)
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_random_number_is_used(clips):
    backbone = build_backbone("r2plus1d_10", width=4)
    generator = torch.get_rng_state()
    recompute(backbone, clips)
    assert torch.equal(generator, torch.get_rng_state())


def test_a_norm_without_statistics_stays_so(clips):
    norm = nn.BatchNorm3d(3, track_running_stats=False)
    recompute(norm, clips)
    assert norm.running_mean is None


def test_videos_that_do_not_decode_are_left_out(tmp_path):
    records, _ = ucf101(tiny_ucf101(tmp_path), "train", 1)
    open(records[1].path, "w").close()
    dataset = eval_dataset(CFG, records, 1)
    norm = nn.BatchNorm3d(3)
    assert recompute(norm, dataset) == 7
    expected = pixels(dataset, [0, 2, 3, 4, 5, 6, 7]).mean(1)
    assert torch.allclose(norm.running_mean.double(), expected, atol=1e-6)
    with pytest.raises(UserError, match="eval.precise_bn: no video of a batch decodes"):
        recompute(norm, dataset, batch_size=1)

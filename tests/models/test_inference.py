import pytest
import torch

from tests.helpers import tiny_ucf101
from vidrobust.config import DataConfig, ModelConfig
from vidrobust.data import eval_dataset, ucf101
from vidrobust.evaluation import evaluation_mode, extract
from vidrobust.models import add_branches, build_model
from vidrobust.utils.errors import UserError

CFG = DataConfig(frames=2, stride=2, short_side=20, size=16, workers=0)
CPU = torch.device("cpu")


def _mean_colour(x):
    return x.mean((2, 3, 4))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_features_are_in_the_order_of_the_records_for_any_batch_size(ucf, batch_size):
    records, _ = ucf101(ucf, "test", 1)
    data = eval_dataset(CFG, records, 3)
    outputs = extract(
        [_mean_colour, lambda x: 2 * _mean_colour(x)], data, CPU, batch_size=batch_size, workers=0
    )
    assert outputs[0].features.shape == (4, 3, 3) and torch.allclose(
        2 * outputs[0].features, outputs[1].features
    )
    assert outputs[0].uids == [r.uid for r in records] and outputs[0].labels.tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert (
        outputs[0].start.tolist() == [[0, 9 - 1, 17]] * 4 and outputs[0].fps.tolist() == [25.0] * 4
    )
    expected = torch.stack([data[0, i]["clips"].float().mean((1, 2, 3)) / 255 for i in range(4)])
    assert torch.allclose(outputs[0].features, expected, atol=1e-6)


def test_failures_are_listed_separately_and_nothing_but_failures_is_refused(tmp_path):
    root = tiny_ucf101(tmp_path)
    records, _ = ucf101(root, "test", 1)
    open(records[1].path, "w").close()
    (features,) = extract(
        [_mean_colour], eval_dataset(CFG, records, 1), CPU, batch_size=2, workers=0
    )
    assert features.index.tolist() == [0, 2, 3] and [f.index for f in features.failed] == [1]
    with pytest.raises(UserError, match="no video decodes .*is empty"):
        extract([_mean_colour], eval_dataset(CFG, records[1:2], 1), CPU, batch_size=2, workers=0)


def test_evaluation_mode_restores_every_flag():
    model = add_branches(
        build_model(ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8), "projector")
    ).train()
    model.backbone.trunk[0].eval()
    model.head[0].weight.requires_grad_(False)
    modes, flags = (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    with evaluation_mode(model, branch="adv"):
        assert not any(m.training for m in model.modules()) and not any(
            p.requires_grad for p in model.parameters()
        )
        assert model.backbone.trunk[0][1].branch == "adv"
    assert modes == [m.training for m in model.modules()] and flags == [
        p.requires_grad for p in model.parameters()
    ]
    assert model.backbone.trunk[0][1].branch == "clean"

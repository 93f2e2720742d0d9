"""Parameters and operations are those of formulas, and counting them leaves no trace."""

import copy
import warnings

import pytest
import torch
from torch import nn

from vidrobust.models import add_branches, build_backbone
from vidrobust.models.complexity import Complexity, model_complexity, parameters_text


def test_a_convolution_and_a_linear_layer_cost_what_their_formulas_say():
    conv = nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1), bias=False)
    model = nn.Sequential(conv, nn.Flatten(1), nn.Linear(4 * 2 * 5 * 5, 7))
    multiply_adds = 4 * (2 * 5 * 5) * (3 * 3 * 3) + 4 * 2 * 5 * 5 * 7
    expected = Complexity(4 * 3 * 3 * 3 + (4 * 2 * 5 * 5 + 1) * 7, multiply_adds)
    assert model_complexity(model, (3, 2, 5, 5)) == expected


def test_resnet50_has_the_published_operations():
    """He et al. 2016, table 1: 3.8e9 without shortcuts; torchvision's has 4.09e9."""
    backbone = build_backbone("resnet50")
    assert model_complexity(backbone, (3, 1, 224, 224)).flops_per_clip == pytest.approx(
        4.1e9, rel=0.01
    )


def test_counting_changes_neither_model_nor_random_numbers():
    model = add_branches(build_backbone("r2plus1d_10", width=4)).train()
    model.trunk[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    generator = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model_complexity(model, (3, 2, 16, 16)).flops_per_clip
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert modes == [module.training for module in model.modules()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(generator, torch.get_rng_state())


def test_operations_of_a_random_layer_use_no_random_numbers_of_the_caller():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    generator = torch.get_rng_state()
    model_complexity(Noisy(), (3, 1, 4, 4))
    assert torch.equal(generator, torch.get_rng_state())


def test_operations_without_a_count_are_named():
    assert "aten::sub" in model_complexity(build_backbone("resnet18"), (3, 1, 16, 16)).uncounted


def test_a_model_that_fails_has_no_operations_and_the_reason_is_logged(caplog):
    linear = nn.Linear(5, 2)
    with caplog.at_level("WARNING", logger="vidrobust"):
        assert model_complexity(linear, (3, 1, 4, 4)) == Complexity(12, None)
    assert "operations of the model could not be counted" in caplog.text
    assert Complexity(12, None).text() == ""
    assert Complexity(12, 123_456_789).text() == "0.12 GFLOPs per clip"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (514, "514 parameters"),
        (20_490, "20,490 parameters"),
        (138_357, "0.14 M parameters"),
        (31_300_638, "31.30 M parameters"),
    ],
)
def test_few_parameters_are_counted_and_many_are_rounded(count, text):
    assert parameters_text(count) == text

import pytest
import torch
from torch import nn

from vidrobust.attacks import ThreatModel
from vidrobust.evaluation.report.geometry_tables import geometry_lines
from vidrobust.evaluation.representation.sensitivity import (
    by_layer,
    cka_by_layer,
    displace,
    gradient_norm,
    measure_sensitivity,
    overlap,
)
from vidrobust.models import build_backbone
from vidrobust.utils.errors import UserError


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def clips(request):
    return torch.rand(4, 3, request.param, 8, 8) * 0.8 + 0.1


def linear(x: torch.Tensor) -> tuple[torch.Tensor, nn.Module]:
    weight = torch.randn(x[0].numel(), 1)
    return weight, nn.Sequential(nn.Flatten(1), nn.Linear(*weight.shape))


def test_the_gradient_norm_of_a_linear_loss_is_the_norm_of_its_weights(clips):
    weight = torch.randn(clips[0].numel())
    norms = gradient_norm(lambda v: v.flatten(1) @ weight, clips)
    assert torch.allclose(norms, weight.norm().expand(4), rtol=1e-4) and not clips.requires_grad


def test_a_linear_encoder_is_moved_as_far_as_the_budget_allows(clips):
    """With one output and clips well inside [0, 1], the largest displacement is eps |w|_1."""
    weight = torch.randn(clips[0].numel(), 1)
    encode = lambda v: v.flatten(1) @ weight  # noqa: E731
    x_adv = displace(encode, clips, ThreatModel("linf", 0.05), steps=10, step_size=None)
    assert torch.allclose(
        (encode(x_adv) - encode(clips)).abs()[:, 0],
        (0.05 * weight.abs().sum()).expand(4),
        rtol=1e-3,
    )


def test_only_pairs_within_reach_of_the_budget_overlap(clips):
    encode = lambda v: v.flatten(1)  # noqa: E731
    near, far = (clips + 0.01).clamp(0, 1), 1 - clips
    for other, joined in ((near, True), (far, False)):
        margins = overlap(
            encode, clips, other, ThreatModel("linf", 0.05), steps=20, step_size=0.005
        )
        assert ((margins < 0) == joined).all()


@pytest.mark.parametrize("name", ["resnet18", "r2plus1d_10", "slowfast_r50"])
def test_layers_are_pooled_per_clip_and_end_with_the_features(name):
    backbone = build_backbone(name, **({} if name == "slowfast_r50" else {"width": 4})).eval()
    x = torch.rand(2, 3, 4, 32, 32)
    layers = by_layer(backbone.trunk, backbone, x)
    assert len(layers) >= 5 and all(
        value.shape[0] == 2 and value.ndim == 2 for value in layers.values()
    )
    last = list(layers.values())[-1]
    assert torch.allclose(last, backbone(x), atol=1e-4), (
        "the last layer is the feature of the backbone"
    )
    assert not any(module._forward_hooks for module in backbone.modules())
    one = by_layer(backbone.trunk, backbone, x[:1])
    for key, value in layers.items():
        assert torch.allclose(one[key][0], value[0], atol=1e-3), (
            "the outputs of a clip do not depend on the batch"
        )
    many = by_layer(backbone.trunk, backbone, torch.rand(6, 3, 2, 32, 32))
    assert all(found == pytest.approx(1, abs=1e-4) for found in cka_by_layer(many, many).values())


def test_the_unused_pooling_of_a_small_stem_is_not_a_layer():
    backbone = build_backbone("resnet18", width=4, stem="cifar").eval()
    layers = by_layer(backbone.trunk, backbone, torch.rand(2, 3, 1, 16, 16))
    assert "maxpool" not in layers and "relu" in layers


def test_larger_budgets_move_the_representation_farther():
    """At a tiny budget, every clip keeps its neighbours."""
    backbone = build_backbone("resnet18", width=4, stem="cifar").eval().requires_grad_(False)
    head = nn.Linear(backbone.dim, 3).requires_grad_(False)
    clips = [
        (torch.rand(3, 3, 1, 16, 16), torch.arange(3)),
        (torch.rand(2, 3, 1, 16, 16), torch.arange(2)),
    ]
    measured = measure_sensitivity(
        backbone, lambda v: head(backbone(v)), lambda: clips, [1e-5, 0.1], seed=0
    )
    small, large = measured.budgets
    assert measured.n == 5 and measured.gradient_norm > 0
    assert small.nn_top1 == 1 and small.breakaway_risk == small.overlap_risk == 0
    assert small.overlap_margin == pytest.approx(1, abs=0.05)
    for key in ("universal_quantile", "relative_displacement", "breakaway_risk"):
        assert 0 <= getattr(small, key) <= getattr(large, key)
    assert large.relative_displacement > 10 * small.relative_displacement
    assert all(small.cka[name] >= large.cka[name] - 1e-6 for name in small.cka)
    assert measured == measure_sensitivity(
        backbone, lambda v: head(backbone(v)), lambda: clips, [1e-5, 0.1], seed=0
    )
    text = "\n".join(geometry_lines(None, measured))
    assert (
        "5 clips: how far" in text and "| 25.5/255 |" in text and geometry_lines(None, None) == []
    )
    alone = measure_sensitivity(
        backbone,
        lambda v: head(backbone(v)),
        lambda: [(x[:1], y[:1]) for x, y in clips],
        [0.1],
        seed=0,
    )
    assert alone.budgets[0].overlap_risk is None


def _sensitivity(classify, clips):
    backbone = build_backbone("resnet18", width=4, stem="cifar").eval().requires_grad_(False)
    head = nn.Linear(backbone.dim, 3).requires_grad_(False)
    return measure_sensitivity(
        backbone, classify(lambda v: head(backbone(v))), lambda: clips, [0.01], seed=0
    )


def test_clips_without_finite_numbers_are_left_out_and_counted():
    torch.manual_seed(0)
    x, y = torch.rand(5, 3, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1])
    x[2, :, 0, 0, 0] = 0
    black = lambda v: (v[:, 0, 0, 0, 0] == 0).unsqueeze(1)  # noqa: E731
    nan = lambda net: lambda v: torch.where(black(v), torch.nan, net(v))  # noqa: E731
    # The square root of a black pixel has an infinite gradient.
    steep = lambda net: lambda v: net(v) * (1 + v[:, :1, 0, 0, 0].sqrt())  # noqa: E731
    for classify in (nan, steep):
        measured = _sensitivity(classify, [(x[:3], y[:3]), (x[3:], y[3:])])
        assert measured.n == 4
        assert measured.warnings == [
            "sensitivity: 1 clips left out, no finite numbers from the model"
        ]
        assert all(
            value == value
            for value in vars(measured.budgets[0]).values()
            if isinstance(value, float)
        )
        assert measured.gradient_norm > 0
    assert _sensitivity(lambda net: net, [(x, y)]).warnings == []


def test_non_finite_clips_labels_out_of_range_and_non_logits_are_refused():
    x, y = torch.rand(3, 3, 1, 16, 16), torch.tensor([0, 1, 2])
    with pytest.raises(UserError, match="3 have no finite numbers from the model; set it to 0"):
        _sensitivity(lambda net: lambda v: net(v) * torch.nan, [(x, y)])
    with pytest.raises(UserError, match="labels span -1 to 1; the model has classes 0 to 2"):
        _sensitivity(lambda net: net, [(x, y - 1)])
    with pytest.raises(UserError, match=r"give lambda x: model\(x\)\[0\]"):
        _sensitivity(lambda net: lambda v: (net(v),), [(x, y)])

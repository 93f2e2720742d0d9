import warnings

import pytest
import torch
import torchvision

from vidrobust.config import ModelConfig
from vidrobust.models import BACKBONES, build_backbone, build_model
from vidrobust.models.backbone import BackboneParts
from vidrobust.utils.errors import UserError

SMALL = {
    "r2plus1d_10": {"width": 4},
    "resnet18": {"width": 4, "stem": "cifar"},
    "resnet3d_18": {"width": 4},
    "resnet3d_34": {"width": 4},
    "resnet3d_50": {"width": 4},
    "resnext3d_101": {"width": 16},
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_accepts_images_and_clips_of_any_length(name):
    backbone = build_backbone(name, **SMALL.get(name, {})).eval()
    for frames in (1, 2, 5):
        with torch.no_grad():
            y = backbone(torch.rand(2, 3, frames, 48, 48))
        assert y.shape == (2, backbone.dim) and torch.isfinite(y).all()


@pytest.mark.parametrize("name", ["r2plus1d_10", "resnet18"])
def test_gradients_reach_every_input_and_bf16_features_stay_close(name):
    backbone = build_backbone(name, **SMALL[name]).eval()
    x = torch.rand(2, 3, 3, 32, 32, requires_grad=True)
    y = backbone(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert (gradient.abs().amax((1, 2, 3, 4)) > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(x).float()
    assert torch.nn.functional.cosine_similarity(half, y).min() > 0.98


def test_normalisation_comes_first_and_is_not_in_the_state_dict():
    backbone = build_backbone("r2plus1d_10", width=4)
    inputs = []
    backbone.trunk.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    mean = backbone.mean.expand(1, 3, 2, 32, 32)
    backbone(mean)
    assert torch.equal(inputs[0], torch.zeros_like(mean))
    assert "mean" not in backbone.state_dict() and "std" not in backbone.state_dict()


def test_resnet_averages_features_over_frames():
    backbone = build_backbone("resnet18", width=4, stem="cifar").eval()
    x = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad():
        frames = torch.stack([backbone(x[:, :, t : t + 1]) for t in range(4)])
        assert torch.allclose(backbone(x), frames.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("r2plus1d_18", torchvision.models.video.r2plus1d_18),
        ("resnet18", torchvision.models.resnet18),
        ("resnet50", torchvision.models.resnet50),
    ],
)
def test_state_dict_of_torchvision_loads_and_gives_the_same_features(name, reference):
    theirs, ours = reference(weights=None).eval(), build_backbone(name).eval()
    ours.trunk.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    )
    theirs.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 1, 48, 48)
    normal = (x - ours.mean) / ours.std
    with torch.no_grad():
        expected = theirs(normal if name == "r2plus1d_18" else normal[:, :, 0])
        assert torch.allclose(ours(x), expected, atol=1e-4)


def test_slowfast_uses_every_frame_in_one_pathway_and_every_fourth_in_the_other():
    backbone = build_backbone("slowfast_r50")
    inputs = []
    backbone.trunk.blocks[0].register_forward_pre_hook(
        lambda module, args: inputs.append(list(args[0]))
    )
    x = torch.rand(1, 3, 8, 32, 32)
    backbone.eval()(x)
    slow, fast = inputs[0]
    assert torch.equal(slow, fast[:, :, [0, 4]]) and fast.shape[2] == 8


def test_a_new_backbone_needs_one_entry_only(monkeypatch):
    def pooled(width=5):
        network = torch.nn.Sequential(
            torch.nn.Conv3d(3, width, 1),
            torch.nn.BatchNorm3d(width),
            torch.nn.AdaptiveAvgPool3d(1),
            torch.nn.Flatten(1),
        )
        return BackboneParts(network, width, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    monkeypatch.setitem(BACKBONES, "pooled", pooled)
    cfg = ModelConfig(backbone="pooled", width=7, hidden=8, dim=6)
    model = build_model(cfg, "projector", branches=("adv",))
    with model.use_branch("adv"):
        assert model(torch.rand(2, 3, 2, 8, 8)).shape == (2, 6)
    assert model.backbone.dim == 7
    with pytest.raises(UserError, match="model.stem: backbone pooled has no such option"):
        build_model(ModelConfig(backbone="pooled", stem="cifar"), "projector")


def test_slowfast_builds_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_backbone("slowfast_r50")


def test_unknown_names_options_and_shapes_are_refused():
    with pytest.raises(UserError, match="unknown name 'r2plus1d_19'; did you mean 'r2plus1d_18'"):
        build_backbone("r2plus1d_19")
    with pytest.raises(UserError, match="model.width: backbone r2plus1d_18 has no such option"):
        build_model(ModelConfig(width=32), "projector")
    with pytest.raises(ValueError, match="an image is T = 1"):
        build_backbone("r2plus1d_10", width=4)(torch.rand(2, 3, 32, 32))

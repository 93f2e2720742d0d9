"""Tokens of stages: names, shapes, values against a plain pass, gradient, norm branches, errors."""

import pytest
import torch
from torch import nn

from vidrobust.models import BACKBONES, add_branches, build_backbone, use_branch
from vidrobust.models.stages import stage_names, stage_tokens
from vidrobust.utils.errors import UserError

# spec -> frames and size of a clip, number of stages
OTHERS = {
    "torchvision:r3d_18": (4, 32, 4),
    "torchvision:s3d": (16, 64, 12),
    "torchvision:swin3d_t": (4, 64, 7),
    "torchvision:vit_b_32": (2, 224, 12),
    "torchvision:swin_t": (2, 64, 8),
    "pytorchvideo:slowfast_r50": (32, 64, 5),
    "pytorchvideo:x3d_xs": (4, 160, 5),
    "timm:vit_tiny_patch16_224": (2, 224, 12),
    "timm:resnet18": (2, 64, 4),
}


@pytest.mark.parametrize("name", [*BACKBONES, *OTHERS])
@torch.no_grad()
def test_every_network_has_stages(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    frames, size, count = OTHERS.get(name, (4, 32, 0))
    backbone = build_backbone(name).eval()
    names = stage_names(backbone)
    assert len(names) == (count or len(names)) >= 4
    x = torch.rand(2, 3, frames, size, size)
    outputs = stage_tokens(backbone, x, [names[0], ""])
    assert all(tokens.ndim == 3 and len(tokens) == 2 for tokens in outputs)
    features = backbone(x)
    # where the network ends with average pooling, the features are the mean of the last tokens
    if name in BACKBONES or name.endswith(("r3d_18", "slowfast_r50", "resnet18")):
        assert torch.allclose(outputs[1].mean(1), features, atol=1e-5)


@torch.no_grad()
def test_a_token_is_a_place_of_the_map():
    backbone = build_backbone("r2plus1d_18").eval()
    x = torch.rand(2, 3, 4, 32, 32)
    trunk = backbone.trunk
    maps = trunk.layer2(trunk.layer1(trunk.stem((x - backbone.mean) / backbone.std)))
    (tokens,) = stage_tokens(backbone, x, ["layer2"])
    channels, t, h, w = maps.shape[1:]
    assert tokens.shape == (2, t * h * w, channels)
    for place in range(t * h * w):
        at = place // (h * w), place // w % h, place % w
        assert torch.equal(tokens[:, place], maps[:, :, at[0], at[1], at[2]])


@torch.no_grad()
def test_maps_with_channels_last_keep_their_channels():
    backbone = build_backbone("torchvision:swin3d_t").eval()
    x = torch.rand(1, 3, 4, 64, 64)
    first, last = stage_tokens(backbone, x, ["features.0", ""])
    assert first.shape == (1, 2 * 16 * 16, 96)
    assert last.shape == (1, 2 * 2 * 2, 768)


@torch.no_grad()
def test_frames_of_an_image_network_are_the_tokens_of_their_clip():
    backbone = build_backbone("torchvision:resnet18").eval()
    clips = torch.rand(2, 3, 3, 64, 64)
    (tokens,) = stage_tokens(backbone, clips)
    for clip, own in zip(clips, tokens, strict=True):
        parts = [stage_tokens(backbone, clip[None, :, t : t + 1])[0][0] for t in range(3)]
        assert torch.allclose(own, torch.cat(parts), atol=1e-5)


def test_gradient_reaches_the_pixels():
    backbone = build_backbone("r2plus1d_10", width=8).eval()
    x = torch.rand(1, 3, 4, 24, 24, requires_grad=True)
    stage_tokens(backbone, x)[0].sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())


@torch.no_grad()
def test_the_average_over_branches_averages_tokens():
    backbone = build_backbone("resnet18", width=8)
    add_branches(backbone, ["adv"])
    for number, module in enumerate(backbone.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.1 * (number % 5))
    backbone.eval()
    x = torch.rand(2, 3, 1, 32, 32)
    by_branch = []
    for branch in ("clean", "adv"):
        with use_branch(backbone, branch):
            by_branch.append(stage_tokens(backbone, x)[0])
    assert not torch.allclose(*by_branch)
    with use_branch(backbone, "average"):
        assert torch.allclose(stage_tokens(backbone, x)[0], sum(by_branch) / 2, atol=1e-6)


def test_wrong_names_are_refused():
    backbone = build_backbone("resnet18", width=8).eval()
    x = torch.rand(1, 3, 1, 32, 32)
    with pytest.raises(UserError, match="no module 'layer5'; its stages are layer1, layer2"):
        stage_tokens(backbone, x, ["layer5"])

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = nn.Linear(2, 2)

    backbone.trunk.idle = Idle()
    with pytest.raises(UserError, match="module idle is not run"):
        stage_tokens(backbone, x, ["idle"])

"""Models of pytorchvideo's hub: Slow, SlowFast, I3D, C2D, R(2+1)D, X3D and MViT."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust.models.input_spec import InputSpec, Published
from vidrobust.models.sources.source_model import (
    Adjust,
    Source,
    SourceModel,
    SourceTrunk,
    cut_last_linear,
    whole,
)
from vidrobust.utils.errors import UserError

# name -> (frames, stride, crop, top-1 in per cent on Kinetics-400 with 10 x 3 views, or None), from
# docs/source/model_zoo.md of pytorchvideo
_TABLE: dict[str, tuple[int, int, int, float | None]] = {
    "c2d_r50": (8, 8, 256, 71.46),
    "i3d_r50": (8, 8, 256, 73.27),
    "slow_r50": (8, 8, 256, 74.58),
    "slowfast_r50": (32, 2, 256, 76.94),
    "slowfast_r101": (32, 2, 256, 77.90),
    "r2plus1d_r50": (16, 4, 256, 76.01),
    "x3d_xs": (4, 12, 160, 69.12),
    "x3d_s": (13, 6, 160, 73.33),
    "x3d_m": (16, 5, 224, 75.94),
    "mvit_base_16x4": (16, 4, 224, None),
}
_HALVES_FRAMES = ("c2d_r50", "i3d_r50")  # pool pairs of frames after the first stage


def names() -> Sequence[str]:
    """Return the names of the models."""
    return list(_TABLE)


def build(name: str, weights: str, adjust: Adjust) -> SourceModel:
    """Return a model of pytorchvideo with random weights.

    Args:
        name: of `names`.
        weights: must be "": the hub's weights are given as a file.
        adjust: changes the input card.

    Raises:
        UserError: for `weights`.
    """
    if weights:
        raise UserError(
            f"pytorchvideo:{name}@{weights}: pytorchvideo names no weights; download the file of"
            " its model zoo, and give it with --weights FILE"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing pytorchvideo warns about torch.jit
        network: Any = getattr(importlib.import_module("pytorchvideo.models.hub"), name)(False)
    frames, stride, size, acc = _TABLE[name]
    card = InputSpec(
        frames=frames,
        stride=stride,
        short_side=size,
        size=(size, size),
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
        published=None
        if acc is None
        else Published(acc / 100, "Kinetics-400", "10x3", "pytorchvideo's model zoo"),
        layout="pathways" if name.startswith("slowfast") else "BCTHW",
    )
    spec = adjust(card)
    if name.startswith("mvit"):
        head_key, head = cut_last_linear(network)
        network.head.activation = None
        trunk = SourceTrunk(network, spec, whole, head_key, fixed=(frames, card.size))
        return SourceModel(trunk, head.in_features, head, spec)
    head = network.blocks[-1].proj
    head_key = f"blocks.{len(network.blocks) - 1}.proj"
    run: Callable[[Any, Any], Tensor] = _one_pathway
    if name.startswith("slowfast"):
        network.blocks = network.blocks[:-1]  # the last one averages both pathways
        run = _two_pathways
    elif name.startswith("x3d"):
        # its head projects before and after it averages: only its last layer is the classifier
        network.blocks[-1] = nn.ModuleDict({"pool": network.blocks[-1].pool})
        run = _projected
    else:
        network.blocks[-1] = nn.ModuleDict({"pool": network.blocks[-1].pool})
    least = 2 if name in _HALVES_FRAMES else 1
    trunk = SourceTrunk(network, spec, run, head_key, least_frames=least)
    return SourceModel(trunk, head.in_features, head, spec)


def _averaged(pool: Any, x: Tensor) -> Tensor:
    """Average over time and space, as the package does where its pooling window fits.

    The window is that of the training crop. On larger frames it slides, so that the border counts
    less; it does not fit smaller ones, whose plain mean is taken.
    """
    window = pool.kernel_size
    if all(n >= w for n, w in zip(x.shape[2:], window, strict=True)):
        x = pool(x)
    return x.mean((2, 3, 4))


def _one_pathway(network: Any, x: Tensor) -> Tensor:
    """Return the averaged features of the last block."""
    for block in network.blocks[:-1]:
        x = block(x)
    return _averaged(network.blocks[-1]["pool"], x)


def _two_pathways(network: Any, pathways: list[Tensor]) -> Tensor:
    """Return the averaged features of both pathways of SlowFast 8x8, in the order of its head."""
    for block in network.blocks[:-1]:
        pathways = block(pathways)
    pools = network.blocks[-1].pool
    return torch.cat([_averaged(pool, p) for pool, p in zip(pools, pathways, strict=True)], 1)


def _projected(network: Any, x: Tensor) -> Tensor:
    """Return the features of X3D, projected before and after they are averaged."""
    for block in network.blocks[:-1]:
        x = block(x)
    head = network.blocks[-1]["pool"]
    x = head.pre_act(head.pre_norm(head.pre_conv(x)))
    window = head.pool.kernel_size
    if all(n >= w for n, w in zip(x.shape[2:], window, strict=True)):
        x = head.pool(x)
    else:
        x = x.mean((2, 3, 4), keepdim=True)
    return head.post_act(head.post_conv(x)).mean((2, 3, 4))


PYTORCHVIDEO = Source(build, names, "a name of pytorchvideo.models.hub, such as slow_r50")

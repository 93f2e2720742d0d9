"""Clips without a cue, or with two cues that disagree.

All are functions on clips (B, C, T, H, W) in [0, 1] that know no labels. Backgrounds and what moves
before them are found by frame differences, so a camera that moves makes everything foreground.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_CHANGED = 0.08  # from the background, above which a pixel is taken to move
_SPREAD = 5  # pixels by which what moves is widened, so that its edge goes with it


def background(x: Tensor) -> Tensor:
    """What stays: each pixel's median over time, in all frames."""
    # torch's median is wrong along an expanded dimension
    return x.contiguous().median(2, keepdim=True).values.expand_as(x)


def moving(x: Tensor) -> Tensor:
    """Where something moves before the background: (B, 1, T, H, W), 0 to 1, soft at its edge."""
    changed = ((x - background(x)).abs().amax(1).flatten(0, 1) > _CHANGED).to(x.dtype)[
        :, None
    ]  # (B T, 1, H, W)
    dense = (F.avg_pool2d(changed, 3, 1, 1) > 0.5).to(x.dtype)  # single pixels are noise
    wide = F.max_pool2d(dense, _SPREAD, 1, _SPREAD // 2)
    return F.avg_pool2d(wide, 3, 1, 1).view(len(x), 1, *x.shape[2:])


def swapped(x: Tensor, other: Tensor) -> Tensor:
    """What moves in x before the background of another clip (SCUBA's kind, Li et al. 2023)."""
    return torch.lerp(background(other), x, moving(x))


def swapped_frozen(x: Tensor, other: Tensor) -> Tensor:
    """`swapped`, its frame in which most moves all the time: the look of what moves, without its
    motion (SCUFO's).
    """
    made, most = swapped(x, other), moving(x).flatten(3).sum(3).argmax(2).flatten()
    return made[torch.arange(len(x), device=x.device), :, most][:, :, None].expand_as(made)


def differences(x: Tensor) -> Tensor:
    """Each frame's change to the next about middle gray, what moves alone; the last frame repeats
    the one before.
    """
    change = (x[:, :, 1:] - x[:, :, :-1]) / 2 + 0.5
    return torch.cat([change, change[:, :, -1:]], 2)

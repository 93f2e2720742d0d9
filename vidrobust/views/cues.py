"""Clips without a cue, or with two cues that disagree.

All functions take clips (B, C, T, H, W) in [0, 1], and need no labels. Backgrounds and moving
things are detected by frame differences. If the camera moves, everything counts as moving.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# difference from the background above which a pixel counts as moving
_CHANGED = 0.08
# pixels by which the moving area is widened, so that it includes its edge
_SPREAD = 5


def background(x: Tensor) -> Tensor:
    """Return the static background in all frames: the median of each pixel over time."""
    # torch's median is wrong along an expanded dimension
    return x.contiguous().median(2, keepdim=True).values.expand_as(x)


def moving(x: Tensor) -> Tensor:
    """Return a mask (B, 1, T, H, W) in 0 to 1 of what moves, with soft edges."""
    changed = (x - background(x)).abs().amax(1).flatten(0, 1) > _CHANGED
    changed = changed.to(x.dtype)[:, None]  # (B T, 1, H, W)
    # Remove single pixels, which are noise; then widen and soften the rest.
    dense = (F.avg_pool2d(changed, 3, 1, 1) > 0.5).to(x.dtype)
    wide = F.max_pool2d(dense, _SPREAD, 1, _SPREAD // 2)
    return F.avg_pool2d(wide, 3, 1, 1).view(len(x), 1, *x.shape[2:])


def swapped(x: Tensor, other: Tensor) -> Tensor:
    """Return what moves in x before the background of another clip (as SCUBA, Li et al. 2023)."""
    return torch.lerp(background(other), x, moving(x))


def swapped_frozen(x: Tensor, other: Tensor) -> Tensor:
    """Return one frame of `swapped`, repeated: the look of what moves, without its motion.

    The frame is the one in which the largest area moves (as SCUFO, Li et al. 2023).
    """
    composed = swapped(x, other)
    largest = moving(x).flatten(3).sum(3).argmax(2).flatten()
    frame = composed[torch.arange(len(x), device=x.device), :, largest]
    return frame[:, :, None].expand_as(composed)


def differences(x: Tensor) -> Tensor:
    """Return half the change from each frame to the next, about middle gray.

    Only what moves is visible. The last frame repeats the one before.
    """
    change = (x[:, :, 1:] - x[:, :, :-1]) / 2 + 0.5
    return torch.cat([change, change[:, :, -1:]], 2)

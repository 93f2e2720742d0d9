"""Helpers that all corruptions share: input checks, severities, scaling with the frame.

Clips are (T, H, W, 3) uint8, an image is T = 1. A length in pixels that a paper gives for frames of
224 pixels is multiplied by the shorter side / 224, so that 32 and 256 pixels lose the same share of
the picture.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Corruption = Callable[..., np.ndarray]  # (clip, severity, rng) -> clip; some also take fps
Entry = TypeVar("Entry")


def level(clip: np.ndarray, severity: int, table: Sequence[Entry]) -> Entry:
    """As `pick`. Raises ValueError for what is no clip, too."""
    require_clip(clip)
    return pick(severity, table)


def pick(severity: int, table: Sequence[Entry]) -> Entry:
    """The entry of `table` for a severity of 1 to 5. Raises ValueError for another one."""
    if isinstance(severity, bool) or severity not in range(1, len(table) + 1):
        raise ValueError(f"severity {severity!r}: a whole number from 1 to {len(table)}")
    return table[int(severity) - 1]


def require_clip(clip: np.ndarray) -> None:
    """Raises ValueError for anything but (T, H, W, 3) uint8 with a frame and a pixel at least."""
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8:
        kind = clip.dtype if isinstance(clip, np.ndarray) else type(clip).__name__
        raise ValueError(f"a clip of {kind}: give a numpy array of uint8, 0 to 255")
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise ValueError(f"a clip of shape {clip.shape}: give (T, H, W, 3), RGB; an image is T = 1")


def scale(clip: np.ndarray) -> float:
    """Pixels here for a pixel of a frame of 224."""
    return min(clip.shape[1:3]) / 224


def pixels(clip: np.ndarray, length: float, severity: int) -> float:
    """A length of blur, given for frames of 224 pixels, in pixels here.

    At least 0.5 + severity / 10, about what CIFAR-10-C has for 32 pixels: less would leave small
    frames as they are.
    """
    return max(length * scale(clip), 0.5 + severity / 10)


def to_planes(frame: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 of 0 to 255."""
    # torch takes no negative strides, and warns of memory that is read-only
    return (
        torch.from_numpy(np.require(frame, requirements=("C", "W")))
        .permute(2, 0, 1)
        .float()
        .contiguous()
    )


def from_planes(planes: Tensor) -> np.ndarray:
    """The inverse of `to_planes`, still float."""
    return planes.permute(1, 2, 0).contiguous().numpy()


def to_uint8(frame: np.ndarray) -> np.ndarray:
    """Float values of 0 to 255, to the nearest. Overwrites `frame`."""
    return np.rint(np.clip(frame, 0, 255, out=frame), out=frame).astype(np.uint8)


def each_frame(clip: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`change` of each frame, (H, W, 3) uint8 -> the same shape, uint8 or float of 0 to 255.

    Frame by frame: floats of a whole clip would not fit the processor's cache.
    """
    out = np.empty_like(clip)
    for t, frame in enumerate(clip):
        changed = change(frame)
        out[t] = changed if changed.dtype == np.uint8 else to_uint8(changed)
    return out

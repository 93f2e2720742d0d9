"""Helpers that all corruptions share: input checks, severities, scaling with the frame.

Clips are (T, H, W, 3) uint8; an image is a clip with T = 1. Papers give lengths in pixels for
frames of 224 pixels. These lengths are multiplied by (shorter side / 224), so that frames of 32 and
of 256 pixels lose the same fraction of the picture.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Corruption = Callable[..., np.ndarray]  # (clip, severity, rng) -> clip; some also take fps
Entry = TypeVar("Entry")


def level(clip: np.ndarray, severity: int, table: Sequence[Entry]) -> Entry:
    """Check the clip, then return the table entry for a severity.

    Args:
        clip: the input of the corruption.
        severity: 1 to len(table), which is 5 for all published tables.
        table: parameters of the corruption, from the mildest to the strongest.

    Returns:
        The entry of the table.

    Raises:
        ValueError: the clip is not (T, H, W, 3) uint8, or the severity is out of range.
    """
    require_clip(clip)
    return pick(severity, table)


def pick(severity: int, table: Sequence[Entry]) -> Entry:
    """Return the table entry for a severity of 1 to 5; raise ValueError for any other severity."""
    # True equals 1 in Python, but a flag passed as a severity is a mistake of the caller.
    if isinstance(severity, bool) or severity not in range(1, len(table) + 1):
        raise ValueError(f"severity={severity!r}: must be a whole number from 1 to {len(table)}")
    return table[int(severity) - 1]


def require_clip(clip: np.ndarray) -> None:
    """Raise ValueError unless the clip is (T, H, W, 3) uint8 with at least one frame and pixel."""
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8:
        kind = clip.dtype if isinstance(clip, np.ndarray) else type(clip).__name__
        raise ValueError(f"clip of type {kind}: must be a numpy array of uint8, 0 to 255")
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise ValueError(
            f"clip of shape {clip.shape}: must be (T, H, W, 3), RGB; an image is T = 1"
        )


def scale(clip: np.ndarray) -> float:
    """Return how many pixels of this clip correspond to one pixel of a 224-pixel frame."""
    return min(clip.shape[1:3]) / 224


def pixels(clip: np.ndarray, length: float, severity: int) -> float:
    """Convert a blur length that is given for 224-pixel frames to pixels of this clip.

    The result is at least 0.5 + severity / 10, which is close to the values of CIFAR-10-C for 32
    pixels. A smaller blur would leave small frames unchanged.

    Args:
        clip: (T, H, W, 3).
        length: pixels of a 224-pixel frame.
        severity: 1 to 5.

    Returns:
        The length in pixels of this clip.
    """
    return max(length * scale(clip), 0.5 + severity / 10)


def to_planes(frame: np.ndarray) -> Tensor:
    """Convert a frame (H, W, 3) uint8 to float32 planes (3, H, W) in 0 to 255."""
    # torch rejects arrays with negative strides, and warns about read-only memory
    return (
        torch.from_numpy(np.require(frame, requirements=("C", "W")))
        .permute(2, 0, 1)
        .float()
        .contiguous()
    )


def from_planes(planes: Tensor) -> np.ndarray:
    """Convert planes (3, H, W) back to a frame (H, W, 3), without rounding to uint8."""
    return planes.permute(1, 2, 0).contiguous().numpy()


def to_uint8(frame: np.ndarray) -> np.ndarray:
    """Clip float values to 0 to 255 and round them to uint8; overwrites `frame`."""
    return np.rint(np.clip(frame, 0, 255, out=frame), out=frame).astype(np.uint8)


def each_frame(clip: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a function to every frame, and return the new clip.

    Args:
        clip: (T, H, W, 3) uint8; it is not changed.
        change: frame (H, W, 3) uint8 -> the same shape, uint8 or float in 0 to 255.

    Returns:
        A new clip (T, H, W, 3) uint8.
    """
    # Frame by frame, because the floats of a whole clip would not fit the processor's cache.
    out = np.empty_like(clip)
    for t, frame in enumerate(clip):
        changed = change(frame)
        out[t] = changed if changed.dtype == np.uint8 else to_uint8(changed)
    return out

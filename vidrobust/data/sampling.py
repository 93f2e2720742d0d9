"""Clip samplers: pure functions on integers.

A sampler gets the number of frames of a video and a ClipSpec and returns the indices of the frames that
each clip takes, an int64 array (clips, T) in units of source frames. Nothing here opens a file.

    frames=4, stride=3:   |x . . x . . x . . x|       the span of a clip: (frames - 1) * stride + 1 = 10
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Policy = Literal["repeat_last", "loop", "error"]


@dataclass(frozen=True)
class ClipSpec:
    """What clips to take: T `frames`, `stride` source frames apart, `clips` of them from one video.

    policy: what a video shorter than the span of a clip does. Raises ValueError for a count below 1.
    """

    frames: int = 16
    stride: int = 2
    clips: int = 1
    policy: Policy = "repeat_last"

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.policy not in ("repeat_last", "loop", "error"):
            raise ValueError(f"policy={self.policy!r}: repeat_last, loop or error")

    @property
    def span(self) -> int:
        """Source frames from the first to the last frame of a clip, both included."""
        return (self.frames - 1) * self.stride + 1


def random_clips(num_frames: int, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    """Clips that start anywhere they fit, independently of each other -> (clips, T) int64.

        num_frames=12, frames=3, stride=2, clips=2
        . . x . x . x . . . . .
        . . . . . . . x . x . x

    Raises ValueError when num_frames < 1, or when the video is shorter than a clip and policy is "error".
    """
    starts = rng.integers(0, max(num_frames - spec.span, 0) + 1, size=spec.clips)
    return _frames_from(starts, num_frames, spec)


def uniform_clips(num_frames: int, spec: ClipSpec) -> np.ndarray:
    """Clips at even distances, the first and the last touching both ends -> (clips, T) int64.

        num_frames=12, frames=3, stride=2
        clips=1:  . . . x . x . x . . . .      one clip is the centre
        clips=3:  x . x . x . . . . . . .
                  . . . . x . x . x . . .      (rounded half to even)
                  . . . . . . . x . x . x

    Raises ValueError as `random_clips` does.
    """
    room = max(num_frames - spec.span, 0)
    starts = np.array([room // 2]) if spec.clips == 1 else np.rint(np.linspace(0, room, spec.clips))
    return _frames_from(starts.astype(np.int64), num_frames, spec)


Sampler = Callable[[int, ClipSpec, np.random.Generator], np.ndarray]


def _frames_from(starts: np.ndarray, num_frames: int, spec: ClipSpec) -> np.ndarray:
    """(clips,) first frames -> (clips, T) indices, all of them within the video by the policy.

    A video of 5 frames and a clip of 4 frames at stride 2: repeat_last 0 2 4 4, loop 0 2 4 1.
    """
    if num_frames < 1:
        raise ValueError(f"a video of {num_frames} frames has no clip")
    if spec.policy == "error" and num_frames < spec.span:
        raise ValueError(f"the video has {num_frames} frames, a clip spans {spec.span}")
    indices = starts[:, None].astype(np.int64) + np.arange(spec.frames, dtype=np.int64) * spec.stride
    return indices % num_frames if spec.policy == "loop" else np.minimum(indices, num_frames - 1)

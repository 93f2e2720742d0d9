"""Clip samplers: pure functions from a number of frames to the frame indices of clips.

A sampler receives the number of frames of a video and a ClipSpec. It returns the indices of the
frames of each clip, an int64 array (clips, T) in units of source frames. Nothing here opens a file.

    frames=4, stride=3:   |x . . x . . x . . x|   span: (frames - 1) * stride + 1 = 10
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

ASSUMED_FPS = 25  # frames per second of folders of frames and arrays, which do not say it
Policy = Literal["repeat_last", "loop", "error"]


@dataclass(frozen=True)
class ClipSpec:
    """Number and shape of the clips that are taken from one video.

    Raises ValueError for a count that is not a whole number or is below 1, and for an unknown
    policy.

    Attributes:
        frames: number of frames of a clip, T.
        stride: source frames from one frame of a clip to the next.
        clips: number of clips.
        policy: what happens if the video is shorter than the span of a clip: "repeat_last" repeats
            its last frame, "loop" starts again at its first frame, "error" raises ValueError.
        fps: frames per second to which the video is brought before the clips are taken, by
            repeating or leaving out frames; 0: the video as it is.
    """

    frames: int = 16
    stride: int = 2
    clips: int = 1
    policy: Policy = "repeat_last"
    fps: float = 0.0

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "clips"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name}={value!r}: must be a whole number")
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if self.policy not in ("repeat_last", "loop", "error"):
            raise ValueError(f"policy={self.policy!r}: must be repeat_last, loop or error")

    @property
    def span(self) -> int:
        """Return the number of source frames from the first to the last frame, inclusive."""
        return (self.frames - 1) * self.stride + 1


def random_clips(num_frames: int, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    """Return clips that start anywhere they fit, independently of each other.

        num_frames=12, frames=3, stride=2, clips=2
        . . x . x . x . . . . .
        . . . . . . . x . x . x

    Args:
        num_frames: number of frames of the video, at least 1.
        spec: the clips.
        rng: source of randomness.

    Returns:
        (clips, T) int64 frame indices.

    Raises:
        ValueError: num_frames < 1, or the video is too short and policy is "error".
    """
    starts = rng.integers(0, max(num_frames - spec.span, 0) + 1, size=spec.clips)
    return _frames_from(starts, num_frames, spec)


def uniform_clips(num_frames: int, spec: ClipSpec) -> np.ndarray:
    """Return clips at even distances, the first and the last one at the ends of the video.

        num_frames=12, frames=3, stride=2
        clips=1:  . . . x . x . x . . . .      one clip is in the centre
        clips=3:  x . x . x . . . . . . .
                  . . . . x . x . x . . .      (rounded half to even)
                  . . . . . . . x . x . x

    Args:
        num_frames: number of frames of the video, at least 1.
        spec: the clips.

    Returns:
        (clips, T) int64 frame indices.

    Raises:
        ValueError: num_frames < 1, or the video is too short and policy is "error".
    """
    # Number of possible starts, less one; a short video starts at its first frame.
    room = max(num_frames - spec.span, 0)
    if spec.clips == 1:
        return _frames_from(np.array([room // 2]), num_frames, spec)
    # Integers only: in floating point some halves are inexact, as for 15 clips in a room of 29.
    starts, rest = np.divmod(room * np.arange(spec.clips, dtype=np.int64), spec.clips - 1)
    # Round half to even: up if the rest is above a half, or is a half and the start is odd.
    starts += (2 * rest > spec.clips - 1) | ((2 * rest == spec.clips - 1) & (starts % 2 == 1))
    return _frames_from(starts, num_frames, spec)


def segment_clips(
    num_frames: int, spec: ClipSpec, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Return clips of one frame from each of T equal segments of the video (TSN, Wang et al. 2016).

    With rng, each clip takes a random frame of each segment; without, the middle one. `stride` has
    no meaning here. `policy` decides what happens if there are fewer frames than segments.

        num_frames=12, frames=3   segments |. . . .|. . . .|. . . .|
        without rng                         . . x . . . x . . . x .
        with rng, for example               x . . . . . x . . . . x

    Args:
        num_frames: number of frames of the video, at least 1.
        spec: the clips.
        rng: source of randomness; None: the middle frames.

    Returns:
        (clips, T) int64 frame indices.

    Raises:
        ValueError: num_frames < 1, or the video is too short and policy is "error".
    """
    _check(num_frames, spec.frames, spec)
    if num_frames < spec.frames:
        return _wrapped(np.tile(np.arange(spec.frames), (spec.clips, 1)), num_frames, spec)
    # Integers only: a rounded quotient would move an edge, as for 122 frames in 14 segments.
    edges = num_frames * np.arange(spec.frames + 1, dtype=np.int64) // spec.frames
    if rng is None:
        return np.tile((edges[:-1] + edges[1:]) // 2, (spec.clips, 1))
    return rng.integers(edges[:-1], edges[1:], size=(spec.clips, spec.frames))


def dense_clips(
    num_frames: int, spec: ClipSpec, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Return clips back to back; their block starts anywhere it fits, or without rng in the middle.

        num_frames=12, frames=2, stride=2, clips=3     (a clip spans 3 frames)
        . x . x . . . . . . . .
        . . . . x . x . . . . .
        . . . . . . . x . x . .

    If the video is too short for the block, the clips overlap evenly, as in `uniform_clips`.

    Args:
        num_frames: number of frames of the video, at least 1.
        spec: the clips.
        rng: source of randomness; None: the block is in the middle.

    Returns:
        (clips, T) int64 frame indices.

    Raises:
        ValueError: num_frames < 1, or the video is too short and policy is "error".
    """
    room = num_frames - spec.clips * spec.span
    # The block does not fit.
    if room < 0:
        return uniform_clips(num_frames, spec)
    first = room // 2 if rng is None else int(rng.integers(0, room + 1))
    return _frames_from(first + spec.span * np.arange(spec.clips), num_frames, spec)


def interval_pairs(
    num_frames: int,
    spec: ClipSpec,
    rng: np.random.Generator,
    density: Literal["uniform", "decreasing"] = "decreasing",
) -> np.ndarray:
    """Return two clips of a video; the interval between their starts is sampled first.

    This follows CVRL (Qian et al. 2021). Let room be the last possible start. The interval t is in
    0..room, with a density that is uniform, or decreases linearly in proportion to room + 1 - t.
    Then the earlier clip starts at a random place in 0..room - t, and the two clips come in random
    order.

        num_frames=12, frames=3, stride=2   (room 7), t = 5 sampled, then the start from 0..2
        . x . x . x . . . . . .
        . . . . . . x . x . x .

    Two independent starts (`random_clips`) have an interval whose density decreases in the same
    way, except that t = 0 is half as likely.

    Args:
        num_frames: number of frames of the video, at least 1.
        spec: the clips, two of them.
        rng: source of randomness.
        density: "uniform" or "decreasing".

    Returns:
        (2, T) int64 frame indices.

    Raises:
        ValueError: num_frames < 1, or the video is too short and policy is "error"; or spec.clips
            is not 2.
    """
    if spec.clips != 2:
        raise ValueError(f"interval pairs are two clips of a video, not {spec.clips}")
    room = max(num_frames - spec.span, 0)
    # Unnormalised probability of each interval.
    weight = np.ones(room + 1) if density == "uniform" else np.arange(room + 1, 0, -1.0)
    interval = int(rng.choice(room + 1, p=weight / weight.sum()))
    first = int(rng.integers(0, room - interval + 1))
    starts = np.array([first, first + interval])
    return _frames_from(rng.permutation(starts), num_frames, spec)


# (num_frames, spec, rng) -> frame indices (clips, T)
Sampler = Callable[[int, ClipSpec, np.random.Generator], np.ndarray]


def sampled(
    sampler: Sampler, num_frames: int, fps: float, spec: ClipSpec, rng: np.random.Generator
) -> np.ndarray:
    """Return the clips of a video at `spec.fps`, or at its own rate.

    Frame i of the resampled video is source frame floor(i fps / spec.fps), as in torchvision's
    VideoClips.

        num_frames=12 at 25 frames/s, spec.fps=15: 0 1 3 5 6 8 10 11 are the frames to choose from

    Args:
        sampler: chooses the clips.
        num_frames: number of frames of the video, at least 1.
        fps: its frames per second; 0: unknown, and ASSUMED_FPS is taken.
        spec: the clips.
        rng: source of randomness.

    Returns:
        (clips, T) int64 frame indices of the source.

    Raises:
        ValueError: as the sampler.
    """
    if not spec.fps or num_frames == 1:
        return sampler(num_frames, spec, rng)
    step = (fps if fps > 0 else ASSUMED_FPS) / spec.fps
    # rounded first: 30 / 10 frames/s may be computed as 2.9999999999999996
    source = np.floor(np.round(np.arange(math.ceil(num_frames / step)) * step, 6)).astype(np.int64)
    return source[sampler(len(source), spec, rng)]


def _without_rng(
    sampler: Callable[[int, ClipSpec], np.ndarray],
    num_frames: int,
    spec: ClipSpec,
    rng: np.random.Generator,
) -> np.ndarray:
    """Call a sampler that uses no random numbers, with the signature of one that does."""
    return sampler(num_frames, spec)


# Samplers of training clips, by the values of data.sampling, and of evaluation clips, by those of
# eval.sampling.
TRAIN_SAMPLERS: dict[str, Sampler] = {
    "random": random_clips,
    "segment": segment_clips,
    "dense": dense_clips,
    "interval_uniform": functools.partial(interval_pairs, density="uniform"),
    "interval_decreasing": functools.partial(interval_pairs, density="decreasing"),
}
EVAL_SAMPLERS: dict[str, Sampler] = {
    name: functools.partial(_without_rng, sampler)
    for name, sampler in (
        ("uniform", uniform_clips),
        ("segment", segment_clips),
        ("dense", dense_clips),
    )
}


def _frames_from(starts: np.ndarray, num_frames: int, spec: ClipSpec) -> np.ndarray:
    """Return the indices (clips, T) of clips from their first frames, inside the video.

    A video of 5 frames and a clip of 4 frames at stride 2: repeat_last 0 2 4 4, loop 0 2 4 1.

    Args:
        starts: (clips,) first frame of each clip.
        num_frames: number of frames of the video.
        spec: the clips.
    """
    _check(num_frames, spec.span, spec)
    indices = (
        starts[:, None].astype(np.int64) + np.arange(spec.frames, dtype=np.int64) * spec.stride
    )
    return _wrapped(indices, num_frames, spec)


def _check(num_frames: int, needed: int, spec: ClipSpec) -> None:
    """Raise ValueError if the video has no frame, or fewer than needed and policy is "error"."""
    if num_frames < 1:
        raise ValueError(f"a video of {num_frames} frames has no clip")
    if spec.policy == "error" and num_frames < needed:
        raise ValueError(f"the video has {num_frames} frames, a clip spans {needed}")


def _wrapped(indices: np.ndarray, num_frames: int, spec: ClipSpec) -> np.ndarray:
    """Return indices moved inside the video: modulo its length, or down to its last frame."""
    return indices % num_frames if spec.policy == "loop" else np.minimum(indices, num_frames - 1)

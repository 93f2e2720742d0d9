"""Clip samplers: pure functions on integers.

A sampler gets the number of frames of a video and a ClipSpec and returns the indices of the frames
that each clip takes, an int64 array (clips, T) in units of source frames. Nothing here opens a
file.

    frames=4, stride=3:   |x . . x . . x . . x|   span: (frames - 1) * stride + 1 = 10
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Policy = Literal["repeat_last", "loop", "error"]


@dataclass(frozen=True)
class ClipSpec:
    """What clips to take: T `frames`, `stride` source frames apart, `clips` of them from one video.

    policy: what a video shorter than the span of a clip does. Raises ValueError for a count that
    is no whole number, or below 1.
    """

    frames: int = 16
    stride: int = 2
    clips: int = 1
    policy: Policy = "repeat_last"

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "clips"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name}={value!r}: must be a whole number")
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
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

    Raises ValueError when num_frames < 1, or when the video is shorter than a clip and policy is
    "error".
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
    if spec.clips == 1:
        return _frames_from(np.array([room // 2]), num_frames, spec)
    # whole numbers throughout: as floats some halves are none, as those of 15 clips in a room of 29
    starts, rest = np.divmod(room * np.arange(spec.clips, dtype=np.int64), spec.clips - 1)
    starts += (2 * rest > spec.clips - 1) | ((2 * rest == spec.clips - 1) & (starts % 2 == 1))
    return _frames_from(starts, num_frames, spec)


def segment_clips(
    num_frames: int, spec: ClipSpec, rng: np.random.Generator | None = None
) -> np.ndarray:
    """One frame of each of T equal segments of the video (TSN, Wang et al. 2016) -> (clips, T)
    int64.

    A random frame of each segment, drawn anew for each clip, or without rng the middle one.
    `stride` has no meaning here; `policy` says what happens when there are fewer frames than
    segments.

        num_frames=12, frames=3   segments |. . . .|. . . .|. . . .|
        without rng                         . . x . . . x . . . x .
        with rng, for example               x . . . . . x . . . . x

    Raises ValueError when num_frames < 1, or when num_frames < T and policy is "error".
    """
    _check(num_frames, spec.frames, spec)
    if num_frames < spec.frames:
        return _wrapped(np.tile(np.arange(spec.frames), (spec.clips, 1)), num_frames, spec)
    # whole numbers throughout: a rounded quotient moves an edge, as of 122 frames in 14 segments
    edges = num_frames * np.arange(spec.frames + 1, dtype=np.int64) // spec.frames
    if rng is None:
        return np.tile((edges[:-1] + edges[1:]) // 2, (spec.clips, 1))
    return rng.integers(edges[:-1], edges[1:], size=(spec.clips, spec.frames))


def dense_clips(
    num_frames: int, spec: ClipSpec, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Clips back to back, the block of them anywhere it fits, or without rng in the middle ->
    (clips, T) int64.

        num_frames=12, frames=2, stride=2, clips=3     (a clip spans 3 frames)
        . x . x . . . . . . . .
        . . . . x . x . . . . .
        . . . . . . . x . x . .

    A video too short for the block has them overlap evenly, as `uniform_clips`. Raises ValueError
    as it does.
    """
    room = num_frames - spec.clips * spec.span
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
    """Two clips of one video; the interval between their starts is drawn first (CVRL, Qian et al.
    2021) -> (2, T).

    The interval t has a density that is uniform over 0..room or falls linearly, proportional to
    room + 1 - t, where room is the last start; then the earlier clip starts anywhere that leaves t
    behind it, and the two come in random order.

        num_frames=12, frames=3, stride=2   (room 7), t = 5 drawn, then the start from 0..2
        . x . x . x . . . . . .
        . . . . . . x . x . x .

    Two independent starts (`random_clips`) have an interval that falls in the same way, but for t =
    0, which is half as likely. Raises ValueError as `random_clips` does, and when spec.clips is not
    2.
    """
    if spec.clips != 2:
        raise ValueError(f"interval pairs are two clips of a video, not {spec.clips}")
    room = max(num_frames - spec.span, 0)
    weight = np.ones(room + 1) if density == "uniform" else np.arange(room + 1, 0, -1.0)
    interval = int(rng.choice(room + 1, p=weight / weight.sum()))
    first = int(rng.integers(0, room - interval + 1))
    starts = np.array([first, first + interval])
    return _frames_from(rng.permutation(starts), num_frames, spec)


Sampler = Callable[[int, ClipSpec, np.random.Generator], np.ndarray]


def _nothing_drawn(
    sampler: Callable[[int, ClipSpec], np.ndarray],
    num_frames: int,
    spec: ClipSpec,
    rng: np.random.Generator,
) -> np.ndarray:
    return sampler(num_frames, spec)


# samplers of training clips and of evaluation clips, by the names of data.sampling and
# eval.sampling
TRAIN_SAMPLERS: dict[str, Sampler] = {
    "random": random_clips,
    "segment": segment_clips,
    "dense": dense_clips,
    "interval_uniform": functools.partial(interval_pairs, density="uniform"),
    "interval_decreasing": functools.partial(interval_pairs, density="decreasing"),
}
EVAL_SAMPLERS: dict[str, Sampler] = {
    name: functools.partial(_nothing_drawn, sampler)
    for name, sampler in (
        ("uniform", uniform_clips),
        ("segment", segment_clips),
        ("dense", dense_clips),
    )
}


def _frames_from(starts: np.ndarray, num_frames: int, spec: ClipSpec) -> np.ndarray:
    """(clips,) first frames -> (clips, T) indices, all of them within the video by the policy.

    A video of 5 frames and a clip of 4 frames at stride 2: repeat_last 0 2 4 4, loop 0 2 4 1.
    """
    _check(num_frames, spec.span, spec)
    indices = (
        starts[:, None].astype(np.int64) + np.arange(spec.frames, dtype=np.int64) * spec.stride
    )
    return _wrapped(indices, num_frames, spec)


def _check(num_frames: int, needed: int, spec: ClipSpec) -> None:
    if num_frames < 1:
        raise ValueError(f"a video of {num_frames} frames has no clip")
    if spec.policy == "error" and num_frames < needed:
        raise ValueError(f"the video has {num_frames} frames, a clip spans {needed}")


def _wrapped(indices: np.ndarray, num_frames: int, spec: ClipSpec) -> np.ndarray:
    return indices % num_frames if spec.policy == "loop" else np.minimum(indices, num_frames - 1)

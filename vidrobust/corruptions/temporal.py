"""Corruptions in time: frames held, lost, reordered or mixed; a shaking camera.

Most of these corruptions only choose frames. Such a choice is an index map: for a video of n
frames, it gives the frame that is shown in place of each. An evaluation can therefore apply the map
to a whole video, and decode only the frames that a clip then shows. Index maps leave a video of one
frame unchanged.

Tables: Mini-Kinetics-C (Yi et al. 2021) and UCF101-P (Schiappa et al. 2023); the table of
`frame_drop` is this package's own.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vidrobust.corruptions.clip import each_frame, level, pick, require_clip, scale, to_uint8

# (frames, severity, rng) -> (frames,) int64; the map of frame_rate also takes fps
IndexMap = Callable[..., np.ndarray]


# ------------------------------------------------------------------ index maps


def frame_rate(
    frames: int,
    severity: int,
    rng: np.random.Generator,
    fps: float = 25.0,
    rates: Sequence[float] = (20, 16, 12, 9, 6),
) -> np.ndarray:
    """Return the index map of a lower frame rate: each frame is held until the next one.

    Args:
        frames: number of frames of the video.
        severity: 1 to 5: index into `rates`.
        rng: unused.
        fps: frames per second of the video; where this is not above the rate, nothing changes.
        rates: frames per second at each severity.
    """
    rate = pick(severity, rates)
    index = np.arange(frames)
    if not 0 < rate < fps:
        return index
    # Number of the low-rate picture that is on the screen at the time of each frame. The small
    # constants keep exact ratios from being rounded to the wrong side.
    picture = np.floor(index * (rate / fps) + 1e-9)
    return np.minimum(np.ceil(picture * (fps / rate) - 1e-9).astype(np.int64), index)


def sampling(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the index map of fast motion: every n-th frame, repeated from the start at the end.

    Args:
        frames: number of frames of the video.
        severity: 1 to 5: every 2nd, 4th, 8th, 16th or 32nd frame.
        rng: unused.
    """
    stride = pick(severity, (2, 4, 8, 16, 32))
    return np.resize(np.arange(0, frames, stride), frames)


def reverse_sampling(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the index map of `sampling` from the last of its frames to the first.

    Args:
        frames: number of frames of the video.
        severity: 1 to 5: every 2nd, 4th, 8th, 16th or 32nd frame.
        rng: unused.
    """
    stride = pick(severity, (2, 4, 8, 16, 32))
    return np.resize(np.arange(0, frames, stride)[::-1], frames)


def jumble(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return an index map that shuffles frames within segments.

    As published, frames move less far at higher severities.

    Args:
        frames: number of frames of the video.
        severity: 1 to 5: segments of 32, 16, 8, 4 or 2 frames.
        rng: samples the order of each segment.
    """
    length = pick(severity, (32, 16, 8, 4, 2))
    return np.concatenate([rng.permutation(segment) for segment in _segments(frames, length)])


def box_jumble(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return an index map that shuffles segments, and keeps the order of frames within each.

    As published, a video that is not longer than a segment stays unchanged.

    Args:
        frames: number of frames of the video.
        severity: 1 to 5: segments of 4, 9, 16, 25 or 36 frames.
        rng: samples the order of the segments.
    """
    length = pick(severity, (4, 9, 16, 25, 36))
    segments = _segments(frames, length)
    return np.concatenate([segments[i] for i in rng.permutation(len(segments))])


def freeze(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return an index map that keeps a few random frames, each shown until the next.

    Args:
        frames: number of frames of the video.
        severity: 1 to 5: 40, 20, 10 or 5 % of the frames (at least 1, 1, 1 and 2), or one frame.
        rng: samples the frames that are kept.
    """
    fraction, least = pick(severity, ((0.4, 1), (0.2, 1), (0.1, 1), (0.05, 2), (0, 1)))
    count = min(max(int(fraction * frames), least), frames)
    kept = np.sort(rng.choice(frames, count, replace=False))
    last = np.searchsorted(kept, np.arange(frames), side="right") - 1
    # Frames before the first kept frame show the first kept frame.
    return kept[np.maximum(last, 0)]


def frame_drop(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return an index map of lost frames: the last frame that arrived is shown in their place.

    The first frame always arrives. The table is this package's own.

    Args:
        frames: number of frames of the video.
        severity: 1 to 5: a frame is lost with probability 0.1, 0.2, 0.35, 0.5 or 0.7.
        rng: samples the lost frames.
    """
    probability = pick(severity, (0.1, 0.2, 0.35, 0.5, 0.7))
    arrived = rng.random(frames) >= probability
    return np.maximum.accumulate(np.where(arrived, np.arange(frames), 0))


def mapped(choose: IndexMap) -> Callable[..., np.ndarray]:
    """Return the corruption that applies an index map to all frames of a clip."""

    def corruption(
        clip: np.ndarray, severity: int, rng: np.random.Generator, **options: float
    ) -> np.ndarray:
        """Return the frames of a clip (T, H, W, 3) that the index map chooses.

        Args:
            clip: (T, H, W, 3) uint8.
            severity: 1 to 5.
            rng: passed to the index map.
            options: further options of the index map, such as fps.
        """
        require_clip(clip)
        return clip[choose(len(clip), severity, rng, **options)]

    return corruption


# ------------------------------------------------------------------ blur and camera motion


def temporal_blur(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    frames: Sequence[int] = (3, 5, 7, 9, 11),
) -> np.ndarray:
    """Return the mean of 2 K frames around each frame: the motion blur of Mini-Kinetics-C.

    At both ends of the clip, the mean is over fewer frames. Pass consecutive frames: the blur of a
    video also includes the frames that a clip skips.

    Args:
        clip: (T, H, W, 3) uint8, consecutive frames.
        severity: 1 to 5: index into `frames`.
        rng: unused.
        frames: K at each severity.
    """
    reach = level(clip, severity, frames)
    # Differences of running sums give every mean at the same cost, whatever K is.
    sums = np.cumsum(clip, 0, dtype=np.uint32)
    out = np.empty_like(clip)
    for t in range(len(clip)):
        first = max(t - reach, 0)
        end = min(t + reach, len(clip))
        total = sums[end - 1] - (sums[first - 1] if first else 0)
        out[t] = to_uint8(total.astype(np.float32) / (end - first))
    return out


def static_translate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with the picture shifted; uncovered pixels are black.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: up to 8, 16, 24, 32 or 40 pixels along each axis.
        rng: samples the shift, once per video.
    """
    dy, dx = _offset(clip, severity, rng)
    return each_frame(clip, lambda frame: _shifted(frame, dy, dx))


def translate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip as seen by a shaking camera: `static_translate` with one shift per frame.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: up to 8, 16, 24, 32 or 40 pixels along each axis.
        rng: samples the shift of every frame.
    """
    require_clip(clip)
    return each_frame(clip, lambda frame: _shifted(frame, *_offset(clip, severity, rng)))


def static_rotate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip rotated; uncovered corners are black.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: by 7.5, 15, 30, 45 or 90 degrees.
        rng: unused.
    """
    degrees = level(clip, severity, (7.5, 15, 30, 45, 90))
    return each_frame(clip, lambda frame: _rotated(frame, degrees))


def rotate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with each frame rotated by a random whole number of degrees.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: up to 7, 13, 19, 25 or 31 degrees in either direction.
        rng: samples the angle of every frame.
    """
    most = level(clip, severity, (7, 13, 19, 25, 31))
    return each_frame(clip, lambda frame: _rotated(frame, float(rng.integers(-most, most + 1))))


def _segments(frames: int, length: int) -> list[np.ndarray]:
    """Return the indices of consecutive segments; the last one may be shorter."""
    return [np.arange(start, min(start + length, frames)) for start in range(0, frames, length)]


def _offset(clip: np.ndarray, severity: int, rng: np.random.Generator) -> tuple[int, int]:
    """Sample a shift (down, right) in pixels."""
    most = max(1, round(level(clip, severity, (8, 16, 24, 32, 40)) * scale(clip)))
    dy, dx = rng.integers(-most, most + 1, 2)
    return int(dy), int(dx)


def _shifted(frame: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Shift a frame by (down, right) pixels over black."""
    out = np.zeros_like(frame)
    height, width = frame.shape[:2]
    out[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = frame[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out


def _rotated(frame: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate a frame counter-clockwise about its centre; corners are black."""
    return np.asarray(Image.fromarray(frame).rotate(degrees, Image.Resampling.BILINEAR))

"""Corruptions in time: frames held, lost, reordered or mixed; a shaking camera.

Most are a choice of frames: INDEX_MAPS name, for a video of n frames, which frame is shown in whose
place, so that an evaluation can apply them to a whole video and decode only what a clip shows of
it. Of one frame all of them leave it as it is. Tables: Mini-Kinetics-C (Yi et al. 2021), UCF101-P
(Schiappa et al. 2023); `frame_drop` is ours.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vidrobust.corruptions.clip import each_frame, level, pick, require_clip, scale, to_uint8

IndexMap = Callable[
    ..., np.ndarray
]  # (frames, severity, rng) -> (frames,) int64; frame_rate's also take fps


def frame_rate(
    frames: int,
    severity: int,
    rng: np.random.Generator,
    fps: float = 25.0,
    rates: Sequence[float] = (20, 16, 12, 9, 6),
) -> np.ndarray:
    """20 to 6 frames a second, each held until the next. fps: of the video; where it has fewer
    nothing happens.
    """
    rate = pick(severity, rates)
    at = np.arange(frames)
    if not 0 < rate < fps:
        return at
    shown = np.floor(
        at * (rate / fps) + 1e-9
    )  # the picture on the screen while frame `at` would be
    return np.minimum(np.ceil(shown * (fps / rate) - 1e-9).astype(np.int64), at)


def sampling(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Every 2nd to 32nd frame, one after the other, from the start again at the end: fast
    motion.
    """
    stride = pick(severity, (2, 4, 8, 16, 32))
    return np.resize(np.arange(0, frames, stride), frames)


def reverse_sampling(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As `sampling`, from the last of those frames to the first."""
    stride = pick(severity, (2, 4, 8, 16, 32))
    return np.resize(np.arange(0, frames, stride)[::-1], frames)


def jumble(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Frames shuffled within segments of 32 to 2. As published: at higher severities frames move
    less far.
    """
    length = pick(severity, (32, 16, 8, 4, 2))
    return np.concatenate([rng.permutation(segment) for segment in _segments(frames, length)])


def box_jumble(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Segments of 4 to 36 frames shuffled, each in its own order. As published: shorter videos have
    but one segment.
    """
    length = pick(severity, (4, 9, 16, 25, 36))
    segments = _segments(frames, length)
    return np.concatenate([segments[i] for i in rng.permutation(len(segments))])


def freeze(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """40, 20, 10, 5 % of the frames (two at least) or one are kept, each shown until the next."""
    share, least = pick(severity, ((0.4, 1), (0.2, 1), (0.1, 1), (0.05, 2), (0, 1)))
    kept = np.sort(rng.choice(frames, min(max(int(share * frames), least), frames), replace=False))
    last = np.searchsorted(kept, np.arange(frames), side="right") - 1
    return kept[np.maximum(last, 0)]  # before the first that is kept, that one


def frame_drop(frames: int, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Each frame but the first is lost with a chance of .1, .2, .35, .5, .7; the last that came
    stays. Ours.
    """
    chance = pick(severity, (0.1, 0.2, 0.35, 0.5, 0.7))
    came = rng.random(frames) >= chance
    return np.maximum.accumulate(np.where(came, np.arange(frames), 0))


INDEX_MAPS: dict[str, IndexMap] = {
    "frame_rate": frame_rate,
    "sampling": sampling,
    "reverse_sampling": reverse_sampling,
    "jumble": jumble,
    "box_jumble": box_jumble,
    "freeze": freeze,
    "frame_drop": frame_drop,
}


def temporal_blur(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    frames: Sequence[int] = (3, 5, 7, 9, 11),
) -> np.ndarray:
    """The mean of 2 K frames around each, K = 3 to 11, fewer at the ends: Mini-Kinetics-C's motion
    blur.

    Nothing is drawn. On consecutive frames: those that a clip skips count.
    """
    reach = level(clip, severity, frames)
    sums = np.cumsum(clip, 0, dtype=np.uint32)
    out = np.empty_like(clip)
    for t in range(len(clip)):
        first, end = max(t - reach, 0), min(t + reach, len(clip))
        total = sums[end - 1] - (sums[first - 1] if first else 0)
        out[t] = to_uint8(total.astype(np.float32) / (end - first))
    return out


def static_translate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The picture moved by up to 8 to 40 pixels in each direction; black comes after. One draw a
    video.
    """
    dy, dx = _offset(clip, severity, rng)
    return each_frame(clip, lambda frame: _shifted(frame, dy, dx))


def translate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As `static_translate`, a draw a frame: a camera that shakes."""
    require_clip(clip)
    return each_frame(clip, lambda frame: _shifted(frame, *_offset(clip, severity, rng)))


def static_rotate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The picture turned by 7.5 to 90 degrees; black comes into the corners. Nothing is drawn."""
    degrees = level(clip, severity, (7.5, 15, 30, 45, 90))
    return each_frame(clip, lambda frame: _turned(frame, degrees))


def rotate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Turned by a whole number of degrees within 7, 13, 19, 25, 31 either way, a draw a frame."""
    most = level(clip, severity, (7, 13, 19, 25, 31))
    return each_frame(clip, lambda frame: _turned(frame, float(rng.integers(-most, most + 1))))


def mapped(choose: IndexMap) -> Callable[..., np.ndarray]:
    """The corruption of clips, all of whose frames are there, by an index map."""

    def corruption(
        clip: np.ndarray, severity: int, rng: np.random.Generator, **options: float
    ) -> np.ndarray:
        require_clip(clip)
        return clip[choose(len(clip), severity, rng, **options)]

    return corruption


def _segments(frames: int, length: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + length, frames)) for start in range(0, frames, length)]


def _offset(clip: np.ndarray, severity: int, rng: np.random.Generator) -> tuple[int, int]:
    most = max(1, round(level(clip, severity, (8, 16, 24, 32, 40)) * scale(clip)))
    dy, dx = rng.integers(-most, most + 1, 2)
    return int(dy), int(dx)


def _shifted(frame: np.ndarray, dy: int, dx: int) -> np.ndarray:
    out = np.zeros_like(frame)
    height, width = frame.shape[:2]
    out[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = frame[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out


def _turned(frame: np.ndarray, degrees: float) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).rotate(degrees, Image.Resampling.BILINEAR))

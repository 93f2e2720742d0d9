"""Time corruptions in frames per second, compared with the published formulas."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vidrobust.corruptions import SEVERITIES, corrupt


@dataclass
class Rate:
    """Frames a second of a corruption, over all severities: of ours in each round, and of the
    published one, if any.
    """

    name: str
    size: int
    ours: list[float] = field(default_factory=list)
    published: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is, by medians."""
        return (
            statistics.median(self.ours) / statistics.median(self.published)
            if self.published
            else None
        )


def published() -> tuple[dict[str, Callable[..., np.ndarray]], str]:
    """(the published functions, "") or ({}, what to install)."""
    try:
        from vidrobust.benchmarks.reference.imagenet_c import PUBLISHED
    except ImportError as error:
        return {}, f"{error.name} is missing: pip install scipy scikit-image opencv-python-headless"
    return dict(PUBLISHED), ""


def measure_rates(
    clip: np.ndarray, names: Sequence[str], rounds: int, *, slow_s: float = 0.05
) -> list[Rate]:
    """Time each corruption of a clip (T, H, W, 3) at all severities; ours and the published one in
    turn.

    The published ones take images, one by one; those that need more than slow_s seconds for one get
    two of the clip.
    """
    theirs, _ = published()
    rates = [Rate(name, min(clip.shape[1:3])) for name in names]
    few = {
        name: _seconds(theirs[name], [(clip[0], 1, np.random.RandomState(0))] * 2) > 2 * slow_s
        for name in names
        if name in theirs
    }
    for number in range(rounds + 1):
        for rate in rates:
            draws = [(s, np.random.default_rng(s)) for s in SEVERITIES]
            ours = _seconds(corrupt, [(clip, rate.name, *draw) for draw in draws])
            if number:  # the first round warms up
                rate.ours.append(len(clip) * len(SEVERITIES) / ours)
            if rate.name in theirs:
                frames = clip[:2] if few[rate.name] else clip
                jobs = [
                    (frame, s, np.random.RandomState(s)) for s in SEVERITIES for frame in frames
                ]
                other = _seconds(theirs[rate.name], jobs)
                if number:
                    rate.published.append(len(jobs) / other)
    return rates


def drawn_clip(frames: int, height: int, width: int) -> np.ndarray:
    """(T, H, W, 3) uint8: smooth shapes that drift, and a little noise: encoders find what they
    find in videos.
    """
    y, x, t = np.ogrid[0 : 6 : height * 1j, 0 : 8 : width * 1j, 0 : 2 : frames * 1j]
    waves = [
        np.sin(a * y + b * t) * np.cos(c * x - t)
        for a, b, c in ((1, 2, 1.3), (2.1, 1, 0.7), (3.3, 0.5, 2.9))
    ]
    noise = np.random.default_rng(0).normal(0, 4, (frames, height, width, 3))
    return (
        (127 + 90 * np.stack(waves, -1).transpose(2, 0, 1, 3) + noise).clip(0, 255).astype(np.uint8)
    )


def _seconds(function: Callable[..., np.ndarray], jobs: Sequence[tuple]) -> float:
    """Of one call a job, its result as it would be kept."""
    start = time.perf_counter()
    for job in jobs:
        np.asarray(function(*job), dtype=np.uint8)
    return time.perf_counter() - start

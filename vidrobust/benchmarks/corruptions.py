"""Time corruptions in frames per second, compared with the published formulas."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vidrobust import config
from vidrobust.benchmarks.data import one_core
from vidrobust.benchmarks.timing import spread
from vidrobust.corruptions import SEVERITIES, corrupt
from vidrobust.data import read_frames
from vidrobust.evaluation.natural.corruption import check_corruptions


@dataclass
class Rate:
    """Frames per second of one corruption, over all severities.

    Attributes:
        name: name of the corruption.
        size: shorter side of the frames, pixels.
        ours: rate of our code in each round.
        published: rate of the published formula in each round; empty if there is none.
    """

    name: str
    size: int
    ours: list[float] = field(default_factory=list)
    published: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Median rate of ours divided by that of the published formula; None if there is none."""
        if not self.published:
            return None
        return statistics.median(self.ours) / statistics.median(self.published)


def print_corruptions(
    cfg: config.Config, *, rounds: int, sizes: Sequence[int], video: Path | None
) -> None:
    """Print the rate of each of eval.corruption.names on one core, at several sizes.

    Args:
        cfg: corruptions (none: all), frames per clip, and the decoder.
        rounds: rounds to measure.
        sizes: shorter sides of the frames, pixels.
        video: file whose first frames are corrupted; None: an artificial clip.
    """
    names = check_corruptions(cfg.eval.corruption.names or ["all"])
    _, missing = published()
    if missing:
        print(f"the published formulas are left out: {missing}")
    print(f"{rounds} rounds of {cfg.data.frames} frames at severities 1 to 5, one core")
    print(
        "| corruption | pixels | frames/s (lowest to highest) | published | times as fast"
        " |\n|---|---|---|---|---|"
    )
    for size in sizes:
        if video:
            indices = np.arange(cfg.data.frames)
            clip = read_frames(video, indices, short_side=size, backend=cfg.data.backend)
        else:
            clip = drawn_clip(cfg.data.frames, size, size * 4 // 3)
        # the table has frames per second and core
        with one_core():
            for rate in measure_rates(clip, names, rounds):
                reference = "- | -"
                if rate.ratio:
                    reference = f"{statistics.median(rate.published):.1f} | {rate.ratio:.2f}"
                print(
                    f"| {rate.name:<18} | {size} | {spread(rate.ours, 0)} | {reference} |",
                    flush=True,
                )


def published() -> tuple[dict[str, Callable[..., np.ndarray]], str]:
    """Return the published formulas by name, or what to install for them.

    Returns:
        (formulas, ""), or ({}, message) if a package is missing.
    """
    try:
        from vidrobust.benchmarks.reference.imagenet_c import PUBLISHED
    except ImportError as error:
        return {}, f"{error.name} is missing: pip install scipy scikit-image opencv-python-headless"
    return dict(PUBLISHED), ""


def measure_rates(
    clip: np.ndarray, names: Sequence[str], rounds: int, *, slow_s: float = 0.05
) -> list[Rate]:
    """Time each corruption at all severities, our code and the published formula in turn.

    The published formulas take one image at a time.

    Args:
        clip: frames (T, H, W, 3) uint8.
        names: names of corruptions.
        rounds: rounds to measure, after one to warm up.
        slow_s: a published formula that needs more seconds per image gets only two frames.
    """
    formulas, _ = published()
    rates = [Rate(name, min(clip.shape[1:3])) for name in names]
    # measured on two calls
    is_slow = {
        name: _seconds(formulas[name], [(clip[0], 1, np.random.RandomState(0))] * 2) > 2 * slow_s
        for name in names
        if name in formulas
    }
    for round_ in range(rounds + 1):
        for rate in rates:
            # equal seeds in all rounds, so that every round has the same work
            our_jobs = [(clip, rate.name, s, np.random.default_rng(s)) for s in SEVERITIES]
            our_seconds = _seconds(corrupt, our_jobs)
            if round_:  # round 0 warms up
                rate.ours.append(len(clip) * len(SEVERITIES) / our_seconds)
            if rate.name in formulas:
                frames = clip[:2] if is_slow[rate.name] else clip
                jobs: list[tuple] = []
                for severity in SEVERITIES:
                    jobs += [(frame, severity, np.random.RandomState(severity)) for frame in frames]
                seconds = _seconds(formulas[rate.name], jobs)
                if round_:
                    rate.published.append(len(jobs) / seconds)
    return rates


def drawn_clip(frames: int, height: int, width: int) -> np.ndarray:
    """Return an artificial clip (T, H, W, 3) uint8: smooth drifting shapes with a little noise.

    Video encoders can predict such motion, as they can in real videos.

    Args:
        frames: number of frames T.
        height: height of a frame, pixels.
        width: width of a frame, pixels.
    """
    y, x, t = np.ogrid[0 : 6 : height * 1j, 0 : 8 : width * 1j, 0 : 2 : frames * 1j]
    # one wave per color channel: frequency along y, speed, frequency along x
    waves = [
        np.sin(a * y + b * t) * np.cos(c * x - t)
        for a, b, c in ((1, 2, 1.3), (2.1, 1, 0.7), (3.3, 0.5, 2.9))
    ]
    noise = np.random.default_rng(0).normal(0, 4, (frames, height, width, 3))
    shapes = np.stack(waves, -1).transpose(2, 0, 1, 3)
    return (127 + 90 * shapes + noise).clip(0, 255).astype(np.uint8)


def _seconds(function: Callable[..., np.ndarray], jobs: Sequence[tuple]) -> float:
    """Return the time of one call per job, with its result converted to uint8 for keeping."""
    start = time.perf_counter()
    for job in jobs:
        np.asarray(function(*job), dtype=np.uint8)
    return time.perf_counter() - start

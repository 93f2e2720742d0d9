"""Compare two arms over seeds and test videos at once.

The runs of every seed classify the same videos, so seeds and videos are crossed. The variance of a
mean over both is

    variance of the seeds' values / seeds  +  what another sample of videos would change in all runs

The former contains what each run does by chance on each video. The latter is found by drawing
videos with replacement, the same ones for all runs (Efron 1979), less the part of chance, which
counts once. Drawing seeds as well would count chance three times (Owen 2007, "The pigeonhole
bootstrap"). Both arms get the same draws. Seeds are few, so the interval is by Student's t, with
the degrees of freedom of a sum of two variances (Satterthwaite 1946).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Makes a measure (draws,) of weights (draws, videos) and of numbers (videos, k) of a run.
Reduce = Callable[[np.ndarray, np.ndarray], np.ndarray]

DRAWS = 1000
_POWER, _LEVEL = 0.8, 0.05
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class PairedTest:
    """Hold the difference of a measure between two arms, and how certain it is.

    Attributes:
        values: the difference of each seed.
        mean: their mean.
        videos: number of test videos.
        half: half of the 95 % interval of the mean over seeds and videos; None with one seed.
        p: two-sided p-value of no difference, by Student's t; None with one seed.
        effect: mean by standard deviation over seeds (Cohen's d of pairs); None with one seed, or
            where all seeds have the same difference.
        seeds_needed: seeds with which a difference of this mean would be found with a probability
            of 80 % at the level of 5 %; None with one seed, or where more seeds do not suffice for
            this number of videos.
        spread: standard deviation of `values`; None with one seed.
        of_videos: standard deviation of the mean over samples of videos; None with one seed.
    """

    values: list[float]
    mean: float
    videos: int
    half: float | None = None
    p: float | None = None
    effect: float | None = None
    seeds_needed: int | None = None
    spread: float | None = None
    of_videos: float | None = None


def differences_by_draw(
    arm: Sequence[np.ndarray], other: Sequence[np.ndarray], reduce: Reduce
) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences (seeds,), and those of videos drawn at random (draws, seeds).

    Args:
        arm: numbers (videos, k) of the run of each seed.
        other: the same of the other arm, seed by seed and video by video.
        reduce: makes the measure of a run of them.
    """
    videos = len(arm[0])
    rng = np.random.default_rng(0)
    # how often each video is drawn, the same for all runs
    weights = rng.multinomial(videos, np.full(videos, 1 / videos), DRAWS).astype(np.float32)
    every = np.ones((1, videos), np.float32)
    pairs = list(zip(arm, other, strict=True))
    values = [reduce(every, a)[0] - reduce(every, b)[0] for a, b in pairs]
    by_draw = [reduce(weights, a) - reduce(weights, b) for a, b in pairs]
    return np.array(values, np.float64), np.stack(by_draw, 1).astype(np.float64)


def paired_test_of(values: np.ndarray, by_draw: np.ndarray, videos: int) -> PairedTest:
    """Return the test of a number per seed, such as a difference or a slope.

    Args:
        values: (seeds,).
        by_draw: (draws, seeds), the same numbers of videos that are drawn with replacement.
        videos: number of test videos.
    """
    seeds = len(values)
    mean = float(values.mean())
    if seeds == 1:
        return PairedTest(values.tolist(), mean, videos)
    spread = float(values.std(ddof=1))
    of_mean = by_draw.mean(1)
    chance = (by_draw - of_mean[:, None]).var(0).mean() / (seeds - 1)
    of_videos = math.sqrt(max(0.0, float(of_mean.var() - chance)))
    error = math.hypot(spread / math.sqrt(seeds), of_videos)
    freedom = _freedom(spread, of_videos, seeds, videos)
    half = float(stats.t.ppf(1 - _LEVEL / 2, freedom)) * error
    p = 1.0 if mean == 0 else 0.0
    if error > 0:
        p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return PairedTest(
        values.tolist(),
        mean,
        videos,
        half,
        p,
        mean / spread if spread > 0 else None,
        seeds_needed(mean, spread, of_videos, videos),
        spread,
        of_videos,
    )


def _freedom(spread: float, of_videos: float, seeds: int, videos: int) -> float:
    """Return the degrees of freedom of the variance of a mean (Satterthwaite 1946).

    Args:
        spread: see `power`, and also for the other arguments.
        of_videos: standard deviation over samples of videos.
        seeds: number of seeds.
        videos: number of videos.
    """
    parts = spread**2 / seeds, of_videos**2
    if sum(parts) == 0:
        return seeds - 1
    return sum(parts) ** 2 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / max(1, videos - 1))


def seeds_needed(mean: float, spread: float, of_videos: float, videos: int) -> int | None:
    """Return the number of seeds for a power of 80 %; None if 1,000 do not suffice.

    Args:
        mean: difference to be found.
        spread: its standard deviation over seeds.
        of_videos: its standard deviation over samples of videos, which more seeds do not reduce.
        videos: number of videos.
    """
    if mean == 0 or power(mean, spread, of_videos, _MOST_SEEDS, videos) < _POWER:
        return None
    # power grows with the number of seeds
    low, high = 1, _MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        if power(mean, spread, of_videos, middle, videos) < _POWER:
            low = middle
        else:
            high = middle
    return high


def power(mean: float, spread: float, of_videos: float, seeds: int, videos: int) -> float:
    """Return the probability to find a difference at the level of 5 %, by the noncentral t.

    Args:
        mean: the difference.
        spread: its standard deviation over seeds, of the same videos.
        of_videos: its standard deviation over samples of videos.
        seeds: number of seeds, at least 2.
        videos: number of videos.
    """
    error = math.hypot(spread / math.sqrt(seeds), of_videos)
    if error == 0:
        return 1.0
    freedom = _freedom(spread, of_videos, seeds, videos)
    limit = stats.t.ppf(1 - _LEVEL / 2, freedom)
    # the other tail is a difference of the wrong sign
    return float(stats.nct.sf(limit, freedom, abs(mean) / error))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values that are corrected for their number (Holm 1979); None stays None.

    Args:
        values: p-values of one family.
    """
    known = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected

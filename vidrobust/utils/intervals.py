"""Confidence intervals of proportions, and of other measures by resampling."""

import math
from collections.abc import Callable, Sequence

import numpy as np


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927), clamped to [0, 1].

    Args:
        hits: number of successes, 0 to n.
        n: number of trials; 0 gives (0, 1).
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        (low, high).
    """
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    z2 = z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # rounding may leave [0, 1], or p, at hits = 0 and hits = n
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def mean_interval(
    values: Sequence[float], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean (Efron 1979), of all draws at once.

    Args:
        values: a sample.
        resamples: number of draws with replacement.
        seed: of the draws.

    Returns:
        (low, high).
    """
    sample = np.array(values)
    drawn = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


def bootstrap_interval(
    measure: Callable[..., float], *samples: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a measure (Efron 1979).

    Args:
        measure: function of the samples.
        samples: independent samples, each (n, ...), whose rows are drawn with replacement.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        (low, high).
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = [sample[rng.integers(len(sample), size=len(sample))] for sample in samples]
        values.append(measure(*drawn))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)

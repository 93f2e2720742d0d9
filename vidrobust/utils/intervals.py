"""Confidence intervals of proportions."""

import math


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
    # rounding may leave [0, 1] at hits = 0 and hits = n
    return max(0.0, centre - half), min(1.0, centre + half)

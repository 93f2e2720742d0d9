"""Find the best arms of a measure, and say whether a difference is decided."""

from vidrobust.study.arm_table import BySeed, Spread, differences, of_measure, spread_of


def best_arms(by_seed: BySeed, measure: str) -> list[str]:
    """Return the arm with the highest mean, then each arm that may be as good.

    An arm may be as good if its mean is the same, or if the 95 % interval of the best arm's
    difference from it, over the seeds that both have, includes 0. With fewer than two common seeds
    there is no interval: then only the same mean counts.

    Args:
        by_seed: arm -> seed -> measures of its run.
        measure: name of a measure of which more is better.
    """
    means = {
        name: spread_of(list(values.values())).mean
        for name, seeds in by_seed.items()
        if (values := of_measure(seeds, measure))
    }
    if not means:
        return []
    best = max(means, key=lambda name: means[name])
    others = [name for name in means if name != best]
    return [best, *(name for name in others if _as_good(by_seed, measure, name, best, means))]


def _as_good(by_seed: BySeed, measure: str, name: str, best: str, means: dict[str, float]) -> bool:
    """Return whether an arm may be as good as the best one; see `best_arms`."""
    if means[name] == means[best]:
        return True
    behind = difference(by_seed, measure, best, name)
    return behind is not None and behind.half is not None and behind.mean <= behind.half


def difference(by_seed: BySeed, measure: str, name: str, other: str) -> Spread | None:
    """Return the spread of one arm's value minus another's; None without a common seed.

    Args:
        by_seed: arm -> seed -> measures of its run.
        measure: name of the measure.
        name: name of the arm.
        other: name of the arm that is subtracted.
    """
    values = of_measure(differences(by_seed[name], by_seed[other]), measure)
    return spread_of(list(values.values())) if values else None


def is_decided(difference: Spread) -> bool:
    """Return whether the interval of a difference exists and does not include 0."""
    return difference.half is not None and abs(difference.mean) > difference.half

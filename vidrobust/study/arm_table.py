"""Summarise runs into means, intervals and differences from the baseline."""

import math
import statistics
from collections.abc import Sequence
from itertools import chain
from typing import Any

from vidrobust.study.plan import Arm, Study

# Runs of a study with their summaries.
Runs = Sequence[tuple[Arm, dict[str, Any]]]
# Measures of a run; None where one could not be computed.
Measures = dict[str, float | None]

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom.
_T = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
)
_NORMAL = 1.96  # that of the normal distribution, for more degrees of freedom


def summarise(study: Study, runs: Runs) -> dict[str, Any]:
    """Summarise the runs of a study by data set and arm.

    Accuracies and fractions are between 0 and 1. The measures are:

    - probe, clean, shift: accuracy of the linear probe, of the attacked classifier, and on another
      data set.
    - robust THREAT: robust accuracy. success THREAT: fraction of the correctly classified videos
      that the attack breaks.
    - mpc, rpc: accuracy under corruptions, absolute and relative.
    - acc NAME, bias NAME: accuracy and bias of a view of eval.bias.
    - the measures of geometry.
    - fn_removed, fn_precision, fn_recall, each for the first and the last epoch: removal of false
      negatives.

    Args:
        study: names the baseline and the comparators.
        runs: the runs and their summaries.

    Returns:
        Data set -> arm -> a dict with these keys:

        - n: number of seeds.
        - measure -> what `spread_of` returns for its values over seeds.
        - difference: measure -> the same of the arm's value minus the baseline's, seed by seed.
        - gap_closed: comparator -> threat -> 100 (RA - RA_baseline) / (RA_comparator -
          RA_baseline), where RA is the mean robust accuracy. None if the comparator is not above
          the baseline. A budget of 0 has no gap, as it is clean accuracy.
    """
    return {
        dataset: _summarise_dataset(study, runs, dataset)
        for dataset in dict.fromkeys(arm.dataset for arm, _ in runs)
    }


def _summarise_dataset(study: Study, runs: Runs, dataset: str) -> dict[str, Any]:
    """Return arm -> its entry in `summarise`, for one data set."""
    by_arm: dict[str, dict[int, Measures]] = {}
    for arm, summary in runs:
        if arm.dataset == dataset:
            by_arm.setdefault(arm.name, {})[arm.seed] = _measures(summary)
    table = {
        name: {"n": len(seeds)} | _spreads(list(seeds.values())) for name, seeds in by_arm.items()
    }
    baseline = by_arm.get(study.baseline, {})
    for name, row in table.items():
        # Differences are taken between runs with the same seed: they share random numbers, so
        # that a difference may vary less than the runs.
        common_seeds = [seed for seed in by_arm[name] if seed in baseline]
        if name == study.baseline:
            common_seeds = []
        row["difference"] = _spreads(
            [_difference(by_arm[name][seed], baseline[seed]) for seed in common_seeds]
        )
        comparators = study.comparators if baseline and name != study.baseline else ()
        row["gap_closed"] = {
            comparator: _gap(table, study.baseline, comparator, name)
            for comparator in comparators
            if comparator in table and comparator != name
        }
    return table


def _measures(summary: dict[str, Any]) -> Measures:
    """Return the measures of a run, as named in `summarise`."""
    clean = summary["clean_acc"]
    corruption = summary["corruption"]
    shift = summary.get("shift")
    views = (summary.get("bias") or {"views": {}})["views"]
    measures = {
        "probe": summary["representation"]["trained_probe"]["acc"],
        "clean": clean,
        **{f"robust {c['threat']}": c["robust_acc"] for c in summary["curve"]},
        **{
            f"success {c['threat']}": 1 - c["robust_acc"] / clean if clean else None
            for c in summary["curve"]
        },
        "mpc": corruption and corruption["mpc"],
        "rpc": corruption and corruption["rpc"],
        "shift": shift and shift["acc"],
        **{f"acc {name}": view["acc"] for name, view in views.items()},
        **{f"bias {name}": view["bias"] for name, view in views.items() if "bias" in view},
    }
    # Quantiles and histograms of the geometry are lists, which have no mean over seeds.
    for key, value in summary["geometry"]["trained"].items():
        if not isinstance(value, list):
            measures[key] = value
    epochs = summary["removal"]
    if epochs:
        for when, epoch in (("first", epochs[0]), ("last", epochs[-1])):
            for key in ("fn_removed", "fn_precision", "fn_recall"):
                measures[f"{key} {when}"] = epoch.get(key)
    return measures


def _spreads(runs: Sequence[Measures]) -> dict[str, Any]:
    """Return measure -> what `spread_of` returns for the runs that have it."""
    spreads = {}
    for key in dict.fromkeys(chain.from_iterable(runs)):
        values = [value for run in runs if (value := run.get(key)) is not None]
        if values:
            spreads[key] = spread_of(values)
    return spreads


def spread_of(values: list[float]) -> dict[str, Any]:
    """Return mean, std, half and values of some values.

    `half` is half the width of a 95 % interval of the mean, by Student's t. For one value std and
    half are None.
    """
    mean = statistics.fmean(values)
    # n values have n - 1 degrees of freedom, and _T begins with 1.
    n = len(values)
    std = statistics.stdev(values) if n > 1 else None
    t = _T[n - 2] if 1 < n <= len(_T) + 1 else _NORMAL
    return {
        "mean": mean,
        "std": std,
        "half": None if std is None else t * std / math.sqrt(n),
        "values": values,
    }


def _difference(a: Measures, b: Measures) -> Measures:
    """Return measure -> a's value minus b's, for the measures that both have."""
    return {
        key: value - other
        for key, value in a.items()
        if value is not None and (other := b.get(key)) is not None
    }


def _gap(table: dict[str, Any], baseline: str, comparator: str, name: str) -> Measures:
    """Return threat -> the gap between baseline and comparator that an arm closes, per cent.

    Args:
        table: arm -> measures.
        baseline: name of the baseline.
        comparator: name of the comparator.
        name: name of the arm.
    """
    gaps: Measures = {}
    for key in table[name]:
        # A threat of budget 0 ends with -0.
        if not key.startswith("robust ") or key.endswith("-0"):
            continue
        low = table[baseline][key]["mean"]
        high = table[comparator][key]["mean"]
        acc = table[name][key]["mean"]
        gaps[key.removeprefix("robust ")] = 100 * (acc - low) / (high - low) if high > low else None
    return gaps

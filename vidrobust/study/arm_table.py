"""Summarise runs into means, intervals and differences from the baseline."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from vidrobust.study.plan import Arm, Study

Runs = Sequence[tuple[Arm, dict[str, Any]]]
# 97.5 % points of Student's t by degrees of freedom; beyond, the normal's
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


def summarise(study: Study, runs: Runs) -> dict[str, Any]:
    """data set -> arm -> {"n", measure -> {"mean", "std", "half", "values"}, "difference",
    "gap_closed"}.

    half: half the width of a 95 % interval of the mean over seeds by Student's t, None for one
    seed. Measures: probe, clean, `robust THREAT`, `success THREAT` (the share of videos that are
    right which the attack breaks), mpc, rpc, `acc NAME` and `bias NAME` of what a model looks at,
    shift (accuracy on another data set), those of geometry, and of the removal of false negatives
    in the first and the last epoch; accuracies and shares are fractions. difference: measure -> the
    same of the arm's value less the baseline's, seed by seed. gap_closed: comparator -> threat ->
    100 (RA - RA_baseline) / (RA_comparator - RA_baseline) of the means (METHODS section 1.4), None
    where the comparator is not above the baseline. Clean accuracy, a budget of 0, is no gap.
    """
    found: dict[str, Any] = {}
    for dataset in dict.fromkeys(arm.dataset for arm, _ in runs):
        measured: dict[str, dict[int, dict[str, float | None]]] = {}
        for arm, summary in runs:
            if arm.dataset == dataset:
                measured.setdefault(arm.name, {})[arm.seed] = _measures(summary)
        table = {
            name: {"n": len(seeds)} | _spreads(list(seeds.values()))
            for name, seeds in measured.items()
        }
        base = measured.get(study.baseline, {})
        for name, row in table.items():
            seeds = measured[name]
            both = [
                _less(seeds[seed], base[seed])
                for seed in seeds
                if seed in base and name != study.baseline
            ]
            row["difference"] = _spreads(both)
            row["gap_closed"] = {
                other: _gap(table, study.baseline, other, name)
                for other in study.comparators
                if other in table and base and name not in (other, study.baseline)
            }
        found[dataset] = table
    return found


def _measures(summary: dict[str, Any]) -> dict[str, float | None]:
    geometry, corruption, clean = (
        summary["geometry"]["trained"],
        summary["corruption"],
        summary["clean_acc"],
    )
    epochs, views = summary["removal"], (summary.get("bias") or {"views": {}})["views"]
    shift = summary.get("shift")
    return {
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
        **{key: value for key, value in geometry.items() if not isinstance(value, list)},
        **{
            f"{key} {when}": epochs[at].get(key)
            for when, at in (("first", 0), ("last", -1))
            if epochs
            for key in ("fn_removed", "fn_precision", "fn_recall")
        },
    }


def _spreads(measured: list[dict[str, float | None]]) -> dict[str, Any]:
    """measure -> its spread over runs, of those that have it."""
    keys = dict.fromkeys(key for run in measured for key in run)
    known = {
        key: [value for run in measured if (value := run.get(key)) is not None] for key in keys
    }
    return {key: spread_of(values) for key, values in known.items() if values}


def spread_of(values: list[float]) -> dict[str, Any]:
    """Return mean, std, half the width of a 95 % interval of the mean, and the values."""
    mean, n = statistics.fmean(values), len(values)
    std = statistics.stdev(values) if n > 1 else None
    t = _T[n - 2] if 1 < n <= len(_T) + 1 else 1.96
    return {
        "mean": mean,
        "std": std,
        "half": None if std is None else t * std / math.sqrt(n),
        "values": values,
    }


def _less(a: dict[str, float | None], b: dict[str, float | None]) -> dict[str, float | None]:
    return {
        key: one - other
        for key in a
        if (one := a[key]) is not None and (other := b.get(key)) is not None
    }


def _gap(
    table: dict[str, Any], baseline: str, comparator: str, name: str
) -> dict[str, float | None]:
    gaps: dict[str, float | None] = {}
    for key in (key for key in table[name] if key.startswith("robust ") and not key.endswith("-0")):
        low, high, own = (table[arm][key]["mean"] for arm in (baseline, comparator, name))
        gaps[key.removeprefix("robust ")] = 100 * (own - low) / (high - low) if high > low else None
    return gaps

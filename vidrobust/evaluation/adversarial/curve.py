"""Summarise attacked rows into accuracies per threat."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from vidrobust.attacks import BLACK_BOX, ThreatModel, weak_white_box
from vidrobust.evaluation.adversarial.suites import families
from vidrobust.evaluation.results import Row, model_faults
from vidrobust.utils.intervals import wilson


def robust_curve(rows: Sequence[Row], threats: Sequence[ThreatModel]) -> list[Row]:
    """One entry a threat: accuracy, after rounding to uint8, after H.264 (None without), 95 %
    intervals, counts.

    killed_by: attack -> videos that it broke; passes: attack -> [forward, backward] passes in
    clips.
    """
    curve = []
    for threat in threats:
        here = [row for row in rows if row["threat"] == str(threat)]
        n, hits = len(here), sum(row["robust"] for row in here)
        coded = [row["h264_pred"] == row["label"] for row in here if row["h264_pred"] is not None]
        curve.append(
            {
                "threat": str(threat),
                "kind": threat.kind,
                "norm": threat.norm,
                "support": threat.support,
                "k": threat.k,
                "eps": threat.eps,
                "n": n,
                "robust_acc": hits / n,
                "ci95": list(wilson(hits, n)),
                "robust_acc_uint8": sum(row["uint8_pred"] == row["label"] for row in here) / n,
                "robust_acc_h264": sum(coded) / n if coded else None,
                "max_measured": max(
                    (row["measured"] for row in here if row["measured"] is not None), default=0.0
                ),
                "out_of_budget": sum(row["in_budget"] is False for row in here),
                "killed_by": dict(
                    Counter(row["killed_by"] for row in here if row["killed_by"]).most_common()
                ),
                "passes": _passes(here),
                "rejected": _sums(row["rejected"] for row in here),
            }
        )
    return curve


def robust_to_all(
    rows: Sequence[Row], withstands: Callable[[Row], bool] = lambda row: row["robust"]
) -> list[bool]:
    """A flag a video: whether it withstood every threat."""
    withstood: dict[int, bool] = {}
    for row in rows:
        withstood[row["index"]] = withstood.get(row["index"], True) and withstands(row)
    return list(withstood.values())


def median_norms(rows: Sequence[Row], threats: Sequence[ThreatModel]) -> dict[str, float | None]:
    """Threat without its budget -> the median size of the smallest changes found, of videos that
    are right without one.

    None: more than half of them withstood the largest budget.
    """
    found: dict[str, float | None] = {}
    for family in families(threats):
        here = [
            row
            for row in rows
            if row["threat"] == str(family[-1]) and row["clean_pred"] == row["label"]
        ]
        sizes = [math.inf if row["robust"] else row["measured"] for row in here]
        middle = statistics.median(sizes) if sizes else math.inf
        found[family[-1].kind] = None if math.isinf(middle) else middle
    return found


def suite_warnings(rows: Sequence[Row], curve: list[Row]) -> list[str]:
    """Return what the results themselves say against the attacks, and against the model."""
    found = model_faults(rows)
    for entry in curve:
        broken_by = [row["killed_by"] for row in rows if row["threat"] == entry["threat"]]
        parts = [
            name
            for name in entry["passes"]
            if name.startswith("apgd-") and name[5:] not in ("ce", "dlr", "t")
        ]
        ran_white = any(name not in (*BLACK_BOX, *parts) for name in entry["passes"])
        found += [
            f"{entry['threat']}: {line}"
            for line in (weak_white_box(broken_by, BLACK_BOX, parts) if ran_white else [])
        ]
        if entry["out_of_budget"]:
            found.append(f"{entry['out_of_budget']} adversarial clips exceed {entry['threat']}")
        found += [
            f"{entry['threat']}: {count} clips of {name} lay outside the budget and were thrown"
            " away"
            for name, count in entry["rejected"].items()
        ]
    return found


def _passes(rows: Sequence[Row]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for row in rows:
        for name, (forward, backward) in row["passes"].items():
            here = total.setdefault(name, [0, 0])
            here[0] += forward
            here[1] += backward
    return total


def _sums(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)

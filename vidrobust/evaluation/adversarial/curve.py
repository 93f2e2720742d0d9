"""Summarise attacked rows into accuracies per threat."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vidrobust.attacks import BLACK_BOX, ThreatModel, weak_white_box
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.suites import families
from vidrobust.evaluation.results import model_faults
from vidrobust.utils.intervals import wilson


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy under one threat, an entry of `curve` in summary.json.

    Attributes:
        threat: the budget, as `eval.threats` names it.
        kind: the threat without its size.
        norm: norm of the threat.
        support: what may be changed.
        k: size of the support.
        eps: size of the budget.
        n: number of videos.
        robust_acc: fraction of videos that no attack breaks.
        ci95: its 95 % interval (Wilson).
        robust_acc_uint8: the same after rounding to uint8.
        robust_acc_h264: the same after H.264; None without H.264.
        max_measured: size of the largest perturbation.
        out_of_budget: number of adversarial clips outside of the budget.
        killed_by: attack -> number of videos that it broke, at this budget or a smaller one. Also
            "clean", the videos that are wrong without an attack, and "error", those that failed.
        passes: attack -> [forward, backward] passes in clips.
        rejected: attack -> number of clips outside of the budget that were not used.
    """

    threat: str
    kind: str
    norm: str
    support: str
    k: int
    eps: float
    n: int
    robust_acc: float
    ci95: list[float]
    robust_acc_uint8: float
    robust_acc_h264: float | None
    max_measured: float
    out_of_budget: int
    killed_by: dict[str, int]
    passes: dict[str, list[int]]
    rejected: dict[str, int]


def robust_curve(rows: Sequence[AttackRow], threats: Sequence[ThreatModel]) -> list[CurvePoint]:
    """Return the accuracy under each threat.

    Args:
        rows: of all threats.
        threats: budgets, in the order of the curve.
    """
    return [_point([row for row in rows if row.threat == str(each)], each) for each in threats]


def _point(rows: Sequence[AttackRow], threat: ThreatModel) -> CurvePoint:
    """Return the accuracy on the rows of one threat."""
    n = len(rows)
    hits = sum(row.robust for row in rows)
    coded = [row.h264_right for row in rows if row.h264_pred is not None]
    sizes = [row.measured for row in rows if row.measured is not None]
    killed_by = Counter(row.killed_by for row in rows if row.killed_by)
    return CurvePoint(
        threat=str(threat),
        kind=threat.kind,
        norm=threat.norm,
        support=threat.support,
        k=threat.k,
        eps=threat.eps,
        n=n,
        robust_acc=hits / n,
        ci95=list(wilson(hits, n)),
        robust_acc_uint8=sum(row.uint8_right for row in rows) / n,
        robust_acc_h264=sum(coded) / n if coded else None,
        max_measured=max(sizes, default=0.0),
        out_of_budget=sum(row.in_budget is False for row in rows),
        killed_by=dict(killed_by.most_common()),
        passes=_sum_passes(row.passes for row in rows),
        rejected=_sum_counts(row.rejected for row in rows),
    )


def robust_to_all(
    rows: Sequence[AttackRow], withstands: Callable[[AttackRow], bool] = lambda row: row.robust
) -> list[bool]:
    """Return for each video whether it withstands every threat.

    Args:
        rows: of all threats.
        withstands: what a row must fulfil.
    """
    by_video: dict[int, bool] = {}
    for row in rows:
        by_video[row.index] = by_video.get(row.index, True) and withstands(row)
    return list(by_video.values())


def median_norms(
    rows: Sequence[AttackRow], threats: Sequence[ThreatModel]
) -> dict[str, float | None]:
    """Return the median size of the smallest perturbations, per kind of threat.

    Only videos that are right without an attack count. A median is None if it is beyond the largest
    budget, and if no video counts.

    Args:
        rows: of all threats.
        threats: budgets.
    """
    medians: dict[str, float | None] = {}
    for family in families(threats):
        largest = family[-1]
        attacked = [row for row in rows if row.threat == str(largest) and row.clean_right]
        # a video that withstands the largest budget has a larger, unknown smallest perturbation
        sizes = [
            math.inf if row.robust or row.measured is None else row.measured for row in attacked
        ]
        median = statistics.median(sizes) if sizes else math.inf
        medians[largest.kind] = None if math.isinf(median) else median
    return medians


def suite_warnings(rows: Sequence[AttackRow], curve: Sequence[CurvePoint]) -> list[str]:
    """Return warnings of weak attacks, faulty models and perturbations outside of the budget.

    Args:
        rows: of all threats.
        curve: of these rows.
    """
    return model_faults([row.to_json() for row in rows]) + curve_warnings(curve)


def curve_warnings(curve: Sequence[CurvePoint]) -> list[str]:
    """Return warnings of weak attacks and of perturbations outside of the budget."""
    warnings = []
    for point in curve:
        broken_by: list[str | None] = list(Counter(point.killed_by).elements())
        broken_by += [None] * (point.n - len(broken_by))
        # APGD also runs on parts of a threat, such as one frame, as steps of their own
        parts = [
            name
            for name in point.passes
            if name.startswith("apgd-") and name[5:] not in ("ce", "dlr", "t")
        ]
        # a suite of black-box attacks alone has no white-box attack to be compared with
        white_box_ran = any(name not in (*BLACK_BOX, *parts) for name in point.passes)
        if white_box_ran:
            lines = weak_white_box(broken_by, BLACK_BOX, parts)
            warnings += [f"{point.threat}: {line}" for line in lines]
        if point.out_of_budget:
            warnings.append(f"{point.out_of_budget} adversarial clips exceed {point.threat}")
        for name, count in point.rejected.items():
            warnings.append(
                f"{point.threat}: {count} clips of {name} were outside of the budget and were not"
                " used"
            )
    return warnings


def _sum_passes(all_passes: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for passes in all_passes:
        for name, (forward, backward) in passes.items():
            counts = total.setdefault(name, [0, 0])
            counts[0] += forward
            counts[1] += backward
    return total


def _sum_counts(all_counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in all_counts:
        total.update(counts)
    return dict(total)

"""Measure calibration: whether a classifier is right as often as its confidence says.

The confidence is the largest probability of a prediction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vidrobust.attacks import ThreatModel
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.utils.intervals import mean_interval

BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose confidence lies in (low, high].

    Attributes:
        low: lower end.
        high: upper end.
        count: number of predictions.
        confidence: their mean confidence; None without any.
        accuracy: fraction of them that is right; None without any.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration on clean clips or under one threat, an entry of `calibration` in summary.json.

    Attributes:
        threat: the budget, as `eval.threats` names it; None for clean clips.
        n: predictions; videos that failed have none.
        ece: expected calibration error: mean over predictions of |accuracy - confidence| of their
            bin (Guo et al. 2017, eq. 3).
        brier: mean Brier score, 0 to 2 (Brier 1950).
        confidence: mean confidence.
        accuracy: fraction of right predictions.
        bins: the reliability curve, BINS bins of equal width.
        ece_ci95: 95 % interval of ece, by bootstrap over predictions; [] in files of earlier
            revisions. The error of few predictions is biased upward, and so is its interval.
        brier_ci95: the same of brier.
    """

    threat: str | None
    n: int
    ece: float
    brier: float
    confidence: float
    accuracy: float
    bins: list[ReliabilityBin]
    ece_ci95: list[float] = field(default_factory=list)
    brier_ci95: list[float] = field(default_factory=list)


def reliability(
    confidence: Sequence[float], right: Sequence[bool], bins: int = BINS
) -> list[ReliabilityBin]:
    """Return the reliability curve.

    Args:
        confidence: of each prediction, in [0, 1]; 0 belongs to the first bin.
        right: whether each prediction is right.
        bins: number of bins of equal width.
    """
    members: list[list[int]] = [[] for _ in range(bins)]
    for i, value in enumerate(confidence):
        members[min(max(math.ceil(value * bins) - 1, 0), bins - 1)].append(i)
    curve = []
    for number, inside in enumerate(members):
        mean = sum(confidence[i] for i in inside) / len(inside) if inside else None
        accuracy = sum(right[i] for i in inside) / len(inside) if inside else None
        curve.append(
            ReliabilityBin(number / bins, (number + 1) / bins, len(inside), mean, accuracy)
        )
    return curve


def expected_calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error of a reliability curve (Guo et al. 2017, eq. 3)."""
    n = sum(each.count for each in curve)
    gaps = [
        each.count * abs(each.accuracy - each.confidence)
        for each in curve
        if each.accuracy is not None and each.confidence is not None
    ]
    return sum(gaps) / n


def calibration_interval(
    confidence: Sequence[float], right: Sequence[bool], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the expected calibration error, by bootstrap (Efron 1979).

    The error is the sum over bins of |sum of right - confidence| / n, of which all draws are
    computed at once.

    Args:
        confidence: of each prediction, in [0, 1].
        right: whether each prediction is right.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        (low, high).
    """
    n = len(confidence)
    bins = np.clip(np.ceil(np.array(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.array(right, dtype=float) - np.array(confidence)
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    cells = bins[drawn] + BINS * np.arange(resamples)[:, None]
    sums = np.bincount(cells.ravel(), gaps[drawn].ravel(), BINS * resamples)
    errors = np.abs(sums.reshape(resamples, BINS)).sum(1) / n
    low, high = np.quantile(errors, (0.025, 0.975))
    return float(low), float(high)


def calibration_of(rows: Sequence[AttackRow], threats: Sequence[ThreatModel]) -> list[Calibration]:
    """Return calibration on the clean clips, and on the adversarial clips of each threat.

    Args:
        rows: of all videos and threats.
        threats: budgets, in order.

    Returns:
        Nothing if a row of an earlier revision, which had no confidences, is among the rows, or if
        every video failed.
    """
    kept = [row for row in rows if row.error is None]
    if not kept or any(row.clean_confidence is None for row in kept):
        return []
    by_threat = {str(each): [row for row in kept if row.threat == str(each)] for each in threats}
    # clean predictions are alike in the rows of all threats
    clean = next(iter(by_threat.values()))
    table = [
        _calibration(
            None,
            [row.clean_confidence or 0.0 for row in clean],
            [row.clean_brier or 0.0 for row in clean],
            [row.clean_right for row in clean],
        )
    ]
    for threat, attacked in by_threat.items():
        table.append(
            _calibration(
                threat,
                [row.adv_confidence or 0.0 for row in attacked],
                [row.adv_brier or 0.0 for row in attacked],
                [row.adv_pred == row.label for row in attacked],
            )
        )
    return table


def _calibration(
    threat: str | None, confidence: list[float], brier: list[float], right: list[bool]
) -> Calibration:
    """Return the calibration of predictions.

    Args:
        threat: the budget; None for clean clips.
        confidence: of each prediction.
        brier: Brier score of each prediction.
        right: whether each prediction is right.
    """
    n = len(right)
    curve = reliability(confidence, right)
    return Calibration(
        threat=threat,
        n=n,
        ece=expected_calibration_error(curve),
        brier=sum(brier) / n,
        confidence=sum(confidence) / n,
        accuracy=sum(right) / n,
        bins=curve,
        ece_ci95=list(calibration_interval(confidence, right)),
        brier_ci95=list(mean_interval(brier)),
    )

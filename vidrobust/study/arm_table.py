"""Summarise runs into means, intervals and differences from the baseline."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from vidrobust.attacks import parse_threat
from vidrobust.evaluation.summary import Summary
from vidrobust.study.plan import Arm, Study
from vidrobust.utils.typed_json import from_json


@dataclass(frozen=True)
class FinishedRun:
    """A run of a study that has been measured.

    Attributes:
        arm: the run.
        summary: what its evaluation measured.
        removal: rows of metrics.jsonl about false negatives, one per epoch.
        shortfalls: what the run was to reach and did not.
    """

    arm: Arm
    summary: Summary
    removal: list[dict[str, float]] = field(default_factory=list)
    shortfalls: tuple[str, ...] = ()


# Measures of a run; None where one could not be computed.
Measures = dict[str, float | None]


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a measure over seeds.

    Attributes:
        mean: of the values.
        std: their standard deviation; None for one value.
        half: half the width of a 95 % interval of the mean, by Student's t; None for one value.
        values: one per seed.
    """

    mean: float
    std: float | None
    half: float | None
    values: list[float]


@dataclass
class ArmResult:
    """The result of an arm on a data set, an entry of study.json.

    Attributes:
        n: number of seeds.
        measures: measure -> its spread over seeds, as named in `summarise`.
        difference: measure -> spread of the arm's value minus the baseline's, seed by seed.
        gap_closed: comparator -> threat -> 100 (RA - RA_baseline) / (RA_comparator -
            RA_baseline), where RA is the mean robust accuracy. None if the comparator is not above
            the baseline, or one of the three was not attacked under the threat. The threats are
            those of `threats_of`, the same for all arms.
    """

    n: int
    measures: dict[str, Spread]
    difference: dict[str, Spread] = field(default_factory=dict)
    gap_closed: dict[str, Measures] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of study.json, in which measures stand beside the other keys."""
        entry = asdict(self)
        return {"n": entry.pop("n"), **entry.pop("measures"), **entry}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "ArmResult":
        """Return the result that an entry of study.json holds.

        Raises:
            ValueError: an entry is missing or of another type.
        """
        others = {"n", "difference", "gap_closed"}
        measures = {key: value for key, value in entry.items() if key not in others}
        return from_json(cls, {key: entry.get(key) for key in others} | {"measures": measures})


# Arm -> its result on one data set.
Table = dict[str, ArmResult]
# Arm -> seed -> measures of its run on one data set.
BySeed = dict[str, dict[int, Measures]]

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
_NORMAL = 1.959964  # that of the normal distribution


def summarise(study: Study, runs: Sequence[FinishedRun]) -> dict[str, Table]:
    """Summarise the runs of a study by data set and arm.

    Accuracies and fractions are between 0 and 1. The measures are:

    - probe, clean, shift: accuracy of the linear probe, of the attacked classifier, and on another
      data set.
    - mAP: mean average precision of the linear probe, in place of accuracies, for videos with
      several labels each.
    - robust THREAT: robust accuracy. success THREAT: fraction of the correctly classified videos
      that the attack breaks.
      kept THREAT: fraction of clean accuracy that is left.
    - mpc, rpc: accuracy under corruptions, absolute and relative.
    - acc NAME, bias NAME: accuracy and bias of a view of eval.bias.
    - the measures of geometry.
    - fn_removed, fn_precision, fn_recall, each for the first and the last epoch: removal of false
      negatives.

    Args:
        study: the study, which names the baseline and the comparators.
        runs: the finished runs.

    Returns:
        Data set -> arm -> its result.
    """
    return {
        dataset: _summarise_dataset(study, runs, dataset)
        for dataset in dict.fromkeys(run.arm.dataset for run in runs)
    }


def _summarise_dataset(study: Study, runs: Sequence[FinishedRun], dataset: str) -> Table:
    """Return arm -> its result on one data set.

    Args:
        study: the study, which names the baseline and the comparators.
        runs: the finished runs, also of other data sets.
        dataset: name of the data set.
    """
    by_arm = measures_by_seed(runs, dataset)
    table = {
        name: ArmResult(len(seeds), _spreads(list(seeds.values())))
        for name, seeds in by_arm.items()
    }
    baseline = by_arm.get(study.baseline, {})
    for name, result in table.items():
        if name != study.baseline:
            result.difference = _spreads(list(differences(by_arm[name], baseline).values()))
        comparators = study.comparators if baseline and name != study.baseline else ()
        result.gap_closed = {
            comparator: _gap(table, study.baseline, comparator, name)
            for comparator in comparators
            if comparator in table and comparator != name
        }
    return table


def measures_by_seed(runs: Sequence[FinishedRun], dataset: str) -> BySeed:
    """Return arm -> seed -> measures, as named in `summarise`, of the runs on a data set."""
    by_arm: BySeed = {}
    for run in runs:
        if run.arm.dataset == dataset:
            by_arm.setdefault(run.arm.name, {})[run.arm.seed] = _measures(run)
    return by_arm


def differences(
    seeds: Mapping[int, Measures], others: Mapping[int, Measures]
) -> dict[int, Measures]:
    """Return seed -> one arm's measures minus another's, for the seeds that both have.

    Runs with the same seed share random numbers, so that a difference may vary less than the runs.
    """
    return {
        seed: _difference(measures, others[seed])
        for seed, measures in seeds.items()
        if seed in others
    }


def of_measure(seeds: Mapping[int, Measures], measure: str) -> dict[int, float]:
    """Return seed -> value of one measure, for the seeds that have it."""
    return {
        seed: value
        for seed, measures in seeds.items()
        if (value := measures.get(measure)) is not None
    }


def _measures(run: FinishedRun) -> Measures:
    """Return the measures of a run, as named in `summarise`."""
    summary = run.summary
    clean = summary.clean_acc
    corruption = summary.corruption
    views = summary.bias.views if summary.bias else {}
    # videos with several labels each have an average precision in place of an accuracy
    probe = summary.representation.get("trained_probe")
    precision = summary.average_precision.get("trained_probe")
    measures: Measures = {
        "probe": probe.acc if probe else None,
        "mAP": precision.mean if precision else None,
        "clean": clean,
    }
    for point in summary.curve:
        measures[f"robust {point.threat}"] = point.robust_acc
    for point in summary.curve:
        measures[f"success {point.threat}"] = 1 - point.robust_acc / clean if clean else None
    for point in summary.curve:
        measures[f"kept {point.threat}"] = point.robust_acc / clean if clean else None
    measures["mpc"] = corruption.mpc if corruption else None
    measures["rpc"] = corruption.rpc if corruption else None
    measures["shift"] = summary.shift.acc if summary.shift else None
    for name, view in views.items():
        measures[f"acc {name}"] = view.acc
    for name, view in views.items():
        measures[f"bias {name}"] = view.bias
    # Not measured of features that are not finite, and of videos with several labels each.
    geometry = vars(summary.geometry["trained"]) if summary.geometry else {}
    # Quantiles and histograms of the geometry are lists, which have no mean over seeds.
    for key, value in geometry.items():
        if not isinstance(value, list):
            measures[key] = value
    if run.removal:
        for when, epoch in (("first", run.removal[0]), ("last", run.removal[-1])):
            for key in ("fn_removed", "fn_precision", "fn_recall"):
                measures[f"{key} {when}"] = epoch.get(key)
    return measures


def _spreads(runs: Sequence[Measures]) -> dict[str, Spread]:
    """Return measure -> its spread over the runs that have it."""
    spreads = {}
    for key in dict.fromkeys(chain.from_iterable(runs)):
        values = [value for run in runs if (value := run.get(key)) is not None]
        if values:
            spreads[key] = spread_of(values)
    return spreads


def student_t(freedom: int) -> float:
    """Return the 97.5 % point of Student's t for `freedom` degrees of freedom, at least 1."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    # Abramowitz and Stegun 1964, 26.7.5: exact to three decimals from 15 on
    z = _NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def spread_of(values: list[float]) -> Spread:
    """Return mean and spread of one or more values."""
    mean = statistics.fmean(values)
    n = len(values)
    std = statistics.stdev(values) if n > 1 else None
    half = None if std is None else student_t(n - 1) * std / math.sqrt(n)
    return Spread(mean, std, half, values)


def _difference(a: Measures, b: Measures) -> Measures:
    """Return measure -> a's value minus b's, for the measures that both have."""
    return {
        key: value - other
        for key, value in a.items()
        if value is not None and (other := b.get(key)) is not None
    }


def threats_of(table: Table) -> list[str]:
    """Return the threats of all arms, without budgets of 0, which are clean accuracy."""
    measures = dict.fromkeys(key for result in table.values() for key in result.measures)
    threats = [key.removeprefix("robust ") for key in measures if key.startswith("robust ")]
    return [threat for threat in threats if parse_threat(threat).eps > 0]


def robust_mean(table: Table, name: str, threat: str) -> float | None:
    """Return the mean robust accuracy of an arm; None if it was not attacked under the threat.

    Args:
        table: arm -> its result.
        name: name of the arm.
        threat: name of the threat.
    """
    spread = table[name].measures.get(f"robust {threat}")
    return spread.mean if spread else None


def _gap(table: Table, baseline: str, comparator: str, name: str) -> Measures:
    """Return threat -> the gap between baseline and comparator that an arm closes, per cent.

    Args:
        table: arm -> its result.
        baseline: name of the baseline.
        comparator: name of the comparator.
        name: name of the arm.
    """
    gaps: Measures = {}
    for threat in threats_of(table):
        low, high, acc = (robust_mean(table, arm, threat) for arm in (baseline, comparator, name))
        gaps[threat] = None
        if low is not None and high is not None and acc is not None and high > low:
            gaps[threat] = 100 * (acc - low) / (high - low)
    return gaps

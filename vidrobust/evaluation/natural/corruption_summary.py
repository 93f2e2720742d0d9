"""Summarise rows of corruptions, and compare them with those of another model."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust.data import CLEAN
from vidrobust.evaluation.results import Row
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson
from vidrobust.utils.typed_json import from_json

# Kind of the rows that count in means. A caller of `corruption_table` may add rows of a shifted
# data set, of kind "shift", to list them with the corruptions. The package writes no such rows.
KIND = "corruption"


@dataclass(frozen=True, kw_only=True)
class CorruptionAccuracy:
    """Accuracy under one corruption. A_c is the clean accuracy.

    Attributes:
        kind: KIND, or "shift" for rows of a shifted data set.
        acc: accuracy at each severity.
        mean_acc: mean of `acc` over severities, A_p.
        gamma_a: absolute robustness 1 - (A_c - A_p) (Schiappa et al. 2023).
        gamma_r: relative robustness 1 - (A_c - A_p) / A_c (Schiappa et al. 2023); None if A_c is 0.
        ce: error relative to that of a baseline, per cent (`relative_to`).
        relative_ce: excess over the clean error, relative to that of a baseline, per cent.
    """

    kind: str = KIND
    acc: list[float]
    mean_acc: float
    gamma_a: float
    gamma_r: float | None
    ce: float | None = None
    relative_ce: float | None = None


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the videos of one class, clean and as the mean over corruptions."""

    clean_acc: float
    mpc: float


@dataclass(frozen=True, kw_only=True)
class CorruptionTable:
    """The entry `corruption` of summary.json. Accuracies are fractions.

    Attributes:
        severities: severity of each accuracy in `CorruptionAccuracy.acc`.
        n: number of videos.
        clean_acc: accuracy on unchanged videos.
        ci95: 95 % interval of clean_acc (Wilson).
        mpc: mean accuracy over corruptions and severities (Yi et al. 2021).
        rpc: mpc / clean_acc (Yi et al. 2021); None if clean_acc is 0.
        gamma_a: as in `CorruptionAccuracy`, with mpc as A_p.
        gamma_r: as in `CorruptionAccuracy`, with mpc as A_p.
        mce: mean `ce` (Hendrycks and Dietterich 2019); None without a baseline.
        relative_mce: mean `relative_ce`; None without a baseline.
        corruptions: name -> its accuracy.
        per_class: class -> its accuracy.
        place: value of eval.corruption.place.
        views: views per video, clips x crops.
        failed: why videos do not decode.
        warnings: warnings of corruptions without effect and of NaN outputs.
        baseline: file of the baseline, or None.
    """

    severities: list[int]
    n: int
    clean_acc: float
    ci95: list[float]
    mpc: float
    rpc: float | None
    gamma_a: float
    gamma_r: float | None
    mce: float | None = None
    relative_mce: float | None = None
    corruptions: dict[str, CorruptionAccuracy]
    per_class: dict[str, ClassAccuracy]
    place: str = ""
    views: str = ""
    failed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    baseline: str | None = None


# --- Table ---


def corruption_table(
    rows: Sequence[Row], severities: Sequence[int], classes: Sequence[str]
) -> CorruptionTable:
    """Summarise rows of `evaluate_corruptions`.

    Means are over rows whose kind is KIND.

    Args:
        rows: rows of all videos and corruptions.
        severities: severities of the rows' predictions.
        classes: names of the classes.

    Raises:
        ValueError: if there are no clean rows, or no others.
    """
    clean = [row for row in rows if row["name"] == CLEAN[0]]
    if not clean or len(clean) == len(rows):
        raise ValueError("no rows of corruptions, or none of clean videos: a table needs both")
    hits = sum(row["predicted"] == [row["label"]] for row in clean)
    clean_acc = hits / len(clean)

    kinds = {row["name"]: row["kind"] for row in rows if row["name"] != CLEAN[0]}
    corruptions = {}
    for name, kind in kinds.items():
        acc = _accuracies([row for row in rows if row["name"] == name])
        mean = statistics.fmean(acc)
        corruptions[name] = CorruptionAccuracy(
            kind=kind, acc=acc, mean_acc=mean, **_gammas(clean_acc, mean)
        )
    mpc = statistics.fmean(entry.mean_acc for entry in corruptions.values() if entry.kind == KIND)
    return CorruptionTable(
        severities=list(severities),
        n=len(clean),
        clean_acc=clean_acc,
        ci95=list(wilson(hits, len(clean))),
        mpc=mpc,
        rpc=mpc / clean_acc if clean_acc else None,
        **_gammas(clean_acc, mpc),
        corruptions=corruptions,
        per_class=_per_class(rows, classes),
    )


def _gammas(clean_acc: float, acc: float) -> dict[str, Any]:
    """Return absolute and relative robustness, gamma_a and gamma_r (Schiappa et al. 2023)."""
    return {
        "gamma_a": 1 - (clean_acc - acc),
        "gamma_r": 1 - (clean_acc - acc) / clean_acc if clean_acc else None,
    }


def _accuracies(rows: Sequence[Row]) -> list[float]:
    """Return the accuracy at each severity; a video that did not decode counts as wrong."""
    hits = np.array([[answer == row["label"] for answer in row["predicted"]] for row in rows])
    return hits.mean(0).tolist()


def _per_class(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, ClassAccuracy]:
    """Return class name -> its accuracy, clean and under corruptions."""
    table = {}
    for label in sorted({row["label"] for row in rows}):
        class_rows = [row for row in rows if row["label"] == label]
        names = dict.fromkeys(row["name"] for row in class_rows if row["kind"] == KIND)
        means = {
            name: statistics.fmean(_accuracies([row for row in class_rows if row["name"] == name]))
            for name in names
        }
        clean = means.pop(CLEAN[0])
        table[classes[label]] = ClassAccuracy(clean, statistics.fmean(means.values()))
    return table


# --- Baseline ---


def relative_to(table: CorruptionTable, baseline: CorruptionTable | None) -> CorruptionTable:
    """Return the table with errors relative to a baseline, in per cent.

    As in Hendrycks and Dietterich 2019. `ce` of a corruption is its error summed over severities,
    divided by the same sum of the baseline. `relative_ce` is the same for the errors' excess over
    the clean error. `mce` and `relative_mce` are their means. All are None without a baseline, and
    where the baseline's sum is 0.

    Args:
        table: from `corruption_table`.
        baseline: such a table of another model.
    """
    entries = {
        name: _relative_errors(table, name, entry, baseline)
        for name, entry in table.corruptions.items()
    }
    corruptions = [entry for entry in entries.values() if entry.kind == KIND]
    return replace(
        table,
        corruptions=entries,
        mce=_mean([entry.ce for entry in corruptions]),
        relative_mce=_mean([entry.relative_ce for entry in corruptions]),
    )


def _relative_errors(
    table: CorruptionTable,
    name: str,
    entry: CorruptionAccuracy,
    baseline: CorruptionTable | None,
) -> CorruptionAccuracy:
    """Return the entry of one corruption with ce and relative_ce.

    Args:
        table: from `corruption_table`.
        name: name of the corruption.
        entry: its accuracy by severity of the table.
        baseline: table of the baseline; it may hold more severities.
    """
    if baseline is None:
        return replace(entry, ce=None, relative_ce=None)
    baseline_acc = dict(zip(baseline.severities, baseline.corruptions[name].acc, strict=True))
    errors = 0.0
    baseline_errors = 0.0
    for severity, value in zip(table.severities, entry.acc, strict=True):
        errors = errors + 1 - value
        baseline_errors = baseline_errors + 1 - baseline_acc[severity]
    rise = errors - len(entry.acc) * (1 - table.clean_acc)
    baseline_rise = baseline_errors - len(entry.acc) * (1 - baseline.clean_acc)
    return replace(
        entry,
        ce=100 * errors / baseline_errors if baseline_errors else None,
        # The rise is a difference of sums, so that a rise of 0 may come out as a rounding error.
        relative_ce=100 * rise / baseline_rise if abs(baseline_rise) > 1e-9 else None,
    )


def _mean(values: list[float | None]) -> float | None:
    """Return the mean, or None if a value is missing; a mean over fewer would not compare."""
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if len(numbers) == len(values) else None


def read_baseline(
    path: str, names: Sequence[str], severities: Sequence[int], place: str, measured: dict[str, Any]
) -> CorruptionTable | None:
    """Read the corruption table of another evaluation.

    Args:
        path: a summary.json, or the folder that holds it; "" for no baseline.
        names: corruptions that the table must hold.
        severities: severities that the table must hold.
        place: value of eval.corruption.place that it must have been measured with.
        measured: entries that both summaries must agree on, such as n, unit and manifest_sha.

    Returns:
        The table, or None for no baseline.

    Raises:
        UserError: if there is no such table, or it differs in one of these points.
    """
    if not path:
        return None
    file = Path(path).expanduser()
    try:
        summary = json.loads((file / "summary.json" if file.is_dir() else file).read_text())
        table = from_json(CorruptionTable, summary["corruption"])
        lengths = {len(entry.acc) for entry in table.corruptions.values()}
        is_whole = lengths <= {len(table.severities)}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"eval.corruption.baseline={path}: is not a summary.json of an evaluation with"
            " corruptions"
        )
    missing = [name for name in names if name not in table.corruptions]
    missing += [f"severity {s}" for s in severities if s not in table.severities]
    if missing:
        raise UserError(
            f"eval.corruption.baseline={path}: has no {', '.join(missing[:5])}; measure the"
            " baseline with them"
        )
    if table.place != place:
        raise UserError(
            f"eval.corruption.baseline={path}: was measured with"
            f" eval.corruption.place={table.place}, not {place}; use the same for both"
        )
    differences = [
        f"{key} {summary.get(key)}, here {value}"
        for key, value in measured.items()
        if summary.get(key) != value
    ]
    if differences:
        raise UserError(
            f"eval.corruption.baseline={path}: was measured on other videos:"
            f" {'; '.join(differences)}"
        )
    return table

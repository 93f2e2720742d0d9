"""Compare the decisions of two models on the same test videos, clean and under attack.

It needs the folders of two finished evaluations, and no model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.results import MODEL_FAULT
from vidrobust.evaluation.summary import Summary, classifier_key, read_summary
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import bootstrap_interval

RESAMPLES = 1000  # of the bootstrap
_NO_ANSWER = -1  # a video that decodes, and for which the model gives NaN


# --- Measures ---


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the fraction of equal entries of two arrays (n,)."""
    return float((a == b).mean())


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Return Cohen's kappa of two arrays of decisions, (n,) integers (Cohen 1960).

    It is (o - e) / (1 - e) with the observed agreement o, and the agreement e of independent
    decisions with the same frequencies. It is 1 where all decisions agree, also where e is 1.
    """
    observed = agreement(a, b)
    if observed == 1:
        return 1.0
    names, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
    frequencies = [
        np.bincount(part, minlength=len(names)) / len(part)
        for part in (numbers[: len(a)], numbers[len(a) :])
    ]
    expected = float(frequencies[0] @ frequencies[1])
    return (observed - expected) / (1 - expected)


# --- Comparison ---


@dataclass(frozen=True)
class Similarity:
    """Similarity of the decisions of two models.

    Attributes:
        threat: the budget under which each model is attacked by its own adversarial clips; None
            for clean videos.
        n: videos that decode in both evaluations.
        acc: accuracy of both models.
        agreement: fraction of equal predictions.
        agreement_ci95: its 95 % interval, by bootstrap over videos, as all intervals here.
        kappa: Cohen's kappa of the predictions.
        kappa_ci95: its interval.
        error_consistency: kappa of right and wrong (Geirhos et al. 2020).
        error_consistency_ci95: its interval.
    """

    threat: str | None
    n: int
    acc: list[float]
    agreement: float
    agreement_ci95: list[float]
    kappa: float
    kappa_ci95: list[float]
    error_consistency: float
    error_consistency_ci95: list[float]


@dataclass(frozen=True)
class Comparison:
    """Comparison of two evaluations.

    Attributes:
        folders: of the evaluations.
        checkpoints: names of the weights.
        classifiers: what was measured.
        suites: attacks of each evaluation.
        rows: clean, then each threat that both evaluations have.
        left_out: threats of one evaluation only.
    """

    folders: list[str]
    checkpoints: list[str]
    classifiers: list[str]
    suites: list[str]
    rows: list[Similarity]
    left_out: list[str]


@dataclass(frozen=True)
class _Decisions:
    """Decisions of a model. A video without an entry did not decode.

    Attributes:
        videos: (name, label) of every video, in order.
        answers: place of a video in `videos` -> the predicted class, _NO_ANSWER for NaN.
    """

    videos: list[tuple[str, int]]
    answers: dict[int, int]


def compare_evaluations(folders: Sequence[Path], seed: int = 0) -> Comparison:
    """Compare two evaluations of the same test videos.

    Args:
        folders: the two folders.
        seed: of the bootstrap.

    Raises:
        UserError: for a folder without a finished evaluation, lists that differ, and threats that
            were measured on different videos.
    """
    summaries = [_summary(folder) for folder in folders]
    clean = [_clean(folder, summary) for folder, summary in zip(folders, summaries, strict=True)]
    rows = [_similarity(None, clean, folders, seed)]
    attacked = [_attacked(folder) for folder in folders]
    for threat in attacked[0]:
        if threat in attacked[1]:
            both = [each[threat] for each in attacked]
            rows.append(_similarity(threat, both, folders, seed))
    return Comparison(
        folders=[str(folder) for folder in folders],
        checkpoints=[summary.checkpoint for summary in summaries],
        classifiers=[summary.classifier for summary in summaries],
        suites=[summary.suite or "" for summary in summaries],
        rows=rows,
        left_out=sorted(set(attacked[0]) ^ set(attacked[1])),
    )


def _summary(folder: Path) -> Summary:
    """Read the summary of an evaluation; raises UserError if the folder holds none."""
    path = folder / "summary.json"
    inside = sorted(folder.glob("eval/*/summary.json"))
    if not path.is_file() and inside:
        names = ", ".join(str(each.parent) for each in inside)
        raise UserError(f"{folder}: is a run; name one of its evaluations: {names}")
    if not path.is_file():
        raise UserError(f"{folder}: holds no finished evaluation (no summary.json); evaluate first")
    return read_summary(path)


def _clean(folder: Path, summary: Summary) -> _Decisions:
    """Return the predictions of the measured classifier for all test videos, from their clips.

    Args:
        folder: of the evaluation.
        summary: of the evaluation.

    Raises:
        UserError: if predictions.jsonl is missing or has no column of this classifier.
    """
    path = folder / "predictions.jsonl"
    rows = read_rows(path) if path.is_file() else []
    column = classifier_key(summary.classifier)
    if not rows or any(column not in row for row in rows):
        raise UserError(
            f"{path}: holds no predictions of the {summary.classifier}; evaluate again, without"
            " --report-only"
        )
    # failed videos come last in the file; names put both files into one order
    rows = sorted(rows, key=lambda row: (row["uid"], row["label"]))
    return _decisions(rows, column)


def _attacked(folder: Path) -> dict[str, _Decisions]:
    """Return threat -> predictions for the adversarial clips; none without attacks."""
    path = folder / "results.jsonl"
    rows = [AttackRow.from_json(row) for row in read_rows(path)] if path.is_file() else []
    by_threat: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda each: each.index):
        by_threat.setdefault(row.threat, []).append(asdict(row))
    return {threat: _decisions(part, "adv_pred") for threat, part in by_threat.items()}


def _decisions(rows: Sequence[dict[str, Any]], column: str) -> _Decisions:
    """Return the decisions in a column of rows.

    Args:
        rows: with uid, label and error.
        column: of the predicted class.
    """
    answers = {}
    for place, row in enumerate(rows):
        # NaN is an answer of the model; a file that does not decode is none
        if row["error"] is None or MODEL_FAULT in row["error"]:
            answers[place] = _NO_ANSWER if row[column] is None else row[column]
    return _Decisions([(row["uid"], row["label"]) for row in rows], answers)


def _similarity(
    threat: str | None, both: Sequence[_Decisions], folders: Sequence[Path], seed: int
) -> Similarity:
    """Return the similarity of two models.

    Args:
        threat: the budget; None for clean videos.
        both: decisions of the two models.
        folders: of the evaluations, for messages.
        seed: of the bootstrap.

    Raises:
        UserError: for lists that differ, and for no video that both decode.
    """
    where = f"under {threat}" if threat else "of the test split"
    first, second = both
    if first.videos != second.videos:
        pairs = zip_longest(first.videos, second.videos)
        differing = next(a or b or ("", 0) for a, b in pairs if a != b)
        raise UserError(
            f"{folders[1]}: other videos or labels {where} than {folders[0]}, first {differing[0]};"
            " evaluate both with the same data.* and eval.limit"
        )
    common = [place for place in first.answers if place in second.answers]
    if not common:
        raise UserError(f"{folders[1]}: no video {where} decodes in both evaluations")
    labels = np.array([first.videos[place][1] for place in common])
    # columns: label, answer of the first, answer of the second
    table = np.stack(
        [labels, *([np.array([each.answers[p] for p in common]) for each in both])], axis=1
    )

    measures = (_agreement_of, _kappa_of, _consistency_of)
    values = [measure(table) for measure in measures]
    intervals = [
        list(bootstrap_interval(measure, table, resamples=RESAMPLES, seed=seed))
        for measure in measures
    ]
    return Similarity(
        threat=threat,
        n=len(common),
        acc=[agreement(table[:, 0], table[:, 1]), agreement(table[:, 0], table[:, 2])],
        agreement=values[0],
        agreement_ci95=intervals[0],
        kappa=values[1],
        kappa_ci95=intervals[1],
        error_consistency=values[2],
        error_consistency_ci95=intervals[2],
    )


def _agreement_of(table: np.ndarray) -> float:
    """Return the agreement of the two models; columns are label, first, second."""
    return agreement(table[:, 1], table[:, 2])


def _kappa_of(table: np.ndarray) -> float:
    """Return Cohen's kappa of the predictions."""
    return kappa(table[:, 1], table[:, 2])


def _consistency_of(table: np.ndarray) -> float:
    """Return the error consistency: Cohen's kappa of right and wrong."""
    return kappa(table[:, 1] == table[:, 0], table[:, 2] == table[:, 0])

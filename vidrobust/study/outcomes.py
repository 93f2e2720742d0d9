"""Read what a run of a study did on each test video."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust.evaluation.summary import read_summary
from vidrobust.study.outcome_columns import ByVideo, unpacked
from vidrobust.study.paired_test import Reduce
from vidrobust.utils.atomic_files import read_json, read_rows

# what packed runs have in place of the files of rows that are read here
OUTCOMES = "outcomes.json"


@dataclass(frozen=True)
class VideoMeasure:
    """A measure that is made of numbers of each test video.

    Attributes:
        column: the numbers, as `read_column` names them.
        reduce: makes the measure of them; see `paired_test`.
    """

    column: str
    reduce: Reduce

    def read(self, folder: Path) -> ByVideo:
        """Return the numbers of each video; none where they were not measured.

        Args:
            folder: of the evaluation.
        """
        return read_column(folder, self.column)


def video_measure(name: str) -> VideoMeasure | None:
    """Return how to make a measure of numbers of each video; None if it is not made of them.

    Args:
        name: name of a measure, as in `arm_table.summarise`; also "smallest THREAT", the median
            size of the smallest perturbations that an attack such as fmn finds within a budget, of
            the videos that are right without, and "per_margin THREAT", the same of the size divided
            by the margin of the video's features; and "gain probe" and "gain knn", how much more
            accurate they are than with random weights.
    """
    kind, _, of = name.partition(" ")
    if kind not in _MEASURES:
        return None
    column, reduce = _MEASURES[kind]
    takes_name = kind in _NAMED
    if bool(of) != takes_name:
        return None
    return VideoMeasure(f"{column} {of}" if of else column, reduce)


def read_column(folder: Path, column: str) -> ByVideo:
    """Return numbers of each video; none where they were not measured.

    Args:
        folder: of the evaluation.
        column: one of `columns_of`.
    """
    if (folder / OUTCOMES).is_file():
        return unpacked(read_json(folder / OUTCOMES, "delete the folder"), column)
    kind, _, of = column.partition(" ")
    return _READERS[kind](folder, of)


def columns_of(folder: Path) -> list[str]:
    """Return the names of all numbers that an evaluation has of each video, from its rows."""
    threats = dict.fromkeys(row["threat"] for row in _rows(folder / "results.jsonl"))
    views = dict.fromkeys(row["name"] for row in _rows(folder / "bias.jsonl"))
    columns = ["clean", "probed", "gained probe", "gained knn", "corrupted", "shifted"]
    columns += [f"{kind} {view}" for kind in ("seen", "followed") for view in views]
    kinds = ["attacked"]
    if read_summary(folder / "summary.json").median_norm is not None:
        kinds += ["smallest", "per_margin"]
    columns += [f"{kind} {threat}" for kind in kinds for threat in threats]
    return [column for column in columns if read_column(folder, column)]


def _mean(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the weighted mean of the first number."""
    return weights @ numbers[:, 0] / weights.sum(1)


def _fraction(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the sum of the first number by that of the second, 0 where both are 0."""
    part, whole = (weights @ numbers[:, column] for column in (0, 1))
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _median(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the weighted median of the first number, where the second is 1; NaN without any."""
    order = np.argsort(numbers[:, 0], kind="stable")
    values, counted = numbers[order].T
    below = (weights[:, order] * counted).cumsum(1)
    if not counted.any():
        return np.full(len(weights), np.nan)
    return values[(below >= below[:, -1:] / 2).argmax(1)]


def _smallest(folder: Path, threat: str) -> ByVideo:
    """Return the size of each video's smallest perturbation, and whether it counts."""
    sizes: ByVideo = {}
    for row in _rows(folder / "results.jsonl"):
        if row["threat"] == threat:
            # a video that withstands the budget has a larger, unknown one
            withstands = row["robust"] or row["measured"] is None
            size = float("inf") if withstands else float(row["measured"])
            sizes[row["uid"]] = [size, float(row["clean_pred"] == row["label"])]
    return sizes


def _per_margin(folder: Path, threat: str) -> ByVideo:
    """Return the size of each smallest perturbation by the margin, and whether it counts."""
    margins = {row["uid"]: row.get("margin") for row in _rows(folder / "predictions.jsonl")}
    quotients: ByVideo = {}
    for uid, (size, counts) in _smallest(folder, threat).items():
        margin = margins.get(uid) or 0.0
        is_known = margin > 0
        quotients[uid] = [size / margin if is_known else 0.0, counts * is_known]
    return quotients


def _attacked(folder: Path, threat: str) -> ByVideo:
    """Return whether each video is right under a threat, and without."""
    rows = _rows(folder / "results.jsonl")
    return {
        row["uid"]: [float(row["robust"]), float(row["clean_pred"] == row["label"])]
        for row in rows
        if row["threat"] == threat
    }


def _clean(folder: Path, _: str) -> ByVideo:
    """Return whether each video is right without an attack."""
    rows = _rows(folder / "results.jsonl")
    return {row["uid"]: [float(row["clean_pred"] == row["label"])] for row in rows}


def _probed(folder: Path, _: str) -> ByVideo:
    """Return whether the linear probe classifies each video right."""
    rows = _rows(folder / "predictions.jsonl")
    return {row["uid"]: [float(row.get("trained_probe") == row["label"])] for row in rows}


def _gained(folder: Path, classifier: str) -> ByVideo:
    """Return what training gains on each video over random weights: 1, 0 or -1.

    Args:
        folder: of the evaluation.
        classifier: "probe" or "knn".
    """
    rows = _rows(folder / "predictions.jsonl")
    hits = {
        row["uid"]: [row.get(f"{w}_{classifier}") == row["label"] for w in ("trained", "random")]
        for row in rows
    }
    return {uid: [float(trained) - float(random)] for uid, (trained, random) in hits.items()}


def _corrupted(folder: Path, _: str) -> ByVideo:
    """Return the fraction of corruptions under which each video is right, and whether it is so."""
    right: dict[str, list[float]] = defaultdict(list)
    clean: dict[str, float] = {}
    for row in _rows(folder / "corruptions.jsonl"):
        # a video that does not decode has no prediction, and is wrong
        hits = [float(class_ == row["label"]) for class_ in row["predicted"] or [-1]]
        hit = sum(hits) / len(hits)
        if row["name"] == "clean":
            clean[row["uid"]] = hit
        elif row["kind"] == "corruption":
            right[row["uid"]].append(hit)
    return {uid: [sum(hits) / len(hits), clean[uid]] for uid, hits in right.items()}


def _seen(folder: Path, view: str) -> ByVideo:
    """Return whether each video is right as a view of eval.bias."""
    rows = _rows(folder / "bias.jsonl")
    return {
        row["uid"]: [float(row["predicted"] == row["label"])] for row in rows if row["name"] == view
    }


def _followed(folder: Path, view: str) -> ByVideo:
    """Return whether a prediction follows the first of two cues, and whether it follows one."""
    cues: ByVideo = {}
    for row in _rows(folder / "bias.jsonl"):
        if row["name"] == view:
            apart = row["other"] is not None and row["other"] != row["label"]
            first = float(apart and row["predicted"] == row["label"])
            second = float(apart and row["predicted"] == row["other"])
            cues[row["uid"]] = [first, first + second]
    return cues


def _shifted(folder: Path, _: str) -> ByVideo:
    """Return whether each video of another data set is right."""
    rows = _rows(folder / "shift.jsonl")
    return {
        row["uid"]: [float(row["predicted"] == row["label"])]
        for row in rows
        if row.get("of") == "other"
    }


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    """Return the rows of a file of results; none if there is no such file."""
    return read_rows(file) if file.is_file() else ()


_READERS: dict[str, Callable[[Path, str], ByVideo]] = {
    "attacked": _attacked,
    "smallest": _smallest,
    "per_margin": _per_margin,
    "clean": _clean,
    "probed": _probed,
    "gained": _gained,
    "corrupted": _corrupted,
    "seen": _seen,
    "followed": _followed,
    "shifted": _shifted,
}
# measure -> its column and how it is made of that
_MEASURES: dict[str, tuple[str, Reduce]] = {
    "robust": ("attacked", _mean),
    "kept": ("attacked", _fraction),
    "smallest": ("smallest", _median),
    "per_margin": ("per_margin", _median),
    "acc": ("seen", _mean),
    "bias": ("followed", _fraction),
    "gain": ("gained", _mean),
    "shift": ("shifted", _mean),
    "clean": ("clean", _mean),
    "probe": ("probed", _mean),
    "mpc": ("corrupted", _mean),
    "rpc": ("corrupted", _fraction),
}
# measures with the name of a threat, a view or a classifier behind them
_NAMED = ("robust", "kept", "smallest", "per_margin", "acc", "bias", "gain")

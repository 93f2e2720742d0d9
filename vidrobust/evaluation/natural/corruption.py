"""Measure accuracy under corruptions, one row per video and condition."""

import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidrobust.attacks import Predict, finite_logits
from vidrobust.corruptions import (
    CORRUPTIONS,
    INDEX_MAPS,
    OVER_TIME,
    MissingEncoder,
    expand,
    require_encoders,
)
from vidrobust.data import (
    CLEAN,
    Condition,
    Corrupted,
    CorruptedVideos,
    Failure,
    Record,
    corrupted_loader,
    worker_deaths,
)
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of, videos_of
from vidrobust.evaluation.input_checks import logits_of, require_work
from vidrobust.evaluation.results import (
    Key,
    Row,
    appending,
    fault,
    merged,
    require_label,
    unfinished,
)
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.intervals import wilson
from vidrobust.utils.logging import log
from vidrobust.views import to_float

_STEM, _KIND = "corruptions", "corruption"

# Name of a corruption, or of CLEAN -> the severities that are asked for.
Severities = dict[str, list[int]]


# --- Checks ---


def check_corruptions(names: Sequence[str]) -> list[str]:
    """Return the corruptions that `names` stand for.

    Raises:
        UserError: for an unknown name, and for a codec without an encoder.
    """
    expanded = expand(names)
    try:
        require_encoders(expanded)
    except MissingEncoder as error:
        raise UserError(f"eval.corruption.names: {error}") from None
    return expanded


def without_effect(names: Sequence[str], frames: int, *, images: bool) -> list[str]:
    """Return a warning about corruptions that change nothing in clips of so few frames.

    Args:
        names: names of CORRUPTIONS.
        frames: number of frames per clip.
        images: whether all files are images. A video has other frames, so that an index map can
            still change a clip of one frame.

    Returns:
        One line, or an empty list if every corruption has an effect.
    """
    idle = [name for name in names if name in OVER_TIME and (images or name not in INDEX_MAPS)]
    if frames > 1 or not idle:
        return []
    subject = "images" if images else "clips of one frame"
    return [f"{subject}: nothing changes under {', '.join(idle)}"]


def _require_conditions(names: Sequence[str], severities: Sequence[int]) -> None:
    """Raise UserError for names and severities that are unknown, or listed twice."""
    for name in names:
        lookup(CORRUPTIONS, name, "names")
    wrong = [severity for severity in severities if severity not in range(1, 6)]
    if wrong or not severities or len(set(severities)) < len(severities):
        listed = ", ".join(map(str, severities))
        raise UserError(f"severities=[{listed}]: must be whole numbers from 1 to 5, each once")
    if len(set(names)) < len(names):
        raise UserError(f"names=[{', '.join(names)}]: list each name once")


# --- Measurement ---


def evaluate_corruptions(
    settings: MeasureSettings,
    videos: CorruptedVideos,
    indices: list[int],
    names: Sequence[str],
    severities: Sequence[int],
) -> list[Row]:
    """Classify videos clean and corrupted, and return their rows.

    Every rank must call this function. Under torchrun each rank measures a part of the videos.

    One row per video and corruption is appended to out/corruptions.jsonl as soon as it is known.
    It holds the predicted class at each severity; the row "clean" holds that of the unchanged
    video. A prediction is None if the video does not decode, or if the model returns NaN; the row
    then gives the reason. A call that was killed can be repeated: it continues where it stopped,
    and the rows are the same.

    A folder belongs to one model, list of videos, protocol and seed
    (out/corruptions.identity.json). Later calls may add videos, corruptions and severities:
    existing rows are kept. The returned rows hold only the severities that are asked for.

    Args:
        settings: the model, how to run it, and the folder of the rows. The logits of a video's
            clips are averaged.
        videos: reads and corrupts the videos; this function sets its `work`.
        indices: indices of the videos to measure.
        names: names of CORRUPTIONS.
        severities: 1 to 5, in the order of a row's predictions.

    Raises:
        UserError: for a folder of another measurement, outputs that are not logits, and labels
            out of range.
    """
    require_work(indices, len(videos.records), settings.batch_size)
    _require_conditions(names, severities)
    _claim_folder(settings, videos)

    # Work is divided into groups: as many corruptions of one video, at all severities, as fit
    # into a batch.
    asked: Severities = {CLEAN[0]: [CLEAN[1]]} | {name: list(severities) for name in names}
    at_once = max(1, settings.batch_size // (len(severities) * videos.spec.clips))
    parts = [list(asked)[i : i + at_once] for i in range(0, len(asked), at_once)]
    groups: list[list[Key]] = [
        [(index, name) for name in part] for index, part in product(indices, parts)
    ]

    # Rows of earlier calls stay; only conditions that they do not hold are measured.
    combine = partial(_combine_rows, asked)
    _, rows = unfinished(settings.out, _STEM, "name", groups, combine=combine)
    by_group = [(group[0][0], _missing(group, rows, asked)) for group in groups]
    missing = [(index, conditions) for index, conditions in by_group if conditions]
    if len(missing) < len(groups):
        log.info(
            f"{len(groups) - len(missing)} of {len(groups)} batches of conditions are already"
            " measured"
        )
    # A rank takes whole videos, so that each video is decoded by one rank only.
    mine = set(indices[distributed.rank() :: distributed.world()])
    videos.work = [(index, conditions) for index, conditions in missing if index in mine]

    predict = MicroBatches(settings.predict, settings.batch_size)
    progress = tqdm(
        total=len(videos.work),
        desc="corrupt",
        leave=False,
        disable=distributed.rank() > 0 or not sys.stderr.isatty(),
    )
    with appending(settings.out, _STEM) as append, worker_deaths(videos):
        for corrupted in corrupted_loader(videos, settings.workers):
            record = videos.records[corrupted.index]
            predicted = _classify(predict, corrupted, settings.device, record)
            append(_rows(corrupted, record, predicted))
            progress.update()
    progress.close()
    all_rows = merged(settings.out, _STEM, "name", groups, combine=combine)
    return [_restricted(row, asked) for row in all_rows]


def _claim_folder(settings: MeasureSettings, videos: CorruptedVideos) -> None:
    """Refuse a folder that holds rows of another model, list of videos, protocol or seed."""
    identity = {
        "model": identify_model(settings.predict, videos, settings.device, settings.identity),
        "videos": videos_of(videos),
        "protocol": protocol_of(videos, place=videos.reader.place),
        "seed": videos.reader.seed,
    }
    own_folder(settings.out, _STEM, identity)


# --- Rows of several calls ---


def _with_severities(row: Row, asked: Severities) -> Row:
    """Return the row with its severities.

    Rows of earlier versions do not name them; such rows hold the severities that are asked for.
    """
    return row if "severities" in row else row | {"severities": asked.get(row["name"], [])}


def _combine_rows(asked: Severities, old: Row, new: Row) -> Row:
    """Return the old row, with the severities that only the new row has."""
    old = _with_severities(old, asked)
    new = _with_severities(new, asked)
    added = [i for i, severity in enumerate(new["severities"]) if severity not in old["severities"]]
    if not added:
        return old
    return old | {
        "severities": old["severities"] + [new["severities"][i] for i in added],
        "predicted": old["predicted"] + [new["predicted"][i] for i in added],
        "error": old["error"] or new["error"],
    }


def _missing(group: Sequence[Key], rows: dict[Key, Row], asked: Severities) -> list[Condition]:
    """Return the conditions of a group that must be measured.

    All of them if one of its rows is missing; otherwise the severities that its rows do not hold.

    Args:
        group: (index of the video, name) pairs.
        rows: existing rows.
        asked: severities by name.
    """
    conditions = [(key, severity) for key in group for severity in asked[key[1]]]
    if any(key not in rows for key in group):
        return [(name, severity) for (_, name), severity in conditions]
    measured = {key: _with_severities(rows[key], asked)["severities"] for key in group}
    return [(key[1], severity) for key, severity in conditions if severity not in measured[key]]


def _restricted(row: Row, asked: Severities) -> Row:
    """Return the row with only the severities that are asked for, in their order."""
    row = _with_severities(row, asked)
    predicted = dict(zip(row["severities"], row["predicted"], strict=True))
    severities = asked[row["name"]]
    return row | {
        "severities": severities,
        "predicted": [predicted[severity] for severity in severities],
    }


# --- Predictions of one video ---


@torch.no_grad()
def _classify(
    predict: Predict, corrupted: Corrupted, device: torch.device, record: Record | None = None
) -> list[int | None]:
    """Return the predicted class of each condition.

    Args:
        predict: the model.
        corrupted: the clips of each condition, or why it failed.
        device: device that the clips are moved to.
        record: the video, whose label is checked against the number of logits; None: no check.

    Returns:
        A class, or None for a condition that failed and for one with NaN logits.

    Raises:
        UserError: for outputs that are not logits, and for a label without a logit.
    """
    decoded = [clips for clips in corrupted.clips if isinstance(clips, Tensor)]
    if not decoded:
        return [None] * len(corrupted.clips)
    x = to_float(torch.stack(decoded).to(device))  # (conditions, clips, C, T, H, W)
    batch = x.flatten(0, 1)
    logits = logits_of(predict(batch), len(batch))
    if record is not None:
        require_label(record.uid, record.label, logits.shape[1])
    # The logits of a video's clips are averaged; one clip without finite logits spoils the mean.
    classes = logits.view(*x.shape[:2], -1).mean(1).argmax(1).tolist()
    finite = finite_logits(logits).view(x.shape[:2]).all(1).tolist()
    answers = iter(
        [
            predicted if is_finite else None
            for predicted, is_finite in zip(classes, finite, strict=True)
        ]
    )
    # Conditions that failed were not classified, and have no answer to take.
    return [next(answers) if isinstance(clips, Tensor) else None for clips in corrupted.clips]


def _rows(corrupted: Corrupted, record: Record, predicted: Sequence[int | None]) -> list[Row]:
    """Return one row per corruption of a video.

    Args:
        corrupted: the conditions, and why some of them failed.
        record: the video.
        predicted: the class of each condition, as `_classify` returns it.
    """
    by_name: dict[str, list[int | None]] = {}
    severities: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    answered = zip(corrupted.conditions, predicted, corrupted.clips, strict=True)
    for (name, severity), answer, clips in answered:
        by_name.setdefault(name, []).append(answer)
        severities.setdefault(name, []).append(severity)
        # A row gives the first reason of its conditions.
        if isinstance(clips, Failure):
            reasons.setdefault(name, clips.reason)
        elif answer is None:
            reason = f"NaN or infinite logits under {name} at severity {severity}"
            reasons.setdefault(name, fault(record.uid, reason))
    return [
        {
            "index": corrupted.index,
            "uid": record.uid,
            "label": record.label,
            "kind": _KIND,
            "name": name,
            "severities": severities[name],
            "predicted": answers,
            "error": reasons.get(name),
        }
        for name, answers in by_name.items()
    ]


# --- Summary ---


def corruption_table(
    rows: Sequence[Row], severities: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """Summarise rows of `evaluate_corruptions`.

    Accuracies are fractions. With A_c the clean accuracy and A_p the accuracy under a corruption:

    - gamma_a = 1 - (A_c - A_p) and gamma_r = 1 - (A_c - A_p) / A_c (Schiappa et al. 2023).
    - mpc is the mean accuracy under corruptions, and rpc = mpc / A_c (Yi et al. 2021).

    Means are over rows whose kind is "corruption": rows of a shifted data set may be present.

    Args:
        rows: rows of all videos and corruptions.
        severities: severities of the rows' predictions.
        classes: names of the classes.

    Returns:
        - n, clean_acc, ci95: number of videos, clean accuracy and its 95 % Wilson interval.
        - corruptions: name -> kind, acc (by severity), mean_acc, gamma_a and gamma_r.
        - mpc, rpc, gamma_a, gamma_r: averaged over corruptions and severities.
        - per_class: class -> clean_acc and mpc.
        - mce, relative_mce: None; `relative_to` sets them.

        gamma_r and rpc are None if the clean accuracy is 0.

    Raises:
        ValueError: if there are no clean rows, or no others.
    """
    clean = [row for row in rows if row["name"] == CLEAN[0]]
    if not clean or len(clean) == len(rows):
        raise ValueError("no rows of corruptions, or none of clean videos: a table needs both")
    hits = sum(row["predicted"] == [row["label"]] for row in clean)
    clean_acc = hits / len(clean)

    kinds = {row["name"]: row["kind"] for row in rows if row["name"] != CLEAN[0]}
    table: dict[str, Any] = {
        name: {"kind": kind, "acc": _accuracies([row for row in rows if row["name"] == name])}
        for name, kind in kinds.items()
    }
    for entry in table.values():
        mean = statistics.fmean(entry["acc"])
        entry |= {"mean_acc": mean} | _gammas(clean_acc, mean)
    mpc = statistics.fmean(entry["mean_acc"] for entry in table.values() if entry["kind"] == _KIND)
    return {
        "severities": list(severities),
        "n": len(clean),
        "clean_acc": clean_acc,
        "ci95": list(wilson(hits, len(clean))),
        "mpc": mpc,
        "rpc": mpc / clean_acc if clean_acc else None,
        **_gammas(clean_acc, mpc),
        "mce": None,
        "relative_mce": None,
        "corruptions": table,
        "per_class": _per_class(rows, classes),
    }


def _gammas(clean_acc: float, acc: float) -> dict[str, float | None]:
    """Return absolute and relative robustness, gamma_a and gamma_r (Schiappa et al. 2023)."""
    return {
        "gamma_a": 1 - (clean_acc - acc),
        "gamma_r": 1 - (clean_acc - acc) / clean_acc if clean_acc else None,
    }


def relative_to(table: dict[str, Any], baseline: dict[str, Any] | None) -> dict[str, Any]:
    """Return the table with errors relative to a baseline, in per cent.

    As in Hendrycks and Dietterich 2019. `ce` of a corruption is its error summed over severities,
    divided by the same sum of the baseline. `relative_ce` is the same for the errors' excess over
    the clean error. `mce` and `relative_mce` are their means. All are None without a baseline, and
    where the baseline's sum is 0.

    Args:
        table: from `corruption_table`.
        baseline: such a table of another model.
    """
    entries = {name: dict(entry) for name, entry in table["corruptions"].items()}
    for name, entry in entries.items():
        entry |= _relative_errors(table, entry["acc"], baseline, name)
    corruptions = [entry for entry in entries.values() if entry["kind"] == _KIND]
    return table | {
        "corruptions": entries,
        "mce": _mean([entry["ce"] for entry in corruptions]),
        "relative_mce": _mean([entry["relative_ce"] for entry in corruptions]),
    }


def _relative_errors(
    table: dict[str, Any], acc: list[float], baseline: dict[str, Any] | None, name: str
) -> dict[str, float | None]:
    """Return ce and relative_ce of one corruption.

    Args:
        table: from `corruption_table`.
        acc: accuracy of the corruption by severity of the table.
        baseline: table of the baseline; it may hold more severities.
        name: name of the corruption.
    """
    if baseline is None:
        return {"ce": None, "relative_ce": None}
    baseline_acc = dict(
        zip(baseline["severities"], baseline["corruptions"][name]["acc"], strict=True)
    )
    errors = 0.0
    baseline_errors = 0.0
    for severity, value in zip(table["severities"], acc, strict=True):
        errors = errors + 1 - value
        baseline_errors = baseline_errors + 1 - baseline_acc[severity]
    rise = errors - len(acc) * (1 - table["clean_acc"])
    baseline_rise = baseline_errors - len(acc) * (1 - baseline["clean_acc"])
    return {
        "ce": 100 * errors / baseline_errors if baseline_errors else None,
        # The rise is a difference of sums, so that a rise of 0 may come out as a rounding error.
        "relative_ce": 100 * rise / baseline_rise if abs(baseline_rise) > 1e-9 else None,
    }


def _accuracies(rows: Sequence[Row]) -> list[float]:
    """Return the accuracy at each severity; a video that did not decode counts as wrong."""
    hits = np.array([[answer == row["label"] for answer in row["predicted"]] for row in rows])
    return hits.mean(0).tolist()


def _mean(values: list[float | None]) -> float | None:
    """Return the mean, or None if a value is missing."""
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if len(numbers) == len(values) else None


def _per_class(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return class name -> its clean accuracy, and its mean accuracy under corruptions."""
    table = {}
    for label in sorted({row["label"] for row in rows}):
        class_rows = [row for row in rows if row["label"] == label]
        names = dict.fromkeys(row["name"] for row in class_rows if row["kind"] == _KIND)
        means = {
            name: statistics.fmean(_accuracies([row for row in class_rows if row["name"] == name]))
            for name in names
        }
        clean = means.pop(CLEAN[0])
        table[classes[label]] = {"clean_acc": clean, "mpc": statistics.fmean(means.values())}
    return table


# --- Baseline ---


def read_baseline(
    path: str, names: Sequence[str], severities: Sequence[int], place: str, measured: dict[str, Any]
) -> dict[str, Any] | None:
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
        table = summary["corruption"]
        lengths = {name: len(entry["acc"]) for name, entry in table["corruptions"].items()}
        is_whole = set(lengths.values()) <= {len(table["severities"])} and "clean_acc" in table
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"eval.corruption.baseline={path}: is not a summary.json of an evaluation with"
            " corruptions"
        )
    missing = [name for name in names if name not in lengths]
    missing += [f"severity {s}" for s in severities if s not in table["severities"]]
    if missing:
        raise UserError(
            f"eval.corruption.baseline={path}: has no {', '.join(missing[:5])}; measure the"
            " baseline with them"
        )
    if table.get("place") != place:
        raise UserError(
            f"eval.corruption.baseline={path}: was measured with"
            f" eval.corruption.place={table.get('place')}, not {place}; use the same for both"
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

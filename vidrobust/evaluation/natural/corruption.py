"""Measure accuracy under corruptions, one row per video and condition."""

import json
import statistics
import sys
from collections.abc import Sequence
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
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.intervals import wilson
from vidrobust.utils.logging import log
from vidrobust.views import to_float

_STEM, _KIND = "corruptions", "corruption"


def check_corruptions(names: Sequence[str]) -> list[str]:
    """The corruptions that `names` stand for. Raises UserError for a codec without encoder."""
    found = expand(names)
    try:
        require_encoders(found)
    except MissingEncoder as error:
        raise UserError(f"eval.corruption.names: {error}") from None
    return found


def without_effect(names: Sequence[str], frames: int, *, images: bool) -> list[str]:
    """A warning, or none, of corruptions that change nothing of clips of so many frames.

    images: of nothing else; a video has other frames to choose one from.
    """
    still = [name for name in names if name in OVER_TIME and (images or name not in INDEX_MAPS)]
    if frames > 1 or not still:
        return []
    return [
        f"{'images' if images else 'clips of one frame'}: nothing changes under {', '.join(still)}"
    ]


def evaluate_corruptions(
    predict: Predict,
    videos: CorruptedVideos,
    indices: list[int],
    names: Sequence[str],
    severities: Sequence[int],
    out: Path,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    identity: str = "",
) -> list[Row]:
    """Classify videos clean and corrupted, and return their rows; every rank calls it.

    The logits of a video's clips are averaged. Streams a row per video and corruption to
    out/corruptions.jsonl: what is predicted at each of the row's severities, and of the video as it
    is under the name "clean"; None, with the reason, for a video that does not decode, and where
    the model gives NaN. Killed and called again it goes on, and the rows are the same. Under
    torchrun each rank takes a part of the videos.

    A folder is of one model, list of videos, protocol and seed (out/corruptions.identity.json);
    another is refused. Other videos, corruptions and severities may be added: what is there stays,
    and the rows that are returned are of the severities that are asked for.

    Args:
        predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits, in evaluation mode.
        videos: its `work` is set here.
        indices: of the videos.
        names: of CORRUPTIONS.
        severities: 1 to 5, in the order of a row's predictions.
        out: the folder; it exists.
        batch_size: clips at a time.
        workers: processes that load.
        device: where clips go.
        identity: a name of the model, such as its checkpoint's hash; empty: see `identify_model`.

    Raises:
        UserError: for a folder of something else, for what is no logits, and for labels out of
            range.
    """
    require_work(indices, len(videos.records), batch_size)
    _require_conditions(names, severities)
    own_folder(
        out,
        _STEM,
        {
            "model": identify_model(predict, videos, device, identity),
            "videos": videos_of(videos),
            "protocol": protocol_of(videos, place=videos.reader.place),
            "seed": videos.reader.seed,
        },
    )
    asked = {CLEAN[0]: [CLEAN[1]]} | {name: list(severities) for name in names}
    at_once = max(
        1, batch_size // (len(severities) * videos.spec.clips)
    )  # corruptions of a video in a batch
    parts = [list(asked)[i : i + at_once] for i in range(0, len(asked), at_once)]
    groups: list[list[Key]] = [
        [(index, name) for name in part] for index in indices for part in parts
    ]

    def combine(old: Row, new: Row) -> Row:
        return _combined(_with_severities(old, asked), _with_severities(new, asked))

    _, rows = unfinished(out, _STEM, "name", groups, combine=combine)
    work = [(group[0][0], _missing(group, rows, asked)) for group in groups]
    missing = [(index, conditions) for index, conditions in work if conditions]
    if len(missing) < len(groups):
        there = len(groups) - len(missing)
        log.info(f"{there} of {len(groups)} batches of conditions are there already")
    mine = set(indices[distributed.rank() :: distributed.world()])
    videos.work = [(index, conditions) for index, conditions in missing if index in mine]
    bounded = MicroBatches(predict, batch_size)
    bar = tqdm(
        total=len(videos.work),
        desc="corrupt",
        leave=False,
        disable=distributed.rank() > 0 or not sys.stderr.isatty(),
    )
    with appending(out, _STEM) as append, worker_deaths(videos):
        for found in corrupted_loader(videos, workers):
            record = videos.records[found.index]
            append(_rows(found, record, _classify(bounded, found, device, record)))
            bar.update()
    bar.close()
    return [_restricted(row, asked) for row in merged(out, _STEM, "name", groups, combine=combine)]


def _require_conditions(names: Sequence[str], severities: Sequence[int]) -> None:
    """Raise UserError for names and severities that are none, or stand twice."""
    for name in names:
        lookup(CORRUPTIONS, name, "names")
    wrong = [severity for severity in severities if severity not in range(1, 6)]
    if wrong or not severities or len(set(severities)) < len(severities):
        found = ", ".join(map(str, severities))
        raise UserError(f"severities=[{found}]: whole numbers of 1 to 5, each once")
    if len(set(names)) < len(names):
        raise UserError(f"names=[{', '.join(names)}]: name each once")


def _with_severities(row: Row, asked: dict[str, list[int]]) -> Row:
    """Return the row with its severities; rows of earlier versions have those asked for."""
    return row if "severities" in row else row | {"severities": asked.get(row["name"], [])}


def _combined(old: Row, new: Row) -> Row:
    """Return the old row with the severities that only the new one has."""
    added = [i for i, severity in enumerate(new["severities"]) if severity not in old["severities"]]
    if not added:
        return old
    return old | {
        "severities": old["severities"] + [new["severities"][i] for i in added],
        "predicted": old["predicted"] + [new["predicted"][i] for i in added],
        "error": old["error"] or new["error"],
    }


def _missing(
    group: Sequence[Key], rows: dict[Key, Row], asked: dict[str, list[int]]
) -> list[Condition]:
    """Return the conditions to measure: all where a row is missing, else the missing severities."""
    if any(key not in rows for key in group):
        return [(name, severity) for _, name in group for severity in asked[name]]
    there = {key: _with_severities(rows[key], asked)["severities"] for key in group}
    return [
        (key[1], severity)
        for key in group
        for severity in asked[key[1]]
        if severity not in there[key]
    ]


def _restricted(row: Row, asked: dict[str, list[int]]) -> Row:
    """Return the row with the severities that are asked for, in their order."""
    row = _with_severities(row, asked)
    predicted = dict(zip(row["severities"], row["predicted"], strict=True))
    wanted = asked[row["name"]]
    return row | {"severities": wanted, "predicted": [predicted[severity] for severity in wanted]}


@torch.no_grad()
def _classify(
    predict: Predict, found: Corrupted, device: torch.device, record: Record | None = None
) -> list[int | None]:
    """Return the class of each condition; None for one that failed, and for one of NaN logits.

    Raises UserError for what is no logits, and for the label of `record` if no logit is its.
    """
    good = [clips for clips in found.clips if isinstance(clips, Tensor)]
    if not good:
        return [None] * len(found.clips)
    x = to_float(torch.stack(good).to(device))
    clips = x.flatten(0, 1)
    logits = logits_of(predict(clips), len(clips))
    if record is not None:
        require_label(record.uid, record.label, logits.shape[1])
    mean = logits.view(*x.shape[:2], -1).mean(1)
    finite = finite_logits(logits).view(x.shape[:2]).all(1).tolist()
    predicted = zip(mean.argmax(1).tolist(), finite, strict=True)
    answers = iter([answer if ok else None for answer, ok in predicted])
    return [next(answers) if isinstance(clips, Tensor) else None for clips in found.clips]


def _rows(found: Corrupted, record: Record, predicted: Sequence[int | None]) -> list[Row]:
    by_name: dict[str, list[int | None]] = {}
    severities: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    answered = zip(found.conditions, predicted, found.clips, strict=True)
    for (name, severity), answer, clips in answered:
        by_name.setdefault(name, []).append(answer)
        severities.setdefault(name, []).append(severity)
        if isinstance(clips, Failure):
            reasons.setdefault(name, clips.reason)
        elif answer is None:
            reason = f"NaN or infinite logits under {name} at severity {severity}"
            reasons.setdefault(name, fault(record.uid, reason))
    return [
        {
            "index": found.index,
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


def corruption_table(
    rows: Sequence[Row], severities: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """What rows of `evaluate_corruptions` say; accuracies are fractions.

    clean_acc, ci95; corruptions: name -> kind, acc (by severity), mean_acc, gamma_a, gamma_r; mpc,
    rpc (Yi et al. 2021): the mean of mean_acc, and its share of clean_acc; gamma_a, gamma_r
    (Schiappa et al. 2023): 1 - (A_c - A_p) and 1 - (A_c - A_p) / A_c, averaged over corruptions and
    severities; per_class: class -> clean_acc, mpc. Means are over rows whose kind is "corruption":
    a shifted data set may stand beside them. gamma_r and rpc are None where nothing is right to
    begin with; mce, relative_mce are `relative_to`'s.
    """
    clean = [row for row in rows if row["name"] == CLEAN[0]]
    if not clean or len(clean) == len(rows):
        raise ValueError("no rows of corruptions beside those of the clean videos: nothing to tell")
    right = sum(row["predicted"] == [row["label"]] for row in clean)
    clean_acc = right / len(clean)
    kinds = {row["name"]: row["kind"] for row in rows if row["name"] != CLEAN[0]}
    table: dict[str, Any] = {
        name: {"kind": kind, "acc": _accuracies([row for row in rows if row["name"] == name])}
        for name, kind in kinds.items()
    }
    for entry in table.values():
        mean = statistics.fmean(entry["acc"])
        entry |= {
            "mean_acc": mean,
            "gamma_a": 1 - (clean_acc - mean),
            "gamma_r": 1 - (clean_acc - mean) / clean_acc if clean_acc else None,
        }
    mpc = statistics.fmean(entry["mean_acc"] for entry in table.values() if entry["kind"] == _KIND)
    interval = list(wilson(right, len(clean)))
    return {
        "severities": list(severities),
        "n": len(clean),
        "clean_acc": clean_acc,
        "ci95": interval,
        "mpc": mpc,
        "rpc": mpc / clean_acc if clean_acc else None,
        "gamma_a": 1 - (clean_acc - mpc),
        "gamma_r": 1 - (clean_acc - mpc) / clean_acc if clean_acc else None,
        "mce": None,
        "relative_mce": None,
        "corruptions": table,
        "per_class": _per_class(rows, classes),
    }


def relative_to(table: dict[str, Any], baseline: dict[str, Any] | None) -> dict[str, Any]:
    """The table with ce and relative_ce of each corruption, and their means mce and relative_mce,
    in per cent.

    As Hendrycks and Dietterich (2019): the sum over severities of the error, or of what it exceeds
    the clean error by, as a share of the same of `baseline`, another such table; None where that is
    0, and without a baseline.
    """
    entries = {name: dict(entry) for name, entry in table["corruptions"].items()}
    for name, entry in entries.items():
        entry |= _shares(table, entry["acc"], baseline, name)
    own = [entry for entry in entries.values() if entry["kind"] == _KIND]
    return table | {
        "corruptions": entries,
        "mce": _mean([entry["ce"] for entry in own]),
        "relative_mce": _mean([entry["relative_ce"] for entry in own]),
    }


def _shares(
    table: dict[str, Any], acc: list[float], baseline: dict[str, Any] | None, name: str
) -> dict[str, float | None]:
    if baseline is None:
        return {"ce": None, "relative_ce": None}
    by_severity = dict(
        zip(baseline["severities"], baseline["corruptions"][name]["acc"], strict=True)
    )
    errors, others = 0.0, 0.0
    for severity, value in zip(table["severities"], acc, strict=True):
        errors, others = errors + 1 - value, others + 1 - by_severity[severity]
    rise = errors - len(acc) * (1 - table["clean_acc"])
    other_rise = others - len(acc) * (1 - baseline["clean_acc"])
    return {
        "ce": 100 * errors / others if others else None,
        "relative_ce": 100 * rise / other_rise if abs(other_rise) > 1e-9 else None,
    }


def _accuracies(rows: Sequence[Row]) -> list[float]:
    """By severity; a video that did not decode counts as wrong at each."""
    hits = np.array([[answer == row["label"] for answer in row["predicted"]] for row in rows])
    return hits.mean(0).tolist()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _per_class(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {}
    for label in sorted({row["label"] for row in rows}):
        here = [row for row in rows if row["label"] == label]
        names = dict.fromkeys(row["name"] for row in here if row["kind"] == _KIND)
        means = {
            name: statistics.fmean(_accuracies([row for row in here if row["name"] == name]))
            for name in names
        }
        clean = means.pop(CLEAN[0])
        found[classes[label]] = {"clean_acc": clean, "mpc": statistics.fmean(means.values())}
    return found


def read_baseline(
    path: str, names: Sequence[str], severities: Sequence[int], place: str, measured: dict[str, Any]
) -> dict[str, Any] | None:
    """The table of another evaluation's summary.json, or of the folder that holds it; None for "".

    measured: what both summaries must say alike, such as n, unit and manifest_sha. Raises UserError
    where there is none, and for one that lacks a name or severity, or was measured at another place
    or on other videos.
    """
    if not path:
        return None
    file = Path(path).expanduser()
    try:
        summary = json.loads((file / "summary.json" if file.is_dir() else file).read_text())
        found = summary["corruption"]
        known = {name: len(entry["acc"]) for name, entry in found["corruptions"].items()}
        whole = set(known.values()) <= {len(found["severities"])} and "clean_acc" in found
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(
            f"eval.corruption.baseline={path}: no summary.json of an evaluation of corruptions"
        )
    lacking = [
        *(name for name in names if name not in known),
        *(f"severity {s}" for s in severities if s not in found["severities"]),
    ]
    if lacking:
        raise UserError(
            f"eval.corruption.baseline={path} lacks {', '.join(lacking[:5])}: measure it with them"
        )
    if found.get("place") != place:
        raise UserError(
            f"eval.corruption.baseline={path} was measured with"
            f" eval.corruption.place={found.get('place')}"
        )
    other = [
        f"{key} {summary.get(key)}, here {value}"
        for key, value in measured.items()
        if summary.get(key) != value
    ]
    if other:
        raise UserError(
            f"eval.corruption.baseline={path} was measured on other videos: {'; '.join(other)}"
        )
    return found

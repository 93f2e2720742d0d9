"""Measure accuracy under corruptions, one row per video and condition."""

import sys
from collections.abc import Sequence
from functools import partial
from itertools import product

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
from vidrobust.evaluation.natural.corrupted_pictures import save_pictures
from vidrobust.evaluation.natural.corruption_summary import KIND
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
from vidrobust.evaluation.view_average import average_views
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.logging import log
from vidrobust.views import to_float

_STEM = "corruptions"

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
            if distributed.rank() == 0:
                save_pictures(settings.out / "corrupted", corrupted, videos.spec)
            predicted = _classify(predict, corrupted, settings, record)
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
        "protocol": protocol_of(videos, settings.view_average, place=videos.reader.place),
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
    """Return the old row, with the severities that only the new row has.

    Args:
        asked: severities by name.
        old: the row that was written first.
        new: another row of the same video and corruption.
    """
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
    predict: Predict,
    corrupted: Corrupted,
    settings: MeasureSettings,
    record: Record | None = None,
) -> list[int | None]:
    """Return the predicted class of each condition.

    Args:
        predict: the model.
        corrupted: the clips of each condition, or why it failed.
        settings: device, and how clips are averaged.
        record: the video, whose label is checked against the number of logits; None: no check.

    Returns:
        A class, or None for a condition that failed and for one with NaN logits.

    Raises:
        UserError: for outputs that are not logits, and for a label without a logit.
    """
    decoded = [clips for clips in corrupted.clips if isinstance(clips, Tensor)]
    if not decoded:
        return [None] * len(corrupted.clips)
    x = to_float(torch.stack(decoded).to(settings.device))  # (conditions, clips, C, T, H, W)
    batch = x.flatten(0, 1)
    logits = logits_of(predict(batch), len(batch))
    if record is not None:
        require_label(record.uid, record.label, logits.shape[1])
    # The clips of a video are averaged; one clip without finite logits spoils the mean.
    by_clip = logits.view(*x.shape[:2], -1)
    classes = average_views(by_clip, settings.view_average).argmax(1).tolist()
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
            "kind": KIND,
            "name": name,
            "severities": severities[name],
            "predicted": answers,
            "error": reasons.get(name),
        }
        for name, answers in by_name.items()
    ]

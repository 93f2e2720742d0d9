"""Accuracy under natural perturbation: every video under every corruption at every severity, row by row."""

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

from vidrobust.attacks import Predict
from vidrobust.corruptions import INDEX_MAPS, MissingEncoder, corrupt, expand
from vidrobust.data import CLEAN, Condition, Corrupted, CorruptedVideos, Record, corrupted_loader, worker_deaths
from vidrobust.engine import distributed
from vidrobust.engine.log import log
from vidrobust.errors import UserError
from vidrobust.evaluation.memory import MicroBatches
from vidrobust.evaluation.rows import Row, appending, merged, unfinished
from vidrobust.evaluation.statistics import wilson
from vidrobust.views import to_float

_STEM = "corruptions"


def check_corruptions(names: Sequence[str], frames: int) -> list[str]:
    """The corruptions that `names` stand for. Warns of those that change nothing of clips of one frame.

    Raises UserError for a codec without encoder.
    """
    found = expand(names)
    tiny, rng = np.zeros((1, 16, 16, 3), np.uint8), np.random.default_rng(0)
    for name in found:
        try:
            corrupt(tiny, name, 1, rng)
        except MissingEncoder as error:
            raise UserError(f"eval.corruption.names: {name}: {error}") from None
    still = [name for name in found if name in INDEX_MAPS]
    if frames == 1 and still and distributed.rank() == 0:
        log.warning(f"clips of one frame: nothing changes under {', '.join(still)}")
    return found


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
) -> list[Row]:
    """Classify videos clean and under each of `names` at each of `severities`, the mean of the logits of their clips.

    predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits, in evaluation mode. videos: its `work` is set here. Streams a
    row a video and corruption to out/corruptions.jsonl: what is predicted at each severity, and of the video as it is
    under the name "clean"; None for a video that does not decode. Killed and called again it goes on, and the rows are
    the same. Under torchrun each rank takes a share of the videos. Returns all rows.
    """
    conditions: dict[str, list[Condition]] = {CLEAN[0]: [CLEAN]}
    conditions |= {name: [(name, severity) for severity in severities] for name in names}
    at_once = max(1, batch_size // (len(severities) * videos.spec.clips))  # corruptions of a video in a batch
    parts = [list(conditions)[i : i + at_once] for i in range(0, len(conditions), at_once)]
    groups = [[(index, name) for name in part] for index in indices for part in parts]
    left = unfinished(out, _STEM, "name", groups)
    mine = set(indices[distributed.rank() :: distributed.world()])
    todo = [groups[number] for number in left if groups[number][0][0] in mine]
    videos.work = [(group[0][0], [c for _, name in group for c in conditions[name]]) for group in todo]
    bounded = MicroBatches(predict, batch_size)
    bar = tqdm(total=len(todo), desc="corrupt", leave=False, disable=distributed.rank() > 0 or not sys.stderr.isatty())
    with appending(out, _STEM) as append, worker_deaths(videos):
        for found in corrupted_loader(videos, workers):
            append(_rows(found, videos.records[found.index], _classify(bounded, found, device)))
            bar.update()
    bar.close()
    return merged(out, _STEM, "name", groups)


@torch.no_grad()
def _classify(predict: Predict, found: Corrupted, device: torch.device) -> list[int | None]:
    """The class of each condition."""
    if found.failed:
        return [None] * len(found.conditions)
    x: Tensor = to_float(found.clips.to(device))
    logits = predict(x.flatten(0, 1)).float()
    return logits.view(*x.shape[:2], -1).mean(1).argmax(1).tolist()


def _rows(found: Corrupted, record: Record, predicted: Sequence[int | None]) -> list[Row]:
    by_name: dict[str, list[int | None]] = {}
    for (name, _), answer in zip(found.conditions, predicted, strict=True):
        by_name.setdefault(name, []).append(answer)
    return [
        {"index": found.index, "uid": record.uid, "label": record.label, "kind": "corruption", "name": name,
         "predicted": answers, "error": found.failed.reason if found.failed else None}
        for name, answers in by_name.items()
    ]  # fmt: skip


def corruption_table(
    rows: Sequence[Row], severities: Sequence[int], classes: Sequence[str], baseline: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What rows of `evaluate_corruptions` say; accuracies are fractions.

    clean_acc, ci95; corruptions: name -> kind, acc (by severity), mean_acc, gamma_a, gamma_r, ce, relative_ce;
    mpc, rpc (Yi et al. 2021): the mean of mean_acc, and its share of clean_acc; gamma_a, gamma_r (Schiappa et al.
    2023): 1 - (A_c - A_p) and 1 - (A_c - A_p) / A_c, averaged over corruptions and severities; mce, relative_mce
    (Hendrycks and Dietterich 2019), in per cent of `baseline`'s, another such table: the sum over severities of the
    error, or of what it exceeds the clean error by, as a share of the baseline's, averaged over corruptions; None
    without one. per_class: class -> clean_acc, mpc. gamma_r and rpc are None where nothing is right to begin with.
    Raises UserError for a baseline that lacks a corruption or severity.
    """
    clean = [row for row in rows if row["name"] == CLEAN[0]]
    right = sum(row["predicted"] == [row["label"]] for row in clean)
    clean_acc = right / len(clean)
    table: dict[str, Any] = {
        name: {"kind": "corruption", "acc": _accuracies([row for row in rows if row["name"] == name])}
        for name in dict.fromkeys(row["name"] for row in rows) if name != CLEAN[0]
    }  # fmt: skip
    for name, entry in table.items():
        mean = statistics.fmean(entry["acc"])
        entry |= {"mean_acc": mean, "gamma_a": 1 - (clean_acc - mean),
                  "gamma_r": 1 - (clean_acc - mean) / clean_acc if clean_acc else None}  # fmt: skip
        if baseline is not None:
            entry |= _relative_errors(name, entry["acc"], clean_acc, severities, baseline)
    mpc = statistics.fmean(entry["mean_acc"] for entry in table.values())
    n, interval = len(clean), list(wilson(right, len(clean)))
    return {
        "severities": list(severities), "n": n, "clean_acc": clean_acc, "ci95": interval,
        "mpc": mpc, "rpc": mpc / clean_acc if clean_acc else None, "gamma_a": 1 - (clean_acc - mpc),
        "gamma_r": 1 - (clean_acc - mpc) / clean_acc if clean_acc else None,
        "mce": _mean([entry.get("ce") for entry in table.values()]),
        "relative_mce": _mean([entry.get("relative_ce") for entry in table.values()]),
        "corruptions": table, "per_class": _per_class(rows, classes),
    }  # fmt: skip


def _accuracies(rows: Sequence[Row]) -> list[float]:
    """By severity; a video that did not decode counts as wrong at each."""
    hits = np.array([[answer == row["label"] for answer in row["predicted"]] for row in rows])
    return hits.mean(0).tolist()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _relative_errors(
    name: str, acc: list[float], clean_acc: float, severities: Sequence[int], baseline: dict[str, Any]
) -> dict[str, float | None]:
    other = baseline["corruptions"].get(name)
    if other is None or list(baseline["severities"]) != list(severities):
        lacks = name if other is None else f"severities {list(severities)}"
        raise UserError(f"eval.corruption.baseline lacks {lacks}: measure it with the same eval.corruption")
    errors, others = ([1 - value for value in values] for values in (acc, other["acc"]))
    rise = sum(errors) - len(errors) * (1 - clean_acc)
    other_rise = sum(others) - len(others) * (1 - baseline["clean_acc"])
    return {"ce": 100 * sum(errors) / sum(others) if sum(others) else None,
            "relative_ce": 100 * rise / other_rise if other_rise else None}  # fmt: skip


def _per_class(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {}
    for label in sorted({row["label"] for row in rows}):
        here = [row for row in rows if row["label"] == label]
        names = dict.fromkeys(row["name"] for row in here)
        means = {name: statistics.fmean(_accuracies([row for row in here if row["name"] == name])) for name in names}
        clean = means.pop(CLEAN[0])
        found[classes[label]] = {"clean_acc": clean, "mpc": statistics.fmean(means.values())}
    return found


def read_baseline(path: str) -> dict[str, Any] | None:
    """The table of another evaluation's summary.json; None for "". Raises UserError where there is none."""
    if not path:
        return None
    try:
        found = json.loads(Path(path).expanduser().read_text())["corruption"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"eval.corruption.baseline={path}: no summary.json of an evaluation of corruptions") from None
    if not found:
        raise UserError(f"eval.corruption.baseline={path}: that evaluation measured no corruption")
    return found

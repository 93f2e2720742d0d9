"""Measure how well confidence separates unknown classes from known ones.

Known videos are the own test videos. Unknown ones are another data set's test videos, of classes
that the own data set does not have. The score is the largest probability (Hendrycks and Gimpel
2017), of the probabilities averaged over the clips of a video as eval.view_average says.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidrobust import config
from vidrobust.attacks import Predict, finite_logits
from vidrobust.data import Record, eval_dataset, records_sha
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of
from vidrobust.evaluation.natural.shift import read_other, refuse_known_videos, shared_classes
from vidrobust.evaluation.results import decoding_failures, fault, model_faults
from vidrobust.evaluation.view_average import average_views
from vidrobust.models.feature_store import DiskStore
from vidrobust.models.inference import evenly, extract
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_rows, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import bootstrap_interval
from vidrobust.utils.logging import log

RESAMPLES = 1000  # of the bootstrap
_RECALL = 0.95  # fraction of known videos that the threshold of FPR@95 accepts

Row = dict[str, Any]


# --- Measures ---


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the area under the ROC curve: P(known > unknown) + P(known = unknown) / 2.

    It is the statistic of Mann and Whitney 1947, divided by its largest value.

    Args:
        known: scores of known videos, (n,); larger is more confident.
        unknown: scores of unknown videos, (m,).
    """
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, "left")
    not_above = np.searchsorted(ordered, known, "right")
    return float((below + not_above).sum() / (2 * len(known) * len(unknown)))


def false_positive_rate(known: np.ndarray, unknown: np.ndarray, recall: float = _RECALL) -> float:
    """Return the fraction of unknown videos accepted where `recall` of the known ones are.

    The threshold is the largest score that at least this fraction of known videos reaches. A video
    whose score equals it is accepted.

    Args:
        known: scores of known videos, (n,).
        unknown: scores of unknown videos, (m,).
        recall: fraction in (0, 1].
    """
    needed = int(np.ceil(recall * len(known) - 1e-9))
    threshold = np.sort(known)[len(known) - needed]
    return float((unknown >= threshold).mean())


# --- Videos of the other data set ---


def unknown_records(
    cfg: config.Config, classes: Sequence[str], known: Sequence[Record] = ()
) -> list[Record]:
    """Return the test videos of eval.open_set whose class the own data set does not have.

    Classes that both have, by equal names or by the class tables, are left out with a warning. At
    most eval.limit videos are returned, spread evenly over the list; none if eval.open_set.name is
    empty.

    Args:
        cfg: its data, eval.open_set and eval.limit options are used.
        classes: class names of the own data set.
        known: own training and test videos, none of which may be in the other data set.

    Raises:
        UserError: if no class is unknown, and if a video is one of `known`.
    """
    source = cfg.eval.open_set
    if not source.name:
        return []
    records, other_classes = read_other(cfg.data, source, "eval.open_set")
    shared = shared_classes(classes, other_classes)
    kept = [record for record in records if record.label not in shared.other]
    if not kept:
        raise UserError(
            f"eval.open_set.name={source.name}: {cfg.data.name} has all of its classes, and none is"
            " unknown; set another data set, or measure it with eval.shift"
        )
    if shared.other and distributed.rank() == 0:
        names = [other_classes[label] for label in sorted(shared.other)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        log.warning(
            f"eval.open_set: {len(records) - len(kept)} of {len(records)} videos are left out, as"
            f" {cfg.data.name} also has their class: {', '.join(names[:3])}{more}"
        )
    refuse_known_videos(kept, known, "eval.open_set")
    return [kept[i] for i in evenly(len(kept), cfg.eval.limit)]


# --- Measurement ---


@dataclass(frozen=True)
class OpenSet:
    """Detection of unknown classes by confidence, the entry `open_set` of summary.json.

    Attributes:
        dataset: name of the other data set.
        known: own test videos.
        unknown: videos of the other data set, of unknown classes.
        auroc: area under the ROC curve; 0.5 is chance.
        ci95: its 95 % interval, by bootstrap over the videos of both sets.
        fpr95: fraction of unknown videos accepted where 95 % of the known ones are.
        fpr95_ci95: its interval, as ci95; [] in files of earlier revisions.
        known_confidence: mean confidence on known videos; None if none has finite logits.
        unknown_confidence: mean confidence on unknown videos; None as above.
        failed: why videos do not decode.
        warnings: of NaN outputs.
    """

    dataset: str
    known: int
    unknown: int
    auroc: float
    ci95: list[float]
    fpr95: float
    known_confidence: float | None
    unknown_confidence: float | None
    failed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    fpr95_ci95: list[float] = field(default_factory=list)


def evaluate_open_set(
    cfg: config.Config,
    predict: Predict,
    unknown: list[Record],
    known: list[Record],
    out: Path,
    device: torch.device,
    *,
    identity: str = "",
) -> OpenSet | None:
    """Measure the detection of unknown classes, and write out/open_set.jsonl.

    Every rank calls it; the ranks share the videos. A video that does not decode, or has no finite
    logits, counts against the model: as least confident if it is known, as most confident if not.
    A call that was killed can be repeated, and continues with the logits written so far.

    Args:
        cfg: its data and eval options are used.
        predict: clips (B, 3, T, H, W) in [0, 1] -> logits (B, K), in evaluation mode.
        unknown: what `unknown_records` returns.
        known: own test videos.
        out: folder that receives the rows; it must exist.
        device: of the clips.
        identity: name of the model, such as the hash of its checkpoint.

    Returns:
        The measures, or None without unknown videos.
    """
    if not unknown:
        return None
    path = out / "open_set.jsonl"
    dataset = eval_dataset(cfg.data, unknown, cfg.eval.clips, cfg.eval.sampling)
    folder_identity = {
        "model": identify_model(predict, dataset, device, identity),
        "videos": records_sha(unknown + known),
        "protocol": protocol_of(dataset, cfg.eval.view_average, name=cfg.eval.open_set.name),
    }
    own_folder(out, "open_set", folder_identity)
    if _read_finished(path, len(known), len(unknown)) is None:
        log.info(f"open set: {len(known)} known and {len(unknown)} unknown videos")
        bounded = MicroBatches(predict, cfg.eval.batch_size)
        partial = out / "open_set.partial"  # logits, so that a killed measurement continues
        rows = []
        for name, records in (("known", known), ("unknown", unknown)):
            store = DiskStore(partial, name, 1, folder_identity)
            rows += _rows(cfg, bounded, records, name, device, store)
        with distributed.together():
            if distributed.rank() == 0:
                with replacing(path) as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
                shutil.rmtree(partial)
    finished = _read_finished(path, len(known), len(unknown))
    assert finished is not None
    return open_set_of(cfg.eval.open_set.name, finished, cfg.seed)


def open_set_of(dataset: str, rows: Sequence[Row], seed: int) -> OpenSet:
    """Return the measures of rows.

    Args:
        dataset: name of the other data set.
        rows: of known and of unknown videos: `of`, `confidence` and `error`.
        seed: of the bootstrap.
    """
    by_side = {side: [row for row in rows if row["of"] == side] for side in ("known", "unknown")}
    # a video without a confidence counts against the model
    lost = {"known": -np.inf, "unknown": np.inf}
    scores = {
        side: np.array([_score(row, lost[side]) for row in part]) for side, part in by_side.items()
    }
    means: dict[str, float | None] = {}
    for side, values in scores.items():
        finite = values[np.isfinite(values)]
        means[side] = float(finite.mean()) if len(finite) else None
    intervals = [
        list(
            bootstrap_interval(
                measure, scores["known"], scores["unknown"], resamples=RESAMPLES, seed=seed
            )
        )
        for measure in (auroc, false_positive_rate)
    ]
    return OpenSet(
        dataset=dataset,
        known=len(by_side["known"]),
        unknown=len(by_side["unknown"]),
        auroc=auroc(scores["known"], scores["unknown"]),
        ci95=intervals[0],
        fpr95=false_positive_rate(scores["known"], scores["unknown"]),
        known_confidence=means["known"],
        unknown_confidence=means["unknown"],
        failed=decoding_failures(rows),
        warnings=[f"open set: {line}" for line in model_faults(rows)],
        fpr95_ci95=intervals[1],
    )


def _score(row: Row, lost: float) -> float:
    """Return the confidence of a row, or `lost` for a video without one."""
    return lost if row["confidence"] is None else row["confidence"]


def _read_finished(path: Path, known: int, unknown: int) -> list[Row] | None:
    """Return the rows of a finished measurement, or None.

    Args:
        path: open_set.jsonl.
        known: number of known videos.
        unknown: number of unknown videos.
    """
    rows = read_rows(path) if path.is_file() else []
    is_whole = all({"of", "confidence", "error"} <= row.keys() for row in rows)
    return rows if is_whole and rows and len(rows) == known + unknown else None


def _rows(
    cfg: config.Config,
    predict: Predict,
    records: list[Record],
    side: str,
    device: torch.device,
    store: DiskStore,
) -> list[Row]:
    """Return a row per video: uid, side, predicted class, confidence, error.

    Args:
        cfg: its data and eval options are used.
        predict: the model.
        records: the videos.
        side: "known" or "unknown".
        device: of the clips.
        store: where logits are written as they are computed.
    """
    (outputs,) = extract(
        [predict],
        eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling),
        device,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
        title=f"{side} videos",
        store=store,
    )
    logits = outputs.features  # (videos, clips, K)
    top = average_views(logits, cfg.eval.view_average).softmax(1).max(1)
    finite = finite_logits(logits.flatten(0, 1)).view(logits.shape[:2]).all(1).tolist()
    answers: dict[int, tuple[int, float]] = {}
    errors = {failure.index: failure.reason for failure in outputs.failed}
    columns = (outputs.index.tolist(), top.indices.tolist(), top.values.tolist(), finite)
    for index, answer, confidence, is_finite in zip(*columns, strict=True):
        if is_finite:
            answers[index] = answer, confidence
        else:
            errors[index] = fault(records[index].uid, "NaN or infinite logits")
    return [
        {
            "uid": record.uid,
            "of": side,
            "predicted": answers.get(i, (None, None))[0],
            "confidence": answers.get(i, (None, None))[1],
            "error": errors.get(i),
        }
        for i, record in enumerate(records)
    ]

"""Measure accuracy on another data set, over the shared classes.

"Own" is the data set that the model was trained on, "other" the shifted one. A concept is a meaning
that classes of both share; it may have several classes on a side.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict, finite_logits
from vidrobust.data import FORMATS, Record, build_records, eval_dataset, records_sha
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of
from vidrobust.evaluation.natural.class_tables import TABLES
from vidrobust.evaluation.results import decoding_failures, fault, model_faults
from vidrobust.evaluation.view_average import average_views
from vidrobust.models.feature_store import DiskStore
from vidrobust.models.inference import evenly, extract
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_rows, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson
from vidrobust.utils.logging import log
from vidrobust.utils.text import class_key

# --- Shared classes ---


@dataclass(frozen=True)
class Shared:
    """Map the classes of two data sets to the concepts that they share.

    Attributes:
        concepts: names of the concepts.
        own: class number of the own data set -> concept number.
        other: class number of the other data set -> concept number.
            Classes without a concept are in neither.
    """

    concepts: list[str]
    own: dict[int, int]
    other: dict[int, int]


def shared_classes(own: Sequence[str], other: Sequence[str]) -> Shared:
    """Find the classes of two data sets that mean the same.

    Classes match if their names are equal apart from case and punctuation. Otherwise the class
    tables decide; by these a concept may have several classes on a side. If nothing is shared,
    there are no concepts.

    Args:
        own: class names of the own data set.
        other: class names of the other data set.
    """
    own_keys = _keys(own)
    other_keys = _keys(other)
    own_concepts = [_concept_of(key, other_keys) for key in own_keys]
    other_concepts = [_concept_of(key, own_keys) for key in other_keys]
    concepts = [key for key in dict.fromkeys(own_concepts) if key is not None]
    number = {key: n for n, key in enumerate(concepts)}
    # A concept of a table has the table's name, any other that of the own class.
    own_names = dict(zip(own_concepts, own, strict=True))
    names = [_TABLE_NAMES.get(key) or own_names[key] for key in concepts]
    return Shared(
        names,
        {i: number[key] for i, key in enumerate(own_concepts) if key in number},
        {i: number[key] for i, key in enumerate(other_concepts) if key in number},
    )


def _concept_of(key: str, other_keys: Sequence[str]) -> str | None:
    """Return the concept of a class: its own key, or that of an entry of the class tables.

    Args:
        key: key of the class.
        other_keys: keys of the other data set's classes.

    Returns:
        None if the other data set has no class of this meaning.
    """
    if key in other_keys:
        return key
    for entry in _ENTRIES:
        for side, partners in (entry.sides, entry.sides[::-1]):
            if key in side and not partners.isdisjoint(other_keys):
                return entry.key
    return None


@dataclass(frozen=True)
class _Entry:
    """An entry of the class tables, with keys in place of names.

    Attributes:
        name: of the concept.
        key: of the concept: that of a class which both sides have, if there is one, and otherwise
            one that no class has.
        sides: keys of its classes in the two data sets.
    """

    name: str
    key: str
    sides: tuple[frozenset[str], frozenset[str]]


def _entries() -> Iterator[_Entry]:
    """Yield the entries of all class tables."""
    for table in TABLES:
        for name, (left, right) in table.items():
            sides = frozenset(map(class_key, left)), frozenset(map(class_key, right))
            both = sides[0] & sides[1]
            yield _Entry(name, min(both) if both else f"table: {name}", sides)


_ENTRIES = tuple(_entries())
_TABLE_NAMES = {entry.key: entry.name for entry in reversed(_ENTRIES)}


def _keys(names: Sequence[str]) -> list[str]:
    """Return the strings by which class names are compared.

    A name is compared without case and punctuation. If that leaves nothing, or makes two names
    equal, the name itself is its key.
    """
    plain = [class_key(name) for name in names]
    return [
        key if key and plain.count(key) == 1 else name
        for key, name in zip(plain, names, strict=True)
    ]


def among(logits: Tensor, own: dict[int, int], concepts: int) -> Tensor:
    """Return the predicted concepts, (N,): those whose best class has the highest logit.

    Args:
        logits: (N, K), one per class of the own data set.
        own: class number -> concept number; classes without a concept are ignored.
        concepts: number of concepts.
    """
    best = logits.new_full((len(logits), concepts), -torch.inf)
    for label, concept in own.items():
        best[:, concept] = torch.maximum(best[:, concept], logits[:, label])
    return best.argmax(1)


# --- Videos of the other data set ---


def other_records(
    cfg: config.Config, classes: Sequence[str], known: Sequence[Record] = ()
) -> tuple[list[Record], Shared]:
    """Return the test videos of eval.shift whose class has a concept, labelled by concept.

    At most eval.limit videos are returned, spread evenly over the list; none if eval.shift.name is
    empty. Classes whose names differ only in spelling are left out with a warning.

    Args:
        cfg: its data, eval.shift and eval.limit options are used.
        classes: class names of the own data set.
        known: own training and test videos, none of which may be in the other data set.

    Raises:
        UserError: if fewer than two classes are shared, and if a video is one of `known`.
    """
    name = cfg.eval.shift.name
    if not name:
        return [], Shared([], {}, {})
    root = cfg.eval.shift.root or cfg.data.root
    records, other_classes = read_other(cfg.data, cfg.eval.shift, "eval.shift")
    shared = shared_classes(classes, other_classes)
    _warn_of_ambiguous_names(cfg, classes, other_classes, shared)

    kept = [record for record in records if record.label in shared.other]
    if not kept:
        raise UserError(
            f"eval.shift.name={name}: no video of {root} ({', '.join(other_classes[:3])}, ...) has"
            f" a class of {cfg.data.name} ({', '.join(classes[:3])}, ...); name the folders as the"
            " classes"
        )
    if len(shared.concepts) < 2:
        raise UserError(
            f"eval.shift.name={name}: only {shared.concepts[0]} is shared with {cfg.data.name}, and"
            " any answer among one class is correct; at least two shared classes are needed"
        )
    refuse_known_videos(kept, known, "eval.shift")
    kept = [kept[i] for i in evenly(len(kept), cfg.eval.limit)]
    return [replace(record, label=shared.other[record.label]) for record in kept], shared


def read_other(
    own: config.DataConfig, other: config.ShiftConfig | config.OpenSetConfig, option: str
) -> tuple[list[Record], list[str]]:
    """Read another data set's list of test videos, and return its videos and class names.

    Args:
        own: the data options of the evaluation.
        other: format, folder and fold of the other data set.
        option: name of its section, for messages.
    """
    root = other.root or own.root
    spec = FORMATS.get(other.name)  # None for torchvision:NAME, and for names refused below
    if spec is not None and spec.draw is not None and not Path(root).expanduser().is_dir():
        # reading a built-in data set would render its videos into a folder that does not exist
        raise UserError(f"{option}.root={root}: no such folder")
    data = config.DataConfig(
        **vars(own)
        | {
            "name": other.name,
            "root": root,
            "fold": other.fold,
            "validation": 0.0,
            "manifest": "",
            "twins": "",
            "classes": [],
            # the archive holds the data set of data.root
            "archive": "" if other.root else own.archive,
        }
    )
    try:
        return build_records(data, spec.other_split if spec else "test")
    except UserError as error:
        # The message names options of data; the user set those of the other data set.
        message = re.sub(r"\bdata\.(name|root|fold)", rf"{option}.\1", str(error))
        if not other.root:
            message += f"; {option}.root is empty, so data.root was used"
        raise UserError(message) from None


def _warn_of_ambiguous_names(
    cfg: config.Config, classes: Sequence[str], other_classes: Sequence[str], shared: Shared
) -> None:
    """Warn of classes left out because their names differ from each other only in spelling.

    Args:
        cfg: names the own data set.
        classes: class names of the own data set.
        other_classes: class names of the other data set.
        shared: what `shared_classes` returns for them.
    """
    plain = [class_key(name) for name in other_classes]
    own_plain = {class_key(name) for name in classes}
    ambiguous = [
        name
        for i, name in enumerate(other_classes)
        if i not in shared.other and plain.count(plain[i]) > 1 and plain[i] in own_plain
    ]
    if ambiguous:
        log.warning(
            f"eval.shift: {', '.join(ambiguous)} are left out, as their names differ only in"
            f" spelling; name them as in {cfg.data.name}"
        )


def refuse_known_videos(records: Sequence[Record], known: Sequence[Record], option: str) -> None:
    """Raise UserError if a video is also one of the own training or test videos.

    Args:
        records: videos of the other data set.
        known: own videos.
        option: name of the section of the other data set, for the message.
    """
    # Links to a file are resolved; copies of it are not detected.
    known_paths = {os.path.realpath(record.path) for record in known}
    leaked = [record.uid for record in records if os.path.realpath(record.path) in known_paths]
    if leaked:
        raise UserError(
            f"{option}: {len(leaked)} of {len(records)} videos are in the own training or test"
            f" split, first {leaked[0]}; set {option}.root or {option}.fold to other videos"
        )


# --- Measurement ---


@dataclass(frozen=True)
class Shift:
    """Accuracy on another data set, the entry `shift` of summary.json.

    Attributes:
        dataset: name of the other data set.
        n: its videos.
        concepts: names of the shared classes.
        chance: accuracy of guessing among the shared classes.
        acc: accuracy on the other data set.
        ci95: its 95 % interval (Wilson).
        own_n: own test videos of the shared classes.
        own_acc: accuracy on these, among the shared classes; None without any.
        per_class: shared class -> accuracy on the other data set.
        failed: why videos do not decode.
        warnings: of NaN outputs.
    """

    dataset: str
    n: int
    concepts: list[str]
    chance: float
    acc: float
    ci95: list[float]
    own_n: int
    own_acc: float | None
    per_class: dict[str, float]
    failed: list[str]
    warnings: list[str] = field(default_factory=list)


def evaluate_shift(
    cfg: config.Config,
    predict: Predict,
    others: tuple[list[Record], Shared],
    test: list[Record],
    out: Path,
    device: torch.device,
    *,
    identity: str = "",
) -> Shift | None:
    """Measure accuracy on the videos of `other_records`, and write out/shift.jsonl.

    Every rank must call this function; the ranks share the videos. The clips of a video are
    averaged (eval.view_average), and the answer is the best of the shared classes. A video counts
    as wrong if it does not decode, or if the model returns NaN for it.

    Existing rows of the same model, videos and protocol (out/shift.identity.json) are read, not
    measured again. A call that was killed can be repeated, and continues with the logits written so
    far.

    Args:
        cfg: its data, eval.shift and eval options are used.
        predict: maps clips (B, 3, T, H, W) in [0, 1] to logits (B, K), in evaluation mode.
        others: what `other_records` returns.
        test: test videos of the own data set.
        out: folder that receives the rows; it must exist.
        device: device that the clips are moved to.
        identity: name of the model, such as the hash of its checkpoint; empty: see
            `identify_model`.

    Returns:
        The accuracies, or None if there are no videos.

    Raises:
        UserError: for a folder of another measurement, and for a model with fewer classes than the
            data set.
    """
    records, shared = others
    if not records:
        return None
    own_records = [
        replace(record, label=shared.own[record.label])
        for record in test
        if record.label in shared.own
    ]
    path = out / "shift.jsonl"
    dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling)
    folder_identity = {
        "model": identify_model(predict, dataset, device, identity),
        "videos": records_sha(records + own_records),
        "protocol": protocol_of(
            dataset,
            cfg.eval.view_average,
            name=cfg.eval.shift.name,
            concepts=shared.concepts,
        ),
    }
    own_folder(out, "shift", folder_identity)
    if _read_finished(path, len(records), len(own_records)) is None:
        log.info(
            f"shift: {len(records)} videos of {cfg.eval.shift.name}, {len(shared.concepts)} shared"
            " classes"
        )
        bounded = MicroBatches(predict, cfg.eval.batch_size)
        partial = out / "shift.partial"  # holds logits, so that a killed measurement can continue
        rows = []
        for of, part in (("other", records), ("own", own_records)):
            if part:
                store = DiskStore(partial, of, 1, folder_identity)
                title = "shift" if of == "other" else "own videos of shared classes"
                part_rows = _rows(cfg, bounded, part, shared, device, store, title)
                rows += [row | {"of": of} for row in part_rows]
        with distributed.together():
            if distributed.rank() == 0:
                with replacing(path) as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
                shutil.rmtree(partial)
    measured = _read_finished(path, len(records), len(own_records))
    assert measured is not None
    return _summarise(cfg, records, shared, measured)


def _summarise(
    cfg: config.Config,
    records: list[Record],
    shared: Shared,
    measured: dict[str, list[dict[str, Any]]],
) -> Shift:
    """Return what `evaluate_shift` returns.

    Args:
        cfg: names the other data set.
        records: videos of the other data set, labelled by concept.
        shared: the concepts.
        measured: rows of the "other" and the "own" videos.
    """
    hits = [row["predicted"] == row["label"] for row in measured["other"]]
    own_hits = [row["predicted"] == row["label"] for row in measured["own"]]
    by_class: dict[str, list[bool]] = {}
    for record, hit in zip(records, hits, strict=True):
        by_class.setdefault(shared.concepts[record.label], []).append(hit)
    return Shift(
        dataset=cfg.eval.shift.name,
        n=len(records),
        concepts=shared.concepts,
        chance=1 / len(shared.concepts),
        acc=sum(hits) / len(hits),
        ci95=list(wilson(sum(hits), len(hits))),
        own_n=len(own_hits),
        own_acc=sum(own_hits) / len(own_hits) if own_hits else None,
        per_class={
            name: sum(class_hits) / len(class_hits) for name, class_hits in sorted(by_class.items())
        },
        failed=decoding_failures(measured["other"]),
        warnings=model_faults(measured["other"] + measured["own"]),
    )


def _read_finished(path: Path, others: int, own: int) -> dict[str, list[dict[str, Any]]] | None:
    """Read the rows of a finished measurement.

    Args:
        path: shift.jsonl.
        others: number of videos of the other data set.
        own: number of own videos.

    Returns:
        "other" and "own" -> their rows; None if there are no rows, or not all of them.
    """
    rows = read_rows(path) if path.is_file() else []
    by_side = {of: [row for row in rows if row.get("of") == of] for of in ("other", "own")}
    is_whole = all({"predicted", "label", "error"} <= row.keys() for row in rows)
    has_all = (len(by_side["other"]), len(by_side["own"])) == (others, own)
    return by_side if is_whole and rows and has_all else None


def _rows(
    cfg: config.Config,
    predict: Predict,
    records: list[Record],
    shared: Shared,
    device: torch.device,
    store: DiskStore,
    title: str,
) -> list[dict[str, Any]]:
    """Classify videos among the shared classes.

    Args:
        cfg: its data and eval options are used.
        predict: the model.
        records: the videos, labelled by concept.
        shared: the concepts.
        device: device that the clips are moved to.
        store: where logits are written as they are computed.
        title: title of the progress bar.

    Returns:
        A row per video, in the order of the records: uid, label and predicted (concept numbers),
        and error.
    """
    dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling)
    (outputs,) = extract(
        [predict],
        dataset,
        device,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
        title=title,
        store=store,
    )
    logits = outputs.features  # (videos, clips, K)
    if max(shared.own) >= logits.shape[-1]:
        raise UserError(
            f"eval.shift.name={cfg.eval.shift.name}: class {max(shared.own)} is shared, but the "
            f"model gives {logits.shape[-1]} logits; use a model of the data set's classes"
        )
    averaged = average_views(logits, cfg.eval.view_average)
    answers = among(averaged, shared.own, len(shared.concepts)).tolist()
    finite = finite_logits(logits.flatten(0, 1)).view(logits.shape[:2]).all(1).tolist()
    predictions: dict[int, int] = {}
    errors = {failure.index: failure.reason for failure in outputs.failed}
    for index, answer, is_finite in zip(outputs.index.tolist(), answers, finite, strict=True):
        if is_finite:
            predictions[index] = answer
        else:
            errors[index] = fault(records[index].uid, "NaN or infinite logits")
    return [
        {
            "uid": record.uid,
            "label": record.label,
            "predicted": predictions.get(i),
            "error": errors.get(i),
        }
        for i, record in enumerate(records)
    ]

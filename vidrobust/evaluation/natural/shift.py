"""Measure accuracy on another data set, over the shared classes."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict, finite_logits
from vidrobust.data import FORMATS, Record, build_records, eval_dataset, records_sha
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of
from vidrobust.evaluation.results import decoding_failures, fault, model_faults
from vidrobust.models.feature_store import DiskStore
from vidrobust.models.inference import evenly, extract
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_rows, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson
from vidrobust.utils.logging import log

# concept -> classes of UCF101 and of HMDB51: the twelve of UCF-HMDB full (Chen et al., ICCV 2019),
# and two of ours
UCF_HMDB: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "climb": (("RockClimbingIndoor", "RopeClimbing"), ("climb",)),
    "fencing": (("Fencing",), ("fencing",)),
    "golf": (("GolfSwing",), ("golf",)),
    "kick_ball": (("SoccerPenalty",), ("kick_ball",)),
    "pullup": (("PullUps",), ("pullup",)),
    "punch": (("Punch", "BoxingPunchingBag", "BoxingSpeedBag"), ("punch",)),
    "pushup": (("PushUps",), ("pushup",)),
    "ride_bike": (("Biking",), ("ride_bike",)),
    "ride_horse": (("HorseRiding",), ("ride_horse",)),
    "shoot_ball": (("Basketball",), ("shoot_ball",)),
    "shoot_bow": (("Archery",), ("shoot_bow",)),
    "walk": (("WalkingWithDog",), ("walk",)),
    "dive": (("Diving", "CliffDiving"), ("dive",)),
    "handstand": (("HandstandPushups", "HandstandWalking"), ("handstand",)),
}


@dataclass(frozen=True)
class Shared:
    """concepts; own and other: class number -> concept number, of the classes that have one."""

    concepts: list[str]
    own: dict[int, int]
    other: dict[int, int]


def shared_classes(own: Sequence[str], other: Sequence[str]) -> Shared:
    """Which classes mean the same: those of the same name, but for case and punctuation, or else
    those of UCF_HMDB.

    By that table a concept may have several classes on a side. Nothing shared gives no concepts.
    """
    sides = _keys(own), _keys(other)
    hmdb = {_plain(name): concept for concept, (_, (name,)) in UCF_HMDB.items()}
    of_ucf = {_plain(name): _plain(theirs) for ucf, (theirs,) in UCF_HMDB.values() for name in ucf}

    def meaning(key: str, beside: Sequence[str]) -> str | None:
        if key in beside or any(of_ucf.get(name) == key for name in beside):
            return key
        return of_ucf[key] if of_ucf.get(key) in beside else None

    left, right = ([meaning(key, beside) for key in keys] for keys, beside in (sides, sides[::-1]))
    shared = [key for key in dict.fromkeys(left) if key is not None]
    number = {key: n for n, key in enumerate(shared)}
    names = [hmdb.get(key) or own[left.index(key)] for key in shared]
    return Shared(
        names,
        *(
            {i: number[key] for i, key in enumerate(side) if key is not None}
            for side in (left, right)
        ),
    )


def among(logits: Tensor, own: dict[int, int], concepts: int) -> Tensor:
    """(N, K) logits -> (N,) the concept whose best class is highest, of the classes that have
    one.
    """
    best = logits.new_full((len(logits), concepts), -torch.inf)
    for label, concept in own.items():
        best[:, concept] = torch.maximum(best[:, concept], logits[:, label])
    return best.argmax(1)


def other_records(
    cfg: config.Config, classes: Sequence[str], known: Sequence[Record] = ()
) -> tuple[list[Record], Shared]:
    """The test videos of eval.shift that have a concept, their label now its number; none where no
    shift is named.

    At most eval.limit of them, evenly over the list. known: the own training and test videos. Warns
    of classes that only their spelling tells apart. Raises UserError where fewer than two classes
    are shared, and for a list that has videos of `known`.
    """
    wanted = cfg.eval.shift
    if not wanted.name:
        return [], Shared([], {}, {})
    root = wanted.root or cfg.data.root
    spec = FORMATS.get(wanted.name)  # None for torchvision:NAME, and for a name refused below
    if spec is not None and spec.draw is not None and not Path(root).expanduser().is_dir():
        # a built-in data set is evaluated only if it exists: it is not drawn here
        raise UserError(f"eval.shift.root={root}: no such folder")
    data = config.DataConfig(
        **vars(cfg.data)
        | {
            "name": wanted.name,
            "root": root,
            "fold": wanted.fold,
            "validation": 0.0,
            "manifest": "",
            "twins": "",
        }
    )
    try:
        records, theirs = build_records(data, spec.other_split if spec else "test")
    except UserError as error:
        told = re.sub(r"\bdata\.(name|root|fold)", r"eval.shift.\1", str(error))
        raise UserError(
            told + ("" if wanted.root else "; eval.shift.root is empty, which is data.root")
        ) from None
    shared = shared_classes(classes, theirs)
    plain, meant = [_plain(name) for name in theirs], {_plain(name) for name in classes}
    alike = [
        name
        for i, name in enumerate(theirs)
        if i not in shared.other and plain.count(plain[i]) > 1 and plain[i] in meant
    ]
    if alike:
        log.warning(
            f"eval.shift: {', '.join(alike)} are left out, which spelling alone tells apart; name"
            f" them as {cfg.data.name} does"
        )
    kept = [record for record in records if record.label in shared.other]
    if not kept:
        raise UserError(
            f"eval.shift.name={wanted.name}: no video of {root} ({', '.join(theirs[:3])}, ...) is"
            f" of a class of {cfg.data.name} ({', '.join(classes[:3])}, ...); name folders as its"
            " classes are"
        )
    if len(shared.concepts) < 2:
        raise UserError(
            f"eval.shift.name={wanted.name}: {shared.concepts[0]} alone is shared with"
            f" {cfg.data.name}, and any answer among one class is right; two at least"
        )
    own = {os.path.realpath(record.path) for record in known}
    seen = [record.uid for record in kept if os.path.realpath(record.path) in own]
    if seen:
        raise UserError(
            f"eval.shift: {len(seen)} of {len(kept)} videos are of the own training or test list,"
            f" first {seen[0]}; set eval.shift.root, or another eval.shift.fold, to other videos"
        )
    kept = [kept[i] for i in evenly(len(kept), cfg.eval.limit)]
    return [replace(record, label=shared.other[record.label]) for record in kept], shared


def evaluate_shift(
    cfg: config.Config,
    predict: Predict,
    others: tuple[list[Record], Shared],
    test: list[Record],
    out: Path,
    device: torch.device,
    *,
    identity: str = "",
) -> dict[str, Any] | None:
    """Return what a summary says of `other_records`, or None; writes out/shift.jsonl.

    dataset, n, concepts; acc and ci95 on its videos, answered among the shared classes, the logits
    of a video's clips averaged; own_acc, own_n: the same on the test videos of these classes;
    per_class; failed; warnings, if there are some. Accuracies are fractions; a video that does not
    decode, or on which the model gives NaN, is wrong. Rows that are there are read, and not made
    again, if they are of the same model, videos and protocol (out/shift.identity.json); a call that
    was killed goes on with the logits it has written. Every rank calls it, and they share the
    videos.

    Args:
        cfg: its data, eval.shift and eval options.
        predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits, in evaluation mode.
        others: of `other_records`.
        test: the own test videos.
        out: the folder; it exists.
        device: where clips go.
        identity: a name of the model, such as its checkpoint's hash; empty: see `identify_model`.

    Raises:
        UserError: for a folder of something else, and for a model of fewer classes than the data
            set.
    """
    records, shared = others
    if not records:
        return None
    own = [
        replace(record, label=shared.own[record.label])
        for record in test
        if record.label in shared.own
    ]
    path = out / "shift.jsonl"
    dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling)
    asked = {
        "model": identify_model(predict, dataset, device, identity),
        "videos": records_sha(records + own),
        "protocol": protocol_of(dataset, name=cfg.eval.shift.name, concepts=shared.concepts),
    }
    own_folder(out, "shift", asked)
    if _kept(path, len(records), len(own)) is None:
        log.info(
            f"shift: {len(records)} videos of {cfg.eval.shift.name}, {len(shared.concepts)} shared"
            " classes"
        )
        bounded = MicroBatches(predict, cfg.eval.batch_size)
        partial = out / "shift.partial"  # logits, so that a killed measurement goes on
        rows = []
        for of, part in (("other", records), ("own", own)):
            if part:
                store = DiskStore(partial, of, 1, asked)
                title = "shift" if of == "other" else "own videos of shared classes"
                found_rows = _rows(cfg, bounded, part, shared, device, store, title)
                rows += [row | {"of": of} for row in found_rows]
        with distributed.together():
            if distributed.rank() == 0:
                with replacing(path) as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
                shutil.rmtree(partial)
    found = _kept(path, len(records), len(own))
    assert found is not None
    hits, own_hits = (
        [row["predicted"] == row["label"] for row in found[of]] for of in ("other", "own")
    )
    by_class: dict[str, list[bool]] = {}
    for record, hit in zip(records, hits, strict=True):
        by_class.setdefault(shared.concepts[record.label], []).append(hit)
    warnings = model_faults(found["other"] + found["own"])
    return {
        "dataset": cfg.eval.shift.name,
        "n": len(records),
        "concepts": shared.concepts,
        "chance": 1 / len(shared.concepts),
        "acc": sum(hits) / len(hits),
        "ci95": list(wilson(sum(hits), len(hits))),
        "own_n": len(own),
        "own_acc": sum(own_hits) / len(own_hits) if own else None,
        "per_class": {name: sum(found) / len(found) for name, found in sorted(by_class.items())},
        "failed": decoding_failures(found["other"]),
        **({"warnings": warnings} if warnings else {}),
    }


def _kept(path: Path, others: int, own: int) -> dict[str, list[dict[str, Any]]] | None:
    """Return the rows of shift.jsonl by what they are of.

    None where there are none, or not all of them.
    """
    rows = read_rows(path) if path.is_file() else []
    found = {of: [row for row in rows if row.get("of") == of] for of in ("other", "own")}
    whole = all({"predicted", "label", "error"} <= row.keys() for row in rows)
    return (
        found
        if whole and rows and (len(found["other"]), len(found["own"])) == (others, own)
        else None
    )


def _rows(
    cfg: config.Config,
    predict: Predict,
    records: list[Record],
    shared: Shared,
    device: torch.device,
    store: DiskStore,
    title: str,
) -> list[dict[str, Any]]:
    """uid, label and predicted, numbers of concepts, and error; in the order of the records."""
    dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling)
    (found,) = extract(
        [predict],
        dataset,
        device,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
        title=title,
        store=store,
    )
    logits = found.features
    if max(shared.own) >= logits.shape[-1]:
        raise UserError(
            f"eval.shift.name={cfg.eval.shift.name}: class {max(shared.own)} is shared, and the "
            f"model gives {logits.shape[-1]} logits; take a model of the data set's classes"
        )
    answers = among(logits.mean(1), shared.own, len(shared.concepts)).tolist()
    finite = finite_logits(logits.flatten(0, 1)).view(logits.shape[:2]).all(1).tolist()
    index = found.index.tolist()
    predicted = {i: answer for i, answer, ok in zip(index, answers, finite, strict=True) if ok}
    errors = {failure.index: failure.reason for failure in found.failed}
    lost = [i for i, ok in zip(index, finite, strict=True) if not ok]
    errors |= {i: fault(records[i].uid, "NaN or infinite logits") for i in lost}
    return [
        {
            "uid": record.uid,
            "label": record.label,
            "predicted": predicted.get(i),
            "error": errors.get(i),
        }
        for i, record in enumerate(records)
    ]


def _keys(names: Sequence[str]) -> list[str]:
    """What names are compared by; those that punctuation alone tells apart, or that are nothing
    else, by themselves.
    """
    plain = [_plain(name) for name in names]
    return [
        key if key and plain.count(key) == 1 else name
        for key, name in zip(plain, names, strict=True)
    ]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def shift_lines(found: dict[str, Any] | None) -> list[str]:
    """A section of report.md, none for None."""
    if not found:
        return []
    low, high = found["ci95"]
    own = (
        "-"
        if found["own_acc"] is None
        else f"{100 * found['own_acc']:.1f} % (n = {found['own_n']})"
    )
    classes = "; ".join(f"{name} {100 * acc:.0f}" for name, acc in found["per_class"].items())
    return [
        f"## On {found['dataset']}",
        "",
        (
            f"{found['n']} videos of the {len(found['concepts'])} classes that it shares, answered"
            f" among them (chance {100 * found['chance']:.1f} %): {100 * found['acc']:.1f} %"
            f" ({100 * low:.1f} to {100 * high:.1f}). On the own test videos of these classes:"
            f" {own}."
        ),
        "",
        f"By class, %: {classes}.",
        "",
    ]

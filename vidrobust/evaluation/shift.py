"""Accuracy on another data set: of the classes that it shares with the one that was learned."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict
from vidrobust.data import Record, build_records, eval_dataset, records_sha
from vidrobust.engine.log import log
from vidrobust.errors import UserError
from vidrobust.evaluation.memory import MicroBatches
from vidrobust.evaluation.predict import extract
from vidrobust.evaluation.statistics import wilson

# concept -> classes of UCF101 and of HMDB51: the twelve of UCF-HMDB full (Chen et al., ICCV 2019), and two of ours
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
    """Which classes mean the same: those of the same name, but for case and punctuation, and those of UCF_HMDB.

    A concept may have several classes on a side. Nothing shared gives no concepts.
    """
    names: dict[str, str] = {}
    for concept, sides in UCF_HMDB.items():
        names |= {_plain(name): concept for side in sides for name in side}
    left, right = ([names.get(_plain(name), _plain(name)) for name in side] for side in (own, other))
    concepts = [concept for concept in dict.fromkeys(left) if concept in set(right)]
    number = {concept: n for n, concept in enumerate(concepts)}
    return Shared(concepts, *({i: number[c] for i, c in enumerate(side) if c in number} for side in (left, right)))


def among(logits: Tensor, own: dict[int, int], concepts: int) -> Tensor:
    """(N, K) logits -> (N,) the concept whose best class is highest, of the classes that have one."""
    best = logits.new_full((len(logits), concepts), -torch.inf)
    for label, concept in own.items():
        best[:, concept] = torch.maximum(best[:, concept], logits[:, label])
    return best.argmax(1)


def other_records(cfg: config.Config, classes: Sequence[str]) -> tuple[list[Record], Shared]:
    """The test videos of eval.shift that have a concept, their label now its number; none where no shift is named.

    Raises UserError where no class is shared.
    """
    wanted = cfg.eval.shift
    if not wanted.name:
        return [], Shared([], {}, {})
    root = wanted.root or cfg.data.root
    data = config.Data(**vars(cfg.data) | {"name": wanted.name, "root": root, "fold": wanted.fold,
                                           "validation": 0.0, "manifest": "", "twins": ""})  # fmt: skip
    records, theirs = build_records(data, "train" if wanted.name == "class_folder" else "test")
    shared = shared_classes(classes, theirs)
    if not shared.concepts:
        raise UserError(
            f"eval.shift.name={wanted.name}: no class of {root} ({', '.join(theirs[:3])}, ...) is one of "
            f"{cfg.data.name} ({', '.join(classes[:3])}, ...); name folders as its classes are"
        )
    kept = [record for record in records if record.label in shared.other]
    return [Record(**vars(record) | {"label": shared.other[record.label]}) for record in kept], shared


def evaluate_shift(
    cfg: config.Config, predict: Predict, test: list[Record], classes: Sequence[str], device: torch.device
) -> dict[str, Any] | None:
    """What a summary says of another data set; None where none is named.

    dataset, n, concepts; acc and ci95 on its videos, answered among the shared classes, the logits of a video's clips
    averaged; own_acc, own_n: the same on the test videos of these classes; per_class; failed. Accuracies are fractions,
    a video that does not decode is wrong.
    """
    records, shared = other_records(cfg, classes)
    if not records:
        return None
    own = [Record(**vars(r) | {"label": shared.own[r.label]}) for r in test if r.label in shared.own]
    log.info(f"shift: {len(records)} videos of {cfg.eval.shift.name}, {len(shared.concepts)} shared classes")
    bounded = MicroBatches(predict, cfg.eval.batch_size)
    (hits, failed), (own_hits, _) = (_hits(cfg, bounded, part, shared, device) for part in (records, own))
    by_class: dict[str, list[bool]] = {}
    for record, hit in zip(records, hits, strict=True):
        by_class.setdefault(shared.concepts[record.label], []).append(hit)
    return {
        "dataset": cfg.eval.shift.name, "n": len(records), "manifest_sha": records_sha(records),
        "concepts": shared.concepts, "chance": 1 / len(shared.concepts), "acc": sum(hits) / len(hits),
        "ci95": list(wilson(sum(hits), len(hits))), "own_n": len(own),
        "own_acc": sum(own_hits) / len(own_hits) if own else None,
        "per_class": {name: sum(found) / len(found) for name, found in sorted(by_class.items())}, "failed": failed,
    }  # fmt: skip


def _hits(
    cfg: config.Config, predict: Predict, records: list[Record], shared: Shared, device: torch.device
) -> tuple[list[bool], list[str]]:
    """Whether each video's concept is answered, and what did not decode."""
    if not records:
        return [], []
    dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling)
    (found,) = extract([predict], dataset, device, batch_size=cfg.eval.batch_size, workers=cfg.data.workers,
                       title="shift")  # fmt: skip
    answers = among(found.features.mean(1), shared.own, len(shared.concepts))
    right = dict(zip(found.index.tolist(), (answers == found.labels).tolist(), strict=True))
    return [right.get(i, False) for i in range(len(records))], [failure.reason for failure in found.failed]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", Path(name).name.lower())


def shift_lines(found: dict[str, Any] | None) -> list[str]:
    """A section of report.md, none for None."""
    if not found:
        return []
    low, high = found["ci95"]
    own = "-" if found["own_acc"] is None else f"{100 * found['own_acc']:.1f} % (n = {found['own_n']})"
    classes = "; ".join(f"{name} {100 * acc:.0f}" for name, acc in found["per_class"].items())
    return [
        f"## On {found['dataset']}", "",
        f"{found['n']} videos of the {len(found['concepts'])} classes that it shares, answered among them (chance "
        f"{100 * found['chance']:.1f} %): {100 * found['acc']:.1f} % ({100 * low:.1f} to {100 * high:.1f}). On the own "
        f"test videos of these classes: {own}.", "", f"By class, %: {classes}.", "",
    ]  # fmt: skip

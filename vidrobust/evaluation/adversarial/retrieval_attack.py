"""Attack the features of videos without labels, as retrieval compares them.

The attacked unit is the whole video: all K clips, each within the budget, through the mean of their
features. An attack on the centre clip alone would leave K - 1 of K terms of that mean clean. With
`SourceVideos` the unit is the source frames, which all clips share.

S samples are perturbed at a time: K clips of each of B videos, or the source frames of one video.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidrobust.attacks import (
    BadSamples,
    Loss,
    Passes,
    Predict,
    ThreatModel,
    contains,
    leave_neighbors,
    measure,
    pgd,
    push_away,
)
from vidrobust.data import ClipDataset, Failure, SourceVideos
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.targets import Unit, clip_units, video_units
from vidrobust.evaluation.results import fault
from vidrobust.models.feature_store import DiskStore
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

# attacks that run, each as PGD on the loss of this name
LOSSES = ("push_away", "leave_neighbors")

Embed = Callable[[Tensor], Tensor]  # features (..., D) -> unit vectors in the space of retrieval


@dataclass(frozen=True)
class FeatureAttack:
    """Settings of attacks on features.

    Attributes:
        threats: budgets, in order.
        steps: of PGD.
        restarts: of PGD.
        seed: seed of all random numbers.
        neighbors: gallery videos that `leave_neighbors` moves a video away from.
        step: size of a step of PGD, as a fraction of eps; 0: PGD's default.
    """

    threats: Sequence[ThreatModel]
    steps: int
    restarts: int
    seed: int
    neighbors: int
    step: float = 0.0

    @cached_property
    def conditions(self) -> list[tuple[ThreatModel, str]]:
        """Pairs of a threat and the name of a loss, in the order in which they run."""
        return [(threat, name) for threat in self.threats for name in LOSSES]

    def loss(self, name: str, encode: Embed, x: Tensor, gallery: Tensor) -> Loss:
        """Return a loss of clips, one value per video.

        Args:
            name: one of LOSSES.
            encode: samples -> unit vectors of videos (B, D).
            x: clean samples.
            gallery: unit vectors of the clean gallery (M, D).
        """
        if name == "push_away":
            return push_away(encode, x)
        return leave_neighbors(encode, x, gallery, self.neighbors)


@dataclass(frozen=True)
class Side:
    """The videos that are attacked, and the space in which they are compared.

    Attributes:
        name: "queries" or "gallery".
        dataset: K clips of each video, or the source frames of its clips.
        indices: of the videos that are attacked.
        embed: their features -> unit vectors.
        gallery: unit vectors of the clean gallery (M, D).
    """

    name: str
    dataset: ClipDataset | SourceVideos
    indices: list[int]
    embed: Embed
    gallery: Tensor

    @property
    def clips(self) -> int:
        """Number of samples of a video that are perturbed: its clips, or its frames once."""
        return 1 if isinstance(self.dataset, SourceVideos) else self.dataset.spec.clips


@dataclass(frozen=True)
class AttackedVideo:
    """A video under one condition.

    Attributes:
        measured: size of the largest perturbation of its clips, in the threat's norm.
        in_budget: every clip is within the budget.
    """

    measured: float
    in_budget: bool


@dataclass
class Attacked:
    """Results of a side under all conditions, in the order of `FeatureAttack.conditions`.

    Attributes:
        index: of the videos with finite features, (n,).
        features: (n, D) per condition.
        videos: index of a video -> its results, one per condition.
        passes: forward and backward passes in clips, per condition.
        rejected: clips outside of the budget that were not used, per condition.
        errors: index of a video that failed -> why.
    """

    index: Tensor
    features: list[Tensor]
    videos: dict[int, list[AttackedVideo]] = field(default_factory=dict)
    passes: list[list[int]] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


def attack_features(
    backbone: Predict,
    side: Side,
    attack: FeatureAttack,
    folder: Path,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Attacked:
    """Attack the videos of a side under each threat and loss. Every rank calls it.

    Features are written to the folder as they are computed, so that a call that was killed
    continues, with the same results. Under torchrun each rank takes a part of the batches. Every
    batch has its own generator, seeded by its number.

    A clip outside of its budget is not used: its video stays clean under that condition. A video
    with NaN or infinite features, loss or gradient is a failure with the reason, and its batch
    begins anew without it.

    Args:
        backbone: clips (B, 3, T, H, W) in [0, 1] -> features (B, D), in evaluation mode.
        side: what is attacked.
        attack: threats and settings.
        folder: receives the features, and belongs to this evaluation.
        batch_size: largest number of clips per pass.
        workers: processes that load.
        device: of the clips.
    """
    identity = {
        "conditions": [f"{name} {threat}" for threat, name in attack.conditions],
        "indices": side.indices,
        "settings": [attack.steps, attack.restarts, attack.seed, attack.neighbors, attack.step],
    }
    store = DiskStore(folder, f"attacked_{side.name}", len(attack.conditions), identity)
    videos = max(1, batch_size // side.clips) if side.clips > 1 else batch_size
    if isinstance(side.dataset, SourceVideos):
        videos = 1  # source frames differ in size
    groups = [side.indices[i : i + videos] for i in range(0, len(side.indices), videos)]
    done = store.done()
    missing = [n for n, group in enumerate(groups) if not done.issuperset(group)]
    numbers = missing[distributed.rank() :: distributed.world()]
    model = Passes(MicroBatches(backbone, batch_size))
    units = _units(model, side, [groups[n] for n in numbers], workers, device)
    quiet = distributed.rank() > 0 or not sys.stderr.isatty()
    progress = tqdm(units, f"attack {side.name}", len(numbers), leave=False, disable=quiet)
    for number, unit in zip(numbers, progress, strict=True):
        seed = np.random.SeedSequence([attack.seed, int(side.name == "gallery"), number])
        _append(store, _attack_unit(unit, model, side, attack, seed), done)
    store.close()
    try:
        return _loaded(store, len(attack.conditions))
    except UserError as error:  # of a store without a video that has features
        raise UserError(
            f"retrieval: no video of the {side.name} has finite features under attack; look for"
            f" what overflows in the model ({error})"
        ) from None


def _units(
    model: Predict, side: Side, groups: list[list[int]], workers: int, device: torch.device
) -> Iterator[Unit]:
    """Return a unit per group of videos, whose `predict` gives the features of samples.

    Args:
        model: clips -> features.
        side: what is attacked.
        groups: indices of videos.
        workers: processes that load.
        device: of the clips.
    """
    if not groups:
        return iter(())
    if isinstance(side.dataset, SourceVideos):
        return video_units(model, side.dataset, groups, 1, device)
    return clip_units(model, side.dataset, groups, workers, device)


# --- One batch ---


@dataclass
class _Group:
    """Results of a batch.

    Attributes:
        unit: the videos that did not fail, and those that did.
        features: (B, D) per condition.
        sizes: (B,) per condition, the largest perturbation of a clip.
        in_budget: (B,) per condition.
        passes: forward and backward passes in clips, per condition.
        rejected: clips outside of the budget, per condition.
    """

    unit: Unit
    features: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)
    in_budget: list[Tensor] = field(default_factory=list)
    passes: list[tuple[int, int]] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)


def _attack_unit(
    unit: Unit, model: Passes, side: Side, attack: FeatureAttack, seed: np.random.SeedSequence
) -> _Group:
    """Attack a batch under all conditions, without the videos that have no finite numbers.

    Args:
        unit: the batch.
        model: counts the passes.
        side: space and gallery.
        attack: threats and settings.
        seed: of the batch.
    """
    while unit.uids:
        # the others begin anew with the same numbers, so that rows do not depend on a kill
        generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        group = _Group(unit)
        try:
            for condition in attack.conditions:
                _attack_once(group, model, side, attack, condition, generator)
            return group
        except BadSamples as error:
            unit = _without(unit, error, side.clips)
    return _Group(unit)


def _attack_once(
    group: _Group,
    model: Passes,
    side: Side,
    attack: FeatureAttack,
    condition: tuple[ThreatModel, str],
    generator: torch.Generator,
) -> None:
    """Attack a batch under one condition, and add the results to those of the batch.

    Args:
        group: of the batch, changed in place.
        model: counts the passes.
        side: space and gallery.
        attack: settings.
        condition: budget, and name of the loss.
        generator: of all random numbers.

    Raises:
        BadSamples: for NaN and infinite features, losses and gradients.
        UserError: for a threat that does not fit the samples.
    """
    threat, name = condition
    x = group.unit.x
    encode = partial(_mean_features, group.unit.predict, side.clips)
    before = model.forward, model.backward
    try:
        loss = attack.loss(name, lambda v: side.embed(encode(v)), x, side.gallery)
        x_adv = pgd(
            # one loss for all clips of a video, so that their best iterates are of the same step
            lambda v: loss(v).repeat_interleave(side.clips),
            x,
            threat,
            steps=attack.steps,
            # a budget of 0 has no step
            step_size=attack.step * threat.eps or None,
            restarts=attack.restarts,
            generator=generator,
        )
    except BadSamples:
        raise
    except ValueError as error:
        raise UserError(f"retrieval under {threat}: {error}") from None

    _add_judged(group, side, threat, x_adv)
    group.passes.append((model.forward - before[0], model.backward - before[1]))


def _add_judged(group: _Group, side: Side, threat: ThreatModel, x_adv: Tensor) -> None:
    """Verify the result of an attack from its pixels, and add its features to those of the batch.

    No attack is trusted: a video with a clip outside of the budget stays clean.

    Args:
        group: of the batch, changed in place.
        side: has the number of clips of a video.
        threat: the budget.
        x_adv: perturbed samples.

    Raises:
        BadSamples: for NaN and infinite features.
    """
    x = group.unit.x
    inside = contains(threat, x, x_adv)
    whole = inside.view(-1, side.clips).all(1)
    kept = whole.repeat_interleave(side.clips).view(-1, *[1] * (x.ndim - 1))
    x_adv = torch.where(kept, x_adv, x)
    with torch.no_grad():
        features = _mean_features(group.unit.predict, side.clips, x_adv)
    bad = ~features.isfinite().all(1)
    if bad.any():
        samples = (bad.nonzero().flatten() * side.clips).tolist()
        raise BadSamples(samples, "the features of samples {} are NaN or infinite")
    group.features.append(features)
    group.sizes.append(measure(threat, x, x_adv).view(-1, side.clips).amax(1))
    group.in_budget.append(contains(threat, x, x_adv).view(-1, side.clips).all(1))
    group.rejected.append(int((~inside).sum()))


def _mean_features(predict: Predict, clips: int, x: Tensor) -> Tensor:
    """Return the features of videos (B, D): the mean over their clips.

    Args:
        predict: samples -> features (S, D).
        clips: K, consecutive samples of a video.
        x: samples (S, 3, T, H, W).
    """
    features = predict(x).float()
    return features.view(-1, clips, features.shape[-1]).mean(1)


def _without(unit: Unit, error: BadSamples, clips: int) -> Unit:
    """Return the batch without the videos of the samples of an error, which become failures.

    Args:
        unit: the batch.
        error: numbers of samples.
        clips: consecutive samples of a video.
    """
    lost = sorted({sample // clips for sample in error.samples})
    reason = error.reason.replace("samples {}", "this video").partition(";")[0]
    failed = [
        Failure(unit.index[i], unit.uids[i], int(unit.labels[i]), fault(unit.uids[i], reason))
        for i in lost
    ]
    kept = [i for i in range(len(unit.uids)) if i not in lost]
    rows = torch.tensor(kept, dtype=torch.long, device=unit.x.device)
    samples = (rows[:, None] * clips + torch.arange(clips, device=rows.device)).flatten()
    return Unit(
        x=unit.x[samples],
        labels=unit.labels[rows],
        uids=[unit.uids[i] for i in kept],
        index=[unit.index[i] for i in kept],
        fps=[unit.fps[i] for i in kept],
        failed=[*unit.failed, *failed],
        predict=unit.predict,
        views=unit.views,
    )


# --- On disk ---


def _append(store: DiskStore, group: _Group, done: set[int]) -> None:
    """Write the results of a batch, except for videos that the store has."""
    unit = group.unit
    new = [place for place, index in enumerate(unit.index) if index not in done]
    rows: list[dict[str, Any]] = []
    for place in new:
        row = {
            "index": unit.index[place],
            "uid": unit.uids[place],
            "label": int(unit.labels[place]),
            # fields of a row of features; one vector stands for all clips of a video
            "start": [0],
            "end": [0],
            "fps": unit.fps[place],
            "dims": [features.shape[1] for features in group.features],
            "repeats": False,
            "resized": False,
            "error": None,
            "measured": [float(sizes[place]) for sizes in group.sizes],
            "in_budget": [bool(inside[place]) for inside in group.in_budget],
        }
        if place == 0:
            # of the whole batch, so that a sum over rows is the cost
            row |= {"passes": group.passes, "rejected": group.rejected}
        rows.append(row)
    failed = [
        {"index": f.index, "uid": f.uid, "label": f.label, "error": f.reason}
        for f in unit.failed
        if f.index not in done
    ]
    features = [each[new].cpu().numpy()[:, None] for each in group.features]
    if not features:  # no video of the batch is left
        features = [np.empty((0, 0, 0), np.float32)] * store.models
    store.append(rows + failed, features)


def _loaded(store: DiskStore, conditions: int) -> Attacked:
    """Return what all ranks have written.

    Args:
        store: the files.
        conditions: number of conditions.
    """
    features, rows = store.load_with_rows()
    attacked = Attacked(
        index=features[0].index,
        features=[each.features[:, 0] for each in features],
        passes=[[0, 0] for _ in range(conditions)],
        rejected=[0] * conditions,
    )
    for row in rows:
        if row["error"]:
            attacked.errors[row["index"]] = row["error"]
            continue
        attacked.videos[row["index"]] = [
            AttackedVideo(size, inside)
            for size, inside in zip(row["measured"], row["in_budget"], strict=True)
        ]
        for number, (forward, backward) in enumerate(row.get("passes", [])):
            attacked.passes[number][0] += forward
            attacked.passes[number][1] += backward
        for number, count in enumerate(row.get("rejected", [])):
            attacked.rejected[number] += count
    return attacked

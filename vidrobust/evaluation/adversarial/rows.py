"""Attack videos and write one row per video and threat."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidrobust.attacks import (
    BadSamples,
    Outcome,
    ThreatModel,
    called,
    checked_output,
    contains,
    finite_logits,
    measure,
    numbered,
    rounded,
    rounds_away,
    worst_case,
)
from vidrobust.corruptions import h264
from vidrobust.data import ClipDataset, Failure, SourceVideos
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings
from vidrobust.evaluation.adversarial.broken_clips import (
    BrokenClip,
    broken_clips,
    save_broken_clips,
    select_broken_clips,
)
from vidrobust.evaluation.adversarial.fingerprint import change_maps, change_per_frame
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.saved_clips import finish_saving, is_complete, save_clips
from vidrobust.evaluation.adversarial.targets import Unit, clip_units, video_units
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of, videos_of
from vidrobust.evaluation.input_checks import require_work
from vidrobust.evaluation.results import (
    Group,
    Key,
    Row,
    appending,
    fault,
    merged,
    rank_files,
    require_label,
    suffix,
    unfinished,
)
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.models.inference import evenly
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.errors import UserError


def evaluate_robust(
    settings: MeasureSettings,
    attack: AttackSettings,
    dataset: ClipDataset | SourceVideos,
    indices: list[int],
) -> list[AttackRow]:
    """Attack videos under each threat and return their rows; every rank calls it.

    A row per video and threat is appended to out/results.jsonl as soon as it is known. Some broken
    clips are saved to out/clips/*.npz, and those of `attack.save` to out/adversarial. A clip that
    is broken under one threat, before and after rounding to uint8, is broken under larger budgets
    of the same family and is not attacked again. A call that was killed can be repeated: it
    continues, and the rows are the same. Every batch has its own generator, seeded by the number of
    the batch in the call. Under torchrun each rank takes a part of the batches.

    A folder belongs to one model, list of videos, protocol, suite and seed
    (out/results.identity.json). Later calls may add videos and threats: existing rows are kept. A
    batch is attacked anew under all threats of the call where one of its rows is missing, so call
    with added threats only.

    A video with NaN logits or a gradient that is not finite is a failed row with the reason; its
    batch is attacked anew without it.

    Args:
        settings: the model, how to run it, and the folder of the rows. The model receives at most
            `batch_size` clips at a time, fewer when memory runs out.
        attack: threats and attacks.
        dataset: the centre clip of each video is attacked; of SourceVideos, its source frames.
        indices: of the videos.

    Raises:
        UserError: for a folder of another evaluation, a model that returns probabilities or writes
            into its input, labels out of range, and threats that do not fit the clips.
    """
    require_work(indices, len(dataset.records), settings.batch_size)
    about = _claim_folder(settings, attack, dataset)
    # source frames of videos differ in size, so that each is a batch
    size = 1 if isinstance(dataset, SourceVideos) else settings.batch_size
    groups = [indices[i : i + size] for i in range(0, len(indices), size)]
    threats = [str(threat) for threat in attack.ordered]
    keys = [list(product(group, threats)) for group in groups]
    missing, kept = unfinished(settings.out, "results", "threat", keys)
    if attack.save != "none":
        missing = _without_clips(settings.out, attack.save, missing, keys, kept)
    numbers = missing[distributed.rank() :: distributed.world()]
    _attack_groups(settings, attack, dataset, groups, numbers)
    rows = merged(settings.out, "results", "threat", keys)
    if attack.pictures and distributed.rank() == 0:
        select_broken_clips(settings.out / "clips", attack.pictures)
    measured = [AttackRow.from_json(row) for row in rows]
    carried = carry_breaks(measured, attack.families)
    if attack.save != "none":
        with distributed.together():
            if distributed.rank() == 0:
                finish_saving(settings.out, measured, carried, attack, about)
    return carried


def _without_clips(
    out: Path, save: str, missing: list[int], keys: Sequence[Group], kept: dict[Key, Row]
) -> list[int]:
    """Return the numbers of the groups that miss a row or the saved clip of a row.

    Args:
        out: folder of the evaluation.
        save: which clips are saved.
        missing: numbers of the groups that miss a row.
        keys: (index, threat) pairs of each group.
        kept: existing rows.
    """
    numbers = set(missing)
    for number, group in enumerate(keys):
        rows = [AttackRow.from_json(kept[key]) for key in group if key in kept]
        if not all(is_complete(out, row, save) for row in rows):
            numbers.add(number)
    distributed.patient_barrier()  # every rank has looked before one of them writes
    return sorted(numbers)


# what a row says of its adversarial clip, and of the clip rounded to uint8
_OF_CLIP = (
    *("robust", "killed_by", "adv_pred", "measured", "in_budget", "h264_pred"),
    *("adv_confidence", "adv_brier", "change_frames", "change_map"),
)
_OF_ROUNDED = ("uint8_pred", "uint8_killed_by")


def carry_breaks(
    rows: Sequence[AttackRow], families: Sequence[Sequence[ThreatModel]]
) -> list[AttackRow]:
    """Return rows in which a video that a budget breaks is broken under all larger ones.

    Within one call this is so already. A larger budget that a later call adds is attacked anew, and
    the attack may fail where a smaller budget of the same family was enough.

    Args:
        rows: of all threats.
        families: threats that differ in eps alone, each family from small to large.
    """
    place = {(row.index, row.threat): number for number, row in enumerate(rows)}
    carried = list(rows)
    for family in families:
        for smaller, larger in pairwise(map(str, family)):
            for (index, threat), number in place.items():
                at = place.get((index, larger))
                if threat != smaller or at is None:
                    continue
                before, after = carried[number], carried[at]
                if after.killed_by is None and before.killed_by:
                    after = replace(after, **{name: getattr(before, name) for name in _OF_CLIP})
                if after.uint8_killed_by is None and before.uint8_killed_by:
                    after = replace(after, **{name: getattr(before, name) for name in _OF_ROUNDED})
                carried[at] = after
    return carried


def _claim_folder(
    settings: MeasureSettings, attack: AttackSettings, dataset: ClipDataset | SourceVideos
) -> dict[str, Any]:
    """Refuse a folder that holds rows of another evaluation, and return what identifies this one.

    Args:
        settings: the model and the folder.
        attack: suite, seed, crops and H.264, which decide the rows.
        dataset: the videos.
    """
    unit = "video" if isinstance(dataset, SourceVideos) else "clip"
    model = identify_model(settings.predict, dataset, settings.device, settings.identity)
    about = {
        "model": model,
        "videos": videos_of(dataset),
        "protocol": protocol_of(
            dataset,
            settings.view_average,
            unit=unit,
            crops=attack.crops,
            h264=attack.h264_crf,
        ),
        "suite": str(attack.suite),
        "seed": attack.seed,
    }
    own_folder(settings.out, "results", about)
    return about


def _attack_groups(
    settings: MeasureSettings,
    attack: AttackSettings,
    dataset: ClipDataset | SourceVideos,
    groups: list[list[int]],
    numbers: list[int],
) -> None:
    """Attack some groups of videos and append their rows to the files of this rank.

    Args:
        settings: the model and the folder.
        attack: threats and attacks.
        dataset: the videos.
        groups: indices of videos.
        numbers: which of the groups.
    """
    predict = MicroBatches(settings.predict, settings.batch_size)
    ours = [groups[number] for number in numbers]
    indices = {index for group in ours for index in group}
    # a rank must not delete the clips of another one, which may be reading them
    mine = indices.__contains__ if distributed.world() > 1 else lambda index: True
    if isinstance(dataset, SourceVideos):
        units = video_units(
            predict, dataset, ours, attack.crops, settings.device, settings.view_average
        )
    else:
        units = clip_units(predict, dataset, ours, settings.workers, settings.device)
    silent = distributed.rank() > 0 or not sys.stderr.isatty()
    timing_path = settings.out / f"timing{suffix()}.jsonl"
    with (
        tqdm(total=len(ours), desc="attack", leave=False, disable=silent) as bar,
        appending(settings.out, "results") as append,
        open(timing_path, "a") as timing,
    ):
        for number, unit in zip(numbers, units, strict=True):
            seed = np.random.SeedSequence([attack.seed, number])
            results = _attack_unit(unit, attack, seed, settings.out)
            save_broken_clips(settings.out / "clips", results.pictures, attack.pictures, mine)
            append([row.to_json() for row in results.rows])
            timing.write(json.dumps(results.seconds) + "\n")
            timing.flush()
            bar.update()


# --- One batch ---


@dataclass
class _Results:
    """Results of a batch.

    Attributes:
        out: folder of the evaluation.
        rows: by videos, then threats.
        seconds: threat -> attack -> seconds.
        pictures: clips to keep.
    """

    out: Path
    rows: list[AttackRow] = field(default_factory=list)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: list[BrokenClip] = field(default_factory=list)


def _attack_unit(
    unit: Unit, attack: AttackSettings, seed: np.random.SeedSequence, out: Path
) -> _Results:
    """Attack a batch under all threats.

    A clip on which the model gives no finite numbers becomes a failure. The others begin anew with
    the same random numbers, so that their rows do not depend on when the evaluation was killed.

    Args:
        unit: the batch.
        attack: threats and attacks.
        seed: seed of the batch.
        out: folder of the evaluation, for saved clips.
    """
    results = _Results(out)
    columns: list[list[AttackRow]] = []
    while unit.uids:
        generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        results = _Results(out)
        try:
            columns = []
            for family in attack.families:
                columns += _attack_family(unit, family, attack, generator, results)
            break
        except BadSamples as error:
            unit = without(unit, error)
            results = _Results(out)
            columns = []
    for of_one_video in zip(*columns, strict=True):
        results.rows += of_one_video
    for failure in unit.failed:
        results.rows += [AttackRow.failed(failure, threat) for threat in attack.ordered]
    return results


def without(unit: Unit, error: BadSamples) -> Unit:
    """Return the batch without the samples of the error, which become failures."""
    reason = error.reason.replace("samples {}", "this clip").partition(";")[0]
    failed = []
    for i in error.samples:
        message = fault(unit.uids[i], reason)
        failed.append(Failure(unit.index[i], unit.uids[i], int(unit.labels[i]), message))
    kept = [i for i in range(len(unit.uids)) if i not in set(error.samples)]
    rows = torch.tensor(kept, dtype=torch.long, device=unit.x.device)
    return replace(
        unit,
        x=unit.x[rows],
        labels=unit.labels[rows],
        uids=[unit.uids[i] for i in kept],
        index=[unit.index[i] for i in kept],
        fps=[unit.fps[i] for i in kept],
        failed=[*unit.failed, *failed],
    )


# --- One family of threats: evaluate clean, attack what is left, make the rows ---


@dataclass
class _State:
    """Keeps the results of the B clips of a batch while the budgets of a family grow.

    Attributes:
        classes: K of the model.
        clean: predictions without an attack.
        clean_h264: predictions after H.264 without an attack, None each without H.264.
        x_adv: (B, 3, T, H, W): of a broken clip, the adversarial clip that broke it; of any other,
            the last attempt, or the clip itself before the first.
        x_round: the same for clips after rounding to uint8.
        adv: predictions for x_adv.
        uint8_adv: (B,), predictions for x_round, rounded.
        killed_by: of each clip, the attack that broke it, "clean", or None.
        uint8_killed_by: the same, after rounding.
        smallest: smallest perturbations of the whole family, of an attack that finds them.
    """

    classes: int
    clean: "_Answers"
    clean_h264: Sequence[int | None]
    x_adv: Tensor
    x_round: Tensor
    adv: "_Answers"
    uint8_adv: Tensor
    killed_by: list[str | None]
    uint8_killed_by: list[str | None]
    smallest: Outcome | None = None


@dataclass
class _Spent:
    """Costs of the attacks of a threat: passes in clips, and clips outside of the budget."""

    passes: dict[str, tuple[int, int]] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)


def _attack_family(
    unit: Unit,
    family: list[ThreatModel],
    attack: AttackSettings,
    generator: torch.Generator,
    results: _Results,
) -> list[list[AttackRow]]:
    """Return a column of rows per threat, small budgets first.

    Args:
        unit: the batch.
        family: threats that differ only in eps, from small to large.
        attack: attacks and settings.
        generator: of all random numbers.
        results: receives times and broken clips.
    """
    state = _evaluate_clean(unit, attack)
    columns = []
    for threat in family:
        spent = _Spent()
        clips = _clips_left(unit, threat, state)
        if clips and threat.eps > 0:
            # An attack that finds smallest perturbations runs once, on all clips of the batch, for
            # all budgets of the family. Its cost is counted at the budget that ran it.
            is_new = state.smallest is None
            if attack.suite.smallest:
                clips = list(range(len(unit.uids)))
            outcome = _run_attacks(unit, threat, family[-1], clips, attack, state, generator)
            if is_new:
                spent = _spent_by(outcome, unit.views)
                results.seconds[str(threat)] = outcome.seconds
            broken = _update(state, unit, clips, outcome)
            if attack.pictures:
                shown = [broken[i] for i in evenly(len(broken), attack.pictures)]
                both = state.clean.classes, state.adv.classes
                results.pictures += broken_clips(
                    unit, shown, state.x_adv, both, state.killed_by, threat
                )
        rows = _rows_of(unit, threat, state, spent, attack)
        if attack.save != "none":
            save_clips(results.out, unit, rows, state.x_adv, state.x_round, attack.save)
        columns.append(rows)
    return columns


def _evaluate_clean(unit: Unit, attack: AttackSettings) -> _State:
    """Evaluate a batch without an attack.

    Raises:
        UserError: for outputs that are not logits, and for a label that the model has no logit for.
    """
    clean = _predicted(unit, unit.x)
    for uid, label in zip(unit.uids, unit.labels.tolist(), strict=True):
        require_label(uid, label, clean.outputs)
    uint8 = _predicted(unit, rounded(unit.x, unit.x)).classes
    right = (clean.classes == unit.labels).tolist()
    return _State(
        classes=clean.outputs,
        clean=clean,
        clean_h264=_after_h264(unit, unit.x, attack.h264_crf),
        x_adv=unit.x.clone(),
        x_round=unit.x.clone(),
        adv=clean,
        uint8_adv=uint8,
        killed_by=[None if each else "clean" for each in right],
        uint8_killed_by=[None if each else "clean" for each in (uint8 == unit.labels).tolist()],
    )


def _clips_left(unit: Unit, threat: ThreatModel, state: _State) -> list[int]:
    """Return the clips that a threat may still break.

    A clip that is broken but right again after rounding is attacked further, because a larger
    budget may also break its rounded form.

    Args:
        unit: the batch.
        threat: the budget.
        state: results at smaller budgets.
    """
    rounding_matters = not rounds_away(threat, unit.x)
    clips = []
    for i, killed_by in enumerate(state.killed_by):
        if killed_by is None or (rounding_matters and state.uint8_killed_by[i] is None):
            clips.append(i)
    return clips


def _run_attacks(
    unit: Unit,
    threat: ThreatModel,
    largest: ThreatModel,
    clips: list[int],
    attack: AttackSettings,
    state: _State,
    generator: torch.Generator,
) -> Outcome:
    """Return the outcome of the suite on some clips of a batch.

    Args:
        unit: the batch.
        threat: the budget.
        largest: the largest budget of its family.
        clips: which clips.
        attack: attacks and settings.
        state: of the batch; keeps smallest perturbations.
        generator: of all random numbers.

    Raises:
        BadSamples: for clips on which the model gives no finite numbers.
        UserError: for a threat that does not fit the clips.
    """
    steps = attack.suite(threat, unit.x.shape[2], state.classes)
    try:
        if attack.suite.smallest:
            if state.smallest is None:
                state.smallest = worst_case(
                    unit.predict,
                    unit.x,
                    unit.labels,
                    largest,
                    steps,
                    warn=False,
                    generator=generator,
                )
            return state.smallest.within(unit.predict, unit.x, unit.labels, threat)
        index = torch.tensor(clips, device=unit.x.device)
        with numbered(clips):
            return worst_case(
                unit.predict,
                unit.x[index],
                unit.labels[index],
                threat,
                steps,
                rounding=True,
                warn=False,
                generator=generator,
            )
    except BadSamples:
        raise
    except ValueError as error:
        raise UserError(f"{attack.suite} under {threat}: {error}") from None


def _spent_by(outcome: Outcome, views: int) -> _Spent:
    """Return what an outcome cost, in clips that the model received."""
    passes = {
        name: (forward * views, backward * views)
        for name, (forward, backward) in outcome.passes.items()
    }
    return _Spent(passes, dict(outcome.rejected))


def _update(state: _State, unit: Unit, clips: list[int], outcome: Outcome) -> list[int]:
    """Take the newly broken clips of an outcome into the state, and return which they are.

    Args:
        state: results of the batch, changed in place.
        unit: the batch.
        clips: which of its clips were attacked.
        outcome: results of the attack on them.
    """
    broken = _take(state.killed_by, outcome.broken_by, clips, state.x_adv, outcome.x_adv)
    _take(state.uint8_killed_by, outcome.rounded_by, clips, state.x_round, outcome.x_rounded)
    state.adv = _predicted(unit, state.x_adv)
    state.uint8_adv = _predicted(unit, rounded(state.x_round, unit.x)).classes
    return broken


def _take(
    killed_by: list[str | None],
    broken_by: list[str | None],
    clips: list[int],
    kept: Tensor,
    x_adv: Tensor,
) -> list[int]:
    """Take the results of clips that were not broken before.

    Args:
        killed_by: of all clips of the batch, changed in place.
        broken_by: of the attacked clips.
        clips: which clips were attacked.
        kept: adversarial clips of the batch, changed in place.
        x_adv: adversarial clips of the attacked clips.

    Returns:
        The clips that are broken now and were not before.
    """
    broken = []
    for number, clip in enumerate(clips):
        if killed_by[clip] is None:
            kept[clip] = x_adv[number]
            killed_by[clip] = broken_by[number]
            if broken_by[number]:
                broken.append(clip)
    return broken


def _rows_of(
    unit: Unit, threat: ThreatModel, state: _State, spent: _Spent, attack: AttackSettings
) -> list[AttackRow]:
    """Return the row of each clip under a threat.

    Args:
        unit: the batch.
        threat: the budget.
        state: after its attacks.
        spent: what they cost; recorded in the row of the first clip.
        attack: settings.
    """
    measured = measure(threat, unit.x, state.x_adv).tolist()
    in_budget = contains(threat, unit.x, state.x_adv).tolist()
    h264_adv = _after_h264(unit, state.x_adv, attack.h264_crf)
    change = state.x_adv - unit.x
    by_frame, by_place = change_per_frame(change), change_maps(change)
    nothing = _Spent()
    rows = []
    for i, uid in enumerate(unit.uids):
        cost = nothing if i else spent
        rows.append(
            AttackRow(
                index=unit.index[i],
                uid=uid,
                label=int(unit.labels[i]),
                clean_pred=int(state.clean.classes[i]),
                threat=str(threat),
                eps=threat.eps,
                adv_pred=int(state.adv.classes[i]),
                robust=state.killed_by[i] is None,
                killed_by=state.killed_by[i],
                uint8_pred=int(state.uint8_adv[i]),
                uint8_killed_by=state.uint8_killed_by[i],
                clean_h264_pred=state.clean_h264[i],
                h264_pred=h264_adv[i],
                measured=measured[i],
                in_budget=in_budget[i],
                passes=cost.passes,
                rejected=cost.rejected,
                clean_confidence=float(state.clean.confidence[i]),
                clean_brier=float(state.clean.brier[i]),
                adv_confidence=float(state.adv.confidence[i]),
                adv_brier=float(state.adv.brier[i]),
                change_frames=by_frame[i],
                change_map=by_place[i],
            )
        )
    return rows


@dataclass(frozen=True)
class _Answers:
    """Predictions of a model for B clips.

    Attributes:
        classes: (B,), predicted classes.
        confidence: (B,), their probabilities.
        brier: (B,), Brier scores: sum over classes of (probability - 1 for the label, else 0)^2.
        outputs: K, number of logits.
    """

    classes: Tensor
    confidence: Tensor
    brier: Tensor
    outputs: int


@torch.no_grad()
def _predicted(unit: Unit, x: Tensor) -> _Answers:
    """Return the predictions for clips of a batch.

    Raises:
        BadSamples: for NaN and infinite logits.
        UserError: for outputs that are not logits.
    """
    try:
        logits = checked_output(called(unit.predict, x, compare=True), len(x))
    except BadSamples:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
    finite = finite_logits(logits)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise BadSamples(bad, "the model gives NaN or infinite logits for samples {}")
    probabilities = logits.float().softmax(1)
    # a label without a logit is refused by the caller, and has no true class here
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_label = unit.labels.to(logits.device)[:, None] == classes
    return _Answers(
        classes=logits.argmax(1),
        confidence=probabilities.amax(1),
        brier=(probabilities - is_label.float()).square().sum(1),
        outputs=logits.shape[1],
    )


@torch.no_grad()
def _after_h264(unit: Unit, x: Tensor, crf: int) -> Sequence[int | None]:
    """Return predictions for clips after an H.264 round trip.

    Args:
        unit: the batch, for its model and frame rates.
        x: clips (B, 3, T, H, W) in [0, 1].
        crf: quality of the encoder, 1 to 51; 0: no round trip, None for each clip.
    """
    if not crf:
        return [None] * len(x)
    clips = (x * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
    decoded = []
    for clip, fps in zip(clips, unit.rates, strict=True):
        decoded.append(h264(clip, crf, max(round(fps), 1)))
    back = torch.from_numpy(np.stack(decoded)).to(x.device).movedim(-1, 1).float() / 255
    return _predicted(unit, back).classes.tolist()


def timings(out: Path) -> dict[str, dict[str, float]]:
    """Return seconds by threat and attack, over all batches that were attacked whole."""
    total: dict[str, dict[str, float]] = {}
    for path in rank_files(out, "timing"):
        for by_threat in read_rows(path):
            for threat, attacks in by_threat.items():
                if not isinstance(attacks, dict):  # an interrupted write
                    continue
                seconds = total.setdefault(threat, {})
                for name, value in attacks.items():
                    seconds[name] = seconds.get(name, 0.0) + value
    return total

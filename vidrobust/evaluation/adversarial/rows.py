"""Attack videos and write one row per video and threat."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidrobust.attacks import (
    BadSamples,
    Outcome,
    Predict,
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
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.suites import Suite, families
from vidrobust.evaluation.adversarial.targets import Unit, clip_units, video_units
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of, videos_of
from vidrobust.evaluation.input_checks import require_work
from vidrobust.evaluation.results import (
    Row,
    appending,
    fault,
    merged,
    rank_files,
    require_label,
    suffix,
    unfinished,
)
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.errors import UserError


@dataclass(frozen=True)
class _Settings:
    """Settings of all videos. folder, pictures: where, and how many, broken clips are kept."""

    kinds: list[list[ThreatModel]]
    suite: Suite
    folder: Path
    pictures: int
    crf: int


@dataclass
class _Found:
    """Results of a unit: a column of rows per threat, seconds by attack, clips to keep."""

    columns: list[list[Row]] = field(default_factory=list)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: list[tuple[str, int, dict[str, object]]] = field(default_factory=list)


def evaluate_robust(
    predict: Predict,
    dataset: ClipDataset | SourceVideos,
    indices: list[int],
    threats: Sequence[ThreatModel],
    out: Path,
    *,
    suite: Suite,
    seed: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    pictures: int = 0,
    crops: int = 1,
    h264_crf: int = 0,
    identity: str = "",
) -> list[Row]:
    """Attack videos under each of `threats` and return their rows; every rank calls it.

    A sample broken under one threat, before and after rounding to uint8, is broken under those of
    its family that hold it, and costs nothing more. Streams a row per video and threat to
    out/results.jsonl, and up to `pictures` broken clips to out/clips/*.npz. Killed and called again
    it goes on, and the rows are the same: every batch has its own generator. Under torchrun each
    rank takes a part of the batches, none padded.

    A folder is of one model, list of videos, protocol, suite and seed (out/results.identity.json);
    another is refused.
    Other videos and threats may be added: rows that are there stay. A group of `batch_size` videos
    is attacked anew under all threats that are asked for where one of its rows is missing, so ask
    for added threats alone.

    A video with NaN logits or a gradient that is not finite is a failed row with the reason; its
    batch is attacked anew without it.

    Args:
        predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits, in evaluation mode; it gets at most
            `batch_size` clips at a time, fewer when memory runs out.
        dataset: one centre clip of each video is attacked, or, of SourceVideos, the source frames.
        indices: of the videos.
        threats: budgets, in any order.
        out: the folder; it exists.
        suite: which attacks.
        seed: of all random numbers.
        batch_size: clips at a time.
        workers: processes that load.
        device: where clips go.
        pictures: broken clips kept per kind of threat.
        crops: of source frames, 1 or 3.
        h264_crf: predictions after H.264 at this CRF as well; 0: none.
        identity: a name of the model, such as its checkpoint's hash; empty: see `identify_model`.

    Raises:
        UserError: for a folder of something else, a model that returns probabilities or writes into
            its input, labels out of range, and threats that do not fit the clips.
    """
    single = isinstance(dataset, SourceVideos)
    require_work(indices, len(dataset.records), batch_size)
    if not 0 <= h264_crf <= 51:
        raise UserError(f"h264_crf={h264_crf}: 1 (best) to 51, or 0 for none")
    own_folder(
        out,
        "results",
        {
            "model": identify_model(predict, dataset, device, identity),
            "videos": videos_of(dataset),
            "protocol": protocol_of(
                dataset, unit="video" if single else "clip", crops=crops, h264=h264_crf
            ),
            "suite": str(suite),
            "seed": seed,
        },
    )
    groups = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    if single:
        groups = [[index] for index in indices]
    settings = _Settings(families(threats), suite, out / "clips", pictures, h264_crf)
    pairs = [
        [(index, str(t)) for index in group for kind in settings.kinds for t in kind]
        for group in groups
    ]
    left, _ = unfinished(out, "results", "threat", pairs)
    share = left[distributed.rank() :: distributed.world()]
    bounded = MicroBatches(predict, batch_size)
    bar = tqdm(
        total=len(share),
        desc="attack",
        leave=False,
        disable=distributed.rank() > 0 or not sys.stderr.isatty(),
    )
    wanted = [groups[number] for number in share]
    units = (
        video_units(bounded, dataset, wanted, crops, device)
        if isinstance(dataset, SourceVideos)
        else clip_units(bounded, dataset, wanted, workers, device)
    )
    with appending(out, "results") as append, open(out / f"timing{suffix()}.jsonl", "a") as timing:
        for number, unit in zip(share, units, strict=True):
            new, seconds = _attack_unit(unit, settings, np.random.SeedSequence([seed, number]))
            append(new)
            timing.write(json.dumps(seconds) + "\n")
            timing.flush()
            bar.update()
    bar.close()
    return merged(out, "results", "threat", pairs)


def _attack_unit(
    unit: Unit, settings: _Settings, seed: np.random.SeedSequence
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Return (the rows of a batch, by videos, then threats; seconds by threat and attack).

    A clip on which the model gives no finite numbers becomes a failure, and the others begin anew,
    with the same random numbers whether the evaluation was killed or not.
    """
    found = _Found()
    while unit.uids:
        generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        found = _Found()
        try:
            for family in settings.kinds:
                found.columns += _attack_family(unit, family, settings, generator, found)
            break
        except BadSamples as error:
            unit = without(unit, error)
            found = _Found()
    _save_pictures(settings, found)
    rows = [column[i] for i in range(len(unit.uids)) for column in found.columns]
    threats = [threat for family in settings.kinds for threat in family]
    failed = [_failed_row(failure, threat) for failure in unit.failed for threat in threats]
    return rows + failed, found.seconds


def without(unit: Unit, error: BadSamples) -> Unit:
    """Return the unit without the samples of the error, which are among its failures."""
    reason = error.reason.replace("samples {}", "this clip").partition(";")[0]
    failed = [
        Failure(unit.index[i], unit.uids[i], int(unit.labels[i]), fault(unit.uids[i], reason))
        for i in error.samples
    ]
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


def _failed_row(failure: Failure, threat: ThreatModel) -> Row:
    return {
        "index": failure.index,
        "uid": failure.uid,
        "label": failure.label,
        "clean_pred": None,
        "threat": str(threat),
        "eps": threat.eps,
        "adv_pred": None,
        "robust": False,
        "killed_by": "error",
        "uint8_pred": None,
        "uint8_killed_by": "error",
        "clean_h264_pred": None,
        "h264_pred": None,
        "measured": None,
        "in_budget": None,
        "passes": {},
        "rejected": {},
        "error": failure.reason,
    }


def _attack_family(
    unit: Unit,
    family: list[ThreatModel],
    settings: _Settings,
    generator: torch.Generator,
    notes: _Found,
) -> Iterator[list[Row]]:
    """Yield a column of rows per threat, small budgets first; the rest goes into `notes`."""
    x, y, suite = unit.x, unit.labels, settings.suite
    clean, classes = _predicted(unit, x)
    _require_labels(unit, classes)
    x_adv, x_round = x.clone(), x.clone()
    adv, uint8_adv = clean, _predicted(unit, rounded(x, x))[0]
    frames = x.shape[2]
    clean_through = _after_h264(unit, x, settings.crf)
    smallest: Outcome | None = None
    killed_by = [None if ok else "clean" for ok in (adv == y).tolist()]
    uint8_killed_by = [None if ok else "clean" for ok in (uint8_adv == y).tolist()]
    for threat in family:
        # a clip whose wrong prediction rounding undoes goes on being attacked: a larger budget may
        # break that, too
        to_round = not rounds_away(threat, x)
        rows = [
            i
            for i, by in enumerate(killed_by)
            if by is None or (to_round and uint8_killed_by[i] is None)
        ]
        passes: Row = {}
        rejected: Row = {}
        if rows and threat.eps > 0:
            costs = smallest is None  # or one run has served all of the family's budgets
            try:
                if suite.smallest:
                    rows = list(range(len(y)))
                    smallest = smallest or worst_case(
                        unit.predict,
                        x,
                        y,
                        family[-1],
                        suite(threat, frames, classes),
                        warn=False,
                        generator=generator,
                    )
                    found = smallest.within(unit.predict, x, y, threat)
                else:
                    at = torch.tensor(rows, device=x.device)
                    with numbered(rows):
                        found = worst_case(
                            unit.predict,
                            x[at],
                            y[at],
                            threat,
                            suite(threat, frames, classes),
                            rounding=True,
                            warn=False,
                            generator=generator,
                        )
            except BadSamples:
                raise
            except ValueError as error:
                raise UserError(f"{suite} under {threat}: {error}") from None
            if costs:
                passes = {
                    name: (f * unit.views, b * unit.views) for name, (f, b) in found.passes.items()
                }
                rejected = found.rejected
                notes.seconds[str(threat)] = found.seconds
            broken_now = _merge(killed_by, found.broken_by, rows, x_adv, found.x_adv)
            _merge(uint8_killed_by, found.rounded_by, rows, x_round, found.x_rounded)
            adv, uint8_adv = _predicted(unit, x_adv)[0], _predicted(unit, rounded(x_round, x))[0]
            most = settings.pictures
            notes.pictures += _pictures(most, unit, broken_now, x_adv, clean, adv, threat)
        measured, inside = measure(threat, x, x_adv).tolist(), contains(threat, x, x_adv).tolist()
        through = _after_h264(unit, x_adv, settings.crf)
        yield [
            {
                "index": unit.index[i],
                "uid": uid,
                "label": int(y[i]),
                "clean_pred": int(clean[i]),
                "threat": str(threat),
                "eps": threat.eps,
                "adv_pred": int(adv[i]),
                "robust": killed_by[i] is None,
                "killed_by": killed_by[i],
                "uint8_pred": int(uint8_adv[i]),
                "uint8_killed_by": uint8_killed_by[i],
                "clean_h264_pred": clean_through[i],
                "h264_pred": through[i],
                "measured": measured[i],
                "in_budget": inside[i],
                "passes": {} if i else passes,
                "rejected": {} if i else rejected,
                "error": None,
            }
            for i, uid in enumerate(unit.uids)
        ]


@torch.no_grad()
def _predicted(unit: Unit, x: Tensor) -> tuple[Tensor, int]:
    """Return (predictions (B,), K). Raises BadSamples for NaN, UserError for no logits."""
    try:
        logits = checked_output(called(unit.predict, x, compare=True), len(x))
    except BadSamples:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
    finite = finite_logits(logits)
    if not finite.all():
        lost = (~finite).nonzero().flatten().tolist()
        raise BadSamples(lost, "the model gives NaN or infinite logits for samples {}")
    return logits.argmax(1), logits.shape[1]


def _require_labels(unit: Unit, classes: int) -> None:
    """Raise UserError for a label that the model has no logit for."""
    for uid, label in zip(unit.uids, unit.labels.tolist(), strict=True):
        require_label(uid, label, classes)


def _merge(
    killed_by: list[str | None], new: list[str | None], rows: list[int], kept: Tensor, found: Tensor
) -> list[int]:
    """Take the clips of what was not broken before, and who broke it -> what is broken since."""
    broken = []
    for at, row in enumerate(rows):
        if killed_by[row] is None:
            kept[row] = found[at]
            killed_by[row] = new[at]
            broken += [row] if new[at] else []
    return broken


@torch.no_grad()
def _after_h264(unit: Unit, x_adv: Tensor, crf: int) -> Sequence[int | None]:
    """Return predictions of the clips after a codec round trip; None for crf 0."""
    if not crf:
        return [None] * len(x_adv)
    clips = (x_adv * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
    back = np.stack(
        [h264(clip, crf, max(round(fps), 1)) for clip, fps in zip(clips, unit.fps, strict=True)]
    )
    seen = torch.from_numpy(back).to(x_adv.device).movedim(-1, 1).float() / 255
    return _predicted(unit, seen)[0].tolist()


def _pictures(
    most: int,
    unit: Unit,
    broken: list[int],
    x_adv: Tensor,
    clean: Tensor,
    adv: Tensor,
    threat: ThreatModel,
) -> list[tuple[str, int, dict[str, object]]]:
    """Return (kind of threat, index, content of the file) of the first clips that it broke."""
    kind = threat.kind.replace("@", "-at-")
    return [
        (
            kind,
            unit.index[i],
            {
                "clip": (unit.x[i] * 255).round().to(torch.uint8).cpu().numpy(),
                "adversarial": x_adv[i].cpu().numpy(),
                "uid": unit.uids[i],
                "label": int(unit.labels[i]),
                "clean_pred": int(clean[i]),
                "adv_pred": int(adv[i]),
                "threat": str(threat),
            },
        )
        for i in broken[:most]
    ]


def _save_pictures(settings: _Settings, found: _Found) -> None:
    """Save the first clips that each kind of threat breaks, losslessly, for the report."""
    for kind, index, content in found.pictures:
        settings.folder.mkdir(parents=True, exist_ok=True)
        path = settings.folder / f"{kind}-{index:06d}.npz"
        if (
            len([p for p in settings.folder.glob(f"{kind}-??????.npz") if p != path])
            < settings.pictures
        ):
            np.savez_compressed(path, **content)  # type: ignore[arg-type]


def timings(out: Path) -> dict[str, dict[str, float]]:
    """Return seconds by threat and attack, over all batches that were not killed in the middle."""
    total: dict[str, dict[str, float]] = {}
    for path in rank_files(out, "timing"):
        for found in read_rows(path):
            for threat, attacks in found.items():
                for name, seconds in attacks.items() if isinstance(attacks, dict) else ():
                    here = total.setdefault(threat, {})
                    here[name] = here.get(name, 0.0) + seconds
    return total

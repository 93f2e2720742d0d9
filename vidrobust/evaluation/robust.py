"""Robust accuracy: the worst that attacks find within a budget, row by row."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidrobust.attacks import Outcome, Predict, ThreatModel, contains, measure, rounded, rounds_away, worst_case
from vidrobust.corruptions import h264
from vidrobust.data import ClipDataset, Failure, SourceVideos
from vidrobust.engine import distributed
from vidrobust.errors import UserError
from vidrobust.evaluation.memory import MicroBatches
from vidrobust.evaluation.rows import Row, appending, merged, suffix, unfinished
from vidrobust.evaluation.suite import Suite, families
from vidrobust.evaluation.units import Unit, clip_units, video_units
from vidrobust.files import read_rows


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
) -> list[Row]:
    """Attack videos under each of `threats`: one centre clip of each, or, of SourceVideos, the source frames.

    A sample broken under one threat, before and after rounding to uint8, is broken under those of its family that hold
    it, and costs nothing more.
    predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits, in evaluation mode; it gets at most `batch_size` clips at a
    time, fewer when memory runs out. Streams a row a video and threat to out/results.jsonl, and up to `pictures` broken
    clips to out/clips/*.npz. Killed and called again it goes on, and the rows are the same: every batch has its own
    generator. Under torchrun each rank takes a share of the batches, none padded. Returns all rows.
    Raises UserError for a model that returns probabilities, labels out of range, gradients of NaN, and for threats that
    do not fit the clips.
    """
    groups = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    if isinstance(dataset, SourceVideos):
        groups = [[index] for index in indices]
    kinds = families(threats)
    pairs = [[(index, str(t)) for index in group for kind in kinds for t in kind] for group in groups]
    left = unfinished(out, "results", "threat", pairs)
    share = left[distributed.rank() :: distributed.world()]
    bounded = MicroBatches(predict, batch_size)
    bar = tqdm(total=len(share), desc="attack", leave=False, disable=distributed.rank() > 0 or not sys.stderr.isatty())
    wanted = [groups[number] for number in share]
    units = (
        video_units(bounded, dataset, wanted, crops, device) if isinstance(dataset, SourceVideos)
        else clip_units(bounded, dataset, wanted, workers, device)
    )  # fmt: skip
    with appending(out, "results") as append, open(out / f"timing{suffix()}.jsonl", "a") as timing:
        for number, unit in zip(share, units, strict=True):
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            new, seconds = _attack_unit(unit, kinds, suite, generator, out / "clips", pictures, h264_crf)
            append(new)
            timing.write(json.dumps(seconds) + "\n")
            timing.flush()
            bar.update()
    bar.close()
    return merged(out, "results", "threat", pairs)


def _attack_unit(
    unit: Unit, kinds: list[list[ThreatModel]], suite: Suite, generator: torch.Generator, folder: Path, pictures: int,
    crf: int,
) -> tuple[list[Row], dict[str, dict[str, float]]]:  # fmt: skip
    """(the rows of a batch, in the order of videos, then threats; seconds by threat and attack)."""
    columns: list[list[Row]] = []
    seconds: dict[str, dict[str, float]] = {}
    if unit.uids:
        for family in kinds:
            columns += _attack_family(unit, family, suite, generator, folder, pictures, crf, seconds)
    rows = [column[i] for i in range(len(unit.uids)) for column in columns]
    failed = [_failed_row(failure, threat) for failure in unit.failed for family in kinds for threat in family]
    return rows + failed, seconds


def _failed_row(failure: Failure, threat: ThreatModel) -> Row:
    return {
        "index": failure.index, "uid": failure.uid, "label": failure.label, "clean_pred": None, "threat": str(threat),
        "eps": threat.eps, "adv_pred": None, "robust": False, "killed_by": "error", "uint8_pred": None,
        "uint8_killed_by": "error", "clean_h264_pred": None, "h264_pred": None, "measured": None, "in_budget": None,
        "passes": {}, "rejected": {}, "error": failure.reason,
    }  # fmt: skip


def _attack_family(
    unit: Unit, family: list[ThreatModel], suite: Suite, generator: torch.Generator, folder: Path, pictures: int,
    crf: int, seconds: dict[str, dict[str, float]],
) -> Iterator[list[Row]]:  # fmt: skip
    """A column of rows a threat, from small budgets to large."""
    x, y = unit.x, unit.labels
    with torch.no_grad():
        logits = unit.predict(x)
        clean = logits.argmax(1)
        x_adv, x_round = x.clone(), x.clone()
        adv, uint8_adv = clean, unit.predict(rounded(x, x)).argmax(1)
    frames, classes = x.shape[2], logits.shape[1]
    clean_through = _after_h264(unit, x, crf)
    smallest: Outcome | None = None
    killed_by = [None if ok else "clean" for ok in (adv == y).tolist()]
    uint8_killed_by = [None if ok else "clean" for ok in (uint8_adv == y).tolist()]
    for threat in family:
        # a clip whose wrong prediction rounding undoes goes on being attacked: a larger budget may break that, too
        to_round = not rounds_away(threat, x)
        rows = [i for i, by in enumerate(killed_by) if by is None or (to_round and uint8_killed_by[i] is None)]
        passes: Row = {}
        rejected: Row = {}
        if rows and threat.eps > 0:
            costs = smallest is None  # or one run has served all of the family's budgets
            try:
                if suite.smallest:
                    rows = list(range(len(y)))
                    smallest = smallest or worst_case(unit.predict, x, y, family[-1], suite(threat, frames, classes),
                                                      generator=generator)  # fmt: skip
                    found = smallest.within(unit.predict, x, y, threat)
                else:
                    at = torch.tensor(rows, device=x.device)
                    found = worst_case(unit.predict, x[at], y[at], threat, suite(threat, frames, classes),
                                       rounding=True, generator=generator)  # fmt: skip
            except ValueError as error:
                raise UserError(f"{suite} under {threat}: {error}") from None
            if costs:
                passes = {name: (f * unit.views, b * unit.views) for name, (f, b) in found.passes.items()}
                rejected, seconds[str(threat)] = found.rejected, found.seconds
            broken_now = _merge(killed_by, found.broken_by, rows, x_adv, found.x_adv)
            _merge(uint8_killed_by, found.rounded_by, rows, x_round, found.x_rounded)
            with torch.no_grad():
                adv, uint8_adv = unit.predict(x_adv).argmax(1), unit.predict(rounded(x_round, x)).argmax(1)
            _keep_pictures(folder, pictures, unit, broken_now, x_adv, clean, adv, threat)
        measured, inside = measure(threat, x, x_adv).tolist(), contains(threat, x, x_adv).tolist()
        through = _after_h264(unit, x_adv, crf)
        yield [
            {
                "index": unit.index[i], "uid": uid, "label": int(y[i]), "clean_pred": int(clean[i]),
                "threat": str(threat), "eps": threat.eps, "adv_pred": int(adv[i]), "robust": killed_by[i] is None,
                "killed_by": killed_by[i], "uint8_pred": int(uint8_adv[i]), "uint8_killed_by": uint8_killed_by[i],
                "clean_h264_pred": clean_through[i], "h264_pred": through[i], "measured": measured[i],
                "in_budget": inside[i], "passes": {} if i else passes, "rejected": {} if i else rejected, "error": None,
            }
            for i, uid in enumerate(unit.uids)
        ]  # fmt: skip


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
    """Predictions of the clips after an encoder and back; None for crf 0."""
    if not crf:
        return [None] * len(x_adv)
    clips = (x_adv * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
    back = np.stack([h264(clip, crf, max(round(fps), 1)) for clip, fps in zip(clips, unit.fps, strict=True)])
    seen = torch.from_numpy(back).to(x_adv.device).movedim(-1, 1).float() / 255
    return unit.predict(seen).argmax(1).tolist()


def _keep_pictures(
    folder: Path, most: int, unit: Unit, broken: list[int], x_adv: Tensor, clean: Tensor, adv: Tensor,
    threat: ThreatModel,
) -> None:  # fmt: skip
    """Save the first clips that each threat breaks, losslessly: for the report, and whoever wants to look closer."""
    if not most or not broken:
        return
    folder.mkdir(parents=True, exist_ok=True)
    kind = threat.kind.replace("@", "-at-")
    for i in broken:
        path = folder / f"{kind}-{unit.index[i]:06d}.npz"
        if len([p for p in folder.glob(f"{kind}-??????.npz") if p != path]) >= most:
            return
        np.savez_compressed(
            path, clip=(unit.x[i] * 255).round().to(torch.uint8).cpu().numpy(), adversarial=x_adv[i].cpu().numpy(),
            uid=unit.uids[i], label=int(unit.labels[i]), clean_pred=int(clean[i]), adv_pred=int(adv[i]),
            threat=str(threat),
        )  # fmt: skip


def timings(out: Path) -> dict[str, dict[str, float]]:
    """Seconds by threat and attack, over all batches; those of a batch that was killed in the middle are not known."""
    total: dict[str, dict[str, float]] = {}
    for path in sorted(out.glob("timing*.jsonl")):
        for found in read_rows(path):
            for threat, attacks in found.items():
                for name, seconds in attacks.items() if isinstance(attacks, dict) else ():
                    here = total.setdefault(threat, {})
                    here[name] = here.get(name, 0.0) + seconds
    return total

"""Run the step alone that ended a run because its loss or gradient was not finite."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vidrobust import config
from vidrobust.data import Batch, batch_loader, worker_deaths
from vidrobust.methods import skips_weights
from vidrobust.training.early_end import broken_kernels, clips_sha
from vidrobust.training.finite_watch import Finding, FiniteWatch
from vidrobust.training.measured_accuracy import measure_for_loss
from vidrobust.training.setup import build_run
from vidrobust.training.step import begin_step, gradients, is_finite, train_batches
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, read_metrics
from vidrobust.utils.text import visible


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    Attributes:
        report: lines for the user, of the first rank whose step is not finite.
        finite: loss and gradient are finite on all ranks, so that the fault was not reproduced.
    """

    report: str
    finite: bool


def replay(cfg: config.Config, folder: Path, state: Path | None) -> Replayed:
    """Run the forward and backward pass of a run's next step, and report what is not finite.

    Weights stay as they are, except that methods with several updates per batch take those before
    the last one. Nothing is written.

    Args:
        cfg: the configuration of the run.
        folder: of the run, whose metrics.jsonl may describe the step.
        state: checkpoint before the step; None: the step is the first of the run.

    Raises:
        UserError: for a checkpoint that does not fit or is of the last step, for another number of
            ranks than the run had, and for videos that have changed.
    """
    device = distributed.start(cfg.device)
    compiled = cfg.train.compile
    # hooks do not see inside of compiled graphs
    run = build_run(replace(cfg, train=replace(cfg.train, compile=False)), folder, device, state)
    for note in run.notes if run.main else []:
        log.warning(note)  # among others, options that differ from the run's
    source = str(state or folder)
    if run.start >= run.total:
        raise UserError(f"{source}: the run was complete at step {run.total}; no step follows it")
    events = [row for row in read_metrics(folder) if row.get("event")]
    recorded = [row for row in events if row["step"] == run.start]
    if recorded:
        _require_ranks(len({row.get("rank") for row in recorded}), source)
    own = next((row for row in recorded if row.get("rank") == distributed.rank()), None)
    with distributed.together():
        batch = _batch_of(run)
        notes = _compared(batch, own, source)
    if compiled:
        notes.append("not compiled here: train.compile=false")
    if events and not recorded:
        notes.append(
            f"the run ended at step {events[-1]['step']}, whose state was not saved: this is an"
            " earlier step"
        )
    return _replayed(run, batch, own, [f"state before it: {source}", *notes])


def _require_ranks(count: int, source: str) -> None:
    """Raise UserError if the step ran on another number of ranks."""
    if count == distributed.world():
        return
    if count == 1:
        remedy = "leave out torchrun"
    else:
        remedy = (
            f"use torchrun --standalone --nproc_per_node={count} tools/train_net.py --replay ..."
        )
    raise UserError(
        f"{source}: the step ran on {count} ranks, and this is {distributed.world()}; {remedy}"
    )


def _batch_of(run: TrainingRun) -> Batch:
    """Return the next batch of this rank. Raise UserError if videos cannot be read."""
    keys = next(iter(train_batches(run)))
    with worker_deaths(run.dataset):
        batch = next(iter(batch_loader(run.dataset, [keys], workers=0)))
    if batch.failed:
        raise UserError(f"{batch.failed[0].reason}; so the step cannot be repeated")
    return batch


def _compared(batch: Batch, row: dict[str, Any] | None, source: str) -> list[str]:
    """Compare a batch with that of the run.

    Args:
        batch: the batch of the replay.
        row: the row of metrics.jsonl that describes the batch of the run, or None.
        source: the checkpoint or run, for messages.

    Returns:
        Lines for the report.

    Raises:
        UserError: for other videos.
    """
    if row is None:
        return ["metrics.jsonl has no row of this step that was not finite: nothing to compare"]
    if row.get("uids") != batch.uids:
        pairs = zip(row.get("uids") or [], batch.uids, strict=False)
        before, now = next((pair for pair in pairs if pair[0] != pair[1]), ("others", "these"))
        raise UserError(
            f"{source}: the data has changed: the batch of the run held {before}, and now {now} is"
            " in its place; restore the files that the run read"
        )
    if row.get("clips_sha") not in (None, clips_sha(batch)):
        return ["the data has changed: the clips of these videos have other pixels than in the run"]
    return []


def _replayed(
    run: TrainingRun, batch: Batch, row: dict[str, Any] | None, notes: list[str]
) -> Replayed:
    """Run the passes of a step, and report on it.

    Args:
        run: the run, before the step.
        batch: the batch of this rank.
        row: the row of metrics.jsonl of this step and rank, or None.
        notes: lines for the head of the report.
    """
    method = run.method
    forward = distributed.parallel(method, method.alike, skips_weights(run.cfg))
    method.train()
    measure_for_loss(run, run.start)
    inputs, _ = begin_step(run, run.start, batch)
    for update in range(method.replays):
        with FiniteWatch(method, inputs.views) as watch:
            parts, norm = gradients(run, forward, inputs)
        own_finite = is_finite(parts, norm)
        finite = not distributed.any_rank(not own_finite, run.device)
        if not finite or update + 1 == method.replays:
            break
        run.optimizer.step()  # in memory: the next update of the batch begins with it
    if method.replays > 1:
        notes = [*notes, f"update {update + 1} of the {method.replays} of this batch"]
    lines = [
        *_head(run, batch, notes),
        f"result: {_values(parts, norm)}" + (f"; in the run: {row['event']}" if row else ""),
        *_findings(watch, parts),
        *_consequences(run, parts, norm),
    ]
    if finite:
        lines.append(_finite_line(run, row))
    # where some ranks are not finite, only their reports show why
    reports_it = finite or not own_finite
    reports = distributed.merged({distributed.rank(): _text(lines)} if reports_it else {})
    return Replayed(reports[min(reports)], finite)


def _text(lines: list[str]) -> str:
    """Return lines as a text whose names cannot send commands to a terminal."""
    return "\n".join(visible(line) for line in lines)


def _head(run: TrainingRun, batch: Batch, notes: list[str]) -> list[str]:
    precision = "bf16" if run.bf16 else "fp32"
    world = distributed.world()
    rank = f", rank {distributed.rank()} of {world}" if world > 1 else ""
    return [
        f"step {run.start} of {run.total}, epoch {run.start // run.per_epoch}: {precision} on"
        f" {run.device}{rank}",
        *notes,
        f"videos: {', '.join(batch.uids)}",
    ]


def _values(parts: dict[str, Tensor], norm: Tensor) -> str:
    values = {name: float(value.detach()) for name, value in parts.items()}
    values["gradient norm"] = float(norm)
    return ", ".join(f"{name} {value:.6g}" for name, value in values.items())


def _findings(watch: FiniteWatch, parts: dict[str, Tensor]) -> list[str]:
    """Return lines about the first output and gradient that are not finite."""
    lines = []
    found: list[tuple[str, Finding | None]] = [
        ("gradient", watch.gradient),
        ("output", watch.output),
    ]
    for kind, finding in found:
        if finding is not None:
            lines.append(f"first {kind} that is not finite: {finding.text}")
            lines += [f"  {detail}" for detail in finding.details]
    if watch.output is not None and not watch.output.details:
        bad = [name for name, value in parts.items() if not math.isfinite(float(value.detach()))]
        lines.append(f"  parts that are not finite: {', '.join(bad)}")
    if watch.parameter:
        lines.append(f"first gradient of a weight that is not finite: {watch.parameter}")
    return lines


def _consequences(run: TrainingRun, parts: dict[str, Tensor], norm: Tensor) -> list[str]:
    """Return lines about a known fault of kernels, and norm statistics that the step has spoilt."""
    lines = []
    loss_is_finite = math.isfinite(float(parts["loss"].detach()))
    kernels = broken_kernels(run) if loss_is_finite and not math.isfinite(float(norm)) else []
    if kernels:
        lines.append(
            f"only the weight gradient of {', '.join(kernels)} is not finite: a fault of torch's"
            " bf16 kernel on CPUs; set train.amp=fp32"
        )
    for name, buffer in run.method.named_buffers():
        if buffer.is_floating_point() and not bool(buffer.isfinite().all()):
            lines.append(f"first statistics that are not finite after the step: {name}")
            break
    return lines


def _finite_line(run: TrainingRun, row: dict[str, Any] | None) -> str:
    """Return why a step that was not finite in the run may be finite here."""
    line = "not reproduced: loss and gradient are finite here"
    if row is None:
        return line
    now = {"device": run.device.type, "bf16": run.bf16}
    changed = [key for key in now if key in row and row[key] != now[key]]
    if changed:
        return f"{line}; {', '.join(f'{k}={row[k]} in the run, {now[k]} here' for k in changed)}"
    return f"{line}, on the same kind of device and in the same precision"

"""The training loop: one page for every method."""

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.data import (
    Batch,
    Failure,
    TrainBatches,
    loader,
    worker_deaths,
)
from vidrobust.engine import checkpoint, distributed
from vidrobust.engine.log import log, start_logging
from vidrobust.engine.optim import learning_rate
from vidrobust.engine.passes import PassCounter
from vidrobust.engine.progress import Progress
from vidrobust.engine.run import open_output
from vidrobust.engine.start import Run, build_run
from vidrobust.errors import UserError
from vidrobust.views import apply_draws, negatives, to_float


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has written a checkpoint."""


class NonFinite(UserError):
    """The loss or its gradient is not a number any more."""


def train(cfg: config.Config, out: Path, resume: Path | None = None, *, overwrite: bool = False) -> Path:
    """Train the configured method into the folder `out`, from the checkpoint `resume` if given.

    Writes what DESIGN section 6 lists and returns the last checkpoint. On CPU, a run that was interrupted and
    resumed ends with the same bits as one that was not. Nothing is written, or deleted by `overwrite`, before data,
    model and checkpoint have proved good. Raises UserError, or Stopped after Ctrl-C or SIGTERM.
    """
    device = distributed.start(cfg.device)
    main = distributed.rank() == 0
    start_logging(None, quiet=not main)
    run = build_run(cfg, out, device, resume)
    with open_output(out, cfg, overwrite=overwrite) if main else nullcontext():
        return _train(run, main)


def _train(run: Run, main: bool) -> Path:
    """The steps of a run whose folder is open -> its last checkpoint."""
    cfg, out, device = run.cfg, run.out, run.device
    if main:
        start_logging(out)
        size = sum(p.numel() for p in run.method.parameters() if p.requires_grad) / 1e6
        log.info(
            f"{cfg.method.name} on {cfg.data.name}: {len(run.records)} videos, {cfg.model.backbone} ({size:.2f} M "
            f"parameters) on {device}, steps {run.start} to {run.total}"
        )
        for note in run.notes:
            log.warning(note)
        if run.start:
            checkpoint.drop_after(out / "checkpoints", run.start)
            run.save(run.start)  # last.pt is of this run, whatever it was before
    with _stop_signals() as stopping:
        _steps(run, stopping, main)
    if main:
        if run.start >= run.total:
            log.info(f"training was complete at step {run.total}")
        last = checkpoint.read_checkpoint(out / "checkpoints" / "last.pt")
        checkpoint.write_atomic(out / "backbone.pt", checkpoint.measured_trunk(last))
    distributed.barrier()  # every rank finds the last checkpoint
    return out / "checkpoints" / "last.pt"


def _steps(run: Run, stopping: list[int], main: bool) -> None:
    """Steps `start` to `total`; on rank 0 also the log and the checkpoints."""
    cfg, method, optimizer, device = run.cfg, run.method, run.optimizer, run.device
    dataset = run.dataset
    batches = TrainBatches(
        len(run.records), cfg.train.batch_size, cfg.seed, run.start, run.total, distributed.rank(), distributed.world()
    )
    forward = distributed.parallel(method, method.alike, method.skips)
    amp = use_bf16(cfg.train.amp, device)
    method.train()
    passes = PassCounter(method)
    clock = Progress(run.out, run.start, run.total, run.per_epoch, cfg.train.log_every, device, main)
    with clock as progress, worker_deaths(dataset):
        for step, batch in enumerate(loader(dataset, batches, cfg.data.workers), run.start):
            progress.data_arrived()
            _count_bad(run, batch.replaced, main)
            if distributed.any_rank(bool(batch.failed or stopping or run.too_many_bad), device):
                _leave(run, step, batch, main)
            views, ids, labels = _to_device(batch, device)
            if method.negatives.names:
                made = negatives(views[:, 0], method.negatives, batch.numbers)
                if main and step == run.start:
                    _tell_still(views[:, :1], made)
                views = torch.cat([views, made], 1)
            method.progress = step / run.total
            if step % run.per_epoch == 0:
                method.start_epoch()
            rate = learning_rate(step, run.total, cfg.optim)
            for group in optimizer.param_groups:
                group["lr"] = rate
            passes.take()
            for _ in range(method.replays):
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    parts = {name: value.mean() for name, value in forward(views, ids, labels).items()}
                optimizer.zero_grad(set_to_none=True)
                parts["loss"].backward()
                norm = nn.utils.clip_grad_norm_(method.parameters(), cfg.optim.clip_norm or math.inf)
                _refuse_non_finite(parts["loss"], norm, step, batch, run.out)
                optimizer.step()
                if run.average is not None:
                    run.average.follow(method.model)
            adversary = getattr(method, "adversary", None)
            if adversary is not None and adversary.budget.schedule != "constant":
                parts["eps_share"] = norm.new_tensor(adversary.budget.now)
            progress.passed(len(ids), passes.take())
            progress.step_done(step, rate, parts, norm, len(batch.replaced), len(run.bad))
            if (step + 1) % run.per_epoch == 0 or step + 1 == run.total:
                progress.epoch_done(step, method.report(last=step + 1 == run.total))
            if main and (step + 1 == run.total or (step + 1) % cfg.train.checkpoint_every == 0):
                run.save(step + 1)


def _tell_still(views: Tensor, made: Tensor) -> None:
    """Warn of clips that are their own negatives: nothing moves in them, or they are of one colour."""
    still = int((made == views).flatten(2).all(2).any(1).sum())
    if still:
        log.warning(f"method.negatives: {still} of {len(views)} clips of the first batch are their own negative, as "
                    "nothing moves in them, or they are of one colour")  # fmt: skip


def _count_bad(run: Run, replaced: list[Failure], main: bool) -> None:
    """Note videos that were found bad on any rank; each is told once."""
    new = {failure.index: failure.reason for failure in replaced if failure.index not in run.bad}
    if distributed.any_rank(bool(new), run.device):
        for index, reason in sorted(distributed.merged(new).items()):
            run.bad[index] = reason
            if main:
                log.warning(f"bad video, another takes its place: {reason}")


def _leave(run: Run, step: int, batch: Batch, main: bool) -> NoReturn:
    """Save what `step` finished steps have reached, on all ranks at once, then say why the run stops."""
    where = run.save(step) if main and step > run.start else None
    distributed.barrier()
    if batch.failed:
        raise UserError(f"{batch.failed[0].reason}; the videos that were to take its place are bad as well")
    if run.too_many_bad:
        raise UserError(
            f"{len(run.bad)} of {len(run.records)} training videos are bad (train.max_bad={run.cfg.train.max_bad:g}); "
            f"the last: {list(run.bad.values())[-1]}; python datasets/prepare.py scan makes a "
            "data.manifest without files that do not decode, and texture makes those of data.twins anew that are "
            "deleted; or raise train.max_bad"
        )
    written = f"{where} is written, --resume goes on" if where else "nothing new to write"
    raise Stopped(f"after step {step} of {run.total}; {written}")


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """views (B, V, C, T, H, W) float32 in [0, 1], ids (B,), labels (B,) on the device."""
    clips = to_float(batch.clips.to(device))
    views = apply_draws(clips.flatten(0, 1), batch.draws.flatten(0, 1)).view(clips.shape)
    return views, batch.index.to(device), batch.labels.to(device)


def _refuse_non_finite(loss: Tensor, norm: Tensor, step: int, batch: Batch, out: Path) -> None:
    value, slope = float(loss.detach()), float(norm)
    if math.isfinite(value) and math.isfinite(slope):
        return
    what = f"gradient norm is {slope}" if math.isfinite(value) else f"loss is {value}"
    row = {"step": step, "split": "train", "event": what, "uids": batch.uids}
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")  # one of each rank: every rank has its own batch
    kept = sorted((out / "checkpoints").glob("step_*.pt"))
    raise NonFinite(
        f"{what} at step {step}; batch: {', '.join(batch.uids)}; last good checkpoint: "
        f"{kept[-1] if kept else 'none yet'}; lower optim.lr or set optim.clip_norm"
    )


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether `train.amp` asks for bf16 autocast there."""
    if amp == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return amp == "bf16"


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM asks the run to stop; the step at hand is finished first."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])  # a second one does not wait for the step

    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, before[number])

"""The training loop."""

import errno
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from vidrobust import checkpoint, config
from vidrobust.checkpoint import NonFinite
from vidrobust.data import (
    Batch,
    Failure,
    TrainBatches,
    batch_loader,
    worker_deaths,
)
from vidrobust.training.optim import learning_rate, set_rate
from vidrobust.training.pass_counter import PassCounter
from vidrobust.training.progress import Progress
from vidrobust.training.run_folder import open_output
from vidrobust.training.setup import Run, build_run
from vidrobust.training.step_guard import StepGuard
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.stopping import noted_stop_signals
from vidrobust.views import apply_draws, negatives, to_float

__all__ = ["NonFinite", "Stopped", "train", "use_bf16"]


class Stopped(Exception):
    """The run was asked to stop, by one of STOP_SIGNALS, and has written a checkpoint."""


def train(
    cfg: config.Config, out: Path, resume: Path | None = None, *, overwrite: bool = False
) -> Path:
    """Train the configured method into the folder `out`, from the checkpoint `resume` if given.

    Writes the files that the README lists and returns the last checkpoint. On CPU, a run that was
    interrupted and resumed ends with the same bits as one that was not. Nothing is written, or
    deleted by `overwrite`, before data, model and checkpoint have proved good. Raises UserError, or
    Stopped after Ctrl-C or another stop signal.
    """
    device = distributed.start(cfg.device)
    main = distributed.rank() == 0
    start_logging(None, quiet=not main)
    run = build_run(cfg, out, device, resume)
    with ExitStack() as folder:
        with distributed.together():
            if main:
                folder.enter_context(open_output(out, cfg, overwrite=overwrite))
        return _train(run, main)


def _train(run: Run, main: bool) -> Path:
    """The steps of a run whose folder is open -> its last checkpoint."""
    cfg, out, device = run.cfg, run.out, run.device
    if main:
        start_logging(out)
        size = sum(p.numel() for p in run.method.parameters() if p.requires_grad) / 1e6
        log.info(
            f"{cfg.method.name} on {cfg.data.name}: {len(run.records)} videos, {cfg.model.backbone}"
            f" ({size:.2f} M parameters) on {device}, steps {run.start} to {run.total}"
        )
        for note in run.notes:
            log.warning(note)
    with distributed.together():
        if main:
            checkpoint.drop_partial(out / "checkpoints")
        if main and run.start:
            checkpoint.drop_after(out / "checkpoints", run.start)
            run.save(run.start)  # last.pt is of this run, whatever it was before
    with noted_stop_signals() as stopping:
        _steps(run, stopping, main)
    if main:
        if run.start >= run.total:
            log.info(f"training was complete at step {run.total}")
        last = checkpoint.read_checkpoint(out / "checkpoints" / "last.pt")
        checkpoint.write_atomic(out / "backbone.pt", checkpoint.measured_trunk(last))
    distributed.barrier()  # every rank finds the last checkpoint
    return out / "checkpoints" / "last.pt"


def _steps(run: Run, stopping: list[int], main: bool) -> None:
    """Steps `start` to `total`; on rank 0 also the log and the checkpoints.

    A step that fails is undone, and rank 0 writes the state before it.
    """
    guard = StepGuard(run.method, run.optimizer, run.average, run.start)
    try:
        _guarded_steps(run, stopping, main, guard)
    except (KeyboardInterrupt, NonFinite):  # in a hurry; written already
        raise
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # there is no room
            raise
        where = _rescue(run, guard, main)
        if where:
            log.warning(
                f"{where} holds the state after step {guard.done}, --resume goes on from it"
            )
        raise


def _guarded_steps(run: Run, stopping: list[int], main: bool, guard: StepGuard) -> None:
    cfg, method, device, dataset = run.cfg, run.method, run.device, run.dataset
    sampler = TrainBatches(
        len(run.records),
        cfg.train.batch_size,
        cfg.seed,
        run.start,
        run.total,
        distributed.rank(),
        distributed.world(),
    )
    forward = distributed.parallel(method, method.alike, method.skips)
    method.train()
    passes = PassCounter(method)
    unusual = _Unusual(run)
    clock = Progress(
        run.out, run.start, run.total, run.per_epoch, cfg.train.log_every, device, main
    )
    with clock as progress, worker_deaths(dataset):
        batches = iter(batch_loader(dataset, sampler, cfg.data.workers))
        for step in range(run.start, run.total):
            batch, lost = _next_batch(batches, run)
            progress.data_arrived()
            _count_bad(run, [] if batch is None else batch.replaced, main)
            unusual.add(batch)
            leaves = bool(lost or batch is None or batch.failed or stopping or run.too_many_bad)
            if distributed.any_rank(leaves, device) or batch is None:
                _leave(run, guard, batch, lost, main)
            views, ids, labels = _to_device(batch, device)
            guard.begin()
            if method.negatives.names:
                made = negatives(views[:, 0], method.negatives, batch.numbers)
                if main and step == run.start:
                    _tell_still(views[:, :1], made)
                views = torch.cat([views, made], 1)
            method.progress = step / run.total
            if step % run.per_epoch == 0:
                method.start_epoch()
            rate = learning_rate(step, run.total, cfg.optim, cfg.method.head_first)
            set_rate(run.optimizer, rate)
            passes.take()
            parts, norm = _update(run, guard, forward, (views, ids, labels), batch, main)
            guard.end()
            adversary = getattr(method, "adversary", None)
            if adversary is not None and adversary.budget.schedule != "constant":
                parts["eps_share"] = norm.new_tensor(adversary.budget.now)
            progress.passed(len(ids), passes.take())
            progress.step_done(step, rate, parts, norm, len(batch.replaced), len(run.bad))
            if (step + 1) % run.per_epoch == 0 or step + 1 == run.total:
                progress.epoch_done(step, method.report(last=step + 1 == run.total))
                unusual.report(main)
            if step + 1 == run.total or (step + 1) % cfg.train.checkpoint_every == 0:
                with distributed.together():  # a full disk is everybody's end
                    if main:
                        run.save(step + 1)


def _update(
    run: Run,
    guard: StepGuard,
    forward: nn.Module,
    inputs: tuple[Tensor, Tensor, Tensor],
    batch: Batch,
    main: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    """Take the optimizer's steps of a batch.

    Args:
        run: the run, whose weights change.
        guard: knows how to undo them.
        forward: the method, under DistributedDataParallel where there are several ranks.
        inputs: views (B, V, C, T, H, W), ids (B,) and labels (B,).
        batch: the batch that they are of, named where the loss is not finite.
        main: this is rank 0.

    Returns:
        The loss and its parts, means over the batch, and the gradient's norm.

    Raises:
        NonFinite: on all ranks, where the loss or its gradient is not finite on any.
    """
    amp = use_bf16(run.cfg.train.amp, run.device)
    for _ in range(run.method.replays):
        with torch.autocast(run.device.type, torch.bfloat16, enabled=amp):
            parts = {name: value.mean() for name, value in forward(*inputs).items()}
        run.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = _clip(run.method, run.cfg.optim.clip_norm or math.inf)
        if distributed.any_rank(not _is_finite(parts["loss"], norm), run.device):
            _refuse_non_finite(run, guard, parts["loss"], norm, batch, main)
        guard.updating()
        run.optimizer.step()
        if run.average is not None:
            run.average.follow(run.method.model)
    return parts, norm


def _next_batch(batches: Iterator[Batch], run: Run) -> tuple[Batch | None, str]:
    """Return the next batch, or None and the reason why this rank's loader has ended."""
    try:
        with worker_deaths(run.dataset):
            return next(batches), ""
    except UserError as error:
        return None, str(error)


def _rescue(
    run: Run, guard: StepGuard, main: bool, *, all_ranks_alive: bool = False
) -> Path | None:
    """Write the state after the last whole step, if that is new.

    Args:
        run: whose state it is.
        guard: knows how to undo the step that has begun.
        main: this is rank 0, which writes.
        all_ranks_alive: no rank was lost. Work that waits for a lost one holds a GPU.

    Returns:
        Where it is, or None.
    """
    if distributed.world() > 1 and run.device.type == "cuda" and not all_ranks_alive:
        return None
    if not guard.undo() or not main or guard.done <= max(run.saved, run.start):
        return None
    try:
        return run.save(guard.done)
    except (OSError, UserError) as error:
        log.warning(f"the state after step {guard.done} could not be written: {error}")
        return None


def _state_before(path: Path, step: int) -> str:
    """Return the file of the state before a step, or what is known of it."""
    if path.is_file():
        return str(path)
    return "not written" if step else "the start of the run"


def _tell_still(views: Tensor, made: Tensor) -> None:
    """Warn of clips that are their own negatives: nothing moves in them, or they are of one
    colour.
    """
    still = int((made == views).flatten(2).all(2).any(1).sum())
    if still:
        log.warning(
            f"method.negatives: {still} of {len(views)} clips of the first batch are their own"
            " negative, as nothing moves in them, or they are of one colour"
        )


class _Unusual:
    """Videos whose clips show frames twice, or whose frames had several sizes, in the first
    epoch.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seen: set[int] = set()
        self.found: dict[str, set[int]] | None = {"repeats": set(), "resized": set()}

    def add(self, batch: Batch | None) -> None:
        """Note the videos of a batch."""
        if self.found is not None and batch is not None:
            self.seen |= set(batch.index.tolist())
            self.found["repeats"] |= set(batch.repeats)
            self.found["resized"] |= set(batch.resized)

    def report(self, main: bool) -> None:
        """Log once how many there are, on all ranks together."""
        if self.found is None:
            return
        repeats, resized, seen = (
            len(distributed.merged(dict.fromkeys(videos, "")))
            for videos in (*self.found.values(), self.seen)
        )
        self.found = None
        for line in self.run.dataset.notes(repeats, resized, seen) if main else ():
            log.warning(line)


def _count_bad(run: Run, replaced: list[Failure], main: bool) -> None:
    """Note videos that were found bad on any rank; each is told once."""
    new = {failure.index: failure.reason for failure in replaced if failure.index not in run.bad}
    if distributed.any_rank(bool(new), run.device):
        for index, reason in sorted(distributed.merged(new).items()):
            run.bad[index] = reason
            if main:
                log.warning(f"bad video, another takes its place: {reason}")


def _leave(run: Run, guard: StepGuard, batch: Batch | None, lost: str, main: bool) -> NoReturn:
    """Save what the finished steps have reached, on all ranks at once, and end the run."""
    step = guard.done
    with distributed.together():  # a full disk is everybody's end
        if main and step > max(run.saved, run.start):
            run.save(step)
    reasons = distributed.merged({distributed.rank(): lost} if lost else {})
    distributed.barrier()
    where = run.out / "checkpoints" / f"step_{step:08d}.pt"
    new = step > run.start and where.is_file()
    written = f"{where} is written, --resume goes on" if new else "nothing new to write"
    if reasons:
        raise UserError(
            f"{next(iter(reasons.values()))}; after step {step} of {run.total}; {written}"
        )
    if batch is not None and batch.failed:
        raise UserError(
            f"{batch.failed[0].reason}; the videos that were to take its place are bad as well"
        )
    if run.too_many_bad:
        raise UserError(
            f"{len(run.bad)} of {len(run.records)} training videos are bad"
            f" (train.max_bad={run.cfg.train.max_bad:g}); the last: {list(run.bad.values())[-1]};"
            " python datasets/prepare.py scan makes a data.manifest without files that do not"
            " decode, and texture makes those of data.twins anew that are deleted; or raise"
            " train.max_bad"
        )
    raise Stopped(f"after step {step} of {run.total}; {written}")


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """views (B, V, C, T, H, W) float32 in [0, 1], ids (B,), labels (B,) on the device."""
    clips = to_float(batch.clips.to(device))
    views = apply_draws(clips.flatten(0, 1), batch.draws.flatten(0, 1)).view(clips.shape)
    return views, batch.index.to(device), batch.labels.to(device)


def _clip(method: nn.Module, limit: float) -> Tensor:
    """Clip the gradients and return their norm.

    Gradients of a norm that is not finite stay as they are.
    """
    parameters = list(method.parameters())
    try:
        return nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=True)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


def _is_finite(loss: Tensor, norm: Tensor) -> bool:
    return math.isfinite(float(loss.detach())) and math.isfinite(float(norm))


def _refuse_non_finite(
    run: Run, guard: StepGuard, loss: Tensor, norm: Tensor, batch: Batch, main: bool
) -> NoReturn:
    """Undo the step on all ranks, write the state before it and what repeats it, and refuse."""
    step = guard.done
    value = float(loss.detach())
    kernels = broken_kernels(run) if math.isfinite(value) else []
    what = f"gradient norm is {float(norm)}" if math.isfinite(value) else f"loss is {value}"
    if _is_finite(loss, norm):
        what = "loss of another rank is not finite"
    _rescue(run, guard, main, all_ranks_alive=True)
    distributed.barrier()
    kept = checkpoint.newest_step(run.out / "checkpoints")
    before = run.out / "checkpoints" / f"step_{step:08d}.pt"
    # The step is a function of this row and of the state before it: --resume repeats it.
    row = {
        "step": step,
        "epoch": step // run.per_epoch,
        "split": "train",
        "event": what,
        "uids": batch.uids,
        "index": batch.index.tolist(),
        "seed": run.cfg.seed,
        "rank": distributed.rank(),
        "state_before": _state_before(before, step),
    }
    with open(run.out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")  # one of each rank: every rank has its own batch
    remedy = "lower optim.lr or set optim.clip_norm"
    if kernels:
        remedy = (
            f"the weight gradient of {', '.join(kernels)} alone is not finite, which is a "
            "fault of torch's "
            "bf16 kernel on CPUs; set train.amp=fp32"
        )
    raise NonFinite(
        f"{what} at step {step}; batch: {', '.join(batch.uids)}; last good checkpoint: "
        f"{kept or 'none yet'}; {remedy}"
    )


def broken_kernels(run: Run) -> list[str]:
    """Return the convolutions whose weight gradient bf16 has spoilt, if nothing else is wrong.

    A gradient that is not finite behind a layer spoils everything before it as well. Where the
    weights of convolutions are the only ones, their kernels have made it of finite numbers.
    """
    if run.device.type != "cpu" or not use_bf16(run.cfg.train.amp, run.device):
        return []
    modules = dict(run.method.named_modules())
    found = []
    for name, parameter in run.method.named_parameters():
        if parameter.grad is None or bool(parameter.grad.isfinite().all()):
            continue
        layer, _, kind = name.rpartition(".")
        module = modules[layer]
        if kind != "weight" or not isinstance(module, nn.Conv3d):
            return []
        size = ",".join(str(side) for side in module.kernel_size)
        found.append(f"{layer} (Conv3d, kernel ({size}))")
    return found


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether `train.amp` asks for bf16 autocast there."""
    if amp == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return amp == "bf16"

"""The training loop."""

import errno
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from vidrobust import checkpoint, config
from vidrobust.checkpoint import NonFinite
from vidrobust.data import Batch, TrainBatches, batch_loader, worker_deaths
from vidrobust.methods import skips_weights
from vidrobust.models.complexity import model_complexity, parameters_text
from vidrobust.training.data_warnings import (
    UnusualVideos,
    count_bad_videos,
    warn_unchanged_negatives,
)
from vidrobust.training.early_end import Stopped, leave, refuse_non_finite, save_completed_steps
from vidrobust.training.measured_accuracy import adapt_rate, measure_for_loss
from vidrobust.training.optim import learning_rate, set_rate
from vidrobust.training.pass_counter import PassCounter
from vidrobust.training.progress import Progress
from vidrobust.training.run_folder import open_output
from vidrobust.training.setup import build_run
from vidrobust.training.shown_clips import ShownClips
from vidrobust.training.step_guard import StepGuard
from vidrobust.training.training_run import TrainingRun
from vidrobust.training.weights_options import with_weights_options
from vidrobust.utils import distributed
from vidrobust.utils.amp import use_bf16
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.stopping import noted_stop_signals
from vidrobust.utils.threads import use_threads
from vidrobust.views import apply_draws, negatives, to_float

__all__ = ["NonFinite", "Stopped", "train"]


def train(
    cfg: config.Config, out: Path, resume: Path | None = None, *, overwrite: bool = False
) -> Path:
    """Train the configured method.

    Writes the files that docs/running.md lists. On CPU, a run that was interrupted and resumed is
    bitwise identical to one that was not. Nothing is written or deleted before data, model and
    checkpoint have been checked.

    Args:
        cfg: the configuration.
        out: folder of the run.
        resume: checkpoint to continue from; None: train from the beginning.
        overwrite: delete what an earlier run has written to the folder.

    Returns:
        The last checkpoint.

    Raises:
        UserError: for options, data or checkpoints that do not fit.
        Stopped: after Ctrl-C or another stop signal.
        NonFinite: for a loss or gradient that is not finite.
    """
    device = distributed.start(cfg.device)
    use_threads(cfg.data.workers)
    # until the folder is open, only the terminal gets the log
    start_logging(None, quiet=distributed.rank() != 0)
    cfg = with_weights_options(cfg)
    run = build_run(cfg, out, device, resume)
    with ExitStack() as folder:
        with distributed.together():
            if run.main:
                folder.enter_context(open_output(out, cfg, overwrite=overwrite))
        return _train(run)


def _train(run: TrainingRun) -> Path:
    """Train a run whose folder is open, and return its last checkpoint."""
    checkpoints = run.out / "checkpoints"
    if run.main:
        start_logging(run.out)
        _log_start(run)
    with distributed.together():
        if run.main:
            checkpoint.drop_partial(checkpoints)
        if run.main and run.start:
            checkpoint.drop_after(checkpoints, run.start)
            # resumed into another folder: it must hold a last.pt before the first new step
            run.save(run.start)
    with noted_stop_signals() as stop_signals:
        _steps(run, stop_signals)
    if run.main:
        if run.start >= run.total:
            log.info(f"training was complete at step {run.total}")
        last = checkpoint.read_checkpoint(checkpoints / "last.pt")
        checkpoint.write_atomic(run.out / "backbone.pt", checkpoint.measured_backbone(last))
    distributed.barrier()  # every rank finds the last checkpoint
    return checkpoints / "last.pt"


def _log_start(run: TrainingRun) -> None:
    cfg = run.cfg
    size = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
    shape = (3, cfg.data.frames, cfg.data.size, cfg.data.size)
    flops = model_complexity(run.method.model, shape).text()
    cost = parameters_text(size) + (f", {flops}" if flops else "")
    log.info(
        f"{cfg.method.name} on {cfg.data.name}: {len(run.records)} videos, {cfg.model.backbone}"
        f" ({cost}) on {run.device}, steps {run.start} to {run.total}"
    )
    for note in run.notes:
        log.warning(note)


def _steps(run: TrainingRun, stop_signals: list[int]) -> None:
    """Take the steps of a run. One that fails is undone, and the state before it is saved."""
    guard = StepGuard(run.method, run.optimizer, run.average, run.start)
    try:
        _guarded_steps(run, stop_signals, guard)
    except (KeyboardInterrupt, NonFinite):
        # a second Ctrl-C must end at once; NonFinite has saved the state, or it cannot be saved
        raise
    except Exception as error:
        disk_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        path = None if disk_full else save_completed_steps(run, guard)
        if path:
            log.warning(
                f"{path} holds the state after step {guard.done}, --resume continues from it"
            )
        raise


def _guarded_steps(run: TrainingRun, stop_signals: list[int], guard: StepGuard) -> None:
    """Take the steps `start` to `total`; rank 0 also writes the log and the checkpoints."""
    cfg = run.cfg
    method = run.method
    forward = distributed.parallel(method, method.alike, skips_weights(cfg))
    method.train()
    passes = PassCounter(method)
    unusual = UnusualVideos(run)
    with _progress_of(run) as progress, worker_deaths(run.dataset):
        shown = ShownClips(run, progress.metrics)
        batches = iter(batch_loader(run.dataset, _sampler_of(run), cfg.data.workers))
        for step in range(run.start, run.total):
            # 1. Data. All ranks leave together, before a step, so that no completed step is lost.
            batch, loader_error = _next_batch(batches, run)
            progress.data_arrived()
            count_bad_videos(run, [] if batch is None else batch.replaced)
            unusual.add(batch)
            must_leave = bool(loader_error or stop_signals or run.too_many_bad)
            must_leave = must_leave or batch is None or bool(batch.failed)
            # `or batch is None` never decides; it shows type checkers that there is a batch below
            if distributed.any_rank(must_leave, run.device) or batch is None:
                leave(run, guard, batch, loader_error)

            # 2. Views. From here on, the guard can undo the step.
            measure_for_loss(run, step)
            views, ids, labels = _to_device(batch, run.device)
            guard.begin()
            views = _with_negatives(views, run, batch, warn=run.main and step == run.start)
            if step % run.per_epoch == 0:
                method.start_epoch()

            # 3. Update
            rate = learning_rate(step, run.total, cfg.optim, cfg.method.head_first)
            rate *= run.rate_factor
            set_rate(run.optimizer, rate)
            passes.take()  # start counting anew
            inputs = (views, ids, labels, step / run.total)
            with shown.of_step(step, views):
                parts, norm = _update(run, guard, forward, inputs, batch)
            progress.passed(len(ids), passes.take())
            # the step is done when the rate and weights of the next one are decided
            measured = adapt_rate(run, step + 1)
            guard.end()

            # 4. Log
            adversary = method.adversary
            if adversary is not None and adversary.budget.schedule != "constant":
                parts["eps_share"] = norm.new_tensor(adversary.budget.current)
            progress.step_done(step, rate, parts, norm, len(batch.replaced), len(run.bad))
            done = step + 1
            if done % run.per_epoch == 0 or done == run.total:
                progress.epoch_done(step, method.report(last=done == run.total) | measured)
                unusual.report()

            # 5. Checkpoint. A full disk ends the run on all ranks.
            if done == run.total or done % cfg.train.checkpoint_every == 0:
                with distributed.together():
                    if run.main:
                        run.save(done)


def _progress_of(run: TrainingRun) -> Progress:
    every = run.cfg.train.log_every
    return Progress(run.out, run.start, run.total, run.per_epoch, every, run.device, run.main)


def _sampler_of(run: TrainingRun) -> TrainBatches:
    """Return the indices of the batches of this rank."""
    cfg = run.cfg
    return TrainBatches(
        len(run.records),
        cfg.train.batch_size,
        cfg.seed,
        run.start,
        run.total,
        distributed.rank(),
        distributed.world(),
    )


def _next_batch(batches: Iterator[Batch], run: TrainingRun) -> tuple[Batch | None, str]:
    """Return the next batch, or None and the reason why the loader of this rank has ended."""
    try:
        with worker_deaths(run.dataset):
            return next(batches), ""
    except UserError as error:
        return None, str(error)


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return augmented views (B, V, C, T, H, W) in [0, 1], ids (B,) and labels (B,)."""
    clips = to_float(batch.clips.to(device))
    views = apply_draws(clips.flatten(0, 1), batch.draws.flatten(0, 1)).view(clips.shape)
    return views, batch.index.to(device), batch.labels.to(device)


def _with_negatives(views: Tensor, run: TrainingRun, batch: Batch, *, warn: bool) -> Tensor:
    """Return the views, followed by non-semantic negatives of the first one.

    Args:
        views: (B, V, C, T, H, W) in [0, 1].
        run: says which negatives.
        batch: has their random numbers.
        warn: of clips that are their own negatives.
    """
    if not run.negatives.names:
        return views
    more = negatives(views[:, 0], run.negatives, batch.numbers)
    if warn:
        warn_unchanged_negatives(views[:, :1], more)
    return torch.cat([views, more], 1)


def _update(
    run: TrainingRun,
    guard: StepGuard,
    forward: nn.Module,
    inputs: tuple[Tensor, Tensor, Tensor, float],
    batch: Batch,
) -> tuple[dict[str, Tensor], Tensor]:
    """Take the optimizer's steps of a batch.

    Args:
        run: the run, whose weights change.
        guard: knows how to undo them.
        forward: the method, under DistributedDataParallel where there are several ranks.
        inputs: views (B, V, C, T, H, W), ids (B,), labels (B,) and the fraction of training done.
        batch: the batch that they are of, named where the loss is not finite.

    Returns:
        The loss and its parts, means over the batch, and the gradient's norm.

    Raises:
        NonFinite: on all ranks, where the loss or its gradient is not finite on any.
    """
    bf16 = use_bf16(run.cfg.train.amp, run.device)
    # free adversarial training takes several steps of the optimizer per batch
    for _ in range(run.method.replays):
        with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
            parts = {name: value.mean() for name, value in forward(*inputs).items()}
        run.optimizer.zero_grad(set_to_none=True)  # also what attacks have left
        parts["loss"].backward()
        norm = _clip_gradients(run.method, run.cfg.optim.clip_norm or math.inf)
        # all ranks must agree: a rank that went on alone would wait for the others forever
        finite = math.isfinite(float(parts["loss"].detach())) and math.isfinite(float(norm))
        if distributed.any_rank(not finite, run.device):
            refuse_non_finite(run, guard, parts["loss"], norm, batch)
        # from here to the end of the step, weights are neither old nor new
        guard.updating()
        run.optimizer.step()
        if run.average is not None:
            run.average.follow(run.method.model)
    return parts, norm


def _clip_gradients(method: nn.Module, limit: float) -> Tensor:
    """Clip the gradients and return their norm before.

    Gradients whose norm is not finite stay as they are, so that `refuse_non_finite` can inspect
    them.
    """
    parameters = list(method.parameters())
    try:
        return nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=True)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))

"""The training loop."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from vidrobust import checkpoint, config
from vidrobust.checkpoint import NonFinite
from vidrobust.data import (
    Batch,
    batch_loader,
    raise_worker_deaths,
    without_worker_deaths,
    worker_deaths,
)
from vidrobust.methods import skips_weights
from vidrobust.models.complexity import parameters_text
from vidrobust.training.data_warnings import UnusualVideos, count_bad_videos
from vidrobust.training.early_end import Stopped, leave, refuse_non_finite, save_completed_steps
from vidrobust.training.measured_accuracy import adapt_rate, measure_for_loss
from vidrobust.training.pass_counter import PassCounter
from vidrobust.training.progress import Progress
from vidrobust.training.run_folder import open_output
from vidrobust.training.setup import build_run
from vidrobust.training.shown_clips import ShownClips
from vidrobust.training.step import (
    StepInputs,
    begin_step,
    gradients,
    is_finite,
    train_batches,
)
from vidrobust.training.step_guard import StepGuard
from vidrobust.training.training_run import TrainingRun
from vidrobust.training.weights_options import with_weights_options
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import NO_ROOM
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.phases import phase
from vidrobust.utils.stopping import noted_stop_signals

__all__ = ["NonFinite", "Stopped", "train"]


def train(
    cfg: config.Config,
    out: Path,
    resume: Path | None = None,
    *,
    overwrite: bool = False,
    stop: int = 0,
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
        stop: number of steps after which training ends before its time, with a checkpoint from
            which it can go on; its schedules are those of the whole run. 0: the whole run.

    Returns:
        The last checkpoint.

    Raises:
        UserError: for options, data or checkpoints that do not fit.
        Stopped: after Ctrl-C or another stop signal.
        NonFinite: for a loss or gradient that is not finite.
    """
    device = distributed.start(cfg.device)
    # until the folder is open, only the terminal gets the log
    start_logging(None, quiet=distributed.rank() != 0)
    cfg = with_weights_options(cfg)
    run = build_run(cfg, out, device, resume)
    run.stop = min(stop, run.total) if stop else run.total
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
        if run.start >= run.total == run.stop:
            log.info(f"training was complete at step {run.total}")
        last = checkpoint.read_checkpoint(checkpoints / "last.pt")
        checkpoint.write_atomic(run.out / "backbone.pt", checkpoint.measured_backbone(last))
    distributed.barrier()  # every rank finds the last checkpoint
    return checkpoints / "last.pt"


def _log_start(run: TrainingRun) -> None:
    cfg = run.cfg
    size = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
    flops = "" if run.complexity is None else run.complexity.text()
    cost = parameters_text(size) + (f", {flops}" if flops else "")
    log.info(
        f"{cfg.method.name} on {cfg.data.name}: {len(run.records)} videos, {cfg.model.backbone}"
        f" ({cost}) on {_computing_with(run)}, steps {run.start} to {run.total}"
    )
    for note in run.notes:
        log.warning(note)


def _computing_with(run: TrainingRun) -> str:
    """Return device, precision, ranks and threads, on which the rounding depends."""
    text = f"{run.device} in {'bf16' if run.bf16 else 'fp32'}"
    if distributed.world() > 1:
        text += f", {distributed.world()} ranks"
    if run.device.type == "cpu":
        text += f", threads: {torch.get_num_threads()}"
    return text


def _steps(run: TrainingRun, stop_signals: list[int]) -> None:
    """Take the steps of a run. One that fails is undone, and the state before it is saved."""
    guard = StepGuard(run.method, run.optimizer, run.average, run.start)
    try:
        _guarded_steps(run, stop_signals, guard)
    except (KeyboardInterrupt, NonFinite):
        # a second Ctrl-C must end at once; NonFinite has saved the state, or it cannot be saved
        raise
    except Exception as error:
        disk_full = getattr(error, "errno", None) in NO_ROOM
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
        batches = iter(batch_loader(run.dataset, train_batches(run), cfg.data.workers))
        for step in range(run.start, run.stop):
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

            with without_worker_deaths():  # half an update could not be undone
                # 2. Views. From here on, the guard can undo the step.
                measure_for_loss(run, step)
                guard.begin()
                inputs, rate = begin_step(run, step, batch)

                # 3. Update
                passes.take()  # start counting anew
                with shown.of_step(step, inputs.views):
                    parts, norm = _update(run, guard, forward, inputs, batch)
                progress.passed(len(inputs.ids), passes.take())
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
                if done == run.stop or done % cfg.train.checkpoint_every == 0:
                    with distributed.together():
                        if run.main:
                            run.save(done)


def _progress_of(run: TrainingRun) -> Progress:
    every = run.cfg.train.log_every
    return Progress(run.out, run.start, run.total, run.per_epoch, every, run.device, run.main)


def _next_batch(batches: Iterator[Batch], run: TrainingRun) -> tuple[Batch | None, str]:
    """Return the next batch, or None and the reason why the loader of this rank has ended."""
    try:
        with worker_deaths(run.dataset), phase("data"):
            raise_worker_deaths()  # of the last step
            return next(batches), ""
    except UserError as error:
        return None, str(error)


def _update(
    run: TrainingRun,
    guard: StepGuard,
    forward: nn.Module,
    inputs: StepInputs,
    batch: Batch,
) -> tuple[dict[str, Tensor], Tensor]:
    """Take the optimizer's steps of a batch.

    Args:
        run: the run, whose weights change.
        guard: knows how to undo them.
        forward: the method, under DistributedDataParallel where there are several ranks.
        inputs: of the method.
        batch: the batch that they are of, named where the loss is not finite.

    Returns:
        The loss and its parts, means over the batch, and the gradient's norm.

    Raises:
        NonFinite: on all ranks, where the loss or its gradient is not finite on any.
    """
    # free adversarial training takes several steps of the optimizer per batch
    for _ in range(run.method.replays):
        parts, norm = gradients(run, forward, inputs)
        # all ranks must agree: a rank that went on alone would wait for the others forever
        if distributed.any_rank(not is_finite(parts, norm), run.device):
            refuse_non_finite(run, guard, parts["loss"], norm, batch)
        # from here to the end of the step, weights are neither old nor new
        guard.updating()
        with phase("optimizer"):
            run.optimizer.step()
        if run.average is not None:
            run.average.follow(run.method.model)
    return parts, norm

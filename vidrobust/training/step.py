"""The parts of a step that training and `--replay` share: inputs, passes and gradients."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vidrobust.data import Batch, TrainBatches
from vidrobust.training.data_warnings import warn_unchanged_negatives
from vidrobust.training.optim import learning_rate, set_rate
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils import distributed
from vidrobust.utils.phases import phase
from vidrobust.views import make_views, negatives


class StepInputs(NamedTuple):
    """The arguments of a method in one step.

    Attributes:
        views: (B, V + M, C, T, H, W) in [0, 1]: augmented views, then non-semantic negatives.
        ids: (B,).
        labels: (B,).
        progress: fraction of training done.
    """

    views: Tensor
    ids: Tensor
    labels: Tensor
    progress: float


def train_batches(run: TrainingRun) -> TrainBatches:
    """Return the indices of the batches of this rank, from the next step on."""
    cfg = run.cfg
    return TrainBatches(
        len(run.records),
        cfg.train.batch_size,
        cfg.seed,
        run.start,
        run.stop or run.total,
        distributed.rank(),
        distributed.world(),
    )


def begin_step(run: TrainingRun, step: int, batch: Batch) -> tuple[StepInputs, float]:
    """Prepare method and optimizer for a step, once accuracies that its loss needs are measured.

    Args:
        run: the run.
        step: number of the step.
        batch: its batch.

    Returns:
        The inputs of the method, and the learning rate.
    """
    with phase("transfer"):
        pixels = batch.clips if batch.views is None else batch.views
        pixels = pixels.to(run.device)
        ids, labels = batch.index.to(run.device), batch.labels.to(run.device)
    with phase("views"):
        views = make_views(pixels, batch.draws) if batch.views is None else pixels
        views = _with_negatives(views, run, batch, warn=run.main and step == run.start)
    if step % run.per_epoch == 0:
        run.method.start_epoch()
    rate = learning_rate(step, run.total, run.cfg.optim, run.cfg.method.head_first)
    rate *= run.rate_factor
    set_rate(run.optimizer, rate)
    return StepInputs(views, ids, labels, step / run.total), rate


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


def gradients(
    run: TrainingRun, forward: nn.Module, inputs: StepInputs
) -> tuple[dict[str, Tensor], Tensor]:
    """Run the forward and backward pass of an update, and clip the gradients.

    Args:
        run: the run, whose parameters get gradients.
        forward: the method, under DistributedDataParallel where there are several ranks.
        inputs: of the method.

    Returns:
        The loss and its parts, means over the batch, and the gradient's norm before clipping.
    """
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=run.bf16)
    with phase("forward"), autocast:
        parts = {name: value.mean() for name, value in forward(*inputs).items()}
    run.optimizer.zero_grad(set_to_none=True)  # also what attacks have left
    with phase("backward"):
        parts["loss"].backward()
    return parts, clip_gradients(run.method, run.cfg.optim.clip_norm or math.inf)


def is_finite(parts: dict[str, Tensor], norm: Tensor) -> bool:
    """Return whether the loss and the norm of its gradient are finite."""
    return math.isfinite(float(parts["loss"].detach())) and math.isfinite(float(norm))


def clip_gradients(method: nn.Module, limit: float) -> Tensor:
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

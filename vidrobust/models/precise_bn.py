"""Recompute batch-norm statistics from training clips with fixed weights."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidrobust.data import ClipDataset, EvalBatches, batch_loader, worker_deaths
from vidrobust.models.branch_norm import BranchNorm
from vidrobust.models.inference import evaluation_mode, evenly, to_clips
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError


def recompute_statistics(
    model: nn.Module,
    dataset: ClipDataset,
    device: torch.device,
    *,
    clips: int,
    branch: str = "clean",
    batch_size: int,
    workers: int,
) -> int:
    """Replace the statistics of a norm branch by the mean and variance over clips, in place.

    While a model is trained, its running averages lag behind the weights. Here the weights are
    fixed (Wu and Johnson 2021, "Rethinking Batch in BatchNorm", section 3). Each layer normalises
    by the statistics of the batch while those of all batches are collected. Modes and gradient
    flags are put back. Every rank calls it; the statistics are those of rank 0.

    Args:
        model: takes clips (B, 3, T, H, W) in [0, 1].
        dataset: the clips, one per video.
        device: device of the model.
        clips: number of clips, evenly spaced in the list; a larger number than there are: all.
        branch: norm branch whose statistics are replaced; "average" and "select": all branches.
        batch_size: clips per forward pass.
        workers: processes of the loader.

    Returns:
        The number of clips used. Videos that do not decode are left out.

    Raises:
        UserError: no video of a batch decodes.
    """
    # the import warns of TorchScript, which torch has deprecated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn.precise_bn import update_bn_stats

    indices = evenly(len(dataset), clips)
    batches = list(EvalBatches(indices, batch_size))
    used: list[int] = []
    norms = _norms_of(model, branch)
    with distributed.together(), evaluation_mode(model, branch=branch):
        for norm in norms:
            norm.train()  # fvcore replaces the statistics of the norms in training mode
        source = _clips(dataset, batches, workers, device, used)
        update_bn_stats(model, source, num_iters=len(batches))
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        distributed.broadcast([norm.running_mean, norm.running_var])
    return sum(used)


def _norms_of(model: nn.Module, branch: str) -> list[_BatchNorm]:
    """Return the batch norms with statistics that a forward pass through a branch uses."""
    idle = {
        norm
        for parent in model.modules()
        if isinstance(parent, BranchNorm) and branch in parent.branches
        for name, norm in parent.branches.items()
        if name != branch
    }
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module not in idle
    ]


def _clips(
    dataset: ClipDataset,
    batches: list[list[tuple[int, int]]],
    workers: int,
    device: torch.device,
    used: list[int],
) -> Iterator[Tensor]:
    """Yield the clips of each batch, and append their number to `used`."""
    with worker_deaths(dataset):
        for batch in batch_loader(dataset, batches, workers):
            if not batch.uids:
                raise UserError(
                    f"eval.precise_bn: no video of a batch decodes ({batch.failed[0].reason});"
                    " scan the data (datasets/prepare.py scan) and set data.manifest, or raise"
                    " eval.batch_size"
                )
            used.append(len(batch.uids))
            yield to_clips(batch, device)

"""Run clips of a data set through models: features and predictions.

N videos, K clips of each, D feature dimension.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vidrobust.data import Batch, ClipDataset, EvalBatches, batch_loader, worker_deaths
from vidrobust.models import use_branch
from vidrobust.models.feature_store import DiskStore, Features, MemoryStore, rows_of
from vidrobust.utils import distributed
from vidrobust.utils.logging import log
from vidrobust.views import apply_draws, to_float


@contextmanager
def evaluation_mode(*models: nn.Module, branch: str = "clean") -> Iterator[None]:
    """Eval mode, no parameter gradients, one norm branch; every flag is put back as it was, module
    by module.
    """
    modules = [(m, m.training) for model in models for m in model.modules()]
    flags = [(p, p.requires_grad) for model in models for p in model.parameters()]
    for model in models:
        model.eval().requires_grad_(False)
    try:
        with ExitStack() as branches:
            for model in models:
                branches.enter_context(use_branch(model, branch))
            yield
    finally:
        for module, training in modules:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def to_clips(batch: Batch, device: torch.device, *, augmented: bool = False) -> Tensor:
    """(B * K, 3, T, H, W) float32 in [0, 1] on the device; augmented: flipped and coloured as
    drawn, as in training.
    """
    clips = to_float(batch.clips.to(device)).flatten(0, 1)
    return apply_draws(clips, batch.draws.flatten(0, 1)) if augmented else clips


@torch.no_grad()
def extract(
    models: Sequence[Callable[[Tensor], Tensor]],
    dataset: ClipDataset,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    title: str = "features",
    augmented: bool = False,
    store: DiskStore | None = None,
) -> list[Features]:
    """Compute the features of every clip under each of some models, decoded once.

    Memory holds one batch of pixels at a time. With a store, features are written as they come, a
    killed extraction goes on, and under torchrun each rank takes every world-th batch.

    Args:
        models: callables (B, 3, T, H, W) -> (B, D), already in evaluation mode.
        dataset: the clips.
        device: where the models are.
        batch_size: clips, not videos.
        workers: processes of the loader.
        title: of the progress bar, and of what is logged.
        augmented: whether clips are flipped and coloured as drawn, as in training.
        store: where features go; None: into memory, and each rank computes all of them.

    Returns:
        The features under each model.

    Raises:
        UserError: no video decodes.
    """
    kept = MemoryStore(len(models)) if store is None else store
    videos = max(1, batch_size // dataset.spec.clips)
    done = kept.done()
    # batches stay what they are, so that a resume, and other ranks, compute the same bits
    batches = [
        batch
        for batch in EvalBatches(list(range(len(dataset))), videos)
        if any(index not in done for _, index in batch)
    ]
    if store is not None:
        batches = batches[distributed.rank() :: distributed.world()]
    quiet = distributed.rank() > 0 or not sys.stderr.isatty()
    with worker_deaths(dataset):
        # nothing to do needs no workers either
        source: Iterable[Batch] = batch_loader(dataset, batches, workers) if batches else []
        for batch in tqdm(source, desc=title, leave=False, disable=quiet):
            _append(
                kept,
                models,
                batch,
                to_clips(batch, device, augmented=augmented) if batch.uids else None,
                done,
            )
    kept.close()
    found = kept.load()
    for line in dataset.notes(found[0].repeats, found[0].resized, len(found[0].uids)):
        if distributed.rank() == 0:
            log.warning(f"{title}: {line}")
    return found


def _append(
    store: MemoryStore | DiskStore,
    models: Sequence[Callable[[Tensor], Tensor]],
    batch: Batch,
    clips: Tensor | None,
    done: set[int],
) -> None:
    """Add a batch's rows and features to a store, but for videos that it has."""
    features = [
        np.empty((0, 0, 0), np.float32)
        if clips is None
        else model(clips)
        .float()
        .cpu()
        .view(len(batch.uids), len(clips) // len(batch.uids), -1)
        .numpy()
        for model in models
    ]
    rows = rows_of(batch, [found.shape[2] for found in features])
    new = [place for place, row in enumerate(rows[: len(batch.uids)]) if row["index"] not in done]
    store.append(
        [row for row in rows if row["index"] not in done], [found[new] for found in features]
    )


def evenly(n: int, limit: int) -> list[int]:
    """`limit` indices spread evenly over range(n); all of them for limit 0."""
    return list(range(n)) if not limit or limit >= n else [i * n // limit for i in range(limit)]

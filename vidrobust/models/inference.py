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
    """Put models in eval mode, without parameter gradients and with one norm branch.

    At the end of the context, every flag of every module and parameter is restored.
    """
    # Remember each module and parameter: parts of a model may have had other flags than the rest.
    modes: list[tuple[nn.Module, bool]] = []
    flags: list[tuple[nn.Parameter, bool]] = []
    for model in models:
        modes += [(module, module.training) for module in model.modules()]
        flags += [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for model in models:
        model.eval().requires_grad_(False)
    try:
        with ExitStack() as branches:
            for model in models:
                branches.enter_context(use_branch(model, branch))
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def to_clips(batch: Batch, device: torch.device, *, augmented: bool = False) -> Tensor:
    """Convert a batch to clips on the device.

    Args:
        batch: B videos with K clips each.
        device: where the clips go.
        augmented: apply the batch's random flips and colours, as in training.

    Returns:
        (B * K, 3, T, H, W) float32 in [0, 1].
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
    """Compute the features of every clip under several models, decoding each clip once.

    Memory holds one batch of pixels at a time. With a store, features are written as they are
    computed, and a killed extraction resumes. Under torchrun, each rank then computes every
    world-th batch.

    Args:
        models: callables (B, 3, T, H, W) -> (B, D), already in evaluation mode.
        dataset: the clips.
        device: where the models are.
        batch_size: clips (not videos) per batch.
        workers: processes of the loader.
        title: of the progress bar and of warnings.
        augmented: apply random flips and colours, as in training.
        store: where features go; None: memory, and each rank computes all of them.

    Returns:
        The features under each model.

    Raises:
        UserError: no video decodes.
    """
    feature_store = MemoryStore(len(models)) if store is None else store
    done = feature_store.done()
    batches = _unfinished_batches(dataset, batch_size, done)
    if store is not None:
        batches = batches[distributed.rank() :: distributed.world()]
    quiet = distributed.rank() > 0 or not sys.stderr.isatty()
    with worker_deaths(dataset):
        # Without batches, do not start any workers.
        source: Iterable[Batch] = batch_loader(dataset, batches, workers) if batches else []
        for batch in tqdm(source, desc=title, leave=False, disable=quiet):
            clips = to_clips(batch, device, augmented=augmented) if batch.uids else None
            _append(feature_store, models, batch, clips, done)
    feature_store.close()
    features = feature_store.load()
    first = features[0]  # the videos are the same for all models
    for line in dataset.notes(first.repeats, first.resized, len(first.uids)):
        if distributed.rank() == 0:
            log.warning(f"{title}: {line}")
    return features


def _unfinished_batches(
    dataset: ClipDataset, batch_size: int, done: set[int]
) -> list[list[tuple[int, int]]]:
    """Return the batches that contain a video whose features are missing.

    Batches always contain the same videos, finished or not. A resumed run, and other ranks,
    therefore compute bitwise identical features.
    """
    videos = max(1, batch_size // dataset.spec.clips)
    return [
        batch
        for batch in EvalBatches(list(range(len(dataset))), videos)
        if any(index not in done for _, index in batch)
    ]


def _append(
    store: MemoryStore | DiskStore,
    models: Sequence[Callable[[Tensor], Tensor]],
    batch: Batch,
    clips: Tensor | None,
    done: set[int],
) -> None:
    """Add the rows and features of a batch to a store, except videos that it already has.

    Args:
        store: where they go.
        models: see `extract`.
        batch: B videos that decoded, and those that did not.
        clips: (B * K, 3, T, H, W), or None if no video decoded.
        done: indices of the videos in the store.
    """
    features = [_features(model, clips, len(batch.uids)) for model in models]
    rows = rows_of(batch, [part.shape[2] for part in features])
    # Rows of videos that decoded come first, in the order of their features; failures follow.
    new = [place for place, row in enumerate(rows[: len(batch.uids)]) if row["index"] not in done]
    store.append(
        [row for row in rows if row["index"] not in done], [part[new] for part in features]
    )


def _features(model: Callable[[Tensor], Tensor], clips: Tensor | None, videos: int) -> np.ndarray:
    """Return the features (B, K, D) of the clips of B videos; empty without clips."""
    if clips is None:
        return np.empty((0, 0, 0), np.float32)
    return model(clips).float().cpu().view(videos, len(clips) // videos, -1).numpy()


def evenly(n: int, limit: int) -> list[int]:
    """Return `limit` indices spread evenly over range(n); all of them if the limit is 0."""
    return list(range(n)) if not limit or limit >= n else [i * n // limit for i in range(limit)]

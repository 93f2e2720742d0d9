"""Run clips of a data set through models: features and predictions.

N videos, K clips of each, D feature dimension.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm import tqdm

from vidrobust.data import Batch, ClipDataset, batch_loader, worker_deaths
from vidrobust.models import use_branch
from vidrobust.models.feature_store import DiskStore, Features, MemoryStore, dims_of, rows_of
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


# clips (B, 3, T, H, W) -> outputs of B clips each: (B, D), or tokens (B, N, D)
Outputs = Callable[[Tensor], Sequence[Tensor]]


def extract(
    models: Sequence[Callable[[Tensor], Tensor]],
    dataset: ClipDataset,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    title: str = "features",
    augmented: bool = False,
    store: MemoryStore | DiskStore | None = None,
) -> list[Features]:
    """Compute the features of every clip under several models, decoding each clip once.

    Memory holds one batch of pixels at a time. With a DiskStore, features are written as they are
    computed, and a killed extraction resumes. With a DiskStore or a SharedStore, and under
    torchrun, each rank computes every world-th batch.

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

    def outputs(clips: Tensor) -> list[Tensor]:
        return [model(clips).reshape(len(clips), -1) for model in models]

    compute_outputs(
        outputs,
        dataset,
        device,
        feature_store,
        batch_size=batch_size,
        workers=workers,
        title=title,
        augmented=augmented,
    )
    features = feature_store.load()
    first = features[0]  # the videos are the same for all models
    log_notes(dataset, first.repeats, first.resized, len(first.uids), title)
    return features


@torch.no_grad()
def compute_outputs(
    outputs: Outputs,
    dataset: ClipDataset,
    device: torch.device,
    store: MemoryStore | DiskStore,
    *,
    batch_size: int,
    workers: int,
    title: str = "features",
    augmented: bool = False,
) -> None:
    """Write the outputs of every clip to a store, except of videos that it already has.

    With a store that ranks share, and under torchrun, each rank computes every world-th batch.

    Args:
        outputs: clips -> outputs, one for each of the store's, of models in evaluation mode.
        dataset: the clips.
        device: where the models are.
        store: where outputs go. It is closed at the end.
        batch_size: clips (not videos) per batch.
        workers: processes of the loader.
        title: of the progress bar.
        augmented: apply random flips and colours, as in training.
    """
    done = store.done()
    videos = max(1, batch_size // dataset.spec.clips)
    batches = _UnfinishedBatches(len(dataset), videos, done)
    if store.shared:
        batches = batches.of_rank(distributed.rank(), distributed.world())
    quiet = distributed.rank() > 0 or not sys.stderr.isatty()
    with worker_deaths(dataset):
        # Without batches, do not start any workers.
        source: Iterable[Batch] = batch_loader(dataset, batches, workers) if len(batches) else []
        for batch in tqdm(source, desc=title, leave=False, disable=quiet):
            clips = to_clips(batch, device, augmented=augmented) if batch.uids else None
            _append(store, outputs, batch, clips, done)
    store.close()


def log_notes(dataset: ClipDataset, repeats: int, resized: int, videos: int, title: str) -> None:
    """Warn of short videos and of those with several sizes, once over all ranks.

    Args:
        dataset: the clips.
        repeats: number of videos whose clips show a frame twice.
        resized: number of videos whose frames have several sizes.
        videos: number of videos among which these were counted.
        title: first word of the warnings.
    """
    for line in dataset.notes(repeats, resized, videos):
        if distributed.rank() == 0:
            log.warning(f"{title}: {line}")


class _UnfinishedBatches(Sampler[list[tuple[int, int]]]):
    """Give the keys of the batches that contain a video whose features are missing.

    Batches always contain the same videos, finished or not. A resumed run, and other ranks,
    therefore compute bitwise identical features. Keys are made when they are needed, so that their
    memory does not grow with the data set.

    Args:
        size: number of records.
        videos: number of videos in a batch.
        done: indices of the videos whose features are there.
    """

    def __init__(self, size: int, videos: int, done: set[int]) -> None:
        self.size = size
        self.videos = videos
        missing = np.ones(size, bool)
        missing[[index for index in done if index < size]] = False
        self.numbers = np.unique(np.flatnonzero(missing) // videos)

    def of_rank(self, rank: int, world: int) -> "_UnfinishedBatches":
        """Return every world-th batch, from the rank-th on."""
        own = copy.copy(self)
        own.numbers = self.numbers[rank::world]
        return own

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in self.numbers.tolist():
            first = number * self.videos
            yield [(0, index) for index in range(first, min(first + self.videos, self.size))]


def _append(
    store: MemoryStore | DiskStore,
    outputs: Outputs,
    batch: Batch,
    clips: Tensor | None,
    done: set[int],
) -> None:
    """Add the rows and outputs of a batch to a store, except videos that it already has.

    Args:
        store: where they go.
        outputs: see `compute_outputs`.
        batch: B videos that decoded, and those that did not.
        clips: (B * K, 3, T, H, W), or None if no video decoded.
        done: indices of the videos in the store.
    """
    if clips is None:
        features = [np.empty((0, 0, 0), np.float32)] * store.models
    else:
        features = [_by_video(output, len(batch.uids)) for output in outputs(clips)]
    rows = rows_of(batch, [dims_of(part) for part in features])
    # Rows of videos that decoded come first, in the order of their features; failures follow.
    new = [place for place, row in enumerate(rows[: len(batch.uids)]) if row["index"] not in done]
    store.append(
        [row for row in rows if row["index"] not in done], [part[new] for part in features]
    )


def _by_video(output: Tensor, videos: int) -> np.ndarray:
    """Return an output (B * K, ...) of the clips of B videos as (B, K, ...)."""
    return output.float().cpu().unflatten(0, (videos, -1)).numpy()


def evenly(n: int, limit: int) -> list[int]:
    """Return `limit` indices spread evenly over range(n); all of them if the limit is 0."""
    return list(range(n)) if not limit or limit >= n else [i * n // limit for i in range(limit)]

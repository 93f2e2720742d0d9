"""Clips of a data set through models: features and multi-view predictions. N videos, K clips of each, D feature."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vidrobust.data import Batch, ClipDataset, EvalBatches, Failure, loader, worker_deaths
from vidrobust.errors import UserError
from vidrobust.models import use_branch
from vidrobust.views import apply_draws, to_float


@dataclass
class Features:
    """What `extract` found: features (N, K, D) of the N videos that decoded, in the order of the records.

    labels, index (N,), start (N, K) first source frame, fps (N,), uids; `failed` are the videos that did not.
    """

    features: Tensor
    labels: Tensor
    index: Tensor
    start: Tensor
    fps: Tensor
    uids: list[str]
    failed: list[Failure]

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> "Features":
        """From what `dataclasses.asdict` made of it."""
        return cls(**(kept | {"failed": [Failure(**failure) for failure in kept["failed"]]}))


@contextmanager
def evaluation_mode(*models: nn.Module, branch: str = "clean") -> Iterator[None]:
    """Eval mode, no parameter gradients, one norm branch; every flag is put back as it was, module by module."""
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
    """(B * K, 3, T, H, W) float32 in [0, 1] on the device; augmented: flipped and coloured as drawn, as in training."""
    clips = to_float(batch.clips.to(device)).flatten(0, 1)
    return apply_draws(clips, batch.draws.flatten(0, 1)) if augmented else clips


@torch.no_grad()
def extract(
    models: list[Callable[[Tensor], Tensor]], dataset: ClipDataset, device: torch.device, *, batch_size: int,
    workers: int, title: str = "features", augmented: bool = False,
) -> list[Features]:  # fmt: skip
    """The features of every clip under each of `models`, decoded once. batch_size: clips, not videos.

    models: callables (B, 3, T, H, W) -> (B, D), already in evaluation mode.
    """
    videos = max(1, batch_size // dataset.spec.clips)
    batches = EvalBatches(list(range(len(dataset))), videos)
    kept: list[list[Tensor]] = [[] for _ in models]
    meta: list[Batch] = []
    with worker_deaths(dataset):
        for batch in tqdm(loader(dataset, batches, workers), desc=title, leave=False, disable=not sys.stderr.isatty()):
            meta.append(batch)
            if len(batch.uids):
                clips = to_clips(batch, device, augmented=augmented)
                for model, rows in zip(models, kept, strict=True):
                    rows.append(model(clips).float().cpu().view(len(batch.uids), dataset.spec.clips, -1))
    good = [batch for batch in meta if len(batch.uids)]
    failed = [failure for batch in meta for failure in batch.failed]
    if not good:
        reason = failed[0].reason if failed else "the list is empty"
        raise UserError(f"no video of the list decodes ({reason})")
    shared = {name: torch.cat([getattr(batch, name) for batch in good]) for name in ("labels", "index", "start", "fps")}
    uids = [uid for batch in good for uid in batch.uids]
    return [Features(torch.cat(rows), uids=uids, failed=failed, **shared) for rows in kept]


def evenly(n: int, limit: int) -> list[int]:
    """`limit` indices spread evenly over range(n); all of them for limit 0."""
    return list(range(n)) if not limit or limit >= n else [i * n // limit for i in range(limit)]

"""Measure the sweep of linear probes by SGD, compared with one probe at a time."""

import math
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust import config
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.evaluation.representation.linear_sgd import SgdSettings, fit_linear_sgd
from vidrobust.utils import distributed

_CLIPS, _DIM, _CLASSES = 10_000, 512, 101  # as many as UCF101 has


def print_probes(cfg: config.Config, *, rounds: int) -> None:
    """Print the seconds of all settings of `protocol.*` at once, and of torch's SGD for one.

    Both see the same batches of random features, in turn. The plain loop runs one epoch; its time
    is multiplied by the number of epochs.

    Args:
        cfg: its `protocol.*`, device and seed are used.
        rounds: rounds to measure.
    """
    device = distributed.start(cfg.device)
    options = cfg.protocol
    settings = SgdSettings(
        tuple(options.rates), tuple(options.decays), options.epochs, options.batch_size, cfg.seed
    )
    generator = torch.Generator().manual_seed(cfg.seed)
    labels = torch.randint(0, _CLASSES, (_CLIPS,), generator=generator)
    means = torch.randn(_CLASSES, _DIM, generator=generator)
    features = 0.3 * means[labels] + torch.randn(_CLIPS, _DIM, generator=generator)
    features, labels = features.to(device), labels.to(device)
    together: list[float] = []
    alone: list[float] = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        fit_linear_sgd(features, labels, _CLASSES, settings)
        synchronize(device)
        together.append(time.perf_counter() - start)
        start = time.perf_counter()
        _plain_epoch(features, labels, settings)
        synchronize(device)
        alone.append((time.perf_counter() - start) * settings.epochs)
    count = len(settings.pairs)
    print(
        f"{_CLIPS} x {_DIM} features, {_CLASSES} classes, {settings.epochs} epochs of"
        f" {settings.batch_size} clips, {device}, {torch.get_num_threads()} threads"
    )
    print(f"{count} settings at once: {spread(together, 1)} s")
    print(f"one setting, torch.optim.SGD: {spread(alone, 1)} s, from one epoch")
    ratio = statistics.median(together) / (count * statistics.median(alone))
    print(f"ratio to {count} settings one by one: {ratio:.2f}")


def _plain_epoch(features: Tensor, labels: Tensor, settings: SgdSettings) -> None:
    """Fit one layer by torch.optim.SGD for an epoch."""
    settings = replace(settings, rates=settings.rates[:1], decays=settings.decays[:1])
    layer = nn.Linear(features.shape[1], _CLASSES, device=features.device)
    rate, decay = settings.pairs[0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    order = torch.randperm(len(features)).to(features.device)
    for number, batch in enumerate(order.split(settings.batch_size)):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(number))
        optimizer.zero_grad()
        F.cross_entropy(layer(features[batch]), labels[batch]).backward()
        optimizer.step()

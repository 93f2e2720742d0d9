"""Measure time and memory of NT-Xent, compared with other libraries."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from vidrobust import config
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.losses.info_nce import nt_xent
from vidrobust.utils import distributed

# (N, D) embeddings, all of the first view before all of the second -> mean loss
Loss = Callable[[Tensor], Tensor]


@dataclass
class Timing:
    """Measurements of one loss.

    Attributes:
        name: name of the loss.
        seconds: forward and backward time of each round.
        value: the loss of the first batch, to compare losses with each other.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    value: float = 0.0

    @property
    def median(self) -> float:
        """Median time, seconds."""
        return statistics.median(self.seconds)


def print_losses(
    cfg: config.Config, *, rounds: int, samples: Sequence[int], memory: int, chunk: int
) -> None:
    """Print the time of each loss at several batch sizes, and the memory of ours.

    Args:
        cfg: dimension of the embeddings, temperature and device.
        rounds: rounds to measure.
        samples: numbers of embeddings N, each even.
        memory: N of the memory measurement.
        chunk: anchors at a time in the chunked form.
    """
    device = distributed.start(cfg.device)
    dim = cfg.model.dim
    temperature = cfg.method.temperature
    _, missing = loss_rows(4, dim, temperature, chunk)
    if missing:
        print(f"left out: {', '.join(missing)}: pip install {' '.join(missing)}")
    print(f"NT-Xent, forward and backward, D = {dim}, on {device}, {rounds} rounds")
    print("| N | loss | ms (lowest to highest) | of ours | value |\n|---|---|---|---|---|")
    for count in samples:
        losses, _ = loss_rows(count, dim, temperature, chunk)
        timings = measure_losses(losses, count, dim, rounds, device)
        for timing in timings:
            times = spread(timing.seconds, 1, 1e3)
            if len(timing.seconds) == 1 < rounds:
                times = f"{1e3 * timing.median:.1f} (one call)"
            relative = timing.median / timings[0].median
            print(
                f"| {count} | {timing.name:<24} | {times} | {relative:.2f} | {timing.value:.4f} |",
                flush=True,
            )
    losses, _ = loss_rows(memory, dim, temperature, chunk)
    for name, loss in losses.items():
        if name.startswith("vidrobust"):
            peak = peak_memory(loss, memory, dim, device)
            print(f"peak memory of {name}, N = {memory}: {peak:.2f} times the logits")


def loss_rows(
    samples: int, dim: int, temperature: float, chunk: int
) -> tuple[dict[str, Loss], list[str]]:
    """Return the losses to compare, ours first.

    The chunked form is left out if one chunk holds all anchors. CLAE's formula is left out if its
    (N, N, D) tensor is larger than 256 MiB, because autograd keeps several of them.

    Args:
        samples: number of embeddings N: two views of N / 2 images.
        dim: dimension D of an embedding.
        temperature: temperature of the loss.
        chunk: anchors at a time in the chunked form.

    Returns:
        (losses by name, names of packages that are not installed).
    """
    ids = torch.arange(samples // 2).repeat(2)

    def ours(z: Tensor) -> Tensor:
        return nt_xent(z, ids.to(z.device), temperature).mean()

    def chunked(z: Tensor) -> Tensor:
        return nt_xent(z, ids.to(z.device), temperature, chunk=chunk).mean()

    losses: dict[str, Loss] = {"vidrobust": ours}
    if chunk < samples:
        losses[f"vidrobust, chunk={chunk}"] = chunked
    missing = []
    try:
        from lightly.loss import NTXentLoss

        lightly_loss = NTXentLoss(temperature)
        losses["lightly"] = lambda z: lightly_loss(*z.chunk(2))
    except ImportError:
        missing.append("lightly")
    try:
        from pytorch_metric_learning.losses import NTXentLoss as PairLoss

        pair_loss = PairLoss(temperature)
        losses["pytorch-metric-learning"] = lambda z: pair_loss(z, ids.to(z.device))
    except ImportError:
        missing.append("pytorch-metric-learning")
    if 4 * samples**2 * dim <= 2**28:  # bytes of float32
        losses["CLAE's code"] = lambda z: broadcast_nt_xent(z, temperature)
    return losses, missing


def broadcast_nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent as the released code of CLAE computes it (Ho and Vasconcelos 2020).

    It computes the cosine similarity of all pairs by broadcasting, which creates an (N, N, D)
    tensor.

    Args:
        z: embeddings (N, D), all of the first view before all of the second.
        temperature: temperature of the loss.
    """
    # row i and row i + half are the two views of an image
    half = len(z) // 2
    similarity = F.cosine_similarity(z[:, None], z[None], dim=2) / temperature
    positives = torch.cat([similarity.diagonal(half), similarity.diagonal(-half)])
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    negatives = similarity[~(itself | itself.roll(half, 0))].view(len(z), -1)
    logits = torch.cat([positives[:, None], negatives], 1)
    return F.cross_entropy(logits, logits.new_zeros(len(z), dtype=torch.long))


def measure_losses(
    rows: dict[str, Loss],
    samples: int,
    dim: int,
    rounds: int,
    device: torch.device,
    *,
    most_s: float = 5.0,
) -> list[Timing]:
    """Time forward and backward passes of each loss on the same embeddings, in turn.

    Args:
        rows: losses by name.
        samples: number of embeddings N.
        dim: dimension D of an embedding.
        rounds: rounds to measure, after one to warm up.
        device: device of the embeddings.
        most_s: a loss whose first call takes more seconds is measured by that call alone.
    """
    timings = {name: Timing(name) for name in rows}
    for round_ in range(rounds + 1):
        z = torch.randn(samples, dim, generator=torch.Generator().manual_seed(round_)).to(device)
        for name, loss in rows.items():
            timing = timings[name]
            # a slow loss keeps its one call of round 0
            if timing.seconds and timing.seconds[0] > most_s:
                continue
            seconds, value = _timed(loss, z)
            if round_ == 0:
                timing.value = value
            if round_ == 1:
                timing.seconds.clear()  # round 0 warmed up
            timing.seconds.append(seconds)
    return list(timings.values())


def peak_memory(loss: Loss, samples: int, dim: int, device: torch.device) -> float:
    """Return the peak memory of a forward and backward pass, without the embeddings.

    Args:
        loss: the loss.
        samples: number of embeddings N.
        dim: dimension D of an embedding.
        device: device of the embeddings.

    Returns:
        The peak as a multiple of the (N, N) float32 logits.
    """
    z = torch.randn(samples, dim, device=device, requires_grad=True)
    logits = 4 * samples**2
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        loss(z).backward()
        return (torch.cuda.max_memory_allocated(device) - before) / logits
    # the CPU has no such counter: add up the profiler's allocations
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from writing to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss(z).backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = 0
    peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak / logits


def _timed(loss: Loss, z: Tensor) -> tuple[float, float]:
    """Return (seconds, value) of a forward and backward pass."""
    z = z.clone().requires_grad_(True)
    synchronize(z.device)
    start = time.perf_counter()
    value = loss(z)
    value.backward()
    synchronize(z.device)
    return time.perf_counter() - start, float(value.detach())

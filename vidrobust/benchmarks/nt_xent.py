"""Time and memory of NT-Xent, compared with other libraries."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from vidrobust.losses.info_nce import nt_xent

Loss = Callable[[Tensor], Tensor]  # (N, D), the two views behind each other -> a mean


@dataclass
class Timing:
    """Of one loss: seconds of each round, and the value."""

    name: str
    seconds: list[float] = field(default_factory=list)
    value: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def loss_rows(
    samples: int, dim: int, temperature: float, chunk: int
) -> tuple[dict[str, Loss], list[str]]:
    """The losses by name, and what is not installed. samples: N, two views of N / 2 images.

    Without the chunked form where a chunk is all of N, and without the formula of CLAE's code where
    its (N, N, D) is more than 256 MiB: autograd keeps several of them.
    """
    ids = torch.arange(samples // 2).repeat(2)

    def ours(z: Tensor) -> Tensor:
        return nt_xent(z, ids.to(z.device), temperature).mean()

    def chunked(z: Tensor) -> Tensor:
        return nt_xent(z, ids.to(z.device), temperature, chunk=chunk).mean()

    rows: dict[str, Loss] = {"vidrobust": ours}
    if chunk < samples:
        rows[f"vidrobust, chunk={chunk}"] = chunked
    missing = []
    try:
        from lightly.loss import NTXentLoss

        theirs = NTXentLoss(temperature)
        rows["lightly"] = lambda z: theirs(*z.chunk(2))
    except ImportError:
        missing.append("lightly")
    try:
        from pytorch_metric_learning.losses import NTXentLoss as PairLoss

        pairs = PairLoss(temperature)
        rows["pytorch-metric-learning"] = lambda z: pairs(z, ids.to(z.device))
    except ImportError:
        missing.append("pytorch-metric-learning")
    if 4 * samples**2 * dim <= 2**28:
        rows["CLAE's code"] = lambda z: broadcast_nt_xent(z, temperature)
    return rows, missing


def broadcast_nt_xent(z: Tensor, temperature: float) -> Tensor:
    """As CLAE's public code has it: cosine similarity of all pairs by broadcasting, which makes (N,
    N, D).
    """
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
    """Forward and backward of each loss on the same embeddings, in turn; the first round warms up.

    A loss whose first call takes more than most_s seconds is timed by that call alone.
    """
    found = {name: Timing(name) for name in rows}
    for number in range(rounds + 1):
        z = torch.randn(samples, dim, generator=torch.Generator().manual_seed(number)).to(device)
        for name, loss in rows.items():
            timing = found[name]
            if timing.seconds and timing.seconds[0] > most_s:
                continue
            seconds, value = _timed(loss, z)
            if number == 1 and timing.seconds and timing.seconds[0] <= most_s:
                timing.seconds.clear()
            timing.seconds.append(seconds)
            timing.value = value if number == 0 else timing.value
    return list(found.values())


def peak_memory(loss: Loss, samples: int, dim: int, device: torch.device) -> float:
    """Of a forward and backward pass, beyond the embeddings, as a multiple of the (N, N) float32
    logits.
    """
    z = torch.randn(samples, dim, device=device, requires_grad=True)
    logits = 4 * samples**2
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        loss(z).backward()
        return (torch.cuda.max_memory_allocated(device) - before) / logits
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to stderr otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        loss(z).backward()
    held = peak = 0
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / logits


def _timed(loss: Loss, z: Tensor) -> tuple[float, float]:
    z = z.clone().requires_grad_(True)
    _wait(z.device)
    start = time.perf_counter()
    value = loss(z)
    value.backward()
    _wait(z.device)
    return time.perf_counter() - start, float(value.detach())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

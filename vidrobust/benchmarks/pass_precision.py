"""Time passes of the backbone in each order of memory and precision."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.models import Backbone, configured_backbone
from vidrobust.models.fast_passes import arrange_passes
from vidrobust.utils import distributed

# (channels_last, amp); the first one is what the others are compared with
FORMS = (("false", "fp32"), ("true", "fp32"), ("false", "bf16"), ("true", "bf16"))


@dataclass
class PassTiming:
    """Measurements of one kind of pass in one form.

    Attributes:
        kind: "training": backward to the weights, with batch statistics; "attack": to the input.
        channels_last: order of the weights.
        amp: precision.
        seconds: of each round.
        norms: of the gradient, in each round.
    """

    kind: str
    channels_last: str
    amp: str
    seconds: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median time, seconds."""
        return statistics.median(self.seconds)


def print_passes(cfg: config.Config, rounds: int) -> None:
    """Print the seconds of passes of `train.batch_size` clips, and the norms of their gradients.

    Args:
        cfg: backbone, sizes of clips, and device.
        rounds: rounds of each measurement.
    """
    device = distributed.start(cfg.device)
    data = cfg.data
    print(
        f"{cfg.model.backbone}, {cfg.train.batch_size} clips of {data.frames} x {data.size} x"
        f" {data.size} on {device}, {torch.get_num_threads()} threads, {rounds} rounds"
    )
    print("| pass | channels last | precision | s (lowest to highest) | speed | gradient's norm |")
    print("|---|---|---|---|---|---|")
    base: dict[str, float] = {}
    for row in measure_passes(cfg, rounds, device):
        base.setdefault(row.kind, row.median)
        broken = sum(not math.isfinite(norm) for norm in row.norms)
        norm = f"not finite in {broken} of {rounds}" if broken else f"{row.norms[-1]:.4g}"
        print(
            f"| {row.kind} | {row.channels_last} | {row.amp} | {spread(row.seconds, 3)} |"
            f" {base[row.kind] / row.median:.2f} | {norm} |"
        )


def measure_passes(cfg: config.Config, rounds: int, device: torch.device) -> list[PassTiming]:
    """Time one pass of each kind and form per round, in turn, with the same weights and clips.

    Args:
        cfg: backbone and sizes of clips.
        rounds: rounds to measure, after one to warm up.
        device: device of the backbones.
    """
    shape = (cfg.train.batch_size, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    runs: list[tuple[PassTiming, Callable[[], Tensor]]] = []
    for kind, run in (("training", _to_weights), ("attack", _to_input)):
        for order, amp in FORMS:
            torch.manual_seed(0)
            backbone = configured_backbone(cfg.model).to(device).train(kind == "training")
            backbone.bf16 = arrange_passes(backbone, device, channels_last=order, amp=amp)
            backbone.requires_grad_(kind == "training")
            runs.append((PassTiming(kind, order, amp), partial(run, backbone, x)))
    for round_ in range(rounds + 1):
        for row, measured in runs:
            synchronize(device)
            begin = time.perf_counter()
            norm = measured()
            synchronize(device)
            if round_:  # round 0 warms up
                row.seconds.append(time.perf_counter() - begin)
                row.norms.append(float(norm))
    return [row for row, _ in runs]


def _to_weights(backbone: Backbone, x: Tensor) -> Tensor:
    """Return the norm of the gradient of the weights."""
    backbone.zero_grad(set_to_none=True)
    backbone(x).square().mean().backward()
    gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
    return torch.stack([torch.linalg.vector_norm(each) for each in gradients]).norm()


def _to_input(backbone: Backbone, x: Tensor) -> Tensor:
    """Return the norm of the gradient of the clips, as an attack takes it."""
    v = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(backbone(v).square().mean(), v)
    return torch.linalg.vector_norm(gradient)

"""Measure how the time of a training step grows with clips, frames, resolution and attack steps."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from vidrobust import config
from vidrobust.benchmarks.steps import configured, pass_both_ways
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.methods import Method
from vidrobust.training.setup import arrange
from vidrobust.utils import distributed


@dataclass
class Size:
    """A step of some size, and its seconds in each round.

    Attributes:
        name: what it changes, with its value.
        times: by how much it multiplies the passes' operations, as arithmetic says.
        cfg: the configuration.
        adversary: method.adversary.name.
    """

    name: str
    times: float
    cfg: config.Config
    adversary: str = "none"
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median time, seconds."""
        return statistics.median(self.seconds)


def sizes_of(cfg: config.Config) -> list[Size]:
    """Return the base step, and steps that differ from it in one size each."""
    data, batch = cfg.data, cfg.train.batch_size
    sizes = [Size(f"base: {batch} videos of {data.frames} x {data.size} x {data.size}", 1, cfg)]
    for n in (2, 4):
        more = replace(cfg, train=replace(cfg.train, batch_size=n * batch))
        sizes.append(Size(f"{n * batch} videos", n, more))
    for n in (2, 4):
        longer = replace(cfg, data=replace(data, frames=n * data.frames))
        sizes.append(Size(f"{n * data.frames} frames", n, longer))
    for n in (2, 3):
        larger = replace(cfg, data=replace(data, size=n * data.size))
        sizes.append(Size(f"side of {n * data.size}", n * n, larger))
    return sizes + _attacked(cfg)


def _attacked(cfg: config.Config) -> list[Size]:
    """Return supervised steps: clean, and against attacks of several lengths."""
    # a clean step has 3 forward passes' worth of operations, a step of the attack 2 more
    method = replace(cfg.method, name="supervised")
    sizes = [Size("supervised", 0.5, replace(cfg, method=method))]
    for steps in (1, 2, 5, 10):
        attack = replace(method, adversary=replace(method.adversary, steps=steps))
        name = f"supervised, PGD-{steps}"
        sizes.append(Size(name, 0.5 + steps / 3, replace(cfg, method=attack), "pgd"))
    return sizes


def print_growth(cfg: config.Config, rounds: int) -> None:
    """Print the seconds of steps of several sizes, and how they grow.

    Args:
        cfg: the base; its method is SimCLR, or another one whose step takes two clips per video.
        rounds: rounds of each measurement.
    """
    device = distributed.start(cfg.device)
    sizes = measure_growth(sizes_of(cfg), rounds, device)
    base = sizes[0].median
    print(f"{cfg.method.name}, {cfg.model.backbone} on {device}, {rounds} rounds")
    print("| step | s, median (lowest to highest) | times the base | operations, times the base |")
    print("|---|---|---|---|")
    for size in sizes:
        print(
            f"| {size.name} | {spread(size.seconds, 3)} | {size.median / base:.2f} |"
            f" {size.times:.2f} |"
        )


def measure_growth(sizes: Sequence[Size], rounds: int, device: torch.device) -> list[Size]:
    """Time one step of each size per round, in turn.

    Args:
        sizes: they are filled in place and returned.
        rounds: rounds to measure, after one to warm up.
        device: device of the models.
    """
    methods: list[Method] = []
    precisions: list[bool] = []
    for size in sizes:
        method = configured(size.cfg, size.cfg.method.name, size.adversary, device)
        precisions.append(arrange(method, size.cfg.train))
        methods.append(method)
    for round_ in range(rounds + 1):
        for size, method, bf16 in zip(sizes, methods, precisions, strict=True):
            seconds = _step(size.cfg, method, device, bf16)
            if round_:  # round 0 warms up
                size.seconds.append(seconds)
    return list(sizes)


def _step(cfg: config.Config, method: Method, device: torch.device, bf16: bool) -> float:
    """Return the seconds of a forward and backward pass on random clips."""
    shape = (3, cfg.data.frames, cfg.data.size, cfg.data.size)
    views = torch.rand(cfg.train.batch_size, method.views, *shape, device=device)
    method.zero_grad(set_to_none=True)
    synchronize(device)
    begin = time.perf_counter()
    pass_both_ways(method, views, bf16=bf16)
    synchronize(device)
    return time.perf_counter() - begin

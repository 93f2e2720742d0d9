"""Show where the time of training steps goes, beside the bare passes of the same model."""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.benchmarks.steps import configured, cost_of, lower_bound_step
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.training.loop import train
from vidrobust.training.setup import arrange
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.phases import PhaseClock, timing

# phase of `utils.phases` -> its row; the phases of a step in their order
ROWS = {
    "data": "wait for data",
    "transfer": "transfer and conversion",
    "views": "views on the device",
    "attack": "attack",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "communication": "communication",
    "": "all else",
}
_STEPS = 6  # of a block
_PASSES = 3  # bare ones between two blocks
# Steps at the beginning of a block that are not counted: while bare passes ran, the loader has
# prepared more batches than it does within a step.
_UNCOUNTED = 3


@dataclass
class StepProfile:
    """Hold the times of steps and of the bare model's passes in turn.

    Attributes:
        steps: seconds of each phase, for each step.
        passes: seconds of the bare passes of a step, each time.
        bf16: whether both compute in bf16.
    """

    steps: list[dict[str, float]]
    passes: list[float]
    bf16: bool = False

    @property
    def ratio(self) -> float:
        """Median time of a step, as times the median of its bare passes."""
        return statistics.median(self.totals) / statistics.median(self.passes)

    @property
    def totals(self) -> list[float]:
        """Seconds of each step."""
        return [sum(step.values()) for step in self.steps]


def print_profile(cfg: config.Config, rounds: int) -> None:
    """Print the phases of training steps, and their fraction of the bare model's passes.

    Args:
        cfg: the configuration; its data are read.
        rounds: blocks of steps to measure.

    Raises:
        UserError: for options whose passes have no lower bound, and for too few videos.
    """
    profile = measure_profile(cfg, rounds)
    device = distributed.start(cfg.device)
    bare = statistics.median(profile.passes)
    print(
        f"{cfg.method.name}, adversary {cfg.method.adversary.name}; {cfg.model.backbone},"
        f" {cfg.train.batch_size} videos of {cfg.data.frames} x {cfg.data.size} x"
        f" {cfg.data.size} on {device} in {'bf16' if profile.bf16 else 'fp32'};"
        f" {torch.get_num_threads()} threads, {cfg.data.workers} loading processes;"
        f" {len(profile.steps)} steps"
    )
    print("| phase | ms, median (lowest to highest) | fraction of the step | of the passes |")
    print("|---|---|---|---|")
    whole = statistics.median(profile.totals)
    for name, title in ROWS.items():
        seconds = [step.get(name, 0.0) for step in profile.steps]
        if any(seconds):
            middle = statistics.median(seconds)
            print(_row(title, seconds, middle / whole, middle / bare))
    print(_row("whole step", profile.totals, 1, profile.ratio))
    print(_row("bare passes of the model", profile.passes, bare / whole, 1))


def _row(title: str, seconds: list[float], of_step: float, of_passes: float) -> str:
    return f"| {title} | {spread(seconds, 1, 1e3)} | {of_step:.3f} | {of_passes:.3f} |"


def measure_profile(cfg: config.Config, rounds: int) -> StepProfile:
    """Train in a temporary folder, and time blocks of steps and bare passes in turn.

    The bare passes are forward and backward passes of as many clips through the same network, in
    the same precision and order of weights, and nothing else.

    Args:
        cfg: the configuration; its data are read.
        rounds: blocks of steps to measure, after one to warm up.

    Raises:
        UserError: as `print_profile`.
    """
    device = distributed.start(cfg.device)
    if distributed.world() > 1:
        raise UserError("benchmark.py profile: run it in one process, without torchrun")
    block = _UNCOUNTED + _STEPS
    total = block * (rounds + 1) + 1  # the last step only ends the one before it
    options = replace(
        cfg.train, epochs=total, max_steps=total, log_every=total, checkpoint_every=total
    )
    cfg = replace(cfg, train=replace(options, shown_clips=0))
    bare = _BarePasses(cfg, device)
    profile = StepProfile([], [], bare.bf16)
    clock = PhaseClock(device)
    began = 0

    def before_data() -> None:
        # a step begins where it asks for its data
        nonlocal began
        in_block = (began - 1) % block
        if began > block and in_block >= _UNCOUNTED:
            profile.steps.append(dict(clock.seconds))
        if block <= began < total - 1 and began % block == 0:
            profile.passes += [bare.seconds() for _ in range(_PASSES)]
        clock.seconds.clear()
        began += 1

    clock.before["data"] = before_data
    with tempfile.TemporaryDirectory() as folder, timing(clock):
        train(cfg, Path(folder) / "run", overwrite=True)
    return profile


class _BarePasses:
    """The passes of a step, without anything else."""

    def __init__(self, cfg: config.Config, device: torch.device) -> None:
        name, adversary = cfg.method.name, cfg.method.adversary.name
        try:
            self.cost = cost_of(cfg, name, adversary)
        except ValueError as error:
            raise UserError(f"benchmark.py profile: {error}") from None
        method = configured(cfg, name, adversary, device)
        self.bf16 = arrange(method, cfg.train)
        self.model = method.model
        shape = (cfg.train.batch_size, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
        self.clips: Tensor = torch.rand(shape, device=device)
        self.device = device

    def seconds(self) -> float:
        """Return how long the passes take."""
        synchronize(self.device)
        start = time.perf_counter()
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = lower_bound_step(self.model, self.clips, self.cost)
        loss.backward()
        synchronize(self.device)
        return time.perf_counter() - start

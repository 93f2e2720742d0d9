"""Time the training of SimCLR on small images on one core, beside a plain loop of torch."""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust import config
from vidrobust.benchmarks.timing import spread
from vidrobust.models import configured_backbone
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError
from vidrobust.utils.phases import PhaseClock, timing

_STEPS = 8  # of a block
_IMAGES = 10_000  # of the plain loop


@dataclass
class ImageRates:
    """Hold images per second of CPU time, one value per block.

    Attributes:
        ours: of training as the package does it, with everything that belongs to a step.
        plain: of the plain loop.
    """

    ours: list[float]
    plain: list[float]


def print_small_images(cfg: config.Config, rounds: int) -> None:
    """Print how many images of SimCLR one core trains per second.

    Args:
        cfg: the configuration; its data are read.
        rounds: blocks of steps of each loop.

    Raises:
        UserError: for another method than SimCLR, and for clips of more than a frame.
    """
    rates = measure_small_images(cfg, rounds)
    print(
        f"{cfg.model.backbone} of width {cfg.model.width}, {cfg.train.batch_size} images of"
        f" {cfg.data.size} x {cfg.data.size}, two views; {rounds} blocks of {_STEPS} steps in turn"
    )
    print("| loop | images per second of CPU time, median (lowest to highest) |")
    print("|---|---|")
    print(f"| vidrobust | {spread(rates.ours, 0)} |")
    print(f"| plain loop of torch | {spread(rates.plain, 0)} |")
    ratio = statistics.median(rates.ours) / statistics.median(rates.plain)
    print(f"| ratio | {ratio:.2f} |")


def measure_small_images(cfg: config.Config, rounds: int) -> ImageRates:
    """Train in a temporary folder, and time blocks of steps and of the plain loop in turn.

    Both compute with one thread and without loading processes.

    Args:
        cfg: the configuration; its data are read.
        rounds: blocks of steps of each loop, after one to warm up.

    Raises:
        UserError: as `print_small_images`.
    """
    if (cfg.method.name, cfg.method.adversary.name, cfg.data.frames) != ("simclr", "none", 1):
        raise UserError("benchmark.py images: measures SimCLR without an adversary, on images")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    total = _STEPS * (rounds + 1) + 1
    options = replace(
        cfg.train,
        epochs=total,
        max_steps=total,
        log_every=total,
        checkpoint_every=total,
        shown_clips=0,
    )
    data = replace(cfg.data, workers=0, in_memory="true")
    cfg = replace(cfg, train=options, data=data, device="cpu")
    plain = _PlainLoop(cfg)
    rates = ImageRates([], [])
    clock = PhaseClock(torch.device("cpu"))
    began = 0
    block_began = 0.0

    def before_data() -> None:
        nonlocal began, block_began
        if began and began % _STEPS == 0:
            images = _STEPS * cfg.train.batch_size
            seconds = time.process_time() - block_began
            plain_seconds = plain.seconds(_STEPS)
            if began > _STEPS:
                rates.ours.append(images / seconds)
                rates.plain.append(images / plain_seconds)
        if began % _STEPS == 0:
            block_began = time.process_time()
        began += 1

    clock.before["data"] = before_data
    try:
        with tempfile.TemporaryDirectory() as folder, timing(clock):
            train(cfg, Path(folder) / "run", overwrite=True)
    finally:
        torch.set_num_threads(threads)
    return rates


class _PlainLoop:
    """A training loop as in a short script: images in a tensor, augmented a batch at a time.

    Changes of hue are left out, which makes it faster.

    Args:
        cfg: the configuration.
    """

    def __init__(self, cfg: config.Config) -> None:
        torch.manual_seed(0)
        size, model = cfg.data.size, cfg.model
        self.batch = cfg.train.batch_size
        self.scale = cfg.augment.scale
        self.temperature = cfg.method.temperature
        self.images = torch.randint(0, 256, (_IMAGES, 3, size, size), dtype=torch.uint8)
        backbone = configured_backbone(model).train()
        head = nn.Sequential(
            nn.Linear(backbone.dim, model.hidden), nn.ReLU(), nn.Linear(model.hidden, model.dim)
        )
        self.network = nn.Sequential(backbone, head)
        for weight in self.network.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1, momentum=0.9)

    def seconds(self, steps: int) -> float:
        """Return the CPU time of some steps."""
        began = time.process_time()
        for _ in range(steps):
            chosen = torch.randint(len(self.images), (self.batch,))
            images = self.images[chosen].float() / 255
            views = torch.cat([self._augmented(images), self._augmented(images)])
            with torch.autocast("cpu", torch.bfloat16):
                z = self.network(views[:, :, None])
            loss = self._loss(F.normalize(z.float()))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.process_time() - began

    def _augmented(self, x: Tensor) -> Tensor:
        """Return crops, flipped, with other brightness, contrast and saturation, some gray."""
        n = len(x)
        low, high = self.scale
        side = (low + (high - low) * torch.rand(n)).sqrt()
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0] = side * (1 - 2 * (torch.rand(n) < 0.5).float())
        theta[:, 1, 1] = side
        theta[:, :, 2] = (2 * torch.rand(n, 2) - 1) * (1 - side)[:, None]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        bright, contrast, saturation = (0.6 + 0.8 * torch.rand(3, n, 1, 1, 1)).unbind()
        x = (x * bright).clamp(0, 1)
        x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast).clamp(0, 1)
        saturation = torch.where(torch.rand(n, 1, 1, 1) < 0.2, 0, saturation)
        return torch.lerp(x.mean(1, keepdim=True), x, saturation).clamp(0, 1)

    def _loss(self, z: Tensor) -> Tensor:
        """Return NT-Xent of two views (Chen et al. 2020, eq. 1)."""
        similarity = (z @ z.T / self.temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(similarity, torch.arange(len(z)).roll(self.batch))

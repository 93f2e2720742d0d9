"""Time non-semantic negatives and texture synthesis."""

import os
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidrobust import config
from vidrobust.benchmarks.steps import measure_as_configured
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.data.isolation import in_children
from vidrobust.utils import distributed
from vidrobust.views import NEGATIVES
from vidrobust.views.negatives import SPATIAL, NegativeSpec, draw_numbers, negatives
from vidrobust.views.texture_synthesis import patches_of, show, synthesize


def print_negatives(cfg: config.Config, *, batch: int, rounds: int, textures: int) -> None:
    """Print the time of each kind of negative, relative to a SimCLR step, and of textures.

    Args:
        cfg: sizes of clips and model, device and precision.
        batch: clips per batch.
        rounds: rounds of each measurement.
        textures: textures per round.
    """
    device = distributed.start(cfg.device)
    x = torch.rand(batch, 3, cfg.data.frames, cfg.data.size, cfg.data.size, device=device)
    # clips of one frame have no temporal negatives
    names = list(SPATIAL if cfg.data.frames == 1 else NEGATIVES)
    seconds_by_kind = measure_negatives(x, [NegativeSpec((name,)) for name in names], rounds)
    step = measure_as_configured(cfg, ("simclr", "none"), batch, 3, device)[0]
    precision = "bf16" if step.bf16 else "float32"
    print(
        f"{batch} clips of {cfg.data.frames} x {cfg.data.size} x {cfg.data.size} on {device};"
        f" a step of SimCLR, {cfg.model.backbone}, {precision}: {step.median:.3f} s;"
        f" {rounds} rounds"
    )
    print("| negatives | ms, median (lowest to highest) | % of the step |\n|---|---|---|")
    for name, seconds in zip(names, seconds_by_kind, strict=True):
        percent = 100 * statistics.median(seconds) / step.median
        print(f"| {name} | {spread(seconds, 1, 1e3)} | {percent:.2f} |")
    print_textures(rounds, textures)


def print_textures(rounds: int, textures: int) -> None:
    """Print how many textures per second one process and all cores synthesize.

    Args:
        rounds: rounds per number of processes.
        textures: textures per round.
    """
    print("\n| texture, 224 of two patches of 96 | textures/s (lowest to highest) |\n|---|---|")
    for workers in dict.fromkeys((1, os.cpu_count() or 1)):
        rates = []
        for round_ in range(rounds):
            seeds = [textures * round_ + n for n in range(textures)]
            start = time.perf_counter()
            seconds = [answer for _, answer in in_children(texture_seconds, seeds, workers, 60)]
            rates.append(len(seconds) / (time.perf_counter() - start))
        print(
            f"| {workers} at a time ({statistics.median(seconds):.2f} s each) |"
            f" {spread(rates, 1)} |",
            flush=True,
        )


def measure_negatives(x: Tensor, specs: Sequence[NegativeSpec], rounds: int) -> list[list[float]]:
    """Time each kind of negative, in turn.

    The random numbers are drawn before the clock starts, because in training the data loader draws
    them.

    Args:
        x: clips (B, C, T, H, W) in [0, 1].
        specs: kinds of negatives.
        rounds: rounds to measure, after one to warm up.

    Returns:
        Seconds of each round, for each of `specs`.
    """
    seconds_by_spec: list[list[float]] = [[] for _ in specs]
    for round_ in range(rounds + 1):
        for spec, seconds in zip(specs, seconds_by_spec, strict=True):
            generators = [np.random.default_rng([round_, i]) for i in range(len(x))]
            numbers = draw_numbers(spec, x.shape[2:], generators)
            synchronize(x.device)
            start = time.perf_counter()
            negatives(x, spec, numbers)
            synchronize(x.device)
            if round_:
                seconds.append(time.perf_counter() - start)
    return seconds_by_spec


def texture_seconds(seed: int, side: int = 96, size: int = 224) -> float:
    """Return the seconds to synthesize one texture from two patches of a smooth random image.

    Args:
        seed: seed of the image and of the synthesis.
        side: side of a patch, pixels.
        size: side of the texture, pixels.
    """
    # smooth noise, because patches of real images are smooth
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(seed)),
        size=(240, 320),
        mode="bicubic",
    )
    frame = (picture.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    examples = patches_of(frame, side, rng)
    next(show(examples, synthesize(examples, size, rng)))
    return time.perf_counter() - start

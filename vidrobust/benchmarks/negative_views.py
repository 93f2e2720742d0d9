"""Time non-semantic negatives and texture synthesis."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidrobust.views.negatives import NegativeSpec, draw_numbers, negatives
from vidrobust.views.texture_synthesis import patches_of, show, synthesize


def measure_negatives(x: Tensor, specs: Sequence[NegativeSpec], rounds: int) -> list[list[float]]:
    """Seconds that each spec's negatives of the clips x (B, C, T, H, W) take, in turn; the first
    round warms.

    Their numbers come with the clips, as in training.
    """
    found: list[list[float]] = [[] for _ in specs]
    for number in range(rounds + 1):
        for spec, seconds in zip(specs, found, strict=True):
            numbers = draw_numbers(
                spec, x.shape[2:], [np.random.default_rng([number, i]) for i in range(len(x))]
            )
            start = _now(x)
            negatives(x, spec, numbers)
            if number:
                seconds.append(_now(x) - start)
    return found


def texture_seconds(seed: int, side: int = 96, size: int = 224) -> float:
    """Of one texture of `size` pixels from two patches of `side`, of noise that is smooth, as
    pictures are.
    """
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


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()

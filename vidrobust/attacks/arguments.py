"""What attacks share about their arguments: counts, sizes, and where random numbers are drawn."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def at_least_one(**counts: int) -> None:
    """Raises ValueError that names the counts when one of them is below 1."""
    if min(counts.values()) < 1:
        raise ValueError(", ".join(f"{name}={count}" for name, count in counts.items()) + ": must be at least 1")


def above_zero(**sizes: float | None) -> None:
    """Raises ValueError that names the first size that is not above 0; None is a default."""
    for name, size in sizes.items():
        if size is not None and not size > 0:
            raise ValueError(f"{name}={size}: must be greater than 0")


def drawn(draw: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """draw (torch.rand, torch.randn) of this shape, on the generator's device if there is one -> as `like` is."""
    device = generator.device if generator else like.device
    return draw(tuple(shape), generator=generator, device=device).to(like)

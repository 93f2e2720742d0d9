"""What attacks share about their arguments: counts, and where random numbers are drawn."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def at_least_one(**counts: int) -> None:
    """Raises ValueError that names the counts when one of them is below 1."""
    if min(counts.values()) < 1:
        raise ValueError(", ".join(f"{name}={count}" for name, count in counts.items()) + ": must be at least 1")


def drawn(draw: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """draw (torch.rand, torch.randn) of this shape, on the generator's device if there is one -> as `like` is."""
    device = generator.device if generator else like.device
    return draw(tuple(shape), generator=generator, device=device).to(like)

"""Check arguments that attacks share, and draw their random numbers."""

from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor


def at_least_one(**counts: int) -> None:
    """Raise ValueError that names the counts when one of them is below 1, or no whole number."""
    written = ", ".join(f"{name}={count}" for name, count in counts.items())
    if not all(_is_whole(count) for count in counts.values()):
        raise ValueError(f"{written}: must be a whole number, at least 1")
    if min(counts.values()) < 1:
        raise ValueError(f"{written}: must be at least 1")


def none_or_more(**counts: int) -> None:
    """Raise ValueError that names the first count that is below 0, or no whole number."""
    for name, count in counts.items():
        if not _is_whole(count) or count < 0:
            raise ValueError(f"{name}={count}: must be a whole number, 0 or more")


def above_zero(**sizes: float | None) -> None:
    """Raise ValueError with the first size that is not above 0 and finite; None is a default."""
    for name, size in sizes.items():
        if size is not None and not 0 < size < float("inf"):
            raise ValueError(f"{name}={size}: must be greater than 0")


def between(low: float, high: float, **sizes: float) -> None:
    """Raise ValueError that names the first size outside [low, high], or that is not finite.

    high may be infinity: no bound.
    """
    for name, size in sizes.items():
        if not low <= size <= high or size == float("inf"):
            allowed = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
            raise ValueError(f"{name}={size}: must be {allowed}")


def _is_whole(count: object) -> bool:
    return isinstance(count, Integral) and not isinstance(count, bool)


def drawn(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """draw (torch.rand, torch.randn) of this shape, on the generator's device if there is one -> as
    `like` is.
    """
    device = generator.device if generator else like.device
    return draw(tuple(shape), generator=generator, device=device).to(like)

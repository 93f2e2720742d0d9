"""Check arguments that attacks share, and draw their random numbers."""

from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor


def at_least_one(**counts: int) -> None:
    """Raise ValueError that names the counts, unless each is a whole number of at least 1."""
    written = ", ".join(f"{name}={count}" for name, count in counts.items())
    if not all(_is_whole(count) for count in counts.values()):
        raise ValueError(f"{written}: must be a whole number, at least 1")
    if min(counts.values()) < 1:
        raise ValueError(f"{written}: must be at least 1")


def none_or_more(**counts: int) -> None:
    """Raise ValueError that names the first count that is not a whole number of at least 0."""
    for name, count in counts.items():
        if not _is_whole(count) or count < 0:
            raise ValueError(f"{name}={count}: must be a whole number, 0 or more")


def above_zero(**sizes: float | None) -> None:
    """Raise ValueError that names the first size that is not above 0 and finite.

    None stands for a default, and passes.
    """
    for name, size in sizes.items():
        if size is not None and not 0 < size < float("inf"):
            raise ValueError(f"{name}={size}: must be greater than 0")


def between(low: float, high: float, **sizes: float) -> None:
    """Raise ValueError that names the first size that is outside [low, high] or not finite.

    Args:
        low: the smallest allowed size.
        high: the largest allowed size; infinity for no upper bound.
        sizes: the values to check, by the name of their option.
    """
    for name, size in sizes.items():
        if not low <= size <= high or size == float("inf"):
            allowed = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
            raise ValueError(f"{name}={size}: must be {allowed}")


def _is_whole(count: object) -> bool:
    # True and False are integers in Python, but no counts
    return isinstance(count, Integral) and not isinstance(count, bool)


def drawn(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Return random numbers with the dtype and device of `like`.

    They are drawn on the generator's device, so that a CPU generator gives the same numbers on
    every GPU.

    Args:
        draw: torch.rand or torch.randn.
        shape: of the result.
        like: the tensor that gives dtype and device.
        generator: source of the numbers; None for torch's own on the device of `like`.
    """
    # torch refuses a generator of another device than the tensor's
    device = generator.device if generator else like.device
    return draw(tuple(shape), generator=generator, device=device).to(like)


def drawn_below(count: int, generator: torch.Generator | None) -> int:
    """Return a random number from 0 to count - 1.

    Args:
        count: at least 1.
        generator: source of the number, on any device; None for torch's own.
    """
    device = generator.device if generator else None
    return int(torch.randint(count, (), generator=generator, device=device))

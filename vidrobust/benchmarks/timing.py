"""Wait for devices, and format times, for all benchmarks."""

import statistics
from collections.abc import Sequence

import torch


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work; do nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Return median and range as text, such as `1.5 (1.2 to 1.9)`.

    Args:
        values: one value per round.
        digits: decimal places.
        scale: factor of all values, such as 1000 for milliseconds.
    """
    numbers = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{scale * number:.{digits}f}" for number in numbers)
    return f"{middle} ({low} to {high})"

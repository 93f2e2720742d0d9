"""Wait for devices, read memory, and format times, for all benchmarks."""

import resource
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

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


def peak_mib() -> float:
    """Return the largest memory that this process has had, MiB."""
    try:
        # unlike ru_maxrss, it leaves out what the parent had when it started this process
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

"""Time the phases of a step, for whoever asks; nothing is timed otherwise."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class PhaseClock:
    """Measures how long phases take, each without the phases within it.

    Attributes:
        seconds: phase -> seconds so far; "" is the time outside of all phases.
    """

    def __init__(self, device: torch.device) -> None:
        """Start the clock.

        Args:
            device: it is waited for at the ends of each phase if it is a GPU, so that phases do not
                overlap.
        """
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.before: dict[str, Callable[[], None]] = {}  # phase -> called before it, untimed
        self._device = device
        self._open = [""]
        self._since = time.perf_counter()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time a phase."""
        self.charge()
        if name in self.before:
            self.before[name]()
            self._since = time.perf_counter()
        self._open.append(name)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def charge(self) -> None:
        """Add the time since the last call to the phase that is open."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


_clocks: list[PhaseClock] = []


@contextmanager
def timing(clock: PhaseClock) -> Iterator[None]:
    """Let a clock time the phases within the block."""
    _clocks.append(clock)
    try:
        yield
    finally:
        _clocks.remove(clock)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark a block as a phase; it costs a microsecond while no clock runs."""
    if not _clocks:
        yield
        return
    with _clocks[-1].of(name):
        yield

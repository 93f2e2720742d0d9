"""Memory in which worker processes leave the clips of batches, so that these are written once.

It is no file of /dev/shm, which has only 64 MB in containers.
"""

import os
import weakref
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from vidrobust.data.isolation import SharedMemory

# Batches of one worker under way: two that it prepares, the one in the training step, and one that
# is still referred to when the next one has come. A slot that was never used takes no memory.
_SLOTS = 4
_PAGE = 4096  # bytes; a slot begins on a page


@dataclass(frozen=True)
class Slot:
    """Hold the memory for the clips of one batch.

    Attributes:
        number: its number.
        start: where it begins in the shared memory.
        bytes: (n,) uint8, the memory.
    """

    number: int
    start: int
    bytes: np.ndarray


@dataclass(frozen=True)
class InSlot:
    """Say where the clips of a batch are; it travels in their place.

    Attributes:
        number: number of the slot.
        shape: shape of the clips.
    """

    number: int
    shape: tuple[int, ...]


class BatchSlots:
    """Slots for the clips of batches, each used again when nothing refers to its clips any more.

    Make it before the workers are forked. Each worker has slots of its own, so that two never take
    the same one.

    Args:
        workers: number of worker processes.
        batch_bytes: size of the largest batch, in bytes.
        sample_bytes: size of a sample, in bytes.
    """

    def __init__(self, workers: int, batch_bytes: int, sample_bytes: int) -> None:
        self._slot = -(-batch_bytes // _PAGE) * _PAGE
        slots = workers * _SLOTS
        self._spare = slots * self._slot
        self._sample = sample_bytes
        self.memory = SharedMemory(self._spare + workers * sample_bytes)
        self._taken = SharedMemory(slots)

    def take(self, worker: int, size: int) -> Slot | None:
        """Return a free slot of a worker, which is taken now; None if none is free or large enough.

        Args:
            worker: number of the worker that calls.
            size: bytes of the batch.
        """
        if size > self._slot:
            return None
        for number in range(worker * _SLOTS, (worker + 1) * _SLOTS):
            if not self._taken.bytes[number]:
                self._taken.bytes[number] = 1
                return Slot(number, self._start(number), self._bytes(number))
        return None

    def free(self, number: int) -> None:
        """Let a slot be taken again."""
        self._taken.bytes[number] = 0

    def _start(self, number: int) -> int:
        return number * self._slot

    def _bytes(self, number: int) -> np.ndarray:
        return self.memory.bytes[self._start(number) : self._start(number + 1)]

    def spare(self, worker: int) -> int:
        """Return where in the memory a worker has room for one sample beside its slots."""
        return self._spare + worker * self._sample

    def clips(self, place: InSlot) -> Tensor:
        """Return the clips in a slot; it is free again when no tensor shows them.

        Call it once for each batch, in the process that receives the batches.

        Args:
            place: the slot, and the shape of the clips.
        """
        array = self._bytes(place.number)[: prod(place.shape)].reshape(place.shape)
        # A torch storage refers to this very array, whichever tensors show it.
        weakref.finalize(array, _freed, self._taken.bytes, place.number, os.getpid()).atexit = False
        return torch.from_numpy(array)


def _freed(taken: np.ndarray, number: int, owner: int) -> None:
    """Free a slot whose clips are gone, but not for a copy of them in a process forked later."""
    if os.getpid() == owner:
        taken[number] = 0

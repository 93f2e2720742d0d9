"""Memory in which worker processes leave the pixels of batches, so that these are written once.

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
_ALIGNED = 64  # bytes; where a second tensor of a slot may begin, as torch aligns its own
_PAGE = 4096  # bytes; a slot begins on a page


@dataclass(frozen=True)
class Slot:
    """Hold the memory for one batch.

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
    """Say where a tensor of a batch is; it travels in its place.

    Attributes:
        number: number of the slot.
        shape: shape of the tensor.
        start: where in the slot it begins, in bytes.
        dtype: NumPy's name of its type.
    """

    number: int
    shape: tuple[int, ...]
    start: int = 0
    dtype: str = "uint8"


class BatchSlots:
    """Slots for batches, each used again when nothing refers to its tensors any more.

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

    def add(self, slot: Slot, tensor: np.ndarray, used: int) -> InSlot:
        """Copy one more tensor into a slot that was taken.

        Args:
            slot: the slot; it is free again when all of its tensors are gone.
            tensor: any array.
            used: bytes at the beginning of the slot that are in use.

        Returns:
            Where it is.
        """
        place = InSlot(slot.number, tensor.shape, room(used), tensor.dtype.name)
        self._array(place)[...] = tensor
        self._taken.bytes[slot.number] += 1
        return place

    def _start(self, number: int) -> int:
        return number * self._slot

    def _bytes(self, number: int) -> np.ndarray:
        return self.memory.bytes[self._start(number) : self._start(number + 1)]

    def spare(self, worker: int) -> int:
        """Return where in the memory a worker has room for one sample beside its slots."""
        return self._spare + worker * self._sample

    def tensor(self, place: InSlot) -> Tensor:
        """Return a tensor in a slot, which is free again when nothing shows its tensors.

        Call it once for each tensor of a batch, in the process that receives the batches.

        Args:
            place: where the tensor is.
        """
        array = self._array(place)
        # A torch storage refers to this very array, whichever tensors show it.
        weakref.finalize(array, _gone, self._taken.bytes, place.number, os.getpid()).atexit = False
        return torch.from_numpy(array)

    def _array(self, place: InSlot) -> np.ndarray:
        """Return a new array that shows a tensor in its slot."""
        dtype = np.dtype(place.dtype)
        end = place.start + prod(place.shape) * dtype.itemsize
        return self._bytes(place.number)[place.start : end].view(dtype).reshape(place.shape)


def room(size: int) -> int:
    """Return the bytes that a tensor takes in a slot before the next one may begin."""
    return -(-size // _ALIGNED) * _ALIGNED


def _gone(taken: np.ndarray, number: int, owner: int) -> None:
    """Count a tensor that is gone from its slot, but not a copy in a process forked later."""
    if os.getpid() == owner:
        taken[number] -= 1

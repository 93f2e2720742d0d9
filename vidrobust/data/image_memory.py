"""Keep the images of a small data set in memory, so that training reads each file once."""

import functools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidrobust.data.decoding.images import ImageInMemory, in_memory, is_image
from vidrobust.data.decoding.pyav import DecodeError
from vidrobust.data.decoding.read_frames import open_record
from vidrobust.data.isolation import ChildDied, in_children
from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

MOST_BYTES = 3 * 2**29  # that data.in_memory=auto takes: CIFAR-10 has 0.15e9 bytes
_AT_ONCE = 64  # images that a child process reads per call


@dataclass(frozen=True)
class ImageMemory:
    """The images of a list of records; processes that are forked later share them.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        is_held: (N,) bool; False: the image did not decode, or not in time, and is read from its
            file when it is needed.
    """

    pixels: np.ndarray
    is_held: np.ndarray

    def image(self, index: int) -> ImageInMemory | None:
        """Return an image as a video of one frame; None if it is not held."""
        return ImageInMemory(self.pixels[index]) if self.is_held[index] else None


def read_into_memory(
    records: Sequence[Record], wanted: str, *, backend: str, timeout_s: float, workers: int
) -> ImageMemory | None:
    """Read the images of all records, if they are images of one size.

    Args:
        records: the records.
        wanted: data.in_memory: "auto" takes MOST_BYTES at most.
        backend: a name of BACKENDS.
        timeout_s: seconds that `_AT_ONCE` files may take, in child processes; 0 reads in this
            process.
        workers: number of child processes, at least 1.

    Returns:
        The images; None with "auto" where they are not images, of several sizes, or too many.

    Raises:
        UserError: with "true" where they are not images, or of several sizes.
    """
    began = time.monotonic()
    try:
        memory = _read_all(records, wanted, backend, timeout_s, workers)
    except _Unsuitable as reason:
        if wanted == "auto":
            return None
        raise UserError(
            f"data.in_memory={wanted}: {reason}; images of one size alone are kept in memory, set"
            " data.in_memory=auto"
        ) from None
    if memory is not None:
        log.info(
            f"{memory.is_held.sum()} of {len(records)} images in memory:"
            f" {memory.pixels.nbytes / 2**20:.0f} MiB, read in {time.monotonic() - began:.1f} s"
        )
    return memory


class _Unsuitable(Exception):
    """Say why the images of a data set are not kept in memory."""


def _read_all(
    records: Sequence[Record], wanted: str, backend: str, timeout_s: float, workers: int
) -> ImageMemory | None:
    """Return the images; None if none decodes. See `read_into_memory`.

    Raises:
        _Unsuitable: they are not images, of several sizes, or with "auto" too many.
    """
    # The first images decide for most data sets, before a long list of records is unpacked.
    head = [records[index] for index in range(min(len(records), _AT_ONCE))]
    _require_images(head)
    sizes = {image.shape for _, image in _images(head, backend, timeout_s, 1)}
    if wanted == "auto" and any(len(records) * math.prod(size) > MOST_BYTES for size in sizes):
        raise _Unsuitable("they are too large")
    if wanted == "auto" and len(sizes) > 1:
        raise _Unsuitable("they have several sizes")
    every = [records[index] for index in range(len(records))]
    _require_images(every)
    memory: ImageMemory | None = None
    for index, image in _images(every, backend, timeout_s, workers):
        if memory is None:
            if wanted == "auto" and len(records) * image.nbytes > MOST_BYTES:
                raise _Unsuitable("they are too large")  # where none of the first decodes
            pixels = np.empty((len(records), *image.shape), np.uint8)
            memory = ImageMemory(pixels, np.zeros(len(records), bool))
        shape = memory.pixels.shape[1:]
        if image.shape != shape:
            raise _Unsuitable(
                f"{every[index].path} has {image.shape[0]} x {image.shape[1]} pixels, others"
                f" {shape[0]} x {shape[1]}"
            )
        memory.pixels[index] = image
        memory.is_held[index] = True
    return memory


def _require_images(records: Sequence[Record]) -> None:
    """Raise _Unsuitable for a record that is not an image."""
    if other := next((record for record in records if not is_image(record.path)), None):
        raise _Unsuitable(f"{other.path} is not an image")


def _images(
    records: Sequence[Record], backend: str, timeout_s: float, workers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and the pixels of each image that decodes; see `read_into_memory`."""
    read = functools.partial(_read_images, backend=backend)
    jobs = [
        (first, list(records[first : first + _AT_ONCE]))
        for first in range(0, len(records), _AT_ONCE)
    ]
    answers: Iterable[tuple[tuple[int, list[Record]], Any]]
    # no file is read of data sets that torchvision holds in memory
    if not timeout_s or in_memory(records[0].path):
        answers = ((job, read(job)) for job in jobs)
    else:
        answers = in_children(read, jobs, workers, timeout_s)
    for (first, _), images in answers:
        if not isinstance(images, ChildDied):
            for index, image in enumerate(images, first):
                if image is not None:
                    yield index, image


def _read_images(job: tuple[int, list[Record]], *, backend: str) -> list[np.ndarray | None]:
    """Return the images of some records, (H, W, 3) uint8; None for one that does not decode."""
    return [_read_image(record, backend) for record in job[1]]


def _read_image(record: Record, backend: str) -> np.ndarray | None:
    """Return the image of a record; None if it does not decode."""
    try:
        with open_record(record, backend) as video:
            return next(video.frames(np.zeros(1, np.int64)))
    except DecodeError:
        return None

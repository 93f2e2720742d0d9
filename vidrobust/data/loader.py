"""Worker processes of the data loader.

How they start and end, how batches reach the parent, and what is reported when one dies.
"""

import gc
import logging
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError
from vidrobust.utils.stopping import end_with_parent, held_stop_signals, leave_stops_to_parent

log = logging.getLogger("vidrobust")

SHARED_MEMORY = "/dev/shm"  # where torch puts the tensors that a worker sends
_REMEDY = "give the container more, docker run --shm-size=8g, or lower data.workers"
_NO_ROOM = ("shared memory", "shm", "Bus error", "No space left on device")


class Reads(Protocol):
    """A data set whose workers say what they read: a row a worker, its process and the index of the
    record.
    """

    reading: Tensor

    @property
    def records(self) -> Sequence[Record]: ...


class BatchLoader(DataLoader):
    """A DataLoader whose workers leave stop signals to their owner and end with it.

    Batches travel through shared memory. Where that has no room for those under way (Docker gives
    64 MB), they travel through pipes, which takes a copy more.

    Args:
        dataset: as DataLoader's; its items, or batches, hold tensors.
        batch_bytes: size of a batch; 0: unknown, shared memory is used.
        collate_fn: as DataLoader's, with an option `join`: what stacks tensors (torch's own uses
            shared memory).
        options: DataLoader's others.
    """

    def __init__(
        self, dataset: Any, *, batch_bytes: int = 0, collate_fn: Any = None, **options: Any
    ) -> None:
        workers = options.get("num_workers", 0)
        self.through_pipes = bool(workers) and _is_short(batch_bytes, workers)
        if self.through_pipes:
            collate_fn = _AsArrays(collate_fn)
        super().__init__(dataset, collate_fn=collate_fn, worker_init_fn=start_worker, **options)

    def __iter__(self) -> Any:
        with held_stop_signals():
            batches = super().__iter__()
        return map(_as_tensors, batches) if self.through_pipes else batches


def _is_short(batch_bytes: int, workers: int) -> bool:
    """Return whether shared memory has no room for the batches under way, and warn if so."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # a system that keeps shared memory elsewhere
        return False
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    under_way = 2 * workers + 2  # two of each worker, one in the step, one that is being freed
    needed = ranks * under_way * batch_bytes
    if needed <= free:
        return False
    log.warning(
        f"shared memory {SHARED_MEMORY} has {free / 2**20:.0f} MB free, and batches of "
        f"data.workers={workers} need "
        f"{needed / 2**20:.0f} MB: they travel through pipes, which is slower; {_REMEDY}"
    )
    return True


class _AsArrays:
    """A collate function whose tensors become arrays.

    Pickle copies arrays, and puts tensors into shared memory.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        batch = samples if self.collate is None else self.collate(samples, join=torch.stack)
        return _changed(batch, Tensor, lambda tensor: tensor.numpy())


def _as_tensors(batch: Any) -> Any:
    return _changed(batch, np.ndarray, torch.from_numpy)


def _changed(value: Any, kind: type, change: Any) -> Any:
    """Return `value` with everything of a kind in it changed.

    In dataclasses, lists, tuples and dictionaries.
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, kind, change) for item in value)
    if isinstance(value, dict):
        return {key: _changed(item, kind, change) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        inner = {item.name: getattr(value, item.name) for item in fields(value)}
        return replace(
            value, **{name: _changed(item, kind, change) for name, item in inner.items()}
        )
    return value


@contextmanager
def worker_deaths(dataset: Reads) -> Iterator[None]:
    """Turn the death of a worker inside into a UserError that names the file it was reading.

    A worker that finds no shared memory is reported as that, with the remedy. What a worker's code
    raises passes.
    """
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:  # the last two: while a batch was fetched
        try:
            told = _death(dataset, error)
        except RuntimeError as later:  # torch's SIGCHLD handler raises wherever this process is
            told = _death(dataset, later)
        if told is None:
            raise
        raise told from None


def _death(dataset: Reads, error: Exception) -> UserError | None:
    """Return how to report a worker that died; None where an error says something else."""
    message = str(error)
    names_worker = "DataLoader worker" in message
    reported = message.startswith("Caught ") and names_worker
    if names_worker and any(sign in message for sign in _NO_ROOM):
        return UserError(
            f"shared memory {SHARED_MEMORY} is full ({_last_line(message)}): a loader process "
            f"could not send its batch; {_REMEDY}"
        )
    if reported or (isinstance(error, RuntimeError) and not names_worker):
        return None
    dead = _dead_readers(dataset, message)
    if not (dead or isinstance(error, RuntimeError)):
        return None
    paths = [dataset.records[index].path for index in dead if index >= 0]
    return UserError(
        f"a loader process died while it read {', '.join(paths) or 'no file'} "
        f"({_last_line(message) or 'no batch came'}); "
        "was memory short? lower data.workers"
    )


def _last_line(message: str) -> str:
    return message.strip().splitlines()[-1] if message.strip() else ""


def _dead_readers(dataset: Reads, error: str) -> list[int]:
    """What the workers read that are dead, or named in an error; one that has closed its pipe has a
    second to die.
    """
    deadline, rows = time.monotonic() + 1, [row for row in dataset.reading.tolist() if row[0] > 0]
    while True:
        alive = {child.pid for child in multiprocessing.active_children()}
        dead = [index for pid, index in rows if pid not in alive or str(pid) in error]
        if dead or time.monotonic() > deadline:
            return dead
        time.sleep(0.02)


def start_worker(worker: int) -> None:
    """Prepare a loader's process, before it reads anything."""
    leave_stops_to_parent()
    end_with_parent()
    sys.excepthook = _tell_unless_left
    # a collection would write to, and so copy, every object that is shared with the parent
    gc.freeze()


def _tell_unless_left(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Of a worker's threads: that the loader's owner stopped in the middle of taking a batch is no
    news.
    """
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)

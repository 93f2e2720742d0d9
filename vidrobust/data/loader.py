"""Worker processes of the data loader.

They start and end here, send their batches to the parent, and are reported if they die.
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

SHARED_MEMORY = "/dev/shm"  # torch puts the tensors that a worker sends here
# advice in messages about full shared memory, and words by which such errors are recognised
_REMEDY = "give the container more, docker run --shm-size=8g, or lower data.workers"
_NO_ROOM = ("shared memory", "shm", "Bus error", "No space left on device")


class Reads(Protocol):
    """A data set whose workers report what they are reading.

    Attributes:
        reading: (workers, 2) int64 in shared memory; a row holds the id of the worker's process and
            the index of the record that it reads; -1 for none.
    """

    reading: Tensor

    @property
    def records(self) -> Sequence[Record]: ...


class BatchLoader(DataLoader):
    """A DataLoader whose workers leave stop signals to their owner and end with it.

    Batches travel through shared memory. If it has no room for the batches under way (Docker gives
    64 MB), they travel through pipes, which costs one more copy.

    Args:
        dataset: as in DataLoader; its items, or batches, contain tensors.
        batch_bytes: size of a batch in bytes; 0: unknown, and shared memory is used.
        collate_fn: as in DataLoader, with an option `join`: the function that stacks tensors
            (torch's default uses shared memory).
        options: further options of DataLoader.
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
        # A stop signal while workers are forked would reach some of them unprepared.
        with held_stop_signals():
            batches = super().__iter__()
        return map(_as_tensors, batches) if self.through_pipes else batches


def _is_short(batch_bytes: int, workers: int) -> bool:
    """Return whether shared memory has no room for the batches under way; log a warning if so.

    Args:
        batch_bytes: size of a batch in bytes.
        workers: number of worker processes of this rank.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # this system keeps shared memory elsewhere
        return False
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # Two batches of each worker, one in the training step, and one that is being freed.
    under_way = 2 * workers + 2
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
    """A collate function that turns the tensors of a batch into arrays.

    Pickle copies arrays, whereas it puts tensors into shared memory.

    Args:
        collate: the original function, with an option `join`; None: samples are left as they are.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        batch = samples if self.collate is None else self.collate(samples, join=torch.stack)
        return _changed(batch, Tensor, lambda tensor: tensor.numpy())


def _as_tensors(batch: Any) -> Any:
    """Return a batch with its arrays turned into tensors."""
    return _changed(batch, np.ndarray, torch.from_numpy)


def _changed(value: Any, kind: type, change: Any) -> Any:
    """Return `value` with every object of one type in it changed.

    Dataclasses, lists, tuples and dictionaries are searched.

    Args:
        value: any object.
        kind: the type to change.
        change: applied to each object of that type.
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
    """Turn the death of a worker into a UserError that names the file it was reading.

    A worker that found no shared memory is reported as such, with the remedy. Exceptions raised by
    a worker's code are raised unchanged.
    """
    try:
        yield
    # EOFError and OSError occur if the worker died while a batch was fetched.
    except (RuntimeError, EOFError, OSError) as error:
        try:
            report = _death(dataset, error)
        except RuntimeError as later:  # torch's SIGCHLD handler may raise at any line of Python
            report = _death(dataset, later)
        if report is None:
            raise
        raise report from None


def _death(dataset: Reads, error: Exception) -> UserError | None:
    """Return how to report a worker that died; None if the error has another cause."""
    message = str(error)
    names_worker = "DataLoader worker" in message
    # An exception in the code of a worker is "Caught ... in DataLoader worker process N".
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
    """Return the last line of a message that is not blank."""
    return message.strip().splitlines()[-1] if message.strip() else ""


def _dead_readers(dataset: Reads, error: str) -> list[int]:
    """Return the indices that dead workers, or workers named in an error, were reading.

    A worker that has closed its pipe is given one second to die.

    Args:
        dataset: the data set whose workers they are.
        error: text of the error.
    """
    deadline = time.monotonic() + 1
    rows = [row for row in dataset.reading.tolist() if row[0] > 0]
    while True:
        alive = {child.pid for child in multiprocessing.active_children()}
        dead = [index for pid, index in rows if pid not in alive or str(pid) in error]
        if dead or time.monotonic() > deadline:
            return dead
        time.sleep(0.02)


def start_worker(worker: int) -> None:
    """Prepare the process of a worker, before it reads anything."""
    leave_stops_to_parent()
    end_with_parent()
    sys.excepthook = _report_unless_abandoned
    # A garbage collection would write to, and so copy, every object shared with the parent.
    gc.freeze()


def _report_unless_abandoned(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print an error in a thread of a worker, unless the parent merely stopped receiving batches.

    Args:
        kind: type of the error.
        error: the error.
        trace: its traceback.
    """
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)

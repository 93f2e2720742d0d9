"""Worker processes of the data loader.

They start and end here, send their batches to the parent, and are reported if they die.
"""

import functools
import gc
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vidrobust.data.batch_slots import BatchSlots, InSlot
from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError
from vidrobust.utils.stopping import end_with_parent, held_stop_signals, leave_stops_to_parent


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

    Pixels of batches travel in `BatchSlots`, which need no /dev/shm (Docker gives 64 MB), and all
    else through pipes.

    Args:
        dataset: as in DataLoader, but it joins the samples of a batch itself (`__getitems__`).
        make_slots: makes the slots for the batches of an iteration, which become `dataset.slots`;
            None: pixels travel through pipes as well.
        options: further options of DataLoader.
    """

    def __init__(
        self, dataset: Any, *, make_slots: Callable[[], BatchSlots] | None = None, **options: Any
    ) -> None:
        self.make_slots = make_slots
        # An array is part of the message, whereas a tensor would get a file in /dev/shm.
        collate = _as_arrays if options.get("num_workers") else _unchanged
        super().__init__(dataset, collate_fn=collate, worker_init_fn=start_worker, **options)

    def __iter__(self) -> Any:
        dataset: Any = self.dataset
        slots = None
        # A stop signal while workers are forked would reach some of them unprepared.
        with held_stop_signals():
            if self.num_workers and self.make_slots:
                slots = dataset.slots = self.make_slots()
            batches = super().__iter__()
            if slots:
                dataset.slots = None  # the workers have a copy; this process uses none
        return map(functools.partial(_as_tensors, slots=slots), batches)


def _unchanged(batch: Any) -> Any:
    return batch


def _as_arrays(batch: Any) -> Any:
    """Return a batch with its tensors turned into arrays."""
    return _changed(batch, Tensor, lambda tensor: tensor.numpy())


def _as_tensors(batch: Any, slots: BatchSlots | None) -> Any:
    """Return a batch with its arrays turned into tensors, and with the pixels in its slot."""
    batch = _changed(batch, np.ndarray, torch.from_numpy)
    return batch if slots is None else _changed(batch, InSlot, slots.tensor)


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

    Exceptions raised by a worker's code are raised unchanged.
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


@contextmanager
def without_worker_deaths() -> Iterator[None]:
    """Let no death of a worker interrupt what is inside; `raise_worker_deaths` finds it later.

    torch raises it in its handler of SIGCHLD, at any line of Python, also between the updates of
    two weights.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    # a handler is torch's, or calls torch's; there is none without workers
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def raise_worker_deaths() -> None:
    """Raise what torch does for a worker that has died, if one has."""
    signal.raise_signal(signal.SIGCHLD)


def _death(dataset: Reads, error: Exception) -> UserError | None:
    """Return how to report a worker that died; None if the error has another cause."""
    message = str(error)
    names_worker = "DataLoader worker" in message
    # An exception in the code of a worker is "Caught ... in DataLoader worker process N".
    reported = message.startswith("Caught ") and names_worker
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

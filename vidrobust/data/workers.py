"""Processes of a loader: how they start, and what is said when one dies."""

import gc
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from vidrobust.data.records import Record
from vidrobust.errors import UserError


class Reads(Protocol):
    """A data set whose workers say what they read: a row a worker, its process and the index of the record."""

    reading: Tensor

    @property
    def records(self) -> Sequence[Record]: ...


@contextmanager
def worker_deaths(dataset: Reads) -> Iterator[None]:
    """A worker that dies inside, killed for memory for one, becomes a UserError that names the file it was reading."""
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:  # the last two: it died while its batch was fetched
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        dead = _dead_readers(dataset, str(error))
        if not (dead or isinstance(error, RuntimeError)):
            raise
        paths = ", ".join(dataset.records[index].path for index in dead if index >= 0) or "no file"
        raise UserError(
            f"a loader process died while it read {paths} ({str(error).strip() or 'no batch came'}); was memory short? "
            "lower data.workers"
        ) from None


def _dead_readers(dataset: Reads, error: str) -> list[int]:
    """What the workers read that are dead, or named in an error; one that has closed its pipe has a second to die."""
    deadline, rows = time.monotonic() + 1, [row for row in dataset.reading.tolist() if row[0] > 0]
    while True:
        alive = {child.pid for child in multiprocessing.active_children()}
        dead = [index for pid, index in rows if pid not in alive or str(pid) in error]
        if dead or time.monotonic() > deadline:
            return dead
        time.sleep(0.02)


def start_worker(worker: int) -> None:
    """What a loader's process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _tell_unless_left
    gc.freeze()  # a collection would write to, and so copy, every object that is shared with the parent


def _tell_unless_left(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Of a worker's threads: that the loader's owner stopped in the middle of taking a batch is no news."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)

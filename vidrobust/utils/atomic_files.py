"""Write files atomically, read rows, and lock folders."""

import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from vidrobust.utils.errors import UserError

# struct flock of fcntl.h, and the place of its process id; the order differs on macOS
_FLOCK, _PID_PLACE = ("qqihh", 2) if sys.platform == "darwin" else ("hhqqi", 4)
_TYPE_PLACE = 3 if sys.platform == "darwin" else 0
# a full disk, a quota, and a limit on the size of files
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` at once, after the block.

    If the process is killed, `path` keeps its old content or has all of the new one. A write that
    fails, for example on a full disk, leaves no partial file behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # same folder: os.replace is atomic only within a file system
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        # report the file that the caller asked for, not the partial one
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def is_held(path: Path) -> bool:
    """Return whether another process holds the lock of `held` on a file.

    Do not call this for a file that the current process holds.
    """
    # closing the file releases every lock that this process has on it
    with suppress(OSError), open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: the file.
        remedy: what the user should do if the file holds anything else, for the message.

    Raises:
        UserError: if the file holds anything else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path}: damaged, or not written by this program; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {remedy}")
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a .jsonl file.

    Incomplete lines, which a killed process may leave, are skipped.
    """
    rows = []
    # not splitlines(): a name in a row may hold a Unicode line separator
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


@contextmanager
def held(path: Path, refusal: str) -> Iterator[TextIO]:
    """Lock a folder by a file in it, and open that file for appending.

    The lock ends with the process, however that ends, and is not inherited by data-loading
    processes. Closing any other handle of the file also releases it. On file systems without locks,
    no process is refused.

    Args:
        path: the file in the folder.
        refusal: message if another process holds the lock; `{}` stands for the folder.

    Raises:
        UserError: if another process holds the lock.
    """
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(refusal.format(path.parent)) from None
        except OSError:
            pass  # a file system without locks
        yield file


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: its process id; 0 where it is unknown, as that of another container.
        host: name of its machine; "" where that is unknown.
    """

    pid: int
    host: str


def this_process() -> dict[str, Any]:
    """Return the entries of a lock file by which `holder` names this process."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def sign(lock: TextIO) -> None:
    """Write this process into the file of a lock that it holds.

    Args:
        lock: what `held` yields, of a file without other content.
    """
    lock.truncate(0)
    print(json.dumps(this_process()), file=lock, flush=True)


def holder(path: Path) -> Holder | None:
    """Return the process that holds the lock of `held` on a file; None if no other process does.

    It changes nothing and needs no right to write, so that it cannot refuse a process that starts.

    Args:
        path: the file. `sign` may have written a process into it, which counts if the lock itself
            does not name one of this machine.

    Raises:
        OSError: the file cannot be read.
    """
    unlocked = struct.pack(_FLOCK, *_flock(fcntl.F_WRLCK))
    with open(path, "rb") as file:
        try:
            lock = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, unlocked))
        except OSError:  # a file system without locks
            return None
        if lock[_TYPE_PLACE] == fcntl.F_UNLCK:
            return None
        content = file.read(1 << 16)
    pid = lock[_PID_PLACE]
    signed = _signature(content)
    here = socket.gethostname()
    if signed and (pid <= 0 or signed.host != here):
        return signed
    return Holder(pid, here) if pid > 0 else Holder(0, "")


def _flock(kind: int) -> list[int]:
    """Return the fields of a struct flock of the whole file."""
    values = [0] * 5
    values[_TYPE_PLACE] = kind
    return values


def _signature(content: bytes) -> Holder | None:
    """Return the process that `sign` or env.json names, or None."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, dict):
        return None
    pid, host = entries.get("pid"), entries.get("host")
    return Holder(pid, host) if type(pid) is int and isinstance(host, str) else None

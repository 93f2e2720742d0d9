"""Write files atomically, read rows, and lock folders."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from vidrobust.utils.errors import UserError


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

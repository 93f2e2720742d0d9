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
    """Open a file to write: a kill leaves `path` as it was, or with all that was written.

    A write that fails, on a full disk for one, leaves nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def is_held(path: Path) -> bool:
    """Return whether another process holds a file of `held`. Not for a file that this one holds."""
    with suppress(OSError), open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises UserError, with the remedy, where it holds anything else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # of text that is no UTF-8, too
        raise UserError(f"{path}: damaged, or not written by this program; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {remedy}")
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of rows, without lines that a kill has cut."""
    rows = []
    # not splitlines: a name may hold a separator of Unicode's
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
    """A file in a folder, to append to, which no other process holds: who holds it has the folder.

    Raises UserError where another does: refusal, of the folder {}. A lock of this kind ends with
    its process, however that is killed, and its loading processes do not have it; closing any other
    handle of the file loses it. Some file systems have none: nobody is refused there.
    """
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(refusal.format(path.parent)) from None
        except OSError:
            pass
        yield file

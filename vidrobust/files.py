"""Files that are written whole or not at all, and folders that are one process's."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from vidrobust.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write: `path` holds either what it held before or all that was written, whenever we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def held(path: Path, refusal: str) -> Iterator[TextIO]:
    """A file in a folder, to append to, which no other process holds: who holds it has the folder.

    Raises UserError where another does: refusal, of the folder {}. A lock of this kind ends with its process, however
    that is killed, and its loading processes do not have it; closing any other handle of the file loses it. Some file
    systems have none: nobody is refused there.
    """
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(refusal.format(path.parent)) from None
        except OSError:
            pass
        yield file

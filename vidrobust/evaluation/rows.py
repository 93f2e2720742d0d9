"""Rows that are streamed to a file as they are found, by every rank, so that an evaluation goes on where it was killed.

A row is of a video (`index`) and of one thing that was done to it: `column` names the entry that says which, a threat
or a corruption. Work is in groups, the list of the (index, thing) pairs that are measured together.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust.engine import distributed
from vidrobust.files import read_rows, replacing

Row = dict[str, Any]
Group = Sequence[tuple[int, str]]


def unfinished(out: Path, stem: str, column: str, groups: Sequence[Group]) -> list[int]:
    """The numbers of the groups that have not all their rows; out/<stem>.jsonl is cut down to those that have."""
    rows = _read(out, stem, column)
    distributed.patient_barrier()  # every rank has read what the first is about to rewrite
    left = [n for n, group in enumerate(groups) if any(key not in rows for key in group)]
    _rewrite(out, stem, [rows[key] for n, group in enumerate(groups) if n not in set(left) for key in group])
    return left


@contextmanager
def appending(out: Path, stem: str) -> Iterator[Callable[[Sequence[Row]], None]]:
    """`append(rows)`, after which they are on the disk, in a file of this rank."""
    with open(out / f"{stem}{suffix()}.jsonl", "a") as file:

        def append(rows: Sequence[Row]) -> None:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

        yield append


def merged(out: Path, stem: str, column: str, groups: Sequence[Group]) -> list[Row]:
    """All ranks' rows, in the order of the groups, now in one file."""
    distributed.patient_barrier()  # every rank has written
    found = _read(out, stem, column)
    rows = [found[key] for group in groups for key in group]
    distributed.patient_barrier()
    _rewrite(out, stem, rows)
    return rows


def suffix() -> str:
    """Of the files of a rank other than the first."""
    return f".rank{distributed.rank()}" if distributed.rank() else ""


def _read(out: Path, stem: str, column: str) -> dict[tuple[int, str], Row]:
    """The rows that any rank has written."""
    found: dict[tuple[int, str], Row] = {}  # a kill between merging and clearing up leaves rows in two files
    for path in sorted(out.glob(f"{stem}*.jsonl")):
        for row in read_rows(path):
            if "index" in row and column in row:
                found.setdefault((row["index"], row[column]), row)
    return found


def _rewrite(out: Path, stem: str, rows: list[Row]) -> None:
    if distributed.rank() == 0:
        with replacing(out / f"{stem}.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        for other in out.glob(f"{stem}.rank*.jsonl"):
            other.unlink()
    distributed.patient_barrier()

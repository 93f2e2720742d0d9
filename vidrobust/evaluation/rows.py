"""Rows that are streamed to a file as they are found, by every rank, so that an evaluation goes on where it was killed.

A row is of a video (`index`) and of one thing that was done to it: `column` names the entry that says which, a threat
or a corruption. Work is in groups, the list of the (index, thing) pairs that are measured together.
A row that is there stays: a call with other videos, threats or corruptions adds its own.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust.engine import distributed
from vidrobust.errors import UserError
from vidrobust.files import read_rows, replacing

Row = dict[str, Any]
Key = tuple[int, str]
Group = Sequence[Key]
Combine = Callable[[Row, Row], Row]

# in the error of a row: the video decodes, and the model or its gradient is NaN or infinite there
MODEL_FAULT = "no finite numbers from the model"


def rank_files(out: Path, stem: str) -> list[Path]:
    """Return <stem>.jsonl and <stem>.rank<N>.jsonl, those that exist, in the order of ranks."""
    rank = re.compile(re.escape(stem) + r"(?:\.rank(\d+))?\.jsonl")
    found = [
        (int(name[1] or 0), path)
        for path in out.glob("*.jsonl")
        if (name := rank.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def earlier(old: Row, new: Row) -> Row:
    """Return the row that was there first."""
    return old


def unfinished(
    out: Path, stem: str, column: str, groups: Sequence[Group], *, combine: Combine = earlier
) -> tuple[list[int], dict[Key, Row]]:
    """Return (the numbers of the groups that have not all their rows, the rows that are there).

    Rows of all ranks are put into out/<stem>.jsonl; a line that a kill cut is left out.

    Args:
        out: the folder.
        stem: of the files.
        column: names the entry of a row that its key has beside the video's index.
        groups: what is asked for.
        combine: of two rows of one key.
    """
    rows = _read(out, stem, column, combine)
    distributed.patient_barrier()  # every rank has read what the first is about to rewrite
    _rewrite(out, stem, list(rows.values()))
    return [n for n, group in enumerate(groups) if any(key not in rows for key in group)], rows


@contextmanager
def appending(out: Path, stem: str) -> Iterator[Callable[[Sequence[Row]], None]]:
    """`append(rows)`, after which they are on the disk, in a file of this rank."""
    with open(out / f"{stem}{suffix()}.jsonl", "a") as file:

        def append(rows: Sequence[Row]) -> None:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

        yield append


def merged(
    out: Path, stem: str, column: str, groups: Sequence[Group], *, combine: Combine = earlier
) -> list[Row]:
    """Return all ranks' rows of the groups, in order, and put all rows into one file.

    Args:
        out: the folder.
        stem: of the files.
        column: names the entry of a row that its key has beside the video's index.
        groups: what is asked for; rows of other calls come before theirs.
        combine: of two rows of one key.
    """
    distributed.patient_barrier()  # every rank has written
    found = _read(out, stem, column, combine)
    rows = [found[key] for group in groups for key in group]
    asked = {key for group in groups for key in group}
    distributed.patient_barrier()
    _rewrite(out, stem, [row for key, row in found.items() if key not in asked] + rows)
    return rows


def suffix() -> str:
    """Return what the files of a rank other than the first are called beyond their stem."""
    return f".rank{distributed.rank()}" if distributed.rank() else ""


def decoding_failures(rows: Sequence[Row]) -> list[str]:
    """Return why videos do not decode, a reason a video, though its texture may be lost as well."""
    reasons: dict[object, str] = {}
    for row in rows:
        if row.get("error") and MODEL_FAULT not in row["error"]:
            reasons.setdefault(row.get("index", row["uid"]), row["error"])
    return list(dict.fromkeys(reasons.values()))


def model_faults(rows: Sequence[Row]) -> list[str]:
    """Return a warning, or none, of videos on which the model gives no finite numbers."""
    lost = {
        row.get("index", row["uid"]): row["error"]
        for row in rows
        if MODEL_FAULT in (row.get("error") or "")
    }
    if not lost:
        return []
    n = len({row.get("index", row.get("uid")) for row in rows})
    return [
        f"{len(lost)} of {n} videos count as wrong, as the model gives NaN or infinity on them; "
        f"the first: {next(iter(lost.values()))}"
    ]


def fault(uid: str, reason: str) -> str:
    """Return the error of a row whose video decodes, and whose numbers are not finite."""
    return f"{uid}: {MODEL_FAULT}: {reason}"


def require_label(uid: str, label: int, classes: int) -> None:
    """Raise UserError for a label that the model has no logit for.

    Args:
        uid: of the video.
        label: its class.
        classes: how many logits there are.
    """
    if not 0 <= label < classes:
        raise UserError(
            f"label={label} of {uid}: the model has classes 0 to {classes - 1}; leave the video "
            "out, or take a model of these classes"
        )


def _read(out: Path, stem: str, column: str, combine: Combine) -> dict[Key, Row]:
    """Return the rows that any rank has written."""
    found: dict[Key, Row] = {}  # a kill between merging and clearing up leaves rows in two files
    for path in rank_files(out, stem):
        for row in read_rows(path):
            if "index" not in row or column not in row:
                continue
            key = (row["index"], row[column])
            found[key] = combine(found[key], row) if key in found else row
    return found


def _rewrite(out: Path, stem: str, rows: list[Row]) -> None:
    if distributed.rank() == 0:
        with replacing(out / f"{stem}.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        for other in rank_files(out, stem)[1:]:
            other.unlink()
    distributed.patient_barrier()

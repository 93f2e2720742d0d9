"""List runs, evaluations and studies: how far they are, and which process works on them.

    python tools/status.py outputs
    python tools/status.py outputs/study --watch 10

It only reads, also while other processes write. Times left are those of the recent pace.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vidrobust.cli.folder_status import Status, statuses
from vidrobust.utils.errors import UserError
from vidrobust.utils.readable import duration, rough_time
from vidrobust.utils.text import visible

_TITLES = ("path", "kind", "state", "progress", "left", "last numbers", "written", "process")
_CLEAR = "\x1b[H\x1b[2J"  # moves a terminal's cursor to the top, and clears the screen


def main() -> None:
    """Print the status of what is in some folders, once or again and again."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="searched at any depth (outputs)"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument(
        "--watch", type=float, metavar="SECONDS", help="print again after so many seconds"
    )
    args = parser.parse_args()
    folders = args.folders or [Path("outputs")]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of runs")
    if args.watch is not None and not 0.1 <= args.watch <= 86400:
        raise UserError(f"--watch {args.watch:g}: must be 0.1 to 86400 seconds")
    while True:
        found = statuses(folders)
        if args.json:
            text = json.dumps([asdict(status) for status in found], indent=2)
        else:
            text = "\n".join(status_lines(found, time.time()))
        clear = _CLEAR if args.watch and sys.stdout.isatty() else ""
        print(clear + text, flush=True)
        if args.watch is None:
            return
        time.sleep(args.watch)


def status_lines(found: Sequence[Status], now: float) -> list[str]:
    """Return a table of plain text, and a line per status that has a note.

    Args:
        found: what the table lists.
        now: seconds since 1970.
    """
    if not found:
        return ["no runs, evaluations or studies"]
    rows = [_TITLES, *(_cells(status, now) for status in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    notes = [f"{visible(each.path)}: {visible(each.note)}" for each in found if each.note]
    return [*lines, *([""] if notes else []), *notes]


def _cells(status: Status, now: float) -> tuple[str, ...]:
    """Return the cells of a row."""
    age = "" if status.updated is None else f"{rough_time(max(0, now - status.updated))} ago"
    process = ""
    if status.pid is not None:
        process = f"{status.pid or 'unknown'} on {visible(status.host) or 'unknown'}"
    return (
        visible(status.path),
        status.kind,
        status.state,
        _progress(status),
        "" if status.left_s is None else duration(status.left_s),
        ", ".join(f"{visible(name)} {value:.4g}" for name, value in _some(status)),
        age,
        process,
    )


def _some(status: Status) -> list[tuple[str, float]]:
    """Return the first numbers of a status; --json has all of them."""
    return list(status.numbers.items())[:3]


def _progress(status: Status) -> str:
    """Return such as `12 of 40 steps`."""
    if status.done is None and status.total is None:
        return ""
    if status.total is None:
        return f"{status.done} {status.unit}"
    return f"{status.done or 0} of {status.total} {status.unit}"

"""Find runs, evaluations and studies below folders, and read how far they are.

Nothing is changed, and other processes may write all the while: a line that is cut off is left out,
and a file that cannot be understood makes a status "damaged". No model and no torch is needed.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidrobust.utils.atomic_files import Holder, holder

# states
RUNNING = "running"
STOPPED = "stopped"
FINISHED = "finished"
FAILED = "failed"
DAMAGED = "damaged"

_TAIL = 1 << 14  # bytes at the end of a log of a run: some forty rows
_ROWS_TAIL = 1 << 20  # bytes at the end of the rows of an evaluation
_RECENT = 10  # rows of which the mean time is the pace
# kind -> folders in one that hold no other run or evaluation, but may hold many files
_LEAVES = {
    "run": ("checkpoints", "tensorboard", "features", "jobs"),
    "evaluation": ("adversarial", "clips", "corrupted", "features", "labels", "tensorboard"),
}
# of the files whose rows an evaluation plans
_STEMS = ("results", "corruptions", "bias", "shift", "open_set", "transfer")
_ERROR = re.compile(r"\[[^\]]*\] E (.*)")  # a line of log.txt


@dataclass
class Status:
    """Hold how far a run, an evaluation or a study is.

    Attributes:
        path: its folder.
        kind: "run", "evaluation" or "study".
        state: "running", "stopped", "finished", "failed" or "damaged".
        done: steps, rows or runs that are done; None where that is unknown.
        total: those of the whole; None where that is unknown.
        unit: what `done` and `total` count.
        left_s: seconds that are left at the recent pace; None where that is unknown.
        numbers: name -> last number, such as loss or robust accuracy (a fraction).
        updated: when it last wrote, seconds since 1970; None if never.
        pid: of the process that holds the folder; None if none does, 0 if its id is unknown.
        host: machine of that process.
        note: why it failed or is damaged, or what it does.
    """

    path: str
    kind: str
    state: str
    done: int | None = None
    total: int | None = None
    unit: str = ""
    left_s: float | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    updated: float | None = None
    pid: int | None = None
    host: str = ""
    note: str = ""


def statuses(folders: Sequence[Path]) -> list[Status]:
    """Return the status of all runs, evaluations and studies in the folders, sorted by path.

    Links below the folders are followed if they lead to one of these directly; links back up and
    folders that are named twice are visited once.
    """
    found: dict[str, Status] = {}
    for folder, files in _walk(folders):
        try:
            status = _status_of(folder, files)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            status = Status(str(folder), _kind(files), DAMAGED, note=error.strerror or str(error))
        if status:
            found[str(folder)] = status
    ordered = [found[path] for path in sorted(found)]
    for status in ordered:
        if status.kind == "study":
            _finish_study(status, ordered)
    return ordered


def _walk(folders: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """Yield each folder below the given ones, with the names in it."""
    visited: set[tuple[int, int]] = set()
    stack = [(folder, False) for folder in folders]
    while stack:
        folder, is_link = stack.pop()
        try:
            where = folder.stat()
            if (where.st_dev, where.st_ino) in visited:
                continue
            with os.scandir(folder) as entries:
                listed = [(entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries]
        except OSError:  # deleted meanwhile, or not to be read
            continue
        names = {name for name, _, _ in listed}
        kind = _kind(names)
        if is_link and not kind:
            continue
        visited.add((where.st_dev, where.st_ino))
        yield folder, names
        for name, is_folder, links in listed:
            if is_folder and name not in _LEAVES.get(kind, ()):
                stack.append((folder / name, links))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or leads to one; links in a circle do not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _kind(names: set[str]) -> str:
    """Return what a folder with these names is, "" for any other folder."""
    if "identity.json" in names:
        return "evaluation"
    if "config.yaml" in names and names & {"env.json", "metrics.jsonl", "checkpoints"}:
        return "run"
    return "study" if names & {"study.json", "plan.json"} else ""


def _status_of(folder: Path, files: set[str]) -> Status | None:
    """Return the status of a folder, or None if it is neither run, evaluation nor study."""
    kind = _kind(files)
    if kind == "run":
        return _run(folder, files)
    if kind == "evaluation":
        return _evaluation(folder, files)
    return _study(folder, files) if kind else None


# --- Runs ---


def _run(folder: Path, files: set[str]) -> Status:
    """Return the status of a training run."""
    status = Status(str(folder), "run", STOPPED, unit="steps")
    _take_lock(status, folder / "env.json")
    rows = _tail(folder / "metrics.jsonl", _TAIL) if "metrics.jsonl" in files else []
    status.updated = _changed(folder, files, ["metrics.jsonl", "env.json"])
    if rows is None:
        status.state = DAMAGED
        status.note = "metrics.jsonl holds no rows"
        rows = []
    train = [row for row in rows if row.get("split") == "train" and _count(row.get("step")) >= 0]
    if train:
        last = train[-1]
        status.done = last["step"] + 1
        status.total = _count(last.get("total_steps")) if "total_steps" in last else None
        _take_numbers(status, last, ("loss",))
        status.left_s = _time_left(status, train[-_RECENT:])
    epochs = [row for row in rows if row.get("split") == "train_epoch"]
    if epochs:
        names = [name for name in epochs[-1] if name not in ("step", "epoch", "split")]
        _take_numbers(status, epochs[-1], names[:3])
    if status.pid is not None or status.state == DAMAGED:
        return status
    status.left_s = None
    whole = status.done is None or status.total is None or status.done >= status.total
    if "backbone.pt" in files and whole:
        status.state = FINISHED
    elif reason := _failure(folder, files, rows):
        status.state = FAILED
        status.note = reason
    return status


def _time_left(status: Status, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds that are left by the mean time of a step in some rows, or None."""
    times = [row["step_s"] for row in rows if _is_number(row.get("step_s"))]
    if not times or status.done is None or status.total is None:
        return None
    return max(0, status.total - status.done) * sum(times) / len(times)


def _failure(folder: Path, files: set[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return why a run that no process holds has failed, or "" if it was merely stopped."""
    if rows and isinstance(rows[-1].get("event"), str):
        return str(rows[-1]["event"])
    if "log.txt" not in files:
        return ""
    lines = _end_of(folder / "log.txt", _TAIL)[0].decode("utf-8", "replace").splitlines()
    error = _ERROR.fullmatch(lines[-1]) if lines else None
    return error[1] if error else ""


# --- Evaluations ---


def _evaluation(folder: Path, files: set[str]) -> Status:
    """Return the status of an evaluation."""
    status = Status(str(folder), "evaluation", STOPPED, unit="rows")
    if ".lock" in files:
        _take_lock(status, folder / ".lock")
    of_rows = {stem: _files_of(stem, files) for stem in _STEMS}
    written = [name for names in of_rows.values() for name in names]
    status.updated = _changed(folder, files, ["summary.json", "identity.json", *written])
    identity = _read_object(folder / "identity.json")
    if identity is None:
        status.state = DAMAGED
        status.note = "identity.json is damaged"
        return status
    planned = {
        stem: rows for stem, rows in _object(identity.get("planned")).items() if _count(rows) > 0
    }
    # earlier revisions wrote no `planned`, so that the total is unknown
    status.total = sum(planned.values()) if planned else None
    if "summary.json" in files:
        return _finished_evaluation(status, folder)
    counts = {stem: sum(_lines(folder / name) for name in names) for stem, names in of_rows.items()}
    if planned:
        counts = {stem: min(count, planned.get(stem, 0)) for stem, count in counts.items()}
    status.done = sum(counts.values())
    rows = []
    for name in of_rows["results"]:
        last = _tail(folder / name, _ROWS_TAIL)
        if last is None:
            status.state = DAMAGED
            status.note = f"{name} holds no rows"
            return status
        rows += last
    status.numbers = _robust_so_far(rows)
    if status.pid is None:
        return status
    if planned.get("results", 0) > counts["results"]:
        left = planned["results"] - counts["results"]
        status.left_s = _attack_time_left(folder, files, counts["results"], left)
    if not status.done:
        status.note = "no rows yet"  # it computes features, or attacks its first batch
    return status


def _finished_evaluation(status: Status, folder: Path) -> Status:
    """Complete the status of an evaluation with summary.json."""
    summary = _read_object(folder / "summary.json")
    if summary is None:
        status.state = DAMAGED
        status.note = "summary.json is damaged"
        return status
    if status.state != RUNNING:  # a process may be writing the report again
        status.state = FINISHED
    status.done = status.total
    if status.total is None and _count(summary.get("n")) >= 0:
        status.done = summary["n"]
        status.unit = "videos"
    _take_numbers(status, summary, ("clean_acc", "robust_acc"))
    for name, accuracy in _object(summary.get("representation")).items():
        acc = _object(accuracy).get("acc")
        if acc is not None and name in ("trained_probe", "head") and _is_number(acc):
            status.numbers[name.removeprefix("trained_")] = acc
    return status


def _robust_so_far(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the fraction of robust videos under each threat, of the rows that there are."""
    robust: dict[str, list[bool]] = {}
    for row in rows:
        if isinstance(row.get("threat"), str) and isinstance(row.get("robust"), bool):
            robust.setdefault(row["threat"], []).append(row["robust"])
    return {f"robust {threat}": sum(each) / len(each) for threat, each in robust.items()}


def _attack_time_left(folder: Path, files: set[str], done: int, left: int) -> float | None:
    """Return the seconds that attacks still take, by the last batches of each rank, or None.

    Args:
        folder: the folder of the evaluation.
        files: names in it.
        done: rows that are written.
        left: rows that are missing.
    """
    batches = 0
    rate = 0.0  # batches per second, of all ranks together
    for name in _files_of("timing", files):
        batches += _lines(folder / name)
        seconds = [
            sum(
                value
                for attacks in row.values()
                for value in _object(attacks).values()
                if _is_number(value)
            )
            for row in (_tail(folder / name, _TAIL) or [])[-_RECENT:]
        ]
        if sum(seconds) > 0:
            rate += len(seconds) / sum(seconds)
    if not rate or not done:
        return None
    return left / (done / batches) / rate


# --- Studies ---


def _study(folder: Path, files: set[str]) -> Status:
    """Return the status of a study, but for what `_finish_study` adds."""
    status = Status(str(folder), "study", STOPPED, unit="runs")
    status.updated = _changed(folder, files, ["study.json", "plan.json"])
    if "plan.json" not in files:
        return status
    plan = _read_object(folder / "plan.json")
    runs = plan.get("runs") if plan else None
    if not isinstance(runs, list):
        status.state = DAMAGED
        status.note = "plan.json is damaged"
        return status
    status.total = len(runs)
    return status


def _with_missing_evaluations(study: Path) -> set[str]:
    """Return the folders of runs that the study has still to measure."""
    plan = _read_object(study / "plan.json") if (study / "plan.json").is_file() else None
    evaluations = plan.get("evaluations") if plan else None
    if not isinstance(evaluations, dict):  # none, or of a study that began before they existed
        return set()
    return {
        str(study / run)
        for run, names in evaluations.items()
        if not all((study / run / "eval" / str(name) / "summary.json").is_file() for name in names)
    }


def _finish_study(study: Status, every: Sequence[Status]) -> None:
    """Complete the status of a study by its runs, in place.

    Args:
        study: the study.
        every: all that was found.
    """
    inside = [each for each in every if each.path.startswith(f"{study.path}{os.sep}")]
    measured = {
        str(Path(each.path).parents[1])
        for each in inside
        if each.kind == "evaluation" and each.state == FINISHED
    }
    runs = [each for each in inside if each.kind == "run"]
    missing = _with_missing_evaluations(Path(study.path))
    study.done = sum(
        run.state == FINISHED and run.path in measured and run.path not in missing for run in runs
    )
    active = next((each for each in inside if each.state == RUNNING), None)
    if study.state == DAMAGED:
        return
    if active:
        study.state = RUNNING
        study.pid = active.pid
        study.host = active.host
    elif study.done >= (study.total or len(runs)):
        study.state = FINISHED


# --- Reading what another process may be writing ---


def _take_lock(status: Status, path: Path) -> None:
    """Note the process that holds the lock of a folder, if one does."""
    holding: Holder | None = holder(path) if path.is_file() else None
    if holding:
        status.state = RUNNING
        status.pid = holding.pid
        status.host = holding.host


def _take_numbers(status: Status, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Take those of some values that are numbers."""
    for name in names:
        if _is_number(values.get(name)):
            status.numbers[name] = float(values[name])


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _count(value: object) -> int:
    """Return a whole number of a file; -1 for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 62 else -1


def _object(value: object) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file holds, or None."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _end_of(path: Path, size: int) -> tuple[bytes, bool]:
    """Return the last bytes of a file, and whether they are the whole file."""
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        return file.read(size), start == 0


def _tail(path: Path, size: int) -> list[dict[str, Any]] | None:
    """Return the last JSON objects of a .jsonl file, without lines that are cut off.

    Args:
        path: the file.
        size: bytes that are read.

    Returns:
        The objects; None for a file with whole lines, none of which is an object.
    """
    content, is_whole = _end_of(path, size)
    lines = content.split(b"\n")
    whole = lines[0 if is_whole else 1 : -1]  # the last one may be half written
    rows = []
    for line in whole:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows if rows or not any(whole) else None


def _lines(path: Path) -> int:
    """Return the number of whole lines of a file."""
    with open(path, "rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


def _files_of(stem: str, files: set[str]) -> list[str]:
    """Return the files of rows of all ranks, such as results.jsonl and results.rank1.jsonl."""
    rank = re.compile(re.escape(stem) + r"(\.rank\d+)?\.jsonl")
    return sorted(name for name in files if rank.fullmatch(name))


def _changed(folder: Path, files: set[str], names: Sequence[str]) -> float | None:
    """Return when one of these files was last changed, seconds since 1970; None without any."""
    times = [(folder / name).stat().st_mtime for name in names if name in files]
    return max(times, default=None)

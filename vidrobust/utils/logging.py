"""Log to the console, log.txt, metrics.jsonl and TensorBoard."""

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vidrobust.utils.atomic_files import read_rows, replacing
from vidrobust.utils.text import visible

log = logging.getLogger("vidrobust")
to_file = logging.getLogger(
    "vidrobust.file"
)  # for log.txt alone: the live bar shows it on a terminal


def start_logging(out: Path | None, *, quiet: bool = False) -> None:
    """Log to stderr and, given a run's folder, to its log.txt. quiet: nothing to stderr (ranks
    above 0).
    """
    stop_logging()
    log.setLevel(logging.INFO)
    log.propagate = False
    form = _OneLine("[%(asctime)s] %(levelname).1s %(message)s", "%m/%d %H:%M:%S")
    if quiet:
        log.addHandler(logging.NullHandler())  # or Python prints warnings by itself
    else:
        console = _Console()
        console.setFormatter(form)
        console.addFilter(lambda record: record.name == "vidrobust" or not sys.stderr.isatty())
        log.addHandler(console)
    if out is not None:
        file = _File(out / "log.txt", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(form)
        log.addHandler(file)


def to_console() -> bool:
    """Whether log lines reach stderr."""
    return any(isinstance(handler, _Console) for handler in log.handlers)


def stop_logging() -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


class _OneLine(logging.Formatter):
    """A name in a message is shown as text: an escape sequence in it would reach the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        record.message = visible(record.message)
        return super().formatMessage(record)


class _File(logging.FileHandler):
    """log.txt; a full disk costs its lines, and is reported by what has to be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Console(logging.Handler):
    """Lines above the live bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a terminal that is gone ends no run
            tqdm.write(self.format(record), file=sys.stderr)


class Metrics:
    """metrics.jsonl and TensorBoard, one row a logged step. A resumed run drops rows from `start`
    on first.
    """

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        if path.exists():
            kept = [row for row in read_metrics(out) if row["step"] < start]
            with replacing(path) as rewritten:
                rewritten.write("".join(f"{json.dumps(row)}\n" for row in kept).encode())
        self.file = open(path, "a", buffering=1)  # noqa: SIM115  (closed with the run)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, float):
                self.board.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, without lines that a kill has cut."""
    path = out / "metrics.jsonl"
    return (
        [row for row in read_rows(path) if type(row.get("step")) is int] if path.is_file() else []
    )


def logged_steps(out: Path) -> int:
    """Return how many steps the metrics of a run's folder have rows of; 0 where there are none."""
    return 1 + max((row["step"] for row in read_metrics(out)), default=-1)


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

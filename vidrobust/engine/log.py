"""What a run says: console, log.txt, metrics.jsonl, TensorBoard."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger("vidrobust")
to_file = logging.getLogger("vidrobust.file")  # for log.txt alone: the live bar shows it on a terminal


def start_logging(out: Path | None, *, quiet: bool = False) -> None:
    """Log to stderr and, given a run's folder, to its log.txt. quiet: nothing to stderr (ranks above 0)."""
    stop_logging()
    log.setLevel(logging.INFO)
    log.propagate = False
    form = logging.Formatter("[%(asctime)s] %(levelname).1s %(message)s", "%m/%d %H:%M:%S")
    if quiet:
        log.addHandler(logging.NullHandler())  # or Python prints warnings by itself
    else:
        console = _Console()
        console.setFormatter(form)
        console.addFilter(lambda record: record.name == "vidrobust" or not sys.stderr.isatty())
        log.addHandler(console)
    if out is not None:
        file = logging.FileHandler(out / "log.txt", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(form)
        log.addHandler(file)


def to_console() -> bool:
    """Whether log lines reach stderr."""
    return any(isinstance(handler, _Console) for handler in log.handlers)


def stop_logging() -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


class _Console(logging.Handler):
    """Lines above the live bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Metrics:
    """metrics.jsonl and TensorBoard, one row a logged step. A resumed run drops rows from `start` on first."""

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if _complete(line)]
            path.write_text("".join(f"{line}\n" for line in rows if json.loads(line)["step"] < start))
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


def _complete(line: str) -> bool:
    try:
        return "step" in json.loads(line)
    except json.JSONDecodeError:
        return False


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

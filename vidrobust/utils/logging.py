"""Log to the console, log.txt, metrics.jsonl and TensorBoard."""

import io
import json
import logging
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vidrobust.utils.atomic_files import read_rows, replacing
from vidrobust.utils.text import visible

if TYPE_CHECKING:
    import numpy as np

_FRAME_MS = 250  # of an animated picture
_print_error = threading.excepthook

log = logging.getLogger("vidrobust")
# lines for log.txt only: on a terminal the progress bar shows the same
to_file = logging.getLogger("vidrobust.file")


def start_logging(out: Path | None, *, quiet: bool = False) -> None:
    """Start logging to stderr and, if there is a run's folder, to its log.txt.

    Args:
        out: folder of the run, or None.
        quiet: log nothing to stderr; for ranks above 0.
    """
    stop_logging()
    log.setLevel(logging.INFO)
    log.propagate = False
    form = _OneLine("[%(asctime)s] %(levelname).1s %(message)s", "%m/%d %H:%M:%S")
    if quiet:
        log.addHandler(logging.NullHandler())  # without a handler Python prints warnings itself
    else:
        console = _Console()
        console.setFormatter(form)
        # lines of `to_file` reach stderr only if there is no terminal, and so no progress bar
        console.addFilter(lambda record: record.name == "vidrobust" or not sys.stderr.isatty())
        log.addHandler(console)
    if out is not None:
        file = _File(out / "log.txt", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(form)
        log.addHandler(file)


def to_console() -> bool:
    """Return whether log lines are written to stderr."""
    return any(isinstance(handler, _Console) for handler in log.handlers)


def report(message: str) -> None:
    """Report why the process ends: as a log line, if logging to the console has started.

    Args:
        message: the reason.
    """
    if to_console():
        log.error(message)
    else:
        with suppress(OSError):  # the terminal may be closed
            print(f"error: {visible(message)}", file=sys.stderr)


def print_error_of_thread(error: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, unless the main thread raises the same exception.

    TensorBoard's writer keeps the error of a full disk for the main thread, which reports it.
    """
    if error.exc_value is None or getattr(error.thread, "exception", None) is not error.exc_value:
        _print_error(error)


def stop_logging() -> None:
    """Close and remove all handlers of the package's logger."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


class _OneLine(logging.Formatter):
    """Escapes control characters: a file name with them could send commands to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        record.message = visible(record.message)
        return super().formatMessage(record)


class _File(logging.FileHandler):
    """Handler of log.txt. On a full disk it drops lines without an error.

    The run itself reports the full disk when it writes a file that it needs.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Console(logging.Handler):
    """Writes lines above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a closed terminal must not end the run
            tqdm.write(self.format(record), file=sys.stderr)


class Metrics:
    """Writes metrics.jsonl and TensorBoard files, one row per logged step.

    Rows of step `start` and later, which a resumed run writes again, are dropped first.
    """

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        path = out / "metrics.jsonl"
        if path.exists():
            kept = [row for row in read_metrics(out) if row["step"] < start]
            with replacing(path) as rewritten:
                rewritten.write("".join(f"{json.dumps(row)}\n" for row in kept).encode())
        self.file = open(path, "a", buffering=1)  # noqa: SIM115  (closed with the run)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start)

    def write(self, row: dict[str, Any]) -> None:
        """Write a row with "step" and "split"; TensorBoard gets its floats."""
        self.file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, float):
                self.board.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def write_clips(self, tag: str, frames: "np.ndarray", step: int) -> None:
        """Write an animated picture to TensorBoard, under "Images".

        `SummaryWriter.add_video` does the same by the package moviepy.

        Args:
            tag: its name.
            frames: (T, H, W, 3) uint8; one frame gives a still picture.
            step: of the run.
        """
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        encoded = io.BytesIO()
        first, *others = [Image.fromarray(frame) for frame in frames]
        if others:
            first.save(
                encoded, "GIF", save_all=True, append_images=others, duration=_FRAME_MS, loop=0
            )
        else:
            first.save(encoded, "PNG")
        picture = Summary.Image(
            height=frames.shape[1],
            width=frames.shape[2],
            colorspace=3,
            encoded_image_string=encoded.getvalue(),
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=picture)])
        self.board._get_file_writer().add_summary(summary, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, without incomplete lines."""
    path = out / "metrics.jsonl"
    if not path.is_file():
        return []
    return [row for row in read_rows(path) if type(row.get("step")) is int]


def logged_steps(out: Path) -> int:
    """Return the number of steps that a run has logged: the last step's number plus 1."""
    return 1 + max((row["step"] for row in read_metrics(out)), default=-1)

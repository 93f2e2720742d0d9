"""Start commands of this package as child processes.

This file imports only the standard library, because jobs of a cluster use it without torch.
"""

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from vidrobust.utils.stopping import end_with_parent
from vidrobust.utils.text import visible

_MAIN = "from vidrobust.cli.entry import main; main()"
_PACKAGE = Path(__file__).resolve().parents[2]
_TAIL = 1 << 14  # bytes at the end of a log that are read
_START_OF_ERROR = re.compile(r"\[[^\]]*\] E |error: ")


def command(words: Sequence[str]) -> list[str]:
    """Return the command line of `vidrobust WORDS`, by the Python of this process."""
    return [sys.executable, "-c", _MAIN, *words]


def import_path() -> dict[str, str]:
    """Return the environment by which other Pythons import the package of this process.

    A clone whose tools/ are run need not be installed.
    """
    if _PACKAGE.name in ("site-packages", "dist-packages"):
        return {}
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join([str(_PACKAGE), *filter(None, others)])}


def start(
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start `vidrobust WORDS`; it is asked to stop as soon as this process has ended.

    Args:
        words: the command and its arguments.
        environment: variables that replace or join those of this process.
        output: file for stdout and stderr; None: those of this process.
    """
    return subprocess.Popen(
        command(words),
        env={**os.environ, **import_path(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
    )


def last_line(log: Path, launcher: str = "\n") -> str:
    """Return the last line of a command's log, without what precedes an error.

    Args:
        log: file of its output, which may be missing.
        launcher: beginning of lines that are not the command's; by default none is.
    """
    written = []
    if log.is_file():
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
        written = [line for line in lines if line.strip() and not line.startswith(launcher)]
    if not written:
        return "it has written nothing"
    return visible(_START_OF_ERROR.sub("", written[-1], count=1))

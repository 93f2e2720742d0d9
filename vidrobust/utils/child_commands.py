"""Start commands of this package as child processes.

This file imports only the standard library, because jobs of a cluster use it without torch.
"""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from vidrobust.utils.stopping import end_with_parent

_MAIN = "from vidrobust.cli.entry import main; main()"
_PACKAGE = Path(__file__).resolve().parents[2]


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

"""Describe the process that makes results: command, date, revision, versions, hardware."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchvision

from vidrobust import __version__
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_json

ENVIRONMENT_FILE = "environment.json"  # in the folder of an evaluation


def environment() -> dict[str, Any]:
    """Return command, date, code revision, versions and hardware of this process."""
    revision = (
        subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,  # the revision of the package, not of the user's folder
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("git")
        else None
    )
    return {
        # the command that continues after an estimate is the same without it
        "command": shlex.join(word for word in sys.argv if word != "--estimate"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision.stdout.strip() if revision else "",
        "vidrobust": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "world_size": distributed.world(),
    }


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what `environment` returned for an evaluation; empty for one of earlier revisions.

    Args:
        folder: of the evaluation.

    Raises:
        UserError: for a damaged file.
    """
    path = folder / ENVIRONMENT_FILE
    return read_json(path, "delete it; reports then leave it out") if path.is_file() else {}

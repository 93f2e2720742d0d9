"""The folder a run leaves: described, and never mixed with another run's."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision

from vidrobust import __version__, config
from vidrobust.errors import UserError
from vidrobust.files import held

_TRAINS = "another process trains in {}; wait for it or stop it, or set --output-dir"


def check_output(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before any work is done, an output folder that holds something. Changes nothing."""
    if out.exists() and not out.is_dir():
        raise UserError(f"output directory {out} is a file; set --output-dir")
    if resume or not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"output directory {out} is in use; --resume goes on, --overwrite deletes it, "
            "--output-dir DIR writes elsewhere"
        )
    if not (out / "config.yaml").is_file():
        raise UserError(f"{out} is not the folder of a run (no config.yaml in it): not deleted")


@contextmanager
def open_output(out: Path, cfg: config.Config, *, overwrite: bool) -> Iterator[None]:
    """Make the folder of a run that is about to start, emptied if asked, with its config.yaml and env.json.

    Until the context ends it is this process's: another is refused with a UserError, and deletes nothing.
    """
    described = out / "env.json"
    if overwrite and out.is_dir():
        with held(described, _TRAINS):
            shutil.rmtree(out.resolve())
    out.mkdir(parents=True, exist_ok=True)
    with held(described, _TRAINS) as file:
        file.truncate(0)
        print(json.dumps(environment(), indent=2), file=file, flush=True)
        (out / "config.yaml").write_text(config.to_yaml(cfg))
        yield


def environment() -> dict[str, Any]:
    """Command, code revision, versions and hardware of this process."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    ) if shutil.which("git") else None  # fmt: skip
    return {
        "command": " ".join(sys.argv),
        "revision": revision.stdout.strip() if revision else "",
        "vidrobust": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch's global generator (weights, dropout); deterministic: documented flags for exact GPU runs."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True  # clips have one size: the fastest kernels are worth finding

"""The files that --overwrite may delete."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vidrobust.utils.errors import UserError

# rows of an evaluation, a file per rank, and what they are of
_STREAMS = ("results", "timing", "corruptions", "bias", "shift")
# files of an evaluation, relative to its folder
EVALUATION_FILES = (
    "identity.json",
    *(f"{stem}.jsonl" for stem in _STREAMS),
    *(f"{stem}.rank{'[0-9]' * digits}.jsonl" for stem in _STREAMS for digits in (1, 2, 3, 4)),
    *(f"{stem}.identity.json" for stem in _STREAMS),
    "features.pt",
    "features/t*.rows.jsonl",
    "features/t*.f32",
    "shift.partial/o*.rows.jsonl",
    "shift.partial/o*.f32",
    "predictions.jsonl",
    "checks.json",
    "summary.json",
    "report.md",
    "curve.png",
    "corruptions.png",
    "corruption_curves.png",
    "clips/*-??????.npz",
    "clips/*-??????.png",
    ".*.partial",
    "clips/.*.partial",
)


def require_deletable(folder: Path, reads: Mapping[str, str], option: str) -> None:
    """Refuse a folder in which --overwrite deletes nothing, whoever has written there.

    Args:
        folder: the folder.
        reads: option -> path of the data and weights that must not lie inside.
        option: what names the folder on the command line.

    Raises:
        UserError: for a link, the working directory and what is above it, and a folder that holds
            what the run reads.
    """
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a link: --overwrite deletes nothing there; set {option} to the folder "
            "itself"
        )
    real = folder.resolve()
    if Path.cwd().resolve().is_relative_to(real):
        raise UserError(
            f"{folder} is the working directory, or above it: --overwrite deletes nothing there; "
            f"set {option}"
        )
    for key, value in reads.items():
        if value and Path(value).expanduser().resolve().is_relative_to(real):
            raise UserError(
                f"{key}={value} lies inside {folder}: --overwrite deletes nothing there; set "
                f"{option}"
            )


def delete_files(folder: Path, patterns: Sequence[str]) -> None:
    """Delete the files of a folder that the patterns name, and the folders that they leave empty.

    Never links.
    """
    parents = set()
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.is_symlink() or not path.is_file() or path.parent.is_symlink():
            continue
        path.unlink()
        parents.add(path.parent)
    for parent in parents - {folder}:
        with suppress(OSError):  # somebody else's files are in it
            parent.rmdir()

"""Files that --overwrite may delete, and folders in which it deletes nothing."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from vidrobust.utils.errors import UserError

# Files of rows: NAME.jsonl, a NAME.rankN.jsonl per rank, and NAME.identity.json, the options and
# weights that the rows belong to.
_STREAMS = ("results", "timing", "corruptions", "bias", "shift", "open_set", "transfer")
# files for the projector of TensorBoard
PROJECTOR_FILES = (
    "tensorboard/events.out.tfevents.*",
    "tensorboard/projector_config.pbtxt",
    "tensorboard/tensors.tsv",
    "tensorboard/metadata.tsv",
    "tensorboard/sprite.png",
    "tensorboard/.*.partial",
)
# patterns of the files that an evaluation writes, relative to its folder
EVALUATION_FILES = (
    "identity.json",
    "environment.json",
    *(f"{stem}.jsonl" for stem in _STREAMS),
    *(f"{stem}.rank{'[0-9]' * digits}.jsonl" for stem in _STREAMS for digits in (1, 2, 3, 4)),
    *(f"{stem}.identity.json" for stem in _STREAMS),
    "features.pt",
    "features/t*.rows.jsonl",
    "features/t*.f32",
    "features/attacked_*.rows.jsonl",
    "features/attacked_*.f32",
    "shift.partial/o*.rows.jsonl",
    "shift.partial/o*.f32",
    "features/stages-t*.rows.jsonl",
    "features/stages-t*.f32",
    "features/augmented-*.rows.jsonl",
    "features/augmented-*.f32",
    "predictions.jsonl",
    "per_class.csv",
    "confusion_*.csv",
    "labels/train.txt",
    "labels/classes.txt",
    "retrieval.jsonl",
    "retrieval.png",
    "calibration.png",
    "open_set.partial/*.rows.jsonl",
    "open_set.partial/*.f32",
    "checks.json",
    "summary.json",
    "card.json",
    "baseline.json",
    "report.md",
    "report.html",
    "corrupted/*-[0-5].webp",
    "corrupted/video.json",
    "corrupted/.*.partial",
    "curve.png",
    "corruptions.png",
    "corruption_curves.png",
    "clips/*-??????.npz",
    "clips/*-??????.png",
    *(f"adversarial/*/{'[0-9]' * 6}*.{suffix}" for suffix in ("mkv", "png", "npz")),
    *(f"adversarial/*/{name}" for name in ("clips.jsonl", "test.txt", "classes.txt", "README.md")),
    "adversarial/*/.*.partial",
    "adversarial/saved.json",
    "adversarial/.*.partial",
    ".*.partial",
    "clips/.*.partial",
    *PROJECTOR_FILES,
)


def require_deletable(folder: Path, reads: Mapping[str, str], option: str) -> None:
    """Refuse a folder in which --overwrite must not delete anything.

    Args:
        folder: the folder.
        reads: option -> path of data or weights, which must not be inside the folder.
        option: command-line option that names the folder.

    Raises:
        UserError: for a link, for the working directory and its parents, and for a folder that
            contains files which the run reads.
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
    """Delete a folder's files that match the patterns, and subfolders that become empty.

    Links are never deleted or followed.
    """
    parents = set()
    # a list: the folder must not change while it is searched
    for path in list(chain.from_iterable(map(folder.glob, patterns))):
        inside = [parent for parent in path.parents if folder in parent.parents]
        if not path.is_file() or any(each.is_symlink() for each in (path, *inside)):
            continue
        path.unlink()
        parents.update(inside)
    # inner folders first
    for parent in sorted(parents, key=lambda each: len(each.parts), reverse=True):
        with suppress(OSError):  # it still holds files of the user
            parent.rmdir()

"""Records of videos without a data set: loose files, lists of files, and batches of clips."""

import glob
import hashlib
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidrobust.data.decoding.images import IMAGE_SUFFIXES
from vidrobust.data.records import VIDEO_SUFFIXES, Record, checked, file_path, files_below
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.text import places_of

# a file and its label: the name of a class, or its number
Labelled = tuple[str | Path, str | int]


def records_of_files(files: Sequence[Labelled], classes: Sequence[str]) -> list[Record]:
    """Return the records of a list of files.

    Args:
        files: (path, label) of each video, image or folder of frames. A label is a name of
            `classes`, in any case and punctuation, or a position in it.
        classes: names of the classes.

    Raises:
        UserError: for a missing file, one listed twice, and a label that is no class.
    """
    records = []
    for path, label in files:
        if not Path(path).exists():
            raise UserError(f"data: no file {path}")
        if isinstance(label, str) and (place := places_of(classes, [label])[0]) is not None:
            label = place
        records.append(Record(str(path), file_path(Path(path)), _checked(label, classes, path)))
    return checked(records, Path("data"))


def loose_records(videos: str, frames: int) -> list[Record]:
    """Return the records of loose videos, without labels.

    Args:
        videos: a file; a folder, whose videos at any depth are taken; or a pattern, such as
            "clips/*.mp4". A folder without videos may hold images: with frames = 1 each is a clip,
            otherwise each folder of images is a video.
        frames: number of frames of a clip.

    Raises:
        UserError: nothing is found.
    """
    top = Path(videos).expanduser()
    if top.is_dir():
        files = list(files_below(top))
        found = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        if not found:
            images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            found = images if frames == 1 else sorted({file.parent for file in images})
        # a folder of frames itself has its own name
        names = [str(file.relative_to(top)) if file != top else top.name for file in found]
    else:
        found = [Path(file) for file in sorted(glob.glob(str(top), recursive=True))]
        if top.exists():  # a name with characters of a pattern
            found = [top]
        names = [str(file) for file in found]
    if not found:
        raise UserError(f"--videos {videos}: no video there; give a file, a folder or a pattern")
    return [Record(name, file_path(file), -1) for name, file in zip(names, found, strict=True)]


def names_of(files: Sequence[Labelled]) -> list[str]:
    """Return the names of the classes in a list of files, sorted; numbers become their text."""
    labels = {label for _, label in files}
    names = sorted(label for label in labels if isinstance(label, str))
    if len(names) == len(labels):
        return names
    if names:
        raise UserError(f"data: some labels are names ({names[0]}) and some numbers; use one kind")
    return [str(number) for number in range(max(map(int, labels), default=-1) + 1)]


def records_of_clips(
    batches: Iterable[tuple[Tensor, Tensor]], folder: Path, classes: Sequence[str]
) -> tuple[list[Record], tuple[int, int]]:
    """Write batches of clips to files, from which an evaluation reads them as it reads videos.

    An evaluation reads its videos several times, which an iterable may not allow. Pixels are
    rounded to the 256 levels of a video.

    Args:
        batches: (clips, labels). Clips are (B, 3, T, H, W), or images (B, 3, H, W), float in [0, 1]
            or uint8. Labels are (B,), positions in `classes`.
        folder: gets a file per clip.
        classes: names of the classes.

    Returns:
        (the records, number of frames and size of the clips). A record's name has a hash of its
        pixels, so that other clips are another data set.

    Raises:
        UserError: for clips of other shapes, or values outside [0, 1], and for labels that are no
            class.
    """
    records: list[Record] = []
    shape: tuple[int, ...] | None = None
    rounded = 0.0
    folder.mkdir(parents=True, exist_ok=True)
    for batch in batches:
        clips, labels, change = _checked_batch(batch)
        rounded = max(rounded, change)
        shape = shape or tuple(clips.shape[1:])
        size = f"{clips.shape[1]} frames of {clips.shape[2]} x {clips.shape[3]} pixels"
        if shape[1] != shape[2]:
            raise UserError(f"data: clips of {size}; give square clips of one shape")
        if tuple(clips.shape[1:]) != shape:
            raise UserError(
                f"data: clips of {size}, the first of {shape[0]} of {shape[1]} x {shape[2]}; give"
                " clips of one shape"
            )
        for clip, label in zip(clips.numpy(), labels, strict=True):
            number = len(records)
            name = f"{number:06d}-{hashlib.sha256(clip.tobytes()).hexdigest()[:12]}"
            path = folder / f"{name}.npy"
            np.save(path, clip)
            records.append(Record(name, str(path), _checked(label, classes, f"clip {number}")))
    if shape is None:
        raise UserError("data: the iterable has no batch")
    if rounded > 1e-6:
        log.warning(f"clips are rounded to 256 levels, which changes pixels by {rounded:.2g}")
    return records, (shape[0], shape[1])


def _checked_batch(batch: Any) -> tuple[Tensor, list[Any], float]:
    """Return clips (B, T, H, W, 3) uint8, their labels, and the largest change by rounding."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise UserError(
            f"data: an item is {type(batch).__name__}; give pairs (clips, labels) or (path, label)"
        )
    clips, labels = (torch.as_tensor(each).detach().cpu() for each in batch)
    clips = clips.unsqueeze(2) if clips.ndim == 4 else clips
    if clips.ndim != 5 or clips.shape[1] != 3 or labels.shape != clips.shape[:1]:
        raise UserError(
            f"data: clips {tuple(clips.shape)} with labels {tuple(labels.shape)}; give"
            " (B, 3, T, H, W) or (B, 3, H, W) with (B,)"
        )
    change = 0.0
    if clips.dtype != torch.uint8 and len(clips):
        low, high = float(clips.min()), float(clips.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"data: clips have values from {low:.3g} to {high:.3g}; give pixels in [0, 1] or"
                " uint8, and the model's mean and std to wrap()"
            )
        levels = (clips.float() * 255).round()
        change = float((clips.float() - levels / 255).abs().max())
        clips = levels.byte()
    return clips.permute(0, 2, 3, 4, 1).contiguous(), labels.tolist(), change


def _checked(label: Any, classes: Sequence[str], where: Any) -> int:
    """Return a label as a number; raise UserError if it is no class."""
    try:
        number = -1 if isinstance(label, bool) else operator.index(label)
    except TypeError:  # text, a fraction
        number = -1
    if not 0 <= number < len(classes):
        raise UserError(
            f"data: label {label!r} of {where} is none of the {len(classes)} classes"
            f" {', '.join(classes[:3])}, ...; labels are names, or numbers from 0; classes=[...]"
            " gives other names"
        )
    return number

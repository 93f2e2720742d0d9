"""Prepare clips that an attack broke for a page: lossless sprites, within a number of bytes."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vidrobust.evaluation.report.page import data_uri

_FPS = 8.0  # where the rate of a clip is not known
_MOST = 64  # frames of a clip that are shown
_FEWEST = 4  # frames that a clip keeps when it must be shortened
_MARKUP_BYTES = 2_500  # of a clip in the page, without its pictures and strips
_STRIP_BYTES = 100  # of a cell of a strip


@dataclass(frozen=True)
class ShownClip:
    """A clip of the report: its frames, and what was predicted.

    Attributes:
        uid: name of the video.
        threat: the budget.
        attack: which attack broke it; "" in files of earlier revisions.
        true: name of its class.
        clean: name of the class that is predicted without an attack.
        taken: name of the class that is predicted for the adversarial clip.
        rounded: the same after rounding to 8 bits; "" in files of earlier revisions.
        frames: numbers of the frames that are shown.
        total: number of frames of the clip.
        width: of a frame, in pixels.
        height: of a frame, in pixels.
        columns: frames in a row of a sprite.
        fps: frames per second of the shown frames.
        gain: factor by which the difference is amplified.
        original: sprite of the clip, as an address.
        adversarial: sprite of the adversarial clip, rounded to 8 bits.
        strip: per measured frame: its number, then the probabilities of the true and of the taken
            class for the clip, and the same for the adversarial clip; empty in files of earlier
            revisions.
    """

    uid: str
    threat: str
    attack: str
    true: str
    clean: str
    taken: str
    rounded: str
    frames: list[int]
    total: int
    width: int
    height: int
    columns: int
    fps: float
    gain: float
    original: str
    adversarial: str
    strip: list[list[float]]

    @property
    def size(self) -> int:
        """Bytes in the page, about."""
        names = 20 * max(len(self.uid), len(self.true), len(self.taken))
        strips = 4 * _STRIP_BYTES * len(self.strip)
        return self.pictures + _MARKUP_BYTES + names + strips

    @property
    def pictures(self) -> int:
        """Bytes of both sprites."""
        return len(self.original) + len(self.adversarial)


def shown_clips(
    paths: Sequence[Path], classes: Sequence[str], kinds: Sequence[str], most: int
) -> list[ShownClip]:
    """Return as many clips as fit into a number of bytes, at least one of each kind of threat.

    The first clip of each kind has an equal part of the bytes, at most a third; what is left goes
    to all other clips in turn. A clip that is too large is shown with fewer frames, which the page
    says.

    Args:
        paths: the .npz files, named KIND-NUMBER.npz.
        classes: names of the classes.
        kinds: kinds of threats as parts of file names, the most important first.
        most: bytes of all clips.
    """
    by_kind: dict[str, list[Path]] = {kind: [] for kind in kinds}
    for path in sorted(paths):
        by_kind.setdefault(path.stem.rpartition("-")[0], []).append(path)
    groups = [group for group in by_kind.values() if group]
    # no clip takes more than a third, so that there are several
    clips = [_shown(group[0], classes, most // max(len(groups), 3)) for group in groups]
    left = most - sum(clip.size for clip in clips if clip)
    others = chain(*zip_longest(*(group[1:] for group in groups)))
    for path in (path for path in others if path is not None):
        clip = _shown(path, classes, min(left, most // 3))
        if clip:
            clips.append(clip)
            left -= clip.size
    return [clip for clip in clips if clip]


def _shown(path: Path, classes: Sequence[str], most: int) -> ShownClip | None:
    """Return a clip in at most so many bytes; None where a few frames are too many.

    Args:
        path: of the .npz file.
        classes: names of the classes.
        most: bytes in the page.
    """
    with np.load(path) as saved:
        content = dict(saved)
    # (C, T, H, W) -> (T, H, W, C)
    clip = content["clip"].transpose(1, 2, 3, 0)
    adversarial = content["adversarial"].astype(np.float64).clip(0, 1)
    twin = (255 * adversarial).round().astype(np.uint8).transpose(1, 2, 3, 0)
    total = len(clip)
    # the size of one frame says about how many fit: encoding all of a large clip takes seconds
    middle = np.array([total // 2])
    one = _with_frames(content, classes, clip, twin, middle)
    room = most - (one.size - one.pictures)  # without text and strips, which all frames share
    count = min(total, _MOST, int(room / one.pictures))
    while count >= min(_FEWEST, total):
        frames = np.linspace(0, total - 1, count).round().astype(int)
        shown = _with_frames(content, classes, clip, twin, frames)
        if shown.size <= most:
            return shown
        count = min(count - 1, int(count * room / shown.pictures))
    return None


def _with_frames(
    content: dict[str, Any],
    classes: Sequence[str],
    clip: np.ndarray,
    twin: np.ndarray,
    frames: np.ndarray,
) -> ShownClip:
    """Return a clip with some of its frames.

    Args:
        content: of the .npz file.
        classes: names of the classes.
        clip: (T, H, W, 3) uint8.
        twin: the adversarial clip, (T, H, W, 3) uint8.
        frames: numbers of the frames to show.
    """
    columns = math.ceil(math.sqrt(len(frames)))
    total, height, width = clip.shape[:3]
    largest = np.abs(twin.astype(int) - clip).max()
    fps = float(content.get("fps", 0.0)) or _FPS
    return ShownClip(
        uid=str(content["uid"]),
        threat=str(content["threat"]),
        attack=str(content.get("killed_by", "")),
        true=class_name(classes, int(content["label"])),
        clean=class_name(classes, int(content["clean_pred"])),
        taken=class_name(classes, int(content["adv_pred"])),
        rounded=(
            class_name(classes, int(content["rounded_pred"])) if "rounded_pred" in content else ""
        ),
        frames=frames.tolist(),
        total=total,
        width=width,
        height=height,
        columns=columns,
        fps=min(max(fps * len(frames) / total, 1.0), 30.0),
        gain=float(np.clip(127 // max(largest, 1), 1, 127)),
        original=_sprite(clip[frames], columns),
        adversarial=_sprite(twin[frames], columns),
        strip=_strip(content),
    )


def _strip(content: dict[str, Any]) -> list[list[float]]:
    """Return the confidence by frame, which files of earlier revisions do not have."""
    if "clean_by_frame" not in content:
        return []
    both = np.concatenate([content["clean_by_frame"], content["adv_by_frame"]], 1)
    numbers = np.nan_to_num(both).round(3).tolist()
    return [[int(frame), *values] for frame, values in zip(content["frames"], numbers, strict=True)]


def _sprite(frames: np.ndarray, columns: int) -> str:
    """Return frames (T, H, W, 3) uint8 side by side in one lossless picture, as an address."""
    count, height, width = frames.shape[:3]
    rows = -(-count // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, frame in enumerate(frames):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = frame
    file = io.BytesIO()
    # a lossy codec would remove changes of 1/255
    Image.fromarray(sheet).save(file, format="WEBP", lossless=True, exact=True, quality=50)
    return data_uri(file.getvalue(), "webp")


def class_name(classes: Sequence[str], number: int) -> str:
    """Return the name of a class, or its number if it has no name."""
    return classes[number] if 0 <= number < len(classes) else f"class {number}"

"""Texture twins: for each file a copy that shows only its texture (Ge et al. 2021)."""

import itertools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vidrobust.data.decoding.images import TORCHVISION
from vidrobust.data.places import place_below, stamp
from vidrobust.data.prepare.provenance import read_mark, same_sources, size_of
from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError
from vidrobust.views.augment import ViewDraw
from vidrobust.views.texture_synthesis import patch_side, patches_of, show, synthesize

log = logging.getLogger("vidrobust")
KINDS = ("still", "moving")


def texture_frames(
    frames: Iterator[np.ndarray],
    count: int,
    rng: np.random.Generator,
    *,
    kind: str,
    patch_px: int,
    size: int,
) -> Iterator[np.ndarray]:
    """Yield the texture of a clip, as many frames as the clip has.

    The examples of the texture are two patches, the central one and a random one. No more of the
    clip is kept than its patches.

    Args:
        frames: the `count` frames of the clip, (H, W, 3) uint8 each.
        count: number of frames.
        rng: source of randomness.
        kind: "still" takes the patches from the middle frame, and all frames are equal; "moving"
            takes them from every frame, and what moves in them goes on moving.
        patch_px: side of the patches, in pixels (see `patch_side`).
        size: side S of the texture in pixels, or the shorter side of the frames if that is smaller.

    Yields:
        Arrays (S, S, 3) uint8.

    Raises:
        ValueError: the frames have fewer than 9 pixels a side.
    """
    first = next(frames)
    short = min(first.shape[:2])
    side = patch_side(patch_px, short)
    seed = int(rng.integers(2**63))
    kept: list[list[np.ndarray]] = [[], []]
    for number, frame in enumerate(itertools.chain([first], frames)):
        if kind == "moving" or number == count // 2:
            # The same seed gives the same places in every frame.
            pair = patches_of(frame[None], side, np.random.default_rng(seed))
            for patches, patch in zip(kept, pair, strict=True):
                patches.append(patch[0].copy())
    examples = [np.stack(patches) for patches in kept]
    textures = show(examples, synthesize(examples, min(size, short), rng))
    yield from textures if kind == "moving" else itertools.repeat(next(textures), count)


class Twins:
    """Locate the texture twins of a data set.

    Called with the path of a record, it returns the path of the twin.

    Args:
        root: root of the data set.
        twins: folder of the twins, in which they have the same relative paths.
        archives: archives that hold the files of the data set; (): they are loose.
    """

    def __init__(self, root: str, twins: str, archives: Sequence[Path] = ()) -> None:
        self.root = os.path.abspath(Path(root).expanduser())
        self.twins = os.path.abspath(Path(twins).expanduser())
        self.archives = tuple(map(str, archives))

    def __call__(self, path: str) -> str:
        """Return the path of the twin of a file of the data set."""
        return os.path.join(self.twins, place_below(path, self.root))

    def require(self, records: Sequence[Record]) -> None:
        """Raise UserError if a record has no twin, or would be its own twin."""
        if any(record.path.startswith(TORCHVISION) for record in records):
            raise UserError(
                "data.twins: torchvision's data sets are arrays, and have no textures; save them"
                " as a folder of images (data.name=image_folder)"
            )
        if os.path.realpath(self.root) == os.path.realpath(self.twins):
            raise UserError(
                f"data.twins={self.twins}: is data.root, but the files are not their own textures;"
                " set it to the folder that datasets/prepare.py texture writes"
            )
        if not os.path.isdir(self.twins):
            raise UserError(
                f"data.twins={self.twins}: no such folder; python datasets/prepare.py texture"
                " makes it"
            )
        if doubt := self.doubt():
            log.warning(doubt)
        # A path that leaves the folder of the twins belongs to a file outside the data set.
        outside = next(
            (r for r in records if os.path.relpath(self(r.path), self.twins).startswith("..")), None
        )
        if outside is not None:
            raise UserError(
                f"{outside.path} is outside {self.root}, and has no texture; list files inside it"
            )
        missing = [record for record in records if not os.path.exists(self(record.path))]
        if missing:
            raise UserError(
                f"data.twins={self.twins}: {len(missing)} of {len(records)} files have no texture,"
                f" first {self(missing[0].path)}; python datasets/prepare.py texture makes them,"
                " those of another data set in another folder"
            )

    def doubt(self) -> str:
        """Return why the twins may be the textures of another data set; "" for no doubt.

        Raises UserError if the folder holds copies that are not textures.
        """
        mark = read_mark(self.twins)
        if mark is None:
            return (
                f"data.twins={self.twins} was not made by prepare.py texture: its files are used"
                " as they are"
            )
        if "texture" not in mark:
            raise UserError(
                f"data.twins={self.twins} holds copies that are not textures; datasets/prepare.py"
                " texture makes them"
            )
        # Textures may be of the data set, or of the files that the data set is a resized copy of.
        sizes = mark.get("sources", {})
        sizes_in_root = {name: self._size(name) for name in sizes}
        sizes_copied = (read_mark(self.root) or {}).get("sources", {})
        if not same_sources(sizes, sizes_in_root) and not same_sources(sizes, sizes_copied):
            return (
                f"data.twins={self.twins}: textures of files that have other sizes than those in"
                f" {self.root}: are they of this data set?"
            )
        return ""

    def _size(self, name: str) -> int:
        """Return the size of a file of the data set; -1 if there is none of that name."""
        members = (stamp(f"{archive}/{name}")[0] for archive in self.archives)
        return next((size for size in members if size >= 0), size_of(os.path.join(self.root, name)))


def twin_draw(draw: ViewDraw, source: tuple[int, int], twin: tuple[int, int]) -> ViewDraw:
    """Return the view of a twin that corresponds to a view of its source.

    The box keeps the aspect ratio of the source's box, because stretching would give a texture
    away. It covers the same fraction of the area, as for the two boxes of Ge et al. 2021, or as
    much of it as fits. It lies at the same relative distance from the edges.

    Args:
        draw: view parameters for the source.
        source: (height, width) of the source's frames.
        twin: (height, width) of the twin's frames.
    """
    if source == twin:
        return draw
    # The scale that keeps the fraction of the area, unless the box would not fit.
    scale = math.sqrt(twin[0] * twin[1] / (source[0] * source[1]))
    scale = min(scale, twin[0] / draw.height, twin[1] / draw.width)
    height = max(1, round(draw.height * scale))
    width = max(1, round(draw.width * scale))
    top = _moved(draw.top, source[0] - draw.height, twin[0] - height, scale)
    left = _moved(draw.left, source[1] - draw.width, twin[1] - width, scale)
    return replace(draw, top=top, left=left, height=height, width=width)


def _moved(place: int, room: int, twins_room: int, scale: float) -> int:
    """Return where a box begins in a twin: as far between the edges, or as far beyond them.

    Args:
        place: first row or column of the box in the source; may be outside the frame.
        room: largest first row or column at which the box lies inside the source.
        twins_room: the same for the twin.
        scale: size of the twin's box in units of the source's box.
    """
    beyond = min(place, 0) + max(place - room, 0)
    return round((place - beyond) / max(1, room) * twins_room + beyond * scale)

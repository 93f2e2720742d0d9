"""Texture twins: per file a copy that shows only its texture (Ge et al. 2021)."""

import itertools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

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
    """The `count` frames (H, W, 3) uint8 of a clip -> as many of its texture, (S, S, 3), S =
    min(size, H, W).

    The examples are two patches, the central one and a random one, of `patch_px` pixels
    (`patch_side`). kind: "still": of the middle frame, and all frames are alike; "moving": of all
    frames, and what moves in them goes on moving. No more of the clip is held than its patches.
    Raises ValueError for frames of less than 9 pixels a side.
    """
    first = next(frames)
    short = min(first.shape[:2])
    side, seed = patch_side(patch_px, short), int(rng.integers(2**63))
    kept: list[list[np.ndarray]] = [[], []]
    for number, frame in enumerate(itertools.chain([first], frames)):
        if kind == "moving" or number == count // 2:
            found = patches_of(
                frame[None], side, np.random.default_rng(seed)
            )  # the same places in each frame
            for patches, patch in zip(kept, found, strict=True):
                patches.append(patch[0].copy())
    examples = [np.stack(patches) for patches in kept]
    made = show(examples, synthesize(examples, min(size, short), rng))
    yield from made if kind == "moving" else itertools.repeat(next(made), count)


class Twins:
    """Where the twins of a data set's files lie. Called with a record's path, it gives the path of
    its twin.
    """

    def __init__(self, root: str, twins: str) -> None:
        self.root, self.twins = (
            os.path.abspath(Path(folder).expanduser()) for folder in (root, twins)
        )

    def __call__(self, path: str) -> str:
        return os.path.join(self.twins, os.path.relpath(os.path.abspath(path), self.root))

    def require(self, records: Sequence[Record]) -> None:
        """Raises UserError where a record has none, or would be its own."""
        if any(record.path.startswith("torchvision:") for record in records):
            raise UserError(
                "data.twins: torchvision's data sets are arrays, and have no textures; unpack them"
                " as a folder of images (data.name=image_folder)"
            )
        if os.path.realpath(self.root) == os.path.realpath(self.twins):
            raise UserError(
                f"data.twins={self.twins} is data.root: the files are not their own textures"
            )
        if not os.path.isdir(self.twins):
            raise UserError(
                f"data.twins={self.twins}: no such folder; python datasets/prepare.py texture"
                " makes it"
            )
        if doubt := self.doubt():
            log.warning(doubt)
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
        """What speaks against these being the textures of the data set; "" for nothing. Raises
        UserError for copies.
        """
        mark = read_mark(self.twins)
        if mark is None:
            return (
                f"data.twins={self.twins} was not made by prepare.py texture: its files are taken"
                " as they are"
            )
        if "texture" not in mark:
            raise UserError(
                f"data.twins={self.twins} holds copies, and no textures; datasets/prepare.py"
                " texture makes them"
            )
        sizes, copied = mark.get("sources", {}), (read_mark(self.root) or {}).get("sources", {})
        there = {name: size_of(os.path.join(self.root, name)) for name in sizes}
        if not same_sources(sizes, there) and not same_sources(sizes, copied):
            return (
                f"data.twins={self.twins}: textures of files that have other sizes than those in"
                f" {self.root}: are they of this data set?"
            )
        return ""


def twin_draw(draw: ViewDraw, source: tuple[int, int], twin: tuple[int, int]) -> ViewDraw:
    """The draw of a view of frames of `source` (height, width), for a twin that has another size.

    Its box has the shape of the draw's, as a texture would be known by its stretching, and the same
    share of the area (paper C draws both boxes so, METHODS section 3.3) or what fits of it; it lies
    as far between the edges.
    """
    if source == twin:
        return draw
    larger = math.sqrt(twin[0] * twin[1] / (source[0] * source[1]))
    larger = min(larger, twin[0] / draw.height, twin[1] / draw.width)
    height, width = (max(1, round(side * larger)) for side in (draw.height, draw.width))
    top = _moved(draw.top, source[0] - draw.height, twin[0] - height, larger)
    left = _moved(draw.left, source[1] - draw.width, twin[1] - width, larger)
    return replace(draw, top=top, left=left, height=height, width=width)


def _moved(place: int, room: int, twins_room: int, larger: float) -> int:
    """Return where a box begins in a twin: as far between the edges, or as far beyond them."""
    beyond = min(place, 0) + max(place - room, 0)
    return round((place - beyond) / max(1, room) * twins_room + beyond * larger)

"""Pictures of a clip under corruptions, or as negatives and cues."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from vidrobust.corruptions import SEVERITIES, corrupt
from vidrobust.data.prepare.texture_twins import texture_frames
from vidrobust.evaluation.natural.bias import ALONE, PAIRED
from vidrobust.views import NEGATIVES, NegativeSpec, draw_numbers, negatives

_LABEL_PX, _GAP_PX, _FRAMES = 12, 6, 6


def contact_sheet(
    clip: np.ndarray, names: Sequence[str], *, frame: int, seed: int = 0, blocks: int = 2
) -> Image.Image:
    """A row a corruption: `frame` of the clip (T, H, W, 3) uint8 as it is, then at severities 1 to
    5; `blocks` of rows, each under a line that says so.

    Each has its own generator, of `seed`. Raises ValueError as `corrupt` does, and for a frame that
    the clip has not.
    """
    if not 0 <= frame < len(clip):
        raise ValueError(f"frame {frame} of a clip of {len(clip)}")
    height, width = clip.shape[1:3]
    down = -(-len(names) // blocks)
    across_px, down_px = (len(SEVERITIES) + 1) * width + _GAP_PX, height + _LABEL_PX
    sheet = Image.new("RGB", (blocks * across_px - _GAP_PX, _LABEL_PX + down * down_px), "white")
    draw = ImageDraw.Draw(sheet)
    for block in range(blocks):
        for column, title in enumerate(["clean", *map(str, SEVERITIES)]):
            draw.text(
                (block * across_px + (column + 0.5) * width, 0), title, fill="black", anchor="ma"
            )
    for number, name in enumerate(names):
        left, top = number // down * across_px, _LABEL_PX + number % down * down_px
        draw.text((left + 1, top), name, fill="black")
        shown = [
            clip,
            *(
                corrupt(clip, name, severity, np.random.default_rng(seed))
                for severity in SEVERITIES
            ),
        ]
        for column, changed in enumerate(shown):
            sheet.paste(Image.fromarray(changed[frame]), (left + column * width, top + _LABEL_PX))
    return sheet


def cues(
    clip: np.ndarray,
    names: Sequence[str],
    spec: NegativeSpec,
    *,
    seed: int = 0,
    other: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """name -> what a clip (T, H, W, 3) uint8, H = W, becomes: of NEGATIVES, as `spec` says, ALONE,
    PAIRED or "texture".

    other: a clip of another class, of the same shape, for PAIRED. Each has its own generator, of
    `seed`. Raises ValueError for clips that have not the frames or pixels of it.
    """
    x, beside = (
        None if part is None else torch.from_numpy(part).permute(3, 0, 1, 2)[None].float() / 255
        for part in (clip, other)
    )
    assert x is not None
    found = {}
    for name in names:
        rng = np.random.default_rng(seed)
        if name == "texture":
            kind = "moving" if len(clip) > 1 else "still"
            made = texture_frames(
                iter(clip), len(clip), rng, kind=kind, patch_px=96, size=clip.shape[1]
            )
            found[name] = np.stack(list(made))
            continue
        if name in NEGATIVES:
            one = replace(spec, names=(name,), count=1)
            changed = negatives(x, one, draw_numbers(one, x.shape[2:], [rng]))[:, 0]
        elif name in PAIRED and beside is not None:
            changed = PAIRED[name](x, beside, [rng])
        else:
            changed = ALONE[name](x, [rng])
        found[name] = (255 * changed[0]).round().byte().permute(1, 2, 3, 0).numpy()
    return found


def cue_sheet(clips: Mapping[str, np.ndarray], blocks: int = 2) -> Image.Image:
    """A row a clip (T, S, S, 3) uint8, six frames of it evenly or all there are, under its name;
    `blocks` of rows.
    """
    frames, side = next(iter(clips.values())).shape[:2]
    shown = np.linspace(0, frames - 1, min(frames, _FRAMES)).round().astype(int)
    down, across_px = -(-len(clips) // blocks), len(shown) * side + _GAP_PX
    sheet = Image.new("RGB", (blocks * across_px - _GAP_PX, down * (side + _LABEL_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, clip) in enumerate(clips.items()):
        left, top = number // down * across_px, number % down * (side + _LABEL_PX)
        draw.text((left + 1, top), name, fill="black")
        for column, t in enumerate(shown):
            sheet.paste(Image.fromarray(clip[t]), (left + column * side, top + _LABEL_PX))
    return sheet

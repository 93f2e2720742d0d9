"""Pictures of a clip under corruptions, or as negatives and cues."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vidrobust.corruptions import SEVERITIES, corrupt
from vidrobust.data.prepare.texture_twins import texture_frames
from vidrobust.evaluation.natural.bias import ALONE, PAIRED
from vidrobust.views import NEGATIVES, NegativeSpec, draw_numbers, negatives

_LABEL_PX, _GAP_PX = 12, 6  # height of a line of text; space between blocks of rows
_FRAMES = 6  # largest number of frames shown of a clip
_PATCH_PX = 96  # side of the patches that a texture is made from, in a frame of 224 pixels


def contact_sheet(
    clip: np.ndarray, names: Sequence[str], *, frame: int, seed: int = 0, blocks: int = 2
) -> Image.Image:
    """Draw one frame of a clip under corruptions, a row per corruption.

    A row shows the unchanged frame, then severities 1 to 5. Each block of rows has a title line.

    Args:
        clip: the clip, (T, H, W, 3) uint8.
        names: names of the corruptions.
        frame: number of the frame that is shown, from 0.
        seed: seed of the random numbers; every picture has its own generator.
        blocks: number of blocks of rows side by side.

    Raises:
        ValueError: for a frame that the clip does not have, and as `corrupt` does.
    """
    if not 0 <= frame < len(clip):
        raise ValueError(f"frame={frame}: the clip has frames 0 to {len(clip) - 1}")
    height, width = clip.shape[1:3]

    # The size of the sheet: blocks side by side, each with `down` rows under a title line.
    down = -(-len(names) // blocks)
    across_px = (len(SEVERITIES) + 1) * width + _GAP_PX
    down_px = height + _LABEL_PX
    sheet = Image.new("RGB", (blocks * across_px - _GAP_PX, _LABEL_PX + down * down_px), "white")
    draw = ImageDraw.Draw(sheet)

    # Titles of the columns.
    for block in range(blocks):
        for column, title in enumerate(["clean", *map(str, SEVERITIES)]):
            centre = block * across_px + (column + 0.5) * width
            draw.text((centre, 0), title, fill="black", anchor="ma")

    # A row per corruption: its name, then the frames.
    for number, name in enumerate(names):
        left = number // down * across_px
        top = _LABEL_PX + number % down * down_px
        draw.text((left + 1, top), name, fill="black")
        clips = [clip]
        for severity in SEVERITIES:
            clips.append(corrupt(clip, name, severity, np.random.default_rng(seed)))
        for column, shown in enumerate(clips):
            sheet.paste(Image.fromarray(shown[frame]), (left + column * width, top + _LABEL_PX))
    return sheet


def cues(
    clip: np.ndarray,
    names: Sequence[str],
    spec: NegativeSpec,
    *,
    seed: int = 0,
    other: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return a clip as negatives, without a cue, and with two cues that disagree.

    Args:
        clip: the clip, (T, S, S, 3) uint8.
        names: names of NEGATIVES, ALONE or PAIRED, or "texture".
        spec: options of the negatives.
        seed: seed of the random numbers; every clip has its own generator.
        other: a clip of another class, of the same shape, for names of PAIRED.

    Returns:
        Name -> clip, (T, S, S, 3) uint8.

    Raises:
        ValueError: for clips with too few frames or pixels for a name.
    """
    x = _to_tensor(clip)
    other_x = None if other is None else _to_tensor(other)
    clips = {}
    for name in names:
        rng = np.random.default_rng(seed)
        if name == "texture":
            clips[name] = _texture(clip, rng)
            continue
        # Negatives follow the options of `spec`; all other views have none.
        if name in NEGATIVES:
            one = replace(spec, names=(name,), count=1)
            changed = negatives(x, one, draw_numbers(one, x.shape[2:], [rng]))[:, 0]
        elif name in PAIRED and other_x is not None:
            changed = PAIRED[name](x, other_x, [rng])
        else:
            changed = ALONE[name](x, [rng])
        clips[name] = (255 * changed[0]).round().byte().permute(1, 2, 3, 0).numpy()
    return clips


def _to_tensor(clip: np.ndarray) -> Tensor:
    """Return a clip (T, H, W, 3) uint8 as a batch of one, (1, 3, T, H, W) in [0, 1]."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 255


def _texture(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the texture twin of a clip (T, S, S, 3) uint8."""
    kind = "moving" if len(clip) > 1 else "still"
    frames = texture_frames(
        iter(clip), len(clip), rng, kind=kind, patch_px=_PATCH_PX, size=clip.shape[1]
    )
    return np.stack(list(frames))


def cue_sheet(clips: Mapping[str, np.ndarray], blocks: int = 2) -> Image.Image:
    """Draw clips, a row per clip: its name, and at most six of its frames, spread evenly.

    Args:
        clips: name -> clip, (T, S, S, 3) uint8, all of one shape.
        blocks: number of blocks of rows side by side.
    """
    frames, side = next(iter(clips.values())).shape[:2]
    shown = np.linspace(0, frames - 1, min(frames, _FRAMES)).round().astype(int)
    down = -(-len(clips) // blocks)
    across_px = len(shown) * side + _GAP_PX
    down_px = side + _LABEL_PX
    sheet = Image.new("RGB", (blocks * across_px - _GAP_PX, down * down_px), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, clip) in enumerate(clips.items()):
        left = number // down * across_px
        top = number % down * down_px
        draw.text((left + 1, top), name, fill="black")
        for column, t in enumerate(shown):
            sheet.paste(Image.fromarray(clip[t]), (left + column * side, top + _LABEL_PX))
    return sheet

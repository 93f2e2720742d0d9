"""A frame of a clip under corruptions at every severity, to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vidrobust.corruptions import SEVERITIES, corrupt

_LABEL_PX, _GAP_PX = 12, 6


def contact_sheet(clip: np.ndarray, names: Sequence[str], *, frame: int, seed: int = 0, blocks: int = 2) -> Image.Image:
    """A row a corruption: `frame` of the clip (T, H, W, 3) uint8 as it is, then at severities 1 to 5; `blocks` of rows,
    each under a line that says so.

    Each has its own generator, of `seed`. Raises ValueError as `corrupt` does, and for a frame that the clip has not.
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
            draw.text((block * across_px + (column + 0.5) * width, 0), title, fill="black", anchor="ma")
    for number, name in enumerate(names):
        left, top = number // down * across_px, _LABEL_PX + number % down * down_px
        draw.text((left + 1, top), name, fill="black")
        shown = [clip, *(corrupt(clip, name, severity, np.random.default_rng(seed)) for severity in SEVERITIES)]
        for column, changed in enumerate(shown):
            sheet.paste(Image.fromarray(changed[frame]), (left + column * width, top + _LABEL_PX))
    return sheet

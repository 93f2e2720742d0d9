"""Light, colour, elastic and block corruptions, with the tables of ImageNet-C.

Tables: Hendrycks and Dietterich 2019; `contrast` also has the table of Mini-Kinetics-C (Yi et al.
2021).
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vidrobust.corruptions.blur import gaussian_filter
from vidrobust.corruptions.clip import each_frame, from_planes, level, scale, to_planes, to_uint8


def brightness(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with a constant added to the value of HSV; hue and saturation stay.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: 0.1, 0.2, 0.3, 0.4 or 0.5 of the value range is added.
        rng: unused.
    """
    added = 255 * level(clip, severity, (0.1, 0.2, 0.3, 0.4, 0.5))

    def brighten(frame: np.ndarray) -> np.ndarray:
        x = to_planes(frame)
        value = x.amax(0)
        lifted = (value + added).clamp(max=255)
        # Scaling all channels alike keeps hue and saturation. Black has no hue: it becomes gray.
        return from_planes(torch.where(value > 0, x * (lifted / value.clamp(min=1)), lifted))

    return each_frame(clip, brighten)


def contrast(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    kept: Sequence[float] = (0.4, 0.3, 0.2, 0.1, 0.05),
) -> np.ndarray:
    """Return the clip with colours pulled towards the mean colour of their frame.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: index into `kept`.
        rng: unused.
        kept: factor of the distance from the mean colour at each severity.
    """
    factor = level(clip, severity, kept)
    values = np.arange(256)

    def flatten_colours(frame: np.ndarray) -> np.ndarray:
        # One axis at a time is twenty times as fast as a sum over both axes at once.
        column_sums = frame.reshape(len(frame), -1).sum(0, dtype=np.uint32)
        means = column_sums.reshape(-1, 3).sum(0) / (frame.size / 3)
        # A look-up table of 256 values per channel replaces arithmetic on every pixel.
        tables = to_uint8(means[:, None] + factor * (values - means[:, None]))
        return np.asarray(Image.fromarray(frame).point(tables.ravel().tolist()))

    return each_frame(clip, flatten_colours)


def saturate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with the saturation of HSV multiplied by a factor, plus a constant.

    In HSV, gray has the hue of red. Gray therefore becomes reddish where a constant is added
    (severities 4 and 5), as in the original.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: times 0.3, 0.1, 2, 5 or 20, plus 0, 0, 0, 0.1 or 0.2.
        rng: unused.
    """
    factor, added = level(clip, severity, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)))
    # Gray is treated as red: no distance in the red channel, full distance in green and blue.
    gray = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)

    def change_saturation(frame: np.ndarray) -> np.ndarray:
        x = to_planes(frame)
        value = x.amax(0)
        chroma = value - x.amin(0)
        saturation = (chroma / value.clamp(min=1) * factor + added).clamp(0, 1)
        # distance of each channel from the brightest one, as a fraction of the chroma
        distance = (value - x) / chroma.clamp(min=1)
        return from_planes(value * (1 - saturation * torch.where(chroma > 0, distance, gray)))

    return each_frame(clip, change_saturation)


def elastic_transform(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip deformed by a random affine map and by smooth random shifts of its pixels.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: affine and smooth (1, 2), or fine (3, 4, 5).
        rng: samples the deformation, once per video.
    """
    strength, smooth, affine = level(
        clip,
        severity,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    )
    # The code behind ImageNet-C has 244 where 224 was meant; the published images depend on it.
    side = 244 * scale(clip)
    height, width = clip.shape[1:3]

    # Smooth noise: a shift (y, x) per pixel. A blur that reaches less far leaves more of the noise,
    # so the shift is scaled by the size of the frame once more.
    blur = gaussian_filter(height, width, max(smooth * side, 0.3), mirror=True)
    noise = torch.from_numpy(rng.uniform(-1, 1, (2, height, width)).astype(np.float32))
    shift = blur(noise) * (strength * side * scale(clip))

    # Apply the affine map to the shifted pixel coordinates.
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([y + shift[0], x + shift[1], torch.ones(height, width)])
    source = torch.einsum("ij,jhw->ihw", _random_affine(height, width, affine * side, rng), points)
    return _sampled(clip, source)


def _random_affine(height: int, width: int, most: float, rng: np.random.Generator) -> Tensor:
    """Return a random affine map (2, 3) from output pixels (y, x, 1) to source pixels (y, x).

    The map is defined by three points, each moved by up to `most` pixels along each axis.
    """
    centre = np.array([height, width]) // 2
    third = min(height, width) // 3
    points = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-most, most, points.shape)
    # Points that are almost on one line would squeeze the picture to nothing: use the identity.
    if abs(np.linalg.det(np.diff(moved, axis=0))) < third:
        moved = points.astype(float)
    homogeneous = np.column_stack([moved, np.ones(3)])
    return torch.from_numpy(np.linalg.solve(homogeneous, points).T).float()


def _sampled(clip: np.ndarray, source: Tensor) -> np.ndarray:
    """Read every frame bilinearly at source pixels (2, H, W) in (y, x); mirror beyond the edges."""
    height, width = clip.shape[1:3]
    # grid_sample has coordinates (x, y) from -1 to 1
    grid = torch.stack([source[1] / max(width - 1, 1), source[0] / max(height - 1, 1)], -1) * 2 - 1
    return each_frame(
        clip,
        lambda frame: from_planes(
            F.grid_sample(
                to_planes(frame)[None], grid[None], padding_mode="reflection", align_corners=True
            )[0]
        ),
    )


def pixelate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip shrunk and enlarged again, in blocks of one colour.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: shrunk to 0.6, 0.5, 0.4, 0.3 or 0.25 of its sides.
        rng: unused.
    """
    factor = level(clip, severity, (0.6, 0.5, 0.4, 0.3, 0.25))
    height, width = clip.shape[1:3]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))

    def to_blocks(frame: np.ndarray) -> np.ndarray:
        blocks = Image.fromarray(frame).resize(small, Image.Resampling.BOX)
        return np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST))

    return each_frame(clip, to_blocks)


def jpeg_compression(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip after a JPEG round trip of each frame.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: quality 25, 18, 15, 10 or 7.
        rng: unused.
    """
    quality = level(clip, severity, (25, 18, 15, 10, 7))

    def compress(frame: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return each_frame(clip, compress)

"""Light, colour, elastic and block corruptions, with the tables of ImageNet-C."""

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
    """Value of HSV plus .1 to .5, hue and saturation as they were. Nothing is drawn."""
    added = 255 * level(clip, severity, (0.1, 0.2, 0.3, 0.4, 0.5))

    def change(frame: np.ndarray) -> np.ndarray:
        x = to_planes(frame)
        value = x.amax(0)
        lifted = (value + added).clamp(max=255)
        # black has no hue: it becomes gray
        return from_planes(torch.where(value > 0, x * (lifted / value.clamp(min=1)), lifted))

    return each_frame(clip, change)


def contrast(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    kept: Sequence[float] = (0.4, 0.3, 0.2, 0.1, 0.05),
) -> np.ndarray:
    """The distance from the frame's mean colour, times .4 to .05. Nothing is drawn."""
    factor, values = level(clip, severity, kept), np.arange(256)

    def change(frame: np.ndarray) -> np.ndarray:
        lines = frame.reshape(len(frame), -1).sum(
            0, dtype=np.uint32
        )  # twenty times as fast as both axes at once
        means = lines.reshape(-1, 3).sum(0) / (frame.size / 3)
        tables = to_uint8(means[:, None] + factor * (values - means[:, None]))
        return np.asarray(Image.fromarray(frame).point(tables.ravel().tolist()))

    return each_frame(clip, change)


def saturate(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Saturation of HSV, times .3 and .1 (severities 1, 2) or 2, 5 and 20 plus 0, .1 and .2.
    Nothing is drawn.

    Gray has the hue of red in HSV: where something is added (4, 5), it becomes reddish, as in the
    original.
    """
    factor, added = level(clip, severity, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)))
    gray = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)

    def change(frame: np.ndarray) -> np.ndarray:
        x = to_planes(frame)
        value = x.amax(0)
        chroma = value - x.amin(0)
        wanted = (chroma / value.clamp(min=1) * factor + added).clamp(0, 1)
        distance = (value - x) / chroma.clamp(
            min=1
        )  # from the brightest channel, as a share of the chroma
        return from_planes(value * (1 - wanted * torch.where(chroma > 0, distance, gray)))

    return each_frame(clip, change)


def elastic_transform(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A random affine map, then each pixel moved by smooth noise. One draw a video: what is bent
    stays bent.
    """
    strength, smooth, affine = level(
        clip,
        severity,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    )
    side = 244 * scale(clip)  # 244 where 224 was meant, as ImageNet-C is made with
    height, width = clip.shape[1:3]
    blur = gaussian_filter(height, width, max(smooth * side, 0.3), mirror=True)
    noise = torch.from_numpy(rng.uniform(-1, 1, (2, height, width)).astype(np.float32))
    moved = blur(noise) * (
        strength * side * scale(clip)
    )  # the blur takes less of the noise where it reaches less far
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([y + moved[0], x + moved[1], torch.ones(height, width)])
    source = torch.einsum("ij,jhw->ihw", _random_affine(height, width, affine * side, rng), at)
    return _sampled(clip, source)


def _random_affine(height: int, width: int, most: float, rng: np.random.Generator) -> Tensor:
    """(2, 3): where in the source a pixel (y, x, 1) comes from; three points are moved by up to
    `most` pixels.
    """
    centre, third = np.array([height, width]) // 2, min(height, width) // 3
    points = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-most, most, points.shape)
    if (
        abs(np.linalg.det(np.diff(moved, axis=0))) < third
    ):  # on one line: nothing would be left of the picture
        moved = points.astype(float)
    homogeneous = np.column_stack([moved, np.ones(3)])
    return torch.from_numpy(np.linalg.solve(homogeneous, points).T).float()


def _sampled(clip: np.ndarray, source: Tensor) -> np.ndarray:
    """Every frame read, bilinearly, at source (2, H, W) in pixels (y, x); mirrored beyond its
    edges.
    """
    height, width = clip.shape[1:3]
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
    """Shrunk to .6 to .25 of its size and back, in blocks. Nothing is drawn."""
    share = level(clip, severity, (0.6, 0.5, 0.4, 0.3, 0.25))
    height, width = clip.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))

    def change(frame: np.ndarray) -> np.ndarray:
        blocks = Image.fromarray(frame).resize(small, Image.Resampling.BOX)
        return np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST))

    return each_frame(clip, change)


def jpeg_compression(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """JPEG of quality 25 to 7, frame by frame. Nothing is drawn."""
    quality = level(clip, severity, (25, 18, 15, 10, 7))

    def change(frame: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return each_frame(clip, change)

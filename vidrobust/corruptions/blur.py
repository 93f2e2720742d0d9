"""Blur corruptions, with the tables of ImageNet-C (Hendrycks and Dietterich 2019).

All are one draw a video: the lens, the glass and the way the camera moves stay the same from frame
to frame.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vidrobust.corruptions.clip import each_frame, from_planes, level, pixels, scale, to_planes


def gaussian_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of standard deviation 1 to 6 pixels. Nothing is drawn."""
    sigma = pixels(clip, level(clip, severity, (1, 2, 3, 4, 6)), severity)
    blur = gaussian_filter(clip.shape[1], clip.shape[2], sigma)
    return each_frame(clip, lambda frame: from_planes(blur(to_planes(frame))))


def defocus_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The mean over a disk of radius 3 to 10 pixels, its edge softened. Nothing is drawn."""
    radius, soft = level(clip, severity, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)))
    kernel = _disk(pixels(clip, radius, severity), soft)
    reach, (height, width) = len(kernel) // 2, clip.shape[1:3]
    size = (_fast_length(height + 2 * reach), _fast_length(width + 2 * reach))
    spectrum = torch.fft.rfft2(torch.from_numpy(kernel), s=size)

    def change(frame: np.ndarray) -> np.ndarray:
        padded = _mirrored(to_planes(frame), reach)
        blurred = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * spectrum, s=size)
        # its first 2 * reach lines are wrapped around
        return from_planes(
            blurred[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]
        )

    return each_frame(clip, change)


def glass_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Pixels swapped with neighbours 1 to 4 pixels away, between two Gaussians of .7 to 1.5 pixels.

    One draw a video: the pane stays where it is. Each round, every pixel takes the value of a
    neighbour, all at once; the published loop goes from pixel to pixel, in place, and moves the
    whole picture by a pixel or two besides.
    """
    sigma, reach, rounds = level(
        clip, severity, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    )
    height, width = clip.shape[1:3]
    reach = max(1, round(reach * scale(clip)))
    blur = gaussian_filter(height, width, pixels(clip, sigma, severity))
    taken = np.arange(height * width).reshape(height, width)
    rows, columns = np.indices((height, width))
    for _ in range(rounds):
        dy, dx = rng.integers(-reach, reach + 1, (2, height, width))
        taken = taken[(rows + dy).clip(0, height - 1), (columns + dx).clip(0, width - 1)]
    order = torch.from_numpy(taken.ravel())

    def change(frame: np.ndarray) -> np.ndarray:
        blurred = blur(to_planes(frame)).flatten(1)
        return from_planes(blur(blurred[:, order].view(3, height, width)))

    return each_frame(clip, change)


def motion_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A half Gaussian along a line of 21 to 41 pixels, within 45 degrees of the horizontal.

    One draw a video: the direction. ImageMagick's kernel, which ImageNet-C is made with.
    """
    radius, sigma = level(clip, severity, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)))
    smear = line_filter(
        pixels(clip, radius, severity), pixels(clip, sigma, severity), rng.uniform(-45, 45)
    )
    return each_frame(clip, lambda frame: from_planes(smear(to_planes(frame))))


def zoom_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of the frame and of enlargements up to 1.1 to 1.3 times. Nothing is drawn."""
    most, step = level(
        clip, severity, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    )
    factors = np.arange(1, most, step)
    height, width = clip.shape[1:3]

    def change(frame: np.ndarray) -> np.ndarray:
        image, total = Image.fromarray(frame), frame.astype(np.float32)
        for factor in factors:
            x, y = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
            box = (x, y, width - x, height - y)
            total += np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
        return total / (len(factors) + 1)

    return each_frame(clip, change)


def gaussian_filter(
    height: int, width: int, sigma: float, *, mirror: bool = False
) -> Callable[[Tensor], Tensor]:
    """A blur of (..., height, width) floats; the kernel ends at 4 sigma. Edges are repeated, or the
    picture mirrored.

    Two products with a matrix each: faster than a convolution at every sigma.
    """
    rows, columns = (
        _gaussian_matrix(height, sigma, mirror),
        _gaussian_matrix(width, sigma, mirror).T,
    )
    return lambda planes: rows @ (planes @ columns)


def _gaussian_matrix(size: int, sigma: float, mirror: bool = False) -> Tensor:
    """(size, size): line i has the weights of what output i is the mean of."""
    reach = round(4 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.softmax(-0.5 * (offsets / sigma) ** 2, 0)
    seen = torch.arange(size).view(-1, 1) + offsets
    if mirror:  # d c b a | a b c d | d c b a
        seen = seen.remainder(2 * size)
        seen = torch.minimum(seen, 2 * size - 1 - seen)
    return torch.zeros(size, size).scatter_add_(
        1, seen.clamp(0, size - 1), weights.expand(size, -1)
    )


def line_filter(radius: float, sigma: float, degrees: float) -> Callable[[Tensor], Tensor]:
    """A blur of (C, H, W) floats: each pixel is the mean of those on a line that starts there;
    edges are repeated.

    The line has 2 radius + 1 pixels, weighted by a half Gaussian. degrees: from the horizontal.
    """
    steps = np.arange(2 * round(radius) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    across = np.rint(steps * math.cos(math.radians(degrees))).astype(int)
    down = np.rint(steps * math.sin(math.radians(degrees))).astype(int)
    reach = int(steps[-1])

    def blur(planes: Tensor) -> Tensor:
        height, width = planes.shape[1:]
        padded = F.pad(planes.unsqueeze(0), (reach,) * 4, mode="replicate")[0]
        total = torch.zeros_like(planes)
        for weight, dy, dx in zip(
            (weights / weights.sum()).tolist(), down + reach, across + reach, strict=True
        ):
            total.add_(padded[:, dy : dy + height, dx : dx + width], alpha=weight)
        return total

    return blur


def _disk(radius: float, soft: float) -> np.ndarray:
    """(side, side), side odd: a disk that sums to 1; `soft`: standard deviation of its edge in
    pixels.
    """
    reach = math.ceil(radius + 0.5) + (1 if soft > 0.25 else 0)
    at = np.arange(-reach, reach + 1)
    # a pixel at the rim counts by how much of it lies within
    disk = (radius + 0.5 - np.hypot(*np.meshgrid(at, at))).clip(0, 1)
    edge = _gaussian_matrix(len(at), soft).numpy()
    disk = edge @ disk @ edge.T
    return (disk / disk.sum()).astype(np.float32)


def _fast_length(length: int) -> int:
    """The next that has no other factors than 2, 3 and 5: a Fourier transform of others takes four
    times as long.
    """
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def _mirrored(planes: Tensor, reach: int) -> Tensor:
    """Padded by reflection, more than once where the frame is smaller than the reach."""
    if reach < min(planes.shape[1:]):
        return F.pad(planes.unsqueeze(0), (reach,) * 4, mode="reflect")[0]
    for axis in (1, 2):
        size = planes.shape[axis]
        at = torch.arange(-reach, size + reach).remainder(max(2 * size - 2, 1))
        planes = planes.index_select(axis, torch.minimum(at, (2 * size - 2 - at).abs()))
    return planes

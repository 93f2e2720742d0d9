"""Blur corruptions, with the tables of ImageNet-C (Hendrycks and Dietterich 2019).

Random parameters are sampled once per video: the lens, the glass and the direction in which the
camera moves stay the same from frame to frame.
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
    """Return the clip blurred by a Gaussian.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: standard deviation of 1, 2, 3, 4 or 6 pixels.
        rng: unused.
    """
    sigma = pixels(clip, level(clip, severity, (1, 2, 3, 4, 6)), severity)
    blur = gaussian_filter(clip.shape[1], clip.shape[2], sigma)
    return each_frame(clip, lambda frame: from_planes(blur(to_planes(frame))))


def defocus_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip averaged over a disk with a soft edge, as by a lens out of focus.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: disk radius of 3, 4, 6, 8 or 10 pixels.
        rng: unused.
    """
    radius, edge_sigma = level(clip, severity, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)))
    kernel = _disk(pixels(clip, radius, severity), edge_sigma)
    reach = len(kernel) // 2
    height, width = clip.shape[1:3]

    # Convolve by a product of Fourier transforms, whose cost does not grow with the disk.
    size = (_fast_length(height + 2 * reach), _fast_length(width + 2 * reach))
    spectrum = torch.fft.rfft2(torch.from_numpy(kernel), s=size)

    def blur_frame(frame: np.ndarray) -> np.ndarray:
        padded = _mirrored(to_planes(frame), reach)
        blurred = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * spectrum, s=size)
        # The convolution is circular: its first 2 * reach rows and columns are wrapped around.
        return from_planes(
            blurred[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]
        )

    return each_frame(clip, blur_frame)


def glass_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip seen through frosted glass: pixels swapped between two Gaussian blurs.

    In each round, every pixel takes the value of a random neighbour, all pixels at once. The
    published loop swaps pixel by pixel, in place. That loop also moves the whole picture by a pixel
    or two.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: neighbours up to 1, 2, 2, 3 or 4 pixels away, in 2, 1, 3, 2 or 2 rounds,
            between Gaussians of standard deviation 0.7, 0.9, 1, 1.1 or 1.5 pixels.
        rng: samples the neighbours, once per video: the glass does not move.
    """
    sigma, reach, rounds = level(
        clip, severity, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    )
    height, width = clip.shape[1:3]
    reach = max(1, round(reach * scale(clip)))
    blur = gaussian_filter(height, width, pixels(clip, sigma, severity))

    # Compose the swaps of all rounds into one table of source pixels.
    source = np.arange(height * width).reshape(height, width)
    rows, columns = np.indices((height, width))
    for _ in range(rounds):
        dy, dx = rng.integers(-reach, reach + 1, (2, height, width))
        source = source[(rows + dy).clip(0, height - 1), (columns + dx).clip(0, width - 1)]
    order = torch.from_numpy(source.ravel())

    def swap_pixels(frame: np.ndarray) -> np.ndarray:
        blurred = blur(to_planes(frame)).flatten(1)
        return from_planes(blur(blurred[:, order].view(3, height, width)))

    return each_frame(clip, swap_pixels)


def motion_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip smeared along a line by a half Gaussian.

    The kernel is ImageMagick's, with which ImageNet-C was made.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: lines of 21, 31, 31, 31 or 41 pixels.
        rng: samples the direction, once per video, within 45 degrees of the horizontal.
    """
    radius, sigma = level(clip, severity, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)))
    smear = line_filter(
        pixels(clip, radius, severity), pixels(clip, sigma, severity), rng.uniform(-45, 45)
    )
    return each_frame(clip, lambda frame: from_planes(smear(to_planes(frame))))


def zoom_blur(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the mean of each frame and of enlargements of it.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: enlargements up to 1.11, 1.15, 1.2, 1.24 or 1.3 times.
        rng: unused.
    """
    end, step = level(
        clip, severity, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    )
    # As published. `end` itself is left out, but for 1.11, by the rounding of floats.
    factors = np.arange(1, end, step)
    height, width = clip.shape[1:3]

    def zoom_frame(frame: np.ndarray) -> np.ndarray:
        image = Image.fromarray(frame)
        total = frame.astype(np.float32)
        for factor in factors:
            # Enlarging by a factor is resizing the central box whose sides are 1 / factor.
            x = width * (1 - 1 / factor) / 2
            y = height * (1 - 1 / factor) / 2
            box = (x, y, width - x, height - y)
            total += np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
        return total / (len(factors) + 1)

    return each_frame(clip, zoom_frame)


# ------------------------------------------------------------------ filters


def gaussian_filter(
    height: int, width: int, sigma: float, *, mirror: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return a function that blurs float planes (..., height, width) by a Gaussian.

    The kernel ends at 4 sigma. The blur is one matrix product per axis, which is faster than a
    convolution at every sigma.

    Args:
        height: rows of the planes.
        width: columns of the planes.
        sigma: standard deviation in pixels, above 0.
        mirror: mirror the picture at its edges; otherwise, repeat the edge pixels.
    """
    rows = _gaussian_matrix(height, sigma, mirror)
    columns = _gaussian_matrix(width, sigma, mirror).T
    return lambda planes: rows @ (planes @ columns)


def _gaussian_matrix(size: int, sigma: float, mirror: bool = False) -> Tensor:
    """Return (size, size) weights: row i averages the inputs around pixel i."""
    reach = round(4 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.softmax(-0.5 * (offsets / sigma) ** 2, 0)
    inputs = torch.arange(size).view(-1, 1) + offsets
    if mirror:  # d c b a | a b c d | d c b a
        inputs = inputs.remainder(2 * size)
        inputs = torch.minimum(inputs, 2 * size - 1 - inputs)
    # Offsets that land on the same input after clamping or mirroring add their weights.
    return torch.zeros(size, size).scatter_add_(
        1, inputs.clamp(0, size - 1), weights.expand(size, -1)
    )


def line_filter(radius: float, sigma: float, degrees: float) -> Callable[[Tensor], Tensor]:
    """Return a function that smears float planes (C, H, W) along a line.

    Each output pixel is the weighted mean of the pixels on a line that starts there. The line has
    2 * radius + 1 pixels, weighted by a half Gaussian. Edge pixels are repeated.

    Args:
        radius: half the length of the line in pixels, rounded.
        sigma: standard deviation of the half Gaussian, pixels.
        degrees: direction of the line, from the horizontal.
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
        # One shifted copy of the picture per pixel of the line.
        for weight, dy, dx in zip(
            (weights / weights.sum()).tolist(), down + reach, across + reach, strict=True
        ):
            total.add_(padded[:, dy : dy + height, dx : dx + width], alpha=weight)
        return total

    return blur


def _disk(radius: float, edge_sigma: float) -> np.ndarray:
    """Return a disk (side, side) that sums to 1, with an odd side.

    edge_sigma: standard deviation in pixels of the Gaussian that softens its edge.
    """
    reach = math.ceil(radius + 0.5) + (1 if edge_sigma > 0.25 else 0)
    offsets = np.arange(-reach, reach + 1)
    # A pixel at the rim counts by the fraction of it that lies within the disk.
    disk = (radius + 0.5 - np.hypot(*np.meshgrid(offsets, offsets))).clip(0, 1)
    edge = _gaussian_matrix(len(offsets), edge_sigma).numpy()
    disk = edge @ disk @ edge.T
    return (disk / disk.sum()).astype(np.float32)


def _fast_length(length: int) -> int:
    """Return the next length whose only prime factors are 2, 3 and 5.

    A Fourier transform of other lengths takes four times as long.
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
    """Pad planes (C, H, W) by reflection, repeatedly where the frame is smaller than the reach."""
    if reach < min(planes.shape[1:]):
        return F.pad(planes.unsqueeze(0), (reach,) * 4, mode="reflect")[0]
    # torch reflects only once, so gather the reflected indices along each axis.
    for axis in (1, 2):
        size = planes.shape[axis]
        index = torch.arange(-reach, size + reach).remainder(max(2 * size - 2, 1))
        planes = planes.index_select(axis, torch.minimum(index, (2 * size - 2 - index).abs()))
    return planes

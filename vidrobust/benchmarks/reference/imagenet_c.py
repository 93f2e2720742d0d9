"""ImageNet-C's fifteen corruptions, as the package `imagecorruptions` implements them.

tools/benchmark.py compares our corruptions with them. They use NumPy, SciPy, scikit-image and
OpenCV, take one image at a time, and have lengths in pixels that do not scale with the image. They
are copied because the package does not import with current versions of setuptools. There are two
differences:

- frost needs the package's photographs; they are replaced by blurred noise of the same size.
- elastic_transform is that of ImageNet-C's own script (make_imagenet_c.py, Hendrycks and
  Dietterich 2019). The package has no affine map and other parameters.

Each function takes an image (H, W, 3) uint8, a severity 1 to 5 and a random generator, and returns
an image with values 0 to 255.
"""

import io
import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import color, filters, util

Random = np.random.RandomState


def _gaussian(x: np.ndarray, sigma: float, **options: object) -> np.ndarray:
    return filters.gaussian(x, sigma=sigma, channel_axis=-1 if x.ndim == 3 else None, **options)


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Return the center of an image, enlarged to the image's size."""
    height, width = x.shape[:2]
    tall, wide = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - tall) // 2, (width - wide) // 2
    large = ndimage.zoom(
        x[top : top + tall, left : left + wide], (factor, factor, *[1] * (x.ndim - 2)), order=1
    )
    return large[:height, :width]


def _smeared(x: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Return motion blur: a weighted sum of copies, each shifted by one pixel more."""
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    total = np.zeros_like(x, dtype=np.float32)
    for i, weight in enumerate(weights / weights.sum()):
        dy = -math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        dx = -math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        moved = np.roll(x, (dy, dx), (0, 1))
        # the pixels that np.roll moved in from the other side are replaced by the edge
        if dx:
            moved[:, slice(dx, None) if dx < 0 else slice(dx)] = (
                moved[:, dx - 1 : dx] if dx < 0 else moved[:, dx : dx + 1]
            )
        if dy:
            moved[slice(dy, None) if dy < 0 else slice(dy)] = (
                moved[dy - 1 : dy] if dy < 0 else moved[dy : dy + 1]
            )
        total = total + weight * moved
    return total


def gaussian_noise(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    x = x / 255.0
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return np.clip(x + random.normal(size=x.shape, scale=scale), 0, 1) * 255


def shot_noise(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    c = (60, 25, 12, 5, 3)[severity - 1]
    return np.clip(random.poisson(x / 255.0 * c) / c, 0, 1) * 255


def impulse_noise(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    return np.clip(util.random_noise(x / 255.0, mode="s&p", amount=amount), 0, 1) * 255


def defocus_blur(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    # a disk with soft edges as the kernel
    offsets = np.arange(-max(8, radius), max(8, radius) + 1)
    disk = (np.add.outer(offsets**2, offsets**2) <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (3, 3) if radius <= 8 else (5, 5), soft)
    channels = [cv2.filter2D(x[..., c] / 255.0, -1, disk) for c in range(3)]
    return np.clip(np.stack(channels, -1), 0, 1) * 255


def glass_blur(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[
        severity - 1
    ]
    x = (_gaussian(x / 255.0, sigma) * 255).astype(np.uint8)
    height, width = x.shape[:2]
    # swap each pixel with a random one nearby
    for _ in range(rounds):
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dx, dy = random.randint(-reach, reach, size=(2,))
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    return np.clip(_gaussian(x / 255.0, sigma), 0, 1) * 255


def motion_blur(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return np.clip(_smeared(x, radius, sigma, random.uniform(-45, 45)), 0, 255)


def zoom_blur(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[
        severity - 1
    ]
    x, factors = (x / 255.0).astype(np.float32), np.arange(1, most, step)
    total = np.zeros_like(x)
    for factor in factors:
        large = _zoomed(x, factor)
        total[: large.shape[0], : large.shape[1]] += large
    return np.clip((x + total) / (len(factors) + 1), 0, 1) * 255


def snow(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    loc, scale, zoom, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    x = x.astype(np.float32) / 255
    # flakes: bright spots of noise, blurred along a random direction
    layer = _zoomed(random.normal(size=x.shape[:2], loc=loc, scale=scale), zoom)
    layer[layer < threshold] = 0
    layer = _smeared(np.clip(layer, 0, 1), radius, sigma, random.uniform(-135, -45))
    layer = (np.round(layer * 255).astype(np.uint8) / 255.0)[..., None]
    # whiten the image, then add the flakes
    gray = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    x = kept * x + (1 - kept) * np.maximum(x, gray * 1.5 + 0.5)
    x[: layer.shape[0], : layer.shape[1]] += layer + np.rot90(layer, k=2)
    return np.clip(x, 0, 1) * 255


def frost(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    kept, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    # Pillow, because OpenCV cannot decode PNG files in a process that has loaded decord
    photo = np.asarray(Image.open(io.BytesIO(_PHOTO.tobytes())))[..., ::-1]
    picture = cv2.resize(photo, None, fx=1.1, fy=1.1, interpolation=cv2.INTER_CUBIC)
    top, left = (random.randint(0, picture.shape[i] - x.shape[i]) for i in (0, 1))
    cut = picture[top : top + x.shape[0], left : left + x.shape[1]][..., [2, 1, 0]]
    return np.clip(kept * x + ice * cut, 0, 255)


# an encoded file, because the package also reads its photographs at each call
_PHOTO = cv2.imencode(
    ".png",
    cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8), (0, 0), 3
    ),
)[1]


def fog(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    x = x / 255.0
    most = x.max()
    x = x + thickness * _plasma(max(x.shape[:2]), decay, random)[: x.shape[0], : x.shape[1], None]
    return np.clip(x * most / (most + thickness), 0, 1) * 255


def _plasma(size: int, decay: float, random: Random) -> np.ndarray:
    """Return a plasma fractal by the diamond-square algorithm, values 0 to 1."""
    side = 1 << (size - 1).bit_length()
    heights, step, noise = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2
        # squares: centers from the four corners
        corners = heights[::step, ::step]
        total = corners + np.roll(corners, -1, 0)
        total = total + np.roll(total, -1, 1)
        heights[half::step, half::step] = total / 4 + noise * random.uniform(
            -noise, noise, total.shape
        )
        # diamonds: midpoints of the edges from two corners and two centers
        centers = heights[half::step, half::step]
        above = centers + np.roll(centers, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = above / 4 + noise * random.uniform(-noise, noise, above.shape)
        left = centers + np.roll(centers, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = left / 4 + noise * random.uniform(-noise, noise, left.shape)
        step, noise = half, noise / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    hsv = color.rgb2hsv(x / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + severity / 10, 0, 1)
    return np.clip(color.hsv2rgb(hsv), 0, 1) * 255


def contrast(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    x = x / 255.0
    means = x.mean((0, 1), keepdims=True)
    return np.clip((x - means) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + means, 0, 1) * 255


def elastic_transform(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    """Deform an image as ImageNet-C's make_imagenet_c.py does.

    Lengths are fractions of 244 pixels, as in the script, which has images of 224.
    """
    strength = 244 * (2, 2, 0.05, 0.07, 0.12)[severity - 1]
    smooth = 244 * (0.7, 0.08, 0.01, 0.01, 0.01)[severity - 1]
    affine = 244 * (0.1, 0.2, 0.02, 0.02, 0.02)[severity - 1]
    x = x.astype(np.float32) / 255
    height, width = x.shape[:2]
    # a random affine map
    centre = np.array([height, width], np.float32) // 2
    third = min(height, width) // 3
    points = np.array(
        [centre + third, [centre[0] + third, centre[1] - third], centre - third], np.float32
    )
    moved = points + random.uniform(-affine, affine, points.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(points, moved)
    x = cv2.warpAffine(x, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    # then a smooth random displacement of each pixel
    displacements = []
    for _ in range(2):
        noise = random.uniform(-1, 1, (height, width))
        displacement = _gaussian(noise, smooth, mode="reflect", truncate=3) * strength
        displacements.append(displacement[..., None])
    dy, dx = displacements
    across, down, channel = np.meshgrid(np.arange(width), np.arange(height), np.arange(3))
    coordinates = (
        np.reshape(down + dy, (-1, 1)),
        np.reshape(across + dx, (-1, 1)),
        np.reshape(channel, (-1, 1)),
    )
    moved_x = ndimage.map_coordinates(x, coordinates, order=1, mode="reflect").reshape(x.shape)
    return np.clip(moved_x, 0, 1) * 255


def pixelate(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    factor = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = x.shape[:2]
    small = Image.fromarray(x).resize(
        (int(width * factor), int(height * factor)), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def jpeg_compression(x: np.ndarray, severity: int, random: Random) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(Image.open(file))


PUBLISHED: dict[str, Callable[[np.ndarray, int, Random], np.ndarray]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}

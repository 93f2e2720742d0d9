"""Weather: fog, frost, snow, rain, spatter, consistent over the frames of a video.

Tables: ImageNet-C (Hendrycks and Dietterich 2019); the table of rain is that of Mini-Kinetics-C (Yi
et al. 2021).
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from vidrobust.corruptions.blur import gaussian_filter, line_filter
from vidrobust.corruptions.clip import each_frame, level, pixels, scale

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def snow(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with flakes, smeared along their fall, over a whitened picture.

    The flakes fall in the direction of their smear, by 1/12 of the frame's height per frame.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: weight of the picture against white of 0.8, 0.7, 0.7, 0.65 or 0.55; the
            flakes differ too.
        rng: samples the flakes and their direction, once per video; the direction is within 45
            degrees of straight down.
    """
    loc, sigma, zoom, threshold, radius, smear, kept = level(
        clip,
        severity,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    )
    height, width = clip.shape[1:3]

    # Flakes are enlarged noise above a threshold. They are at least 2 pixels large, because noise
    # of single pixels would exceed the threshold more often.
    size = max(2.0, zoom * scale(clip))
    coarse_shape = (math.ceil(height / size), math.ceil(width / size))
    coarse = torch.from_numpy(rng.normal(loc, sigma, coarse_shape).astype(np.float32))
    flakes = F.interpolate(coarse[None, None], (height, width), mode="bilinear")[0]
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)

    # Smear the flakes, and add a copy rotated by 180 degrees, as ImageNet-C does.
    degrees = rng.uniform(45, 135)
    smear_flakes = line_filter(
        pixels(clip, radius, severity), pixels(clip, smear, severity), degrees
    )
    layer = smear_flakes(flakes)[0].numpy()
    layer = 255 * (layer + layer[::-1, ::-1])[..., None]
    across = math.cos(math.radians(degrees)) * height / 12
    down = math.sin(math.radians(degrees)) * height / 12

    out = np.empty_like(clip)
    for t, frame in enumerate(clip):
        x = frame.astype(np.float32)
        white = np.maximum(x, (x @ _LUMA)[..., None] * 1.5 + 127.5)
        fallen = np.roll(layer, (round(t * down), round(t * across)), (0, 1))
        out[t] = (kept * x + (1 - kept) * white + fallen).clip(0, 255).round()
    return out


def frost(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip behind a pane of ice crystals, over a darkened picture.

    ImageNet-C blends in photographs of frost. This function generates crystals, and blends them
    with the same weights.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: weights of the picture and of the ice, from (1, 0.4) to (0.6, 0.75).
        rng: samples the pane, once per video.
    """
    kept, ice = level(clip, severity, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)))
    pane = np.float32(ice) * _crystals(clip.shape[1], clip.shape[2], rng)
    return each_frame(clip, lambda frame: frame * np.float32(kept) + pane)


def _crystals(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return a pane of ice (height, width, 3) in 0 to 255.

    Needles point in all directions and grow in patches. The ice is thicker towards the rim.
    """
    short = min(height, width)
    needles = torch.zeros(height, width)
    patch_grid = (max(height * 12 // short, 2), max(width * 12 // short, 2))

    # Needles are white noise smeared along seven random directions, each within patches of its own.
    for degrees in rng.uniform(-90, 90, 7):
        noise = torch.from_numpy(rng.standard_normal((1, height, width), dtype=np.float32))
        smeared = line_filter(max(short / 14, 2), max(short / 18, 1), degrees)(noise)[0]
        patch = torch.from_numpy(rng.standard_normal((1, 1, *patch_grid), dtype=np.float32))
        mask = F.interpolate(torch.sigmoid(3 * patch), (height, width), mode="bilinear")[0, 0]
        normalised = smeared / smeared.std(correction=0).clamp(min=1e-6)
        needles = torch.maximum(needles, normalised * mask)

    y = torch.linspace(-1, 1, height).view(-1, 1).abs().expand(height, width)
    x = torch.linspace(-1, 1, width).abs().expand(height, width)
    rim = 0.35 + 0.65 * torch.maximum(y, x) ** 2
    thickness = needles / (needles.mean() + 2 * needles.std(correction=0)).clamp(min=1e-6)
    ice = thickness.clamp(0, 1) * rim + 0.25 * rim
    tint = np.array([0.85, 0.95, 1.0], np.float32)  # ice is slightly blue
    return 255 * ice.clamp(0, 1).numpy()[..., None] * tint


def fog(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return (x + c p) m / (m + c), where p is a plasma in 0 to 1 and m the brightest value.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: thickness c of 1.5, 2, 2.5, 2.5 or 3; the fog is rougher from 3 on.
        rng: samples the plasma, once per video.
    """
    thickness, decay = level(clip, severity, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)))
    height, width = clip.shape[1:3]
    # The brightest value is that of the clip, because fog should not flicker with bright frames.
    brightest = max(int(clip.max()), 1) / 255
    layer = 255 * thickness * plasma(max(height, width), decay, rng)[:height, :width, None]
    return each_frame(
        clip, lambda frame: (frame + layer) * np.float32(brightest / (brightest + thickness))
    )


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return a random height map in 0 to 1 by the diamond-square fractal on a torus.

    Args:
        size: least number of pixels per side.
        decay: noise is divided by its square from one scale to the next finer one.
        rng: samples the heights.

    Returns:
        (side, side) float32, where side is the smallest power of two that is at least `size`.
    """
    side = 1 << max(size - 1, 1).bit_length()
    heights = np.zeros((side, side), np.float32)
    step = side
    noise = 1.0
    while step >= 2:
        half = step // 2
        # Diamond step: the centre of each square is the mean of its corners, plus noise.
        corners = heights[::step, ::step]
        down = np.roll(corners, -1, 0)
        centres = (corners + down + np.roll(corners, -1, 1) + np.roll(down, -1, 1)) / 4
        centres = centres + _uniform(noise, centres.shape, rng)
        heights[half::step, half::step] = centres
        # Square step: the middle of each edge is the mean of two corners and two centres.
        above = np.roll(centres, 1, 0)
        left = np.roll(centres, 1, 1)
        heights[::step, half::step] = (
            corners + np.roll(corners, -1, 1) + centres + above
        ) / 4 + _uniform(noise, corners.shape, rng)
        heights[half::step, ::step] = (corners + down + centres + left) / 4 + _uniform(
            noise, corners.shape, rng
        )
        step = half
        # The original divides both a factor and the range that this factor multiplies.
        noise = noise / decay**2
    heights -= heights.min()
    return heights / max(float(heights.max()), 1e-12)


def _uniform(noise: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Sample float32 numbers that are uniform in -noise to noise."""
    return rng.uniform(-noise, noise, shape).astype(np.float32)


def rain(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with streaks of rain, over a picture of less contrast.

    Drops fall farther than their length from one frame to the next, so each frame has its own
    streaks.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: streaks of 10, 30, 60, 60 or 80 pixels, one per 770, 770, 770, 500 or 400
            pixels of the frame; contrast times 0.8, 0.8, 0.7, 0.6 or 0.5.
        rng: samples the slant once per video, and the drops of every frame.
    """
    area, length, contrast = level(
        clip,
        severity,
        ((770, 10, 0.8), (770, 30, 0.8), (770, 60, 0.7), (500, 60, 0.6), (400, 80, 0.5)),
    )
    height, width = clip.shape[1:3]
    size = scale(clip)
    length_px = max(2, round(length * size))
    slant = round(rng.integers(-10, 11) * size)
    drops = max(1, round(height * width / (area * size**2)))

    def rain_on(frame: np.ndarray) -> np.ndarray:
        # Streaks may begin above the frame, or next to it if they lean into it.
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        xs = rng.integers(min(0, -slant), max(width - min(0, slant), 1), drops)
        ys = rng.integers(-length_px // 2, height, drops)
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            draw.line((x, y, x + slant, y + length_px), fill=220)
        streaks = np.asarray(mask, np.float32)[..., None] / 255

        # Lighten the streaks, less so where the pixel or the frame is bright, and soften them over
        # 3 x 3 pixels.
        x = frame.astype(np.float32)
        lightened = x + 255 * streaks * (1 - x / 255) * (1 - x.mean() / 255)
        planes = F.pad(torch.from_numpy(lightened).permute(2, 0, 1), (1, 1, 1, 1), mode="replicate")
        soft = F.avg_pool2d(planes, 3, 1).permute(1, 2, 0).numpy()
        wet = soft * streaks + x * (1 - streaks)

        # Reduce the contrast about the mean colour.
        means = wet.mean((0, 1))
        return (wet - means) * np.float32(contrast) + means

    return each_frame(clip, rain_on)


def spatter(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with drops of water or mud on the lens.

    Distances to the rim of a drop are counted in steps of a pixel; the original uses OpenCV's
    distance transform.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: water (1, 2, 3) or mud (4, 5).
        rng: samples the drops, once per video.
    """
    loc, sigma, blur, threshold, strength, mud = level(
        clip,
        severity,
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    )
    height, width = clip.shape[1:3]

    # The liquid is blurred noise above a threshold.
    noise = torch.from_numpy(rng.normal(loc, sigma, (height, width)).astype(np.float32))
    smooth = blur * scale(clip)
    liquid = gaussian_filter(height, width, smooth)(noise) if smooth > 0.2 else noise
    # A smaller frame is blurred over fewer pixels, which leaves more of the noise, and more of it
    # would exceed the threshold. Rescale to the deviation that a frame of 224 pixels has.
    spread = liquid.std(correction=0).clamp(min=1e-6)
    liquid = loc + (liquid - liquid.mean()) / spread * sigma * _deviation_after_blur(blur)
    liquid = torch.where(liquid < threshold, 0, liquid)

    # Mud hides the picture.
    if mud:
        soften = gaussian_filter(height, width, pixels(clip, strength, severity))
        thick = soften((liquid > threshold).float())
        cover = torch.where(thick < 0.8, 0, thick).numpy()[..., None]
        brown = np.array([63, 42, 20], np.float32) * cover
        return each_frame(clip, lambda frame: frame * (1 - cover) + brown)

    # Water adds light.
    shine = (liquid * _relief(liquid > 0)).numpy()
    drops = strength * shine / max(float(shine.max()), 1e-6)
    turquoise = drops[..., None] * np.array([175, 238, 238], np.float32)
    return each_frame(clip, lambda frame: frame + turquoise)


def _deviation_after_blur(sigma: float) -> float:
    """Return the fraction of white noise's standard deviation that a Gaussian blur leaves.

    sigma: standard deviation of the blur in pixels.
    """
    return 1 / (2 * math.sqrt(math.pi) * sigma)


def _relief(wet: Tensor) -> Tensor:
    """Return how drops reflect light, by their slope towards the rim: (H, W) bool -> 0 to 1."""
    # Pixels at the rim have a neighbour of the other kind.
    inside = wet.float()[None, None]
    rim = (F.max_pool2d(inside, 3, 1, 1) != inside) | (-F.max_pool2d(-inside, 3, 1, 1) != inside)

    # Distance to the rim, up to 20 pixels, by growing the reached area one pixel at a time.
    reached = rim.float()
    distance = torch.zeros_like(inside)
    for step in range(20):
        distance += 1 - reached
        # alternate between a cross and a square, which together are nearly a circle
        cross = torch.maximum(
            F.max_pool2d(reached, (3, 1), 1, (1, 0)), F.max_pool2d(reached, (1, 3), 1, (0, 1))
        )
        reached = F.max_pool2d(reached, 3, 1, 1) if step % 2 else cross
    smooth = F.avg_pool2d(F.pad(distance, (1, 1, 1, 1), mode="replicate"), 3, 1)

    # Histogram equalisation: each pixel becomes the fraction of pixels below it.
    order = smooth.flatten().sort().values
    even = torch.searchsorted(order, smooth.flatten()).view_as(smooth) / smooth.numel()

    # Light comes from one corner: emboss along the diagonal, then soften.
    slope = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    raised = F.conv2d(F.pad(even, (1, 1, 1, 1), mode="replicate"), slope[None, None]).clamp(0, 1)
    return F.avg_pool2d(F.pad(raised, (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]

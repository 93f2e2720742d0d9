"""Weather: fog, frost, snow, rain, spatter, consistent over the frames of a video.

Tables of ImageNet-C (Hendrycks and Dietterich 2019); rain's of Mini-Kinetics-C (Yi et al. 2021).
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from vidrobust.corruptions.blur import gaussian_filter, line_filter
from vidrobust.corruptions.clip import each_frame, level, pixels, scale

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def snow(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Flakes smeared along their fall, over a whitened picture.

    One draw a video: the flakes, which fall along their smear by 1/12 of the frame's height a
    frame.
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
    size = max(
        2.0, zoom * scale(clip)
    )  # of a flake; noise of single pixels would pass the threshold more often
    coarse = rng.normal(loc, sigma, (math.ceil(height / size), math.ceil(width / size))).astype(
        np.float32
    )
    flakes = F.interpolate(torch.from_numpy(coarse)[None, None], (height, width), mode="bilinear")[
        0
    ]
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    degrees = rng.uniform(45, 135)
    layer = line_filter(pixels(clip, radius, severity), pixels(clip, smear, severity), degrees)(
        flakes
    )[0].numpy()
    layer = 255 * (layer + layer[::-1, ::-1])[..., None]
    across, down = (
        math.cos(math.radians(degrees)) * height / 12,
        math.sin(math.radians(degrees)) * height / 12,
    )
    out = np.empty_like(clip)
    for t, frame in enumerate(clip):
        x = frame.astype(np.float32)
        white = np.maximum(x, (x @ _LUMA)[..., None] * 1.5 + 127.5)
        fallen = np.roll(layer, (round(t * down), round(t * across)), (0, 1))
        out[t] = (kept * x + (1 - kept) * white + fallen).clip(0, 255).round()
    return out


def frost(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A pane of ice crystals over a darkened picture. One draw a video: the pane.

    ImageNet-C mixes in photographs of frost; here crystals are drawn, with those weights.
    """
    kept, ice = level(clip, severity, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)))
    pane = np.float32(ice) * _crystals(clip.shape[1], clip.shape[2], rng)
    return each_frame(clip, lambda frame: frame * np.float32(kept) + pane)


def _crystals(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) of 0 to 255: needles in all directions, in patches, thicker towards the
    rim of the pane.
    """
    short = min(height, width)
    needles = torch.zeros(height, width)
    coarse = (max(height * 12 // short, 2), max(width * 12 // short, 2))
    for degrees in rng.uniform(-90, 90, 7):
        noise = torch.from_numpy(rng.standard_normal((1, height, width), dtype=np.float32))
        smeared = line_filter(max(short / 14, 2), max(short / 18, 1), degrees)(noise)[0]
        patch = torch.from_numpy(rng.standard_normal((1, 1, *coarse), dtype=np.float32))
        where = F.interpolate(torch.sigmoid(3 * patch), (height, width), mode="bilinear")[0, 0]
        needles = torch.maximum(
            needles, smeared / smeared.std(correction=0).clamp(min=1e-6) * where
        )
    y, x = torch.linspace(-1, 1, height).view(-1, 1), torch.linspace(-1, 1, width)
    rim = (
        0.35
        + 0.65 * torch.maximum(y.abs().expand(height, width), x.abs().expand(height, width)) ** 2
    )
    ice = (needles / (needles.mean() + 2 * needles.std(correction=0)).clamp(min=1e-6)).clamp(
        0, 1
    ) * rim + 0.25 * rim
    tint = np.array([0.85, 0.95, 1.0], np.float32)  # ice is a little blue
    return 255 * ice.clamp(0, 1).numpy()[..., None] * tint


def fog(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(x + c p) m / (m + c), p a plasma of 0 to 1, m the brightest value, c = 1.5 to 3. One draw a
    video: the fog.
    """
    thickness, decay = level(clip, severity, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)))
    height, width = clip.shape[1:3]
    brightest = max(int(clip.max()), 1) / 255
    layer = 255 * thickness * plasma(max(height, width), decay, rng)[:height, :width, None]
    return each_frame(
        clip, lambda frame: (frame + layer) * np.float32(brightest / (brightest + thickness))
    )


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """(side, side) float32 of 0 to 1, side the next power of two: the diamond-square fractal, on a
    torus.

    decay: the noise gets smaller by its square from one scale to the next.
    """
    side = 1 << max(size - 1, 1).bit_length()
    heights, step, noise = np.zeros((side, side), np.float32), side, 1.0
    while step >= 2:
        half = step // 2

        def jitter(shape: tuple[int, ...], noise: float = noise) -> np.ndarray:
            return rng.uniform(-noise, noise, shape).astype(np.float32)

        corners = heights[::step, ::step]
        down = np.roll(corners, -1, 0)
        centres = (corners + down + np.roll(corners, -1, 1) + np.roll(down, -1, 1)) / 4
        heights[half::step, half::step] = centres = centres + jitter(centres.shape)
        above, left = np.roll(centres, 1, 0), np.roll(centres, 1, 1)
        heights[::step, half::step] = (
            corners + np.roll(corners, -1, 1) + centres + above
        ) / 4 + jitter(corners.shape)
        heights[half::step, ::step] = (corners + down + centres + left) / 4 + jitter(corners.shape)
        step, noise = (
            half,
            noise / decay**2,
        )  # the original divides both a factor and the range that it multiplies
    heights -= heights.min()
    return heights / max(float(heights.max()), 1e-12)


def rain(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Streaks of 10 to 80 pixels, one to 770 to 400 pixels of the frame, over a picture of less
    contrast.

    One draw a video: the slant. Drops fall farther than they are long from one frame to the next,
    so that each frame has its own.
    """
    area, length, contrast = level(
        clip,
        severity,
        ((770, 10, 0.8), (770, 30, 0.8), (770, 60, 0.7), (500, 60, 0.6), (400, 80, 0.5)),
    )
    height, width = clip.shape[1:3]
    size = scale(clip)
    length_px, slant = max(2, round(length * size)), round(rng.integers(-10, 11) * size)
    drops = max(1, round(height * width / (area * size**2)))

    def change(frame: np.ndarray) -> np.ndarray:
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        xs = rng.integers(min(0, -slant), max(width - min(0, slant), 1), drops)
        ys = rng.integers(-length_px // 2, height, drops)
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            draw.line((x, y, x + slant, y + length_px), fill=220)
        streaks = np.asarray(mask, np.float32)[..., None] / 255
        x = frame.astype(np.float32)
        lit = torch.from_numpy(x + 255 * streaks * (1 - x / 255) * (1 - x.mean() / 255)).permute(
            2, 0, 1
        )
        soft = (
            F.avg_pool2d(F.pad(lit, (1, 1, 1, 1), mode="replicate"), 3, 1).permute(1, 2, 0).numpy()
        )
        wet = soft * streaks + x * (1 - streaks)
        means = wet.mean((0, 1))
        return (wet - means) * np.float32(contrast) + means

    return each_frame(clip, change)


def spatter(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Drops of water (severities 1 to 3) or mud (4, 5) on the lens. One draw a video: where they
    are.

    Distances to a drop's rim are counted in steps of a pixel; the original takes OpenCV's.
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
    noise = torch.from_numpy(rng.normal(loc, sigma, (height, width)).astype(np.float32))
    smooth = blur * scale(clip)
    liquid = gaussian_filter(height, width, smooth)(noise) if smooth > 0.2 else noise
    # a smaller frame is blurred over fewer pixels, and what is left of the noise would pass the
    # threshold more often
    liquid = loc + (liquid - liquid.mean()) / liquid.std(correction=0).clamp(
        min=1e-6
    ) * sigma * _kept_by(blur)
    liquid = torch.where(liquid < threshold, 0, liquid)
    if mud:
        thick = gaussian_filter(height, width, pixels(clip, strength, severity))(
            (liquid > threshold).float()
        )
        cover = torch.where(thick < 0.8, 0, thick).numpy()[..., None]
        brown = np.array([63, 42, 20], np.float32) * cover
        return each_frame(clip, lambda frame: frame * (1 - cover) + brown)
    shine = (liquid * _relief(liquid > 0)).numpy()
    drops = strength * shine / max(float(shine.max()), 1e-6)
    turquoise = drops[..., None] * np.array([175, 238, 238], np.float32)
    return each_frame(clip, lambda frame: frame + turquoise)


def _kept_by(sigma: float) -> float:
    """The share of white noise's standard deviation that a Gaussian of `sigma` pixels leaves."""
    return 1 / (2 * math.sqrt(math.pi) * sigma)


def _relief(wet: torch.Tensor) -> torch.Tensor:
    """(H, W) bool -> float of 0 to 1: how drops catch the light, by their slope towards the rim."""
    inside = wet.float()[None, None]
    rim = (F.max_pool2d(inside, 3, 1, 1) != inside) | (-F.max_pool2d(-inside, 3, 1, 1) != inside)
    reached, distance = rim.float(), torch.zeros_like(inside)
    for step in range(20):
        distance += 1 - reached
        # a square, then a cross: together nearly a circle
        cross = torch.maximum(
            F.max_pool2d(reached, (3, 1), 1, (1, 0)), F.max_pool2d(reached, (1, 3), 1, (0, 1))
        )
        reached = F.max_pool2d(reached, 3, 1, 1) if step % 2 else cross
    slope = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    smooth = F.avg_pool2d(F.pad(distance, (1, 1, 1, 1), mode="replicate"), 3, 1)
    order = smooth.flatten().sort().values  # histogram equalisation: the share of pixels below
    even = torch.searchsorted(order, smooth.flatten()).view_as(smooth) / smooth.numel()
    raised = F.conv2d(F.pad(even, (1, 1, 1, 1), mode="replicate"), slope[None, None]).clamp(0, 1)
    return F.avg_pool2d(F.pad(raised, (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]

"""Augmentation: one draw a clip, shared by its frames.

The geometric half (crop, resize, flip) runs in the loader's worker on uint8; the photometric half (jitter,
gray, blur) runs on the device on float clips, from numbers that the worker drew. So a view is a pure function
of the generator that drew it, wherever its halves run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

# Columns of a colour draw: four factors (hue is a shift), the order in which they apply, gray (0 or 1), and the
# standard deviation of the blur in pixels (0: none).
COLOR_COLUMNS = 10
_IDENTITY = (1.0, 1.0, 1.0, 0.0, 0, 1, 2, 3, 0.0, 0.0)


@dataclass(frozen=True)
class AugmentSpec:
    """What may be drawn. Strengths as in SimCLR (Chen et al. 2020, appendix A); `blur` is a probability."""

    size: int = 112
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_prob: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    center: bool = False  # evaluation: the centre crop, nothing drawn


@dataclass(frozen=True)
class ViewDraw:
    """One draw: a box of the source in pixels, a flip, and the colour columns."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    color: tuple[float, ...]


def draw_view(spec: AugmentSpec, height: int, width: int, rng: np.random.Generator) -> ViewDraw:
    """Draw a view of frames of `height` x `width` pixels."""
    if spec.center:
        side = min(height, width, spec.size)
        return ViewDraw((height - side) // 2, (width - side) // 2, side, side, False, _IDENTITY)
    top, left, h, w = _random_box(spec, height, width, rng)
    flip = bool(rng.random() < spec.flip)
    return ViewDraw(top, left, h, w, flip, _draw_color(spec, rng))


def take_view(frames: np.ndarray, draw: ViewDraw, size: int) -> Tensor:
    """Crop, resize and flip: (T, H, W, 3) uint8 -> (3, T, size, size) uint8."""
    box = frames[:, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    clip = torch.from_numpy(np.ascontiguousarray(box)).permute(0, 3, 1, 2)
    if clip.shape[-2:] != (size, size):
        clip = tvf.resize(clip, [size, size], antialias=True)
    if draw.flip:
        clip = clip.flip(-1)
    return clip.permute(1, 0, 2, 3).contiguous()


def apply_color(clips: Tensor, draws: Tensor) -> Tensor:
    """Jitter, gray and blur, one draw a clip: (B, 3, T, H, W) in [0, 1], (B, COLOR_COLUMNS) -> the same shape."""
    if bool((draws == draws.new_tensor(_IDENTITY)).all()):
        return clips
    out = [_color_one(clip.transpose(0, 1), draw) for clip, draw in zip(clips, draws.tolist(), strict=True)]
    return torch.stack(out).transpose(1, 2).contiguous()


_JITTER: tuple[Callable[[Tensor, float], Tensor], ...] = (
    tvf.adjust_brightness,
    tvf.adjust_contrast,
    tvf.adjust_saturation,
    tvf.adjust_hue,
)


def _color_one(frames: Tensor, draw: list[float]) -> Tensor:
    """(T, 3, H, W) -> the same. Contrast is a frame's own, as in torchvision; its factor is the clip's."""
    for step in draw[4:8]:
        factor = draw[int(step)]
        if factor != _IDENTITY[int(step)]:
            frames = _JITTER[int(step)](frames, factor)
    if draw[8]:
        frames = tvf.rgb_to_grayscale(frames, num_output_channels=3)
    if draw[9]:
        # a kernel of three standard deviations a side, odd and no wider than the reflection allows
        reach = min(max(1, math.ceil(3 * draw[9])), min(frames.shape[-2:]) - 1)
        frames = tvf.gaussian_blur(frames, [2 * reach + 1] * 2, [draw[9]] * 2)
    return frames.clamp(0, 1)


def _random_box(spec: AugmentSpec, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of random area and aspect (Szegedy et al. 2015); after ten misses the largest central one."""
    for _ in range(10):
        area = height * width * rng.uniform(*spec.scale)
        ratio = math.exp(rng.uniform(math.log(spec.ratio[0]), math.log(spec.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w = min(width, round(height * spec.ratio[1]))
    h = min(height, round(w / spec.ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_color(spec: AugmentSpec, rng: np.random.Generator) -> tuple[float, ...]:
    factors = [1.0, 1.0, 1.0, 0.0]
    if rng.random() < spec.jitter_prob:
        factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in spec.jitter[:3]]
        factors.append(rng.uniform(-spec.jitter[3], spec.jitter[3]))
    gray = float(rng.random() < spec.gray)
    sigma = rng.uniform(*spec.blur_sigma) if rng.random() < spec.blur else 0.0
    return (*factors, *rng.permutation(4).tolist(), gray, sigma)

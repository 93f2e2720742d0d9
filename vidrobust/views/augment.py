"""Augment clips: one set of random parameters per clip, shared by its frames.

The box of a view is cut out and resized in the loader's worker, on uint8; flip and everything
photometric run on the device, on a whole batch of float clips, from numbers that the worker drew.
So a view is a pure function of the generator that drew it, wherever its halves run, and of no other
clip of its batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.views.cues import differences

# Columns of a draw: four factors (hue is a shift), the order in which they apply, gray (0 or 1),
# the standard
# deviation of the blur in pixels (0: none), flip, solarise and motion (0 or 1).
DRAW_COLUMNS = 13
_IDENTITY = (1.0, 1.0, 1.0, 0.0, 0, 1, 2, 3, 0.0, 0.0, 0.0, 0.0, 0.0)
_LARGEST_SIGMA = 2.0
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's


@dataclass(frozen=True)
class AugmentSpec:
    """What may be drawn. Strengths as in SimCLR (Chen et al. 2020, appendix A).

    flip, jitter_prob, gray, blur, solarize, motion: probabilities. motion: the clip shows its
    temporal differences alone: what moves, and not what it looks like. center: side of the box as a
    share of the frame's short side, for evaluation: the centre, nothing drawn; 0: random. shift:
    pixels of the view by which that centre is moved, at most, each way; what lies beyond the frame
    is black. 4 of 32 pixels are CIFAR-10's usual augmentation (He et al. 2016, section 4.2).
    """

    size: int = 112
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_prob: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, _LARGEST_SIGMA)
    solarize: float = 0.0
    motion: float = 0.0
    center: float = 0.0
    shift: int = 0


def faded(spec: AugmentSpec, epoch: int, epochs: int) -> AugmentSpec:
    """What may be drawn in that epoch of so many, where augmentations weaken to nothing in twenty
    stages.

    DynACL (Luo et al., ICLR 2023; METHODS section 4.4): the strength s falls from 1 by a twentieth
    at a time; the least area goes to 1, jitter, the shift, and the probabilities of all but the
    flip, to 0.
    """
    s = 1 - (20 * epoch // epochs) / 20
    b, c, saturation, hue = (s * strength for strength in spec.jitter)
    least, most = spec.scale
    return replace(
        spec,
        scale=(least + (1 - s) * (most - least), most),
        jitter=(b, c, saturation, hue),
        jitter_prob=s * spec.jitter_prob,
        gray=s * spec.gray,
        blur=s * spec.blur,
        solarize=s * spec.solarize,
        motion=s * spec.motion,
        shift=round(s * spec.shift),
    )


@dataclass(frozen=True)
class ViewDraw:
    """One draw: a box of the source in pixels, and the columns of what happens on the device.

    The box may reach beyond the frame, where everything is black.
    """

    top: int
    left: int
    height: int
    width: int
    columns: tuple[float, ...] = _IDENTITY


def draw_view(spec: AugmentSpec, height: int, width: int, rng: np.random.Generator) -> ViewDraw:
    """Draw a view of frames of `height` x `width` pixels."""
    if spec.center:
        side = max(1, round(min(height, width) * min(spec.center, 1)))
        box = (height - side) // 2, (width - side) // 2, side, side
        if not spec.shift:
            return ViewDraw(*box)
        moved = rng.integers(-spec.shift, spec.shift + 1, 2).tolist()
        down, right = (round(pixels * side / spec.size) for pixels in moved)
        box = box[0] + down, box[1] + right, side, side
    else:
        box = _random_box(spec, height, width, rng)
    flip = float(rng.random() < spec.flip)
    color, solarize = _draw_color(spec, rng), float(rng.random() < spec.solarize)
    motion = float(rng.random() < spec.motion) if spec.motion else 0.0
    return ViewDraw(*box, (*color, flip, solarize, motion))


def to_float(clips: Tensor) -> Tensor:
    """What the loader gives, uint8 (..., T, H, W, 3) -> what models take, float32 (..., 3, T, H, W)
    in [0, 1].
    """
    return clips.movedim(-1, -4).float().div_(255).contiguous()


@torch.no_grad()
def apply_draws(clips: Tensor, draws: Tensor) -> Tensor:
    """Flip, jitter, gray, blur, solarise and take differences, one draw a clip, all clips at once.

    clips: (B, 3, T, H, W) in [0, 1]; draws: (B, DRAW_COLUMNS), best on the CPU. Returns the same
    shape, in [0, 1]. Jitter's operations are torchvision's (contrast pulls towards a frame's own
    mean), in each clip's own order.
    """
    draws = draws.cpu()
    if bool((draws == draws.new_tensor(_IDENTITY)).all()):
        return clips
    clips = clips.clone()
    order = draws[:, 4:8].long()
    for position in range(4):
        for operation, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            factor = draws[:, operation]
            _change(
                clips,
                (order[:, position] == operation) & (factor != _IDENTITY[operation]),
                change,
                factor,
            )
    gray, sigma, flip, solarize, motion = draws[:, 8:].unbind(1)
    _change(clips, gray > 0, lambda x, _: _gray(x).expand_as(x), gray)
    _change(clips, sigma > 0, _blur, sigma)
    _change(clips, solarize > 0, lambda x, _: torch.where(x >= 0.5, 1 - x, x), solarize)
    _change(clips, flip > 0, lambda x, _: x.flip(-1), flip)
    _change(clips, motion > 0, lambda x, _: differences(x), motion)
    return clips


def _change(
    clips: Tensor, which: Tensor, change: Callable[[Tensor, Tensor], Tensor], value: Tensor
) -> None:
    """clips[which] = change(clips[which], value[which]), value as (n, 1, 1, 1, 1)."""
    if which.any():
        at = which.nonzero().flatten().to(clips.device)
        clips[at] = change(
            clips[at], value[which].to(clips.device, clips.dtype).view(-1, 1, 1, 1, 1)
        )


def _gray(x: Tensor) -> Tensor:
    r, g, b = x.split(1, dim=1)
    return _LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_gray(x).mean((1, 3, 4), keepdim=True), x, factor).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_gray(x), x, factor).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` circles: RGB -> HSV -> RGB."""
    r, g, b = x.split(1, dim=1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    sector += 6 * shift
    # channel c is value - chroma * clamp(min(k, 4 - k), 0, 1), k = (offset of c + sector) mod 6
    k = (x.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1, 1) + sector).remainder_(6)
    return (value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)).clamp_(0, 1)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian of three of the largest standard deviations a side, less where the frame's
    reflection allows less.
    """
    n, _, _, height, width = x.shape
    reach = min(math.ceil(3 * _LARGEST_SIGMA), min(height, width) - 1)
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (at / sigma.view(-1, 1)) ** 2, dim=1)
    planes = x.flatten(1, 2).unsqueeze(1)  # (n, 1, 3 T, H, W): each clip is a group of one channel
    planes = planes.transpose(0, 1)  # (1, n, 3 T, H, W)
    planes = F.pad(planes, (reach, reach, reach, reach, 0, 0), mode="reflect")
    planes = F.conv3d(planes, kernel.view(n, 1, 1, 1, -1), groups=n)
    planes = F.conv3d(planes, kernel.view(n, 1, 1, -1, 1), groups=n)
    return planes.view_as(x).clamp(0, 1)


def _random_box(
    spec: AugmentSpec, height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box (top, left, height, width) of random area and aspect (Szegedy et al. 2015).

    After ten misses it is the largest central one.
    """
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

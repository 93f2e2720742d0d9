"""Augment clips: one set of random parameters per clip, shared by its frames.

The work is divided. The loader's worker crops and resizes a view, on uint8. Flips and changes of
colour follow for a whole batch of float clips, by parameters that the worker has sampled: on a GPU,
or in the worker if there is none. A view therefore depends only on the generator that sampled it:
not on where its halves run, nor on the other clips of its batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vidrobust.views.cues import differences

# Columns of a view's parameters: brightness, contrast, saturation (factors) and hue (a shift); the
# order of these four; gray (0 or 1); standard deviation of the blur in pixels (0: none); flip,
# solarise and motion (0 or 1).
DRAW_COLUMNS = 13
_IDENTITY = (1.0, 1.0, 1.0, 0.0, 0, 1, 2, 3, 0.0, 0.0, 0.0, 0.0, 0.0)
_LARGEST_SIGMA = 2.0  # pixels; the kernel of every blur is wide enough for it
_CACHED = 2**19  # numbers of clips that a CPU changes at a time
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights


@dataclass(frozen=True)
class AugmentSpec:
    """Define the distribution of views. Strengths are those of SimCLR (Chen et al. 2020, app. A).

    Attributes:
        size: side of a view, pixels.
        scale: smallest and largest area of the crop, as fractions of the frame.
        ratio: smallest and largest width / height of the crop.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation and hue (hue in circles, up to 0.5).
        jitter_prob: probability of the jitter.
        gray: probability of gray.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur, pixels.
        solarize: probability of inverting bright pixels.
        motion: probability that the clip shows only its temporal differences: what moves, without
            its look.
        center: for evaluation, side of a central crop as a fraction of the frame's short side,
            without random parameters; a pair: its height and width as fractions of the frame's; 0:
            random crops.
        shift: largest shift of the central crop along each axis, in pixels of the view. Beyond the
            frame, the view is black. CIFAR-10's usual augmentation is 4 of 32 pixels (He et al.
            2016, section 4.2).
        interpolation: how boxes are resized to the view, "bilinear" or "bicubic".
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
    center: float | tuple[float, float] = 0.0
    shift: int = 0
    interpolation: str = "bilinear"


def faded(spec: AugmentSpec, epoch: int, epochs: int) -> AugmentSpec:
    """Return the augmentation of an epoch, if augmentations fade to none in twenty stages.

    In DynACL (Luo et al., ICLR 2023), the strength s decreases from 1 in steps of 1/20. The
    smallest area increases towards the largest. Jitter, shift, and all probabilities except that of
    the flip decrease towards 0.

    Args:
        spec: the augmentation at full strength.
        epoch: 0 to epochs - 1.
        epochs: length of the training.
    """
    s = 1 - (20 * epoch // epochs) / 20
    b, c, saturation, hue = (s * strength for strength in spec.jitter)
    smallest, largest = spec.scale
    return replace(
        spec,
        scale=(smallest + (1 - s) * (largest - smallest), largest),
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
    """Hold the random parameters of a view.

    The box may reach beyond the frame, where the view is black.

    Attributes:
        top, left, height, width: the box of the source frames, in pixels.
        columns: parameters of what follows cropping and resizing, DRAW_COLUMNS numbers.
    """

    top: int
    left: int
    height: int
    width: int
    columns: tuple[float, ...] = _IDENTITY


def draw_view(spec: AugmentSpec, height: int, width: int, rng: np.random.Generator) -> ViewDraw:
    """Sample the parameters of a view.

    Args:
        spec: the augmentation.
        height: of the source frames, pixels.
        width: of the source frames, pixels.
        rng: samples the parameters; not used for a central crop without shift.

    Returns:
        The parameters.
    """
    if spec.center:
        sides = _central_sides(spec.center, height, width)
        corner = (height - sides[0]) // 2, (width - sides[1]) // 2
        if not spec.shift:
            return ViewDraw(*corner, *sides)
        # The shift is in pixels of the view; convert it to pixels of the source.
        shifts = rng.integers(-spec.shift, spec.shift + 1, 2).tolist()
        down, right = (
            round(pixels * side / spec.size) for pixels, side in zip(shifts, sides, strict=True)
        )
        box = corner[0] + down, corner[1] + right, *sides
    else:
        box = _random_box(spec, height, width, rng)
    # The order of these samples must not change: runs are reproduced by it.
    flip = float(rng.random() < spec.flip)
    color = _draw_color(spec, rng)
    solarize = float(rng.random() < spec.solarize)
    motion = float(rng.random() < spec.motion) if spec.motion else 0.0
    return ViewDraw(*box, (*color, flip, solarize, motion))


def crops_along(spec: AugmentSpec, height: int, width: int, crops: int) -> list[ViewDraw]:
    """Return central crops of the evaluation, spread along the longer side of the frame.

    Args:
        spec: has the size of the central crop.
        height: of the source frames, pixels.
        width: of the source frames, pixels.
        crops: 3: at both ends of the longer side and in its middle, as in SlowFast's testing.
    """
    sides = _central_sides(spec.center, height, width)
    room = height - sides[0], width - sides[1]
    boxes = []
    for place in range(crops):
        down, right = room[0] // 2, room[1] // 2
        if width >= height:
            right = room[1] * place // (crops - 1)
        else:
            down = room[0] * place // (crops - 1)
        boxes.append(ViewDraw(down, right, *sides))
    return boxes


def _central_sides(center: float | tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Return height and width of a central crop, in pixels of the source; see `AugmentSpec`."""
    if isinstance(center, tuple):
        sides = height * min(center[0], 1), width * min(center[1], 1)
    else:
        sides = (min(height, width) * min(center, 1),) * 2
    return max(1, round(sides[0])), max(1, round(sides[1]))


def to_float(clips: Tensor) -> Tensor:
    """Convert the loader's clips to those of models.

    uint8 (..., T, H, W, 3) becomes float32 (..., 3, T, H, W) in [0, 1].
    """
    return clips.movedim(-1, -4).float().div_(255).contiguous()


def make_views(clips: Tensor, draws: Tensor) -> Tensor:
    """Return the views of a batch, where its clips are.

    Args:
        clips: (B, V, T, H, W, 3) uint8.
        draws: (B, V, DRAW_COLUMNS).

    Returns:
        (B, V, 3, T, H, W) float32 in [0, 1].
    """
    x = to_float(clips)
    return apply_draws(x.flatten(0, 1), draws.flatten(0, 1)).view(x.shape)


@torch.no_grad()
def apply_draws(clips: Tensor, draws: Tensor) -> Tensor:
    """Flip, jitter, gray, blur, solarise and difference all clips at once, each by its parameters.

    The operations of jitter are torchvision's: contrast pulls towards the mean of each frame. Each
    clip has its own order of them.

    Args:
        clips: (B, 3, T, H, W) in [0, 1].
        draws: (B, DRAW_COLUMNS), preferably on the CPU.

    Returns:
        (B, 3, T, H, W) in [0, 1]; the same tensor if no clip changes.
    """
    draws = draws.cpu()
    if bool((draws == draws.new_tensor(_IDENTITY)).all()):
        return clips
    clips = clips.clone()
    # A CPU is fastest on clips that stay in its cache from one operation to the next.
    at_once = max(1, _CACHED // clips[0].numel()) if clips.is_cpu else len(clips)
    for some, their_draws in zip(clips.split(at_once), draws.split(at_once), strict=True):
        _apply(some, their_draws)
    return clips


def _apply(clips: Tensor, draws: Tensor) -> None:
    """Change clips in place; see `apply_draws`."""
    # Jitter: at each position of the order, apply each operation to the clips that have it there.
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


def _change(
    clips: Tensor, which: Tensor, change: Callable[[Tensor, Tensor], Tensor], value: Tensor
) -> None:
    """Replace some clips by change(clips, value), in place.

    Args:
        clips: (B, 3, T, H, W).
        which: (B,) bool.
        change: gets the n chosen clips, and their values as (n, 1, 1, 1, 1).
        value: (B,).
    """
    if not which.any():
        return
    values = value[which].to(clips.device, clips.dtype).view(-1, 1, 1, 1, 1)
    if which.all():
        clips.copy_(change(clips, values))
        return
    index = which.nonzero().flatten().to(clips.device)
    clips[index] = change(clips[index], values)


# ------------------------------------------------------------------ operations on (n, 3, T, H, W)


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
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    # 1 where a channel is the largest, else 0: torch.where takes ten times as long on a CPU
    red = (value == r).to(x.dtype)
    green = (value == g).to(x.dtype) * (1 - red)
    blue = 1 - red - green
    # hue in sixths of the circle: red is 0, green 2, blue 4; gray is 0
    sector = red * (g - b) + green * (b - r) + blue * (r - g)
    sector /= chroma + (chroma == 0).to(x.dtype)
    sector += 2 * green + 4 * blue
    sector += 6 * shift
    # channel c is value - chroma * clamp(min(k, 4 - k), 0, 1), k = (offset of c + sector) mod 6
    k = x.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1, 1) + sector
    k -= 6 * (k / 6).floor_()  # torch.remainder takes several times as long on a CPU
    return (value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)).clamp_(0, 1)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each clip by a Gaussian of its own standard deviation in pixels.

    The kernel reaches three of the largest standard deviations to each side, or less in a frame
    that is too small to be reflected that far.
    """
    height, width = x.shape[-2:]
    reach = min(math.ceil(3 * _LARGEST_SIGMA), min(height, width) - 1)
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (offsets / sigma.view(-1, 1)) ** 2, dim=1)
    # As products of matrices, which are many times as fast as convolutions with a kernel per clip.
    along_width = _blur_matrix(kernel, width)
    along_height = _blur_matrix(kernel, height)
    rows = x.flatten(1, 3) @ along_width.transpose(1, 2)  # (n, 3 T H, W)
    return (along_height[:, None, None] @ rows.view_as(x)).clamp_(0, 1)


def _blur_matrix(kernel: Tensor, size: int) -> Tensor:
    """Return the matrices (n, size, size) that blur a row of pixels, reflected at its ends.

    Args:
        kernel: (n, 2 reach + 1), the weights of the pixels around each.
        size: number of pixels of the row, more than the reach.
    """
    n, taps = kernel.shape
    pixels = torch.arange(size, device=kernel.device)
    sources = pixels[:, None] + torch.arange(taps, device=kernel.device) - taps // 2
    sources = (size - 1) - (size - 1 - sources.abs()).abs()  # -1 is 1, size is size - 2
    matrix = kernel.new_zeros(n, size, size)
    return matrix.scatter_add_(2, sources.expand(n, -1, -1), kernel[:, None].expand(-1, size, -1))


# ------------------------------------------------------------------ random parameters


def _random_box(
    spec: AugmentSpec, height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Sample a box (top, left, height, width) of random area and ratio (Szegedy et al. 2015).

    If ten boxes in a row do not fit the frame, return the largest central box.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*spec.scale)
        ratio = math.exp(rng.uniform(math.log(spec.ratio[0]), math.log(spec.ratio[1])))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    # the widest box that fits, and then the highest one of that width
    w = min(width, round(height * spec.ratio[1]))
    h = min(height, round(w / spec.ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_color(spec: AugmentSpec, rng: np.random.Generator) -> tuple[float, ...]:
    """Sample the first ten columns: four factors, their order, gray and blur."""
    factors = [1.0, 1.0, 1.0, 0.0]
    if rng.random() < spec.jitter_prob:
        factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in spec.jitter[:3]]
        factors.append(rng.uniform(-spec.jitter[3], spec.jitter[3]))
    gray = float(rng.random() < spec.gray)
    sigma = rng.uniform(*spec.blur_sigma) if rng.random() < spec.blur else 0.0
    return (*factors, *rng.permutation(4).tolist(), gray, sigma)

"""Negatives of diminished semantics (paper C): what keeps a clip's texture or its frames, and loses the rest.

A negative is a rearrangement of pixels of the augmented clip: numbers are drawn on the CPU, a generator a clip, so that
the same generator gives the same negative anywhere; pixels move on the device, a whole batch at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Rngs = Sequence[np.random.Generator]
_PUBLISHED_PX = 224  # the frame for which paper C gives its patches


@dataclass(frozen=True)
class NegativeSpec:
    """`count` negatives of each of `names`, of NEGATIVES, for each clip.

    patch_px: side of a patch, from and to, in a frame of 224 pixels, scaled for others (paper C: 16 to 72). turn:
    patches are flipped and turned by right angles at random (off in the published runs). tube: frames of a tube.
    grid: tubes a side whose frames `tube_shuffle` shuffles, each for itself.
    """

    names: tuple[str, ...] = ()
    count: int = 1
    patch_px: tuple[int, int] = (16, 72)
    turn: bool = False
    tube: int = 4
    grid: int = 4


def patch(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """Paper C's patches (METHODS section 3.2): a grid of random p x p crops of the clip, drawn with replacement.

    p is drawn once a clip. All frames show the same crops, so that what moves inside a patch goes on moving.
    """
    return _patches(x, rngs, spec, every=x.shape[2], shift=False)


def patch_frames(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """`patch`, the crops drawn anew for each frame: nothing moves on."""
    return _patches(x, rngs, spec, every=1, shift=False)


def tube(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """`patch`, the crops drawn anew every `spec.tube` frames, in place and in time: tubes of the clip."""
    return _patches(x, rngs, spec, every=min(spec.tube, x.shape[2]), shift=True)


def shuffle(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """The frames in another order (IIC, Tao et al. 2020, shuffles a clip for a negative)."""
    return _at_times(x, np.stack([_disorder(rng, x.shape[2]) for rng in rngs]))


def freeze(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """One frame all the time (IIC's other negative)."""
    return _at_times(x, np.stack([np.full(x.shape[2], rng.integers(x.shape[2])) for rng in rngs]))


def loop(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """A quarter of the clip, two frames at least, over and over."""
    frames = x.shape[2]
    length = min(max(2, frames // 4), frames - 1)
    starts = np.array([rng.integers(frames - length + 1) for rng in rngs])
    return _at_times(x, starts[:, None] + np.arange(frames) % length)


def reverse(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """From the last frame to the first; for data where that is another meaning."""
    return x.flip(2)


def tube_shuffle(x: Tensor, rngs: Rngs, spec: NegativeSpec) -> Tensor:
    """The frames of each cell of a grid in an order of its own."""
    _, _, frames, height, width = x.shape
    orders = np.stack([[_disorder(rng, frames) for _ in range(spec.grid**2)] for rng in rngs])  # (B, cells, T)
    cell = (_cells(height, spec.grid)[:, None] * spec.grid + _cells(width, spec.grid)).flatten()
    times = torch.from_numpy(orders).to(x.device)[:, cell.to(x.device)]  # (B, H W, T)
    return _take(x, times.transpose(1, 2) * height * width + torch.arange(height * width, device=x.device))


Negative = Callable[[Tensor, Rngs, NegativeSpec], Tensor]
SPATIAL: dict[str, Negative] = {"patch": patch, "patch_frames": patch_frames, "tube": tube}
TEMPORAL: dict[str, Negative] = {
    "shuffle": shuffle, "freeze": freeze, "loop": loop, "reverse": reverse, "tube_shuffle": tube_shuffle,
}  # fmt: skip
NEGATIVES: dict[str, Negative] = SPATIAL | TEMPORAL


@torch.no_grad()
def negatives(x: Tensor, spec: NegativeSpec, rngs: Rngs) -> Tensor:
    """x (B, C, T, H, W), a generator a clip -> (B, names * count, C, T, H, W), in the order of the names.

    Raises ValueError where `require_room` does.
    """
    require_room(spec, x.shape[2], min(x.shape[3:]))
    made = [NEGATIVES[name](x, rngs, spec) for name in spec.names for _ in range(spec.count)]
    return torch.stack(made, 1) if made else x.new_empty(len(x), 0, *x.shape[1:])


def require_room(spec: NegativeSpec, frames: int, size: int) -> None:
    """Raises ValueError for negatives that clips of `frames` frames of `size` pixels do not have."""
    if frames == 1 and (idle := [name for name in spec.names if name in TEMPORAL]):
        raise ValueError(f"{idle[0]} changes nothing of a clip of one frame")
    if any(name in SPATIAL for name in spec.names):
        patch_sides(spec.patch_px, size)
    if "tube_shuffle" in spec.names and spec.grid > size:
        raise ValueError(f"a grid of {spec.grid} x {spec.grid} tubes needs as many pixels a side, not {size}")


def patch_sides(patch_px: tuple[int, int], size: int) -> tuple[int, int]:
    """The smallest and largest patch in frames of `size` pixels; 2 pixels at least.

    Raises ValueError where they are not in order, or as large as the frame, which would then be its own negative.
    """
    low, high = (max(2, math.floor(side * size / _PUBLISHED_PX + 0.5)) for side in patch_px)
    if patch_px[0] > patch_px[1]:
        raise ValueError(f"patches of {patch_px[0]} to {patch_px[1]} pixels: the smallest comes first")
    if high >= size:
        raise ValueError(f"patches of {high} pixels are as large as a frame of {size} (at {_PUBLISHED_PX} pixels: "
                         f"{patch_px[1]})")  # fmt: skip
    return low, high


def _patches(x: Tensor, rngs: Rngs, spec: NegativeSpec, *, every: int, shift: bool) -> Tensor:
    """A grid of crops, drawn anew `every` so many frames; shift: of other frames than those they replace, as well."""
    _, _, frames, height, width = x.shape
    low, high = patch_sides(spec.patch_px, min(height, width))
    sides = np.array([rng.integers(low, high + 1) for rng in rngs])
    rounds = -(-frames // every)
    across = -(-max(height, width) // low)
    shape = (rounds, across, across)
    room = np.array([height, width])[:, None] - sides + 1  # (2, B): places where a crop may begin
    top, left = (np.stack([rng.integers(n, size=shape) for rng, n in zip(rngs, r, strict=True)]) for r in room)
    drawn = [top, left]
    if shift:
        first = np.stack([rng.integers(frames - every + 1, size=shape) for rng in rngs])
        drawn.append(first - every * np.arange(rounds)[:, None, None])
    if spec.turn:  # transposed, turned upside down, mirrored
        drawn += list(np.stack([rng.integers(2, size=(3, *shape)) for rng in rngs]).swapaxes(0, 1))
    tables = torch.from_numpy(np.stack(drawn)).to(x.device)  # (2 to 6, B, rounds, across, across)
    source = _source(tables, torch.from_numpy(sides).to(x.device), every, (frames, height, width), shift)
    return _take(x, source)


def _source(tables: Tensor, sides: Tensor, every: int, size: tuple[int, int, int], shift: bool) -> Tensor:
    """Where each pixel of a patched clip comes from: (B, T or 1, H W), as `_take` has it."""
    frames, height, width = size
    device = tables.device
    t = torch.arange(frames if tables.shape[2] > 1 else 1, device=device)
    row, column = (torch.arange(n, device=device) for n in (height, width))
    side, batch = sides[:, None, None, None], torch.arange(len(sides), device=device).view(-1, 1, 1, 1)
    rows, columns = row[:, None] // side, column // side
    top, left, *more = tables[:, batch, (t // every)[:, None, None], rows, columns].unbind(0)  # (B, t, H, W)
    down, right = row[:, None] % side, column % side
    if len(more) > 2:
        transposed, upside, mirrored = (turn > 0 for turn in more[-3:])
        down, right = torch.where(transposed, right, down), torch.where(transposed, down, right)
        down, right = torch.where(upside, side - 1 - down, down), torch.where(mirrored, side - 1 - right, right)
    place = ((top + down) * width + left + right).flatten(2)
    if tables.shape[2] == 1:
        return place
    when = more[0].flatten(2) + t[:, None] if shift else t[:, None]
    return when * height * width + place


def _take(x: Tensor, source: Tensor) -> Tensor:
    """x (B, C, T, H, W), source (B, T or 1, H W): places in a channel's T H W pixels, or, of one row, in each frame."""
    b, c, frames = x.shape[:3]
    if source.shape[1] == 1:
        return x.flatten(3).gather(3, source[:, None].expand(b, c, frames, -1)).view_as(x)
    return x.flatten(2).gather(2, source.flatten(1)[:, None].expand(b, c, -1)).view_as(x)


def _at_times(x: Tensor, times: np.ndarray) -> Tensor:
    """x (B, C, T, H, W) at the frames `times` (B, T) of each clip."""
    at = torch.from_numpy(times).to(x.device)
    return x[torch.arange(len(x), device=x.device)[:, None], :, at].movedim(2, 1)


def _disorder(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A permutation of 0 .. frames - 1 that is not the identity."""
    order = rng.permutation(frames)
    while (order[1:] > order[:-1]).all():
        order = rng.permutation(frames)
    return order


def _cells(size: int, grid: int) -> Tensor:
    """Which of `grid` cells each of `size` pixels is in."""
    return torch.arange(size) * grid // size

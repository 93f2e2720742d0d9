"""NEGATIVES: non-semantic negatives (Ge et al. 2021).

A negative is a rearrangement of pixels of the augmented clip. Where they come from is decided by
numbers that the loader draws with the clip, so that the same seed gives the same negative anywhere;
the rest happens on the device, a whole batch at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_PUBLISHED_PX = 224  # the frame for which paper C gives its patches


@dataclass(frozen=True)
class NegativeSpec:
    """`count` negatives of each of `names`, of NEGATIVES, for each clip.

    patch_px: side of a patch, from and to, in a frame of 224 pixels, scaled for others (paper C: 16
    to 72). turn: patches are flipped and turned by right angles at random (off in the published
    runs). tube: frames of a tube. grid: tubes a side whose frames `tube_shuffle` shuffles, each for
    itself.
    """

    names: tuple[str, ...] = ()
    count: int = 1
    patch_px: tuple[int, int] = (16, 72)
    turn: bool = False
    tube: int = 4
    grid: int = 4


class Numbers:
    """Numbers in [0, 1), (B, n), of which each clip takes its next ones."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.taken = numbers, 0

    def below(self, bound: Tensor | int, *shape: int) -> Tensor:
        """Whole numbers from 0 to `bound` (of all clips, or (B,)), without it: (B, *shape)."""
        if isinstance(bound, Tensor):
            bound = bound.view(-1, *[1] * len(shape))
        return (
            (self._take(shape) * bound).long().clamp(max=bound - 1)
        )  # as a product may be rounded up

    def orders(self, length: int, *shape: int) -> Tensor:
        """Permutations of 0 .. length - 1, (B, *shape, length), none of which changes nothing: that
        is turned round.
        """
        order = self._take((*shape, length)).argsort(-1)
        same = (order.diff(dim=-1) > 0).all(-1, keepdim=True)
        return torch.where(same, order.flip(-1), order)

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        first, self.taken = self.taken, self.taken + math.prod(shape)
        return self.numbers[:, first : self.taken].reshape(len(self.numbers), *shape)


def patch(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Paper C's patches (METHODS section 3.2): a grid of random p x p crops of the clip, drawn with
    replacement.

    p is drawn once a clip. All frames show the same crops, so that what moves inside a patch goes
    on moving.
    """
    return _patches(x, numbers, spec, every=x.shape[2], shift=False)


def patch_frames(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """`patch`, the crops drawn anew for each frame: nothing moves on."""
    return _patches(x, numbers, spec, every=1, shift=False)


def tube(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """`patch`, the crops drawn anew every `spec.tube` frames, in place and in time: tubes of the
    clip.
    """
    return _patches(x, numbers, spec, every=min(spec.tube, x.shape[2]), shift=True)


def shuffle(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """The frames in another order (IIC, Tao et al. 2020, shuffles a clip for a negative)."""
    return _at_times(x, numbers.orders(x.shape[2]))


def freeze(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """One frame all the time (IIC's other negative)."""
    return _at_times(x, numbers.below(x.shape[2], 1).expand(-1, x.shape[2]))


def loop(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """A quarter of the clip, two frames at least, over and over."""
    frames = x.shape[2]
    length = min(max(2, frames // 4), frames - 1)
    return _at_times(
        x, numbers.below(frames - length + 1, 1) + torch.arange(frames, device=x.device) % length
    )


def reverse(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """From the last frame to the first; for data where that is another meaning."""
    return x.flip(2)


def tube_shuffle(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """The frames of each cell of a grid in an order of its own."""
    _, _, frames, height, width = x.shape
    orders = numbers.orders(frames, spec.grid**2)  # (B, cells, T)
    cell = (_cells(height, spec.grid)[:, None] * spec.grid + _cells(width, spec.grid)).flatten()
    times = orders[:, cell.to(x.device)]  # (B, H W, T)
    return _take(
        x, times.transpose(1, 2) * height * width + torch.arange(height * width, device=x.device)
    )


Negative = Callable[[Tensor, Numbers, NegativeSpec], Tensor]
SPATIAL: dict[str, Negative] = {"patch": patch, "patch_frames": patch_frames, "tube": tube}
TEMPORAL: dict[str, Negative] = {
    "shuffle": shuffle,
    "freeze": freeze,
    "loop": loop,
    "reverse": reverse,
    "tube_shuffle": tube_shuffle,
}
NEGATIVES: dict[str, Negative] = SPATIAL | TEMPORAL


@torch.no_grad()
def negatives(x: Tensor, spec: NegativeSpec, numbers: Tensor) -> Tensor:
    """x (B, C, T, H, W), numbers (B, `count_numbers`) in [0, 1) -> (B, names * count, C, T, H, W).

    In the order of the names. Raises ValueError where `require_room` does.
    """
    require_room(spec, x.shape[2], min(x.shape[3:]))
    return _made(x, spec, Numbers(numbers.to(x.device)))


def count_numbers(spec: NegativeSpec, frames: int, height: int, width: int) -> int:
    """How many numbers decide the negatives of a clip. Raises ValueError where `require_room`
    does.
    """
    require_room(spec, frames, min(height, width))
    numbers = Numbers(torch.empty(0, 2**40))  # of no clip, as many as may be
    _made(torch.empty(0, 1, frames, height, width), spec, numbers)
    return numbers.taken


def draw_numbers(
    spec: NegativeSpec, size: Sequence[int], rngs: Sequence[np.random.Generator]
) -> Tensor:
    """The numbers of clips of `size` (T, H, W), a generator a clip: (B, `count_numbers`)."""
    n = count_numbers(spec, *size)
    return torch.from_numpy(np.stack([rng.random(n, np.float32) for rng in rngs]))


def _made(x: Tensor, spec: NegativeSpec, numbers: Numbers) -> Tensor:
    made = [NEGATIVES[name](x, numbers, spec) for name in spec.names for _ in range(spec.count)]
    return torch.stack(made, 1) if made else x.new_empty(len(x), 0, *x.shape[1:])


def require_room(spec: NegativeSpec, frames: int, size: int) -> None:
    """Raises ValueError for negatives that clips of `frames` frames of `size` pixels do not
    have.
    """
    if frames == 1 and (idle := [name for name in spec.names if name in TEMPORAL]):
        raise ValueError(
            f"{idle[0]} changes nothing of a clip of one frame; set data.frames, or take patch or"
            " texture"
        )
    if any(name in SPATIAL for name in spec.names):
        patch_sides(spec.patch_px, size)
    if "tube_shuffle" in spec.names and spec.grid > size:
        raise ValueError(
            f"a grid of {spec.grid} x {spec.grid} tubes needs as many pixels a side, not {size}"
        )


def patch_sides(patch_px: tuple[int, int], size: int) -> tuple[int, int]:
    """The smallest and largest patch in frames of `size` pixels; 2 pixels at least.

    Raises ValueError where they are not in order, or as large as the frame, which would then be its
    own negative.
    """
    low, high = (max(2, math.floor(side * size / _PUBLISHED_PX + 0.5)) for side in patch_px)
    if patch_px[0] > patch_px[1]:
        raise ValueError(
            f"patches of {patch_px[0]} to {patch_px[1]} pixels: the smallest comes first"
        )
    if high >= size:
        raise ValueError(
            f"patches of {high} pixels are as large as a frame of {size} (at {_PUBLISHED_PX}"
            f" pixels: {patch_px[1]})"
        )
    return low, high


def _patches(x: Tensor, numbers: Numbers, spec: NegativeSpec, *, every: int, shift: bool) -> Tensor:
    """A grid of crops, drawn anew `every` so many frames; shift: of other frames than those they
    replace, as well.
    """
    _, _, frames, height, width = x.shape
    low, high = patch_sides(spec.patch_px, min(height, width))
    sides = low + numbers.below(high + 1 - low)
    rounds = -(-frames // every)
    across = -(-max(height, width) // low)
    shape = (rounds, across, across)
    drawn = [numbers.below(side - sides + 1, *shape) for side in (height, width)]  # top and left
    if shift:
        began = every * torch.arange(rounds, device=x.device)
        drawn.append(numbers.below(frames - every + 1, *shape) - began[:, None, None])
    if spec.turn:  # transposed, turned upside down, mirrored
        drawn += [numbers.below(2, *shape) for _ in range(3)]
    return _take(x, _source(torch.stack(drawn), sides, every, (frames, height, width), shift))


def _source(
    tables: Tensor, sides: Tensor, every: int, size: tuple[int, int, int], shift: bool
) -> Tensor:
    """Where each pixel of a patched clip comes from: (B, T or 1, H W), as `_take` has it."""
    frames, height, width = size
    device = tables.device
    t = torch.arange(frames if tables.shape[2] > 1 else 1, device=device)
    row, column = (torch.arange(n, device=device) for n in (height, width))
    side, batch = (
        sides[:, None, None, None],
        torch.arange(len(sides), device=device).view(-1, 1, 1, 1),
    )
    rows, columns = row[:, None] // side, column // side
    top, left, *more = tables[:, batch, (t // every)[:, None, None], rows, columns].unbind(
        0
    )  # (B, t, H, W)
    down, right = row[:, None] % side, column % side
    if len(more) > 2:
        transposed, upside, mirrored = (turn > 0 for turn in more[-3:])
        down, right = torch.where(transposed, right, down), torch.where(transposed, down, right)
        down, right = (
            torch.where(upside, side - 1 - down, down),
            torch.where(mirrored, side - 1 - right, right),
        )
    place = ((top + down) * width + left + right).flatten(2)
    if tables.shape[2] == 1:
        return place
    when = more[0].flatten(2) + t[:, None] if shift else t[:, None]
    return when * height * width + place


def _take(x: Tensor, source: Tensor) -> Tensor:
    """x (B, C, T, H, W), source (B, T or 1, H W): places in a channel's T H W pixels, or, of one
    row, in each frame.
    """
    b, c, frames = x.shape[:3]
    if source.shape[1] == 1:
        return x.flatten(3).gather(3, source[:, None].expand(b, c, frames, -1)).view_as(x)
    return x.flatten(2).gather(2, source.flatten(1)[:, None].expand(b, c, -1)).view_as(x)


def _at_times(x: Tensor, times: Tensor) -> Tensor:
    """x (B, C, T, H, W) at the frames `times` (B, T) of each clip."""
    return x[torch.arange(len(x), device=x.device)[:, None], :, times].movedim(2, 1)


def _cells(size: int, grid: int) -> Tensor:
    """Which of `grid` cells each of `size` pixels is in."""
    return torch.arange(size) * grid // size


# kind of negative -> the options of `method.negatives` that it takes besides count and alpha
NEGATIVE_OPTIONS: dict[str, tuple[str, ...]] = {
    "patch": ("patch_px", "turn"),
    "patch_frames": ("patch_px", "turn"),
    "tube": ("patch_px", "turn", "tube"),
    "tube_shuffle": ("grid",),
}

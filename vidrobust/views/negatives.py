"""NEGATIVES: non-semantic negatives (Ge et al. 2021).

A negative is a rearrangement of the pixels of an augmented clip. Random numbers decide where the
pixels come from. The loader samples these numbers with the clip, so that the same seed gives the
same negative everywhere. The rearrangement runs on the device, for a whole batch at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_PUBLISHED_PX = 224  # side of the frames for which Ge et al. give the sides of patches


@dataclass(frozen=True)
class NegativeSpec:
    """Choose the negatives of each clip.

    Attributes:
        names: kinds of negatives, of NEGATIVES.
        count: negatives of each kind.
        patch_px: smallest and largest side of a patch, in pixels of a 224-pixel frame, scaled for
            other frames (Ge et al. 2021: 16 to 72).
        turn: flip patches, and rotate them by right angles, at random (off in the published runs).
        tube: frames of a tube.
        grid: cells per side whose frames `tube_shuffle` shuffles, each cell for itself.
    """

    names: tuple[str, ...] = ()
    count: int = 1
    patch_px: tuple[int, int] = (16, 72)
    turn: bool = False
    tube: int = 4
    grid: int = 4


class Numbers:
    """Serve random numbers (B, n) in [0, 1): each request takes the next numbers of every clip."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self.taken = 0

    def below(self, bound: Tensor | int, *shape: int) -> Tensor:
        """Return integers (B, *shape) from 0 to bound - 1; bound: one number, or (B,)."""
        if isinstance(bound, Tensor):
            bound = bound.view(-1, *[1] * len(shape))
        # clamp, because rounding may turn the product into the bound itself
        return (self._take(shape) * bound).long().clamp(max=bound - 1)

    def orders(self, length: int, *shape: int) -> Tensor:
        """Return permutations (B, *shape, length) of 0 to length - 1, never the identity.

        The identity is replaced by the reversed order.
        """
        order = self._take((*shape, length)).argsort(-1)
        same = (order.diff(dim=-1) > 0).all(-1, keepdim=True)
        return torch.where(same, order.flip(-1), order)

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next numbers as (B, *shape)."""
        first = self.taken
        self.taken += math.prod(shape)
        return self.numbers[:, first : self.taken].reshape(len(self.numbers), *shape)


# ------------------------------------------------------------------ kinds of negatives


def patch(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return a grid of random p x p crops of the clip, with replacement (Ge et al. 2021).

    The side p is sampled once per clip. All frames show the same crops, so motion inside a patch
    continues.

    Args:
        x: (B, C, T, H, W).
        numbers: the random numbers of each clip.
        spec: `patch_px` and `turn` are used.
    """
    return _patches(x, numbers, spec, every=x.shape[2], shift=False)


def patch_frames(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return `patch` with new crops for each frame, so that no motion continues.

    Args:
        x: (B, C, T, H, W).
        numbers: the random numbers of each clip.
        spec: `patch_px` and `turn` are used.
    """
    return _patches(x, numbers, spec, every=1, shift=False)


def tube(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return `patch` with new crops every few frames, from random places and times of the clip.

    Args:
        x: (B, C, T, H, W).
        numbers: the random numbers of each clip.
        spec: `patch_px`, `turn` and `tube` are used.
    """
    return _patches(x, numbers, spec, every=min(spec.tube, x.shape[2]), shift=True)


def shuffle(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return the frames in another order, as a negative of IIC (Tao et al. 2020).

    Args:
        x: (B, C, T, H, W), T at least 2.
        numbers: the random numbers of each clip.
        spec: unused.
    """
    return _at_times(x, numbers.orders(x.shape[2]))


def freeze(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return one random frame, repeated: the other negative of IIC (Tao et al. 2020).

    Args:
        x: (B, C, T, H, W), T at least 2.
        numbers: the random numbers of each clip.
        spec: unused.
    """
    return _at_times(x, numbers.below(x.shape[2], 1).expand(-1, x.shape[2]))


def loop(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return a random quarter of the clip, at least two frames, repeated.

    Args:
        x: (B, C, T, H, W), T at least 2.
        numbers: the random numbers of each clip.
        spec: unused.
    """
    frames = x.shape[2]
    # shorter than the clip, or the negative would be the clip itself
    length = min(max(2, frames // 4), frames - 1)
    return _at_times(
        x, numbers.below(frames - length + 1, 1) + torch.arange(frames, device=x.device) % length
    )


def reverse(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return the frames in reversed order, for data where this changes the meaning.

    Args:
        x: (B, C, T, H, W), T at least 2.
        numbers: unused.
        spec: unused.
    """
    return x.flip(2)


def tube_shuffle(x: Tensor, numbers: Numbers, spec: NegativeSpec) -> Tensor:
    """Return the clip with the frames of each cell of a grid in an order of their own.

    Args:
        x: (B, C, T, H, W), T at least 2.
        numbers: the random numbers of each clip.
        spec: `grid` is used.
    """
    _, _, frames, height, width = x.shape
    orders = numbers.orders(frames, spec.grid**2)  # (B, cells, T)
    cell = (_cells(height, spec.grid)[:, None] * spec.grid + _cells(width, spec.grid)).flatten()
    times = orders[:, cell.to(x.device)]  # (B, H W, T)
    pixels = torch.arange(height * width, device=x.device)
    return _take(x, times.transpose(1, 2) * height * width + pixels)


# ------------------------------------------------------------------ registry

Negative = Callable[[Tensor, Numbers, NegativeSpec], Tensor]


@dataclass(frozen=True)
class NegativeKind:
    """Describe a kind of negatives, an entry of NEGATIVES.

    Attributes:
        make: (clips, numbers, spec) -> negatives of the same shape.
        count_numbers: (spec, T, H, W) -> how many random numbers `make` takes per clip.
        temporal: only the order of frames changes, so that nothing changes in a single frame.
        options: of `method.negatives` that it uses, apart from count and alpha.
        require_room: (spec, size) -> None; raises ValueError if frames with a shorter side of
            `size` pixels have no such negatives. None: all frames have.
    """

    make: Negative
    count_numbers: Callable[[NegativeSpec, int, int, int], int]
    temporal: bool = False
    options: tuple[str, ...] = ()
    require_room: Callable[[NegativeSpec, int], object] | None = None


def _count_for_patches(
    spec: NegativeSpec, size: tuple[int, int, int], every: int, *, shift: bool
) -> int:
    """Return how many random numbers `_patches` takes for clips of size (T, H, W).

    It takes one for the side of the patches, and one per cell for each of its tables.
    """
    frames, height, width = size
    low, _ = patch_sides(spec.patch_px, min(height, width))
    tables = 2 + shift + 3 * spec.turn  # top, left; shift in time; three flags
    return 1 + tables * _rounds(frames, every) * _cells_across(height, width, low) ** 2


def _require_patches(spec: NegativeSpec, size: int) -> None:
    """Raise ValueError if the patches do not fit frames of `size` pixels."""
    patch_sides(spec.patch_px, size)


def _require_grid(spec: NegativeSpec, size: int) -> None:
    """Raise ValueError if the grid has more cells than frames of `size` pixels have pixels."""
    if spec.grid > size:
        raise ValueError(f"grid={spec.grid}: must be at most the side of a frame, {size} pixels")


NEGATIVES: dict[str, NegativeKind] = {
    "patch": NegativeKind(
        patch,
        lambda spec, t, h, w: _count_for_patches(spec, (t, h, w), t, shift=False),
        options=("patch_px", "turn"),
        require_room=_require_patches,
    ),
    "patch_frames": NegativeKind(
        patch_frames,
        lambda spec, t, h, w: _count_for_patches(spec, (t, h, w), 1, shift=False),
        options=("patch_px", "turn"),
        require_room=_require_patches,
    ),
    "tube": NegativeKind(
        tube,
        lambda spec, t, h, w: _count_for_patches(spec, (t, h, w), min(spec.tube, t), shift=True),
        options=("patch_px", "turn", "tube"),
        require_room=_require_patches,
    ),
    "shuffle": NegativeKind(shuffle, lambda spec, t, h, w: t, temporal=True),
    "freeze": NegativeKind(freeze, lambda spec, t, h, w: 1, temporal=True),
    "loop": NegativeKind(loop, lambda spec, t, h, w: 1, temporal=True),
    "reverse": NegativeKind(reverse, lambda spec, t, h, w: 0, temporal=True),
    "tube_shuffle": NegativeKind(
        tube_shuffle,
        lambda spec, t, h, w: t * spec.grid**2,
        temporal=True,
        options=("grid",),
        require_room=_require_grid,
    ),
}
SPATIAL = {name: kind for name, kind in NEGATIVES.items() if not kind.temporal}
TEMPORAL = {name: kind for name, kind in NEGATIVES.items() if kind.temporal}
# kind of negative -> the options of `method.negatives` that it uses, apart from count and alpha
NEGATIVE_OPTIONS = {name: kind.options for name, kind in NEGATIVES.items()}


# ------------------------------------------------------------------ use


@torch.no_grad()
def negatives(x: Tensor, spec: NegativeSpec, numbers: Tensor) -> Tensor:
    """Return the negatives of clips, in the order of spec.names.

    Args:
        x: (B, C, T, H, W).
        spec: which negatives.
        numbers: (B, `count_numbers`) in [0, 1), for example of `draw_numbers`.

    Returns:
        (B, names * count, C, T, H, W).

    Raises:
        ValueError: clips of this shape have no such negatives, see `require_room`.
    """
    require_room(spec, x.shape[2], min(x.shape[3:]))
    served = Numbers(numbers.to(x.device))
    parts: list[Tensor] = []
    for name in spec.names:
        parts += [NEGATIVES[name].make(x, served, spec) for _ in range(spec.count)]
    return torch.stack(parts, 1) if parts else x.new_empty(len(x), 0, *x.shape[1:])


def count_numbers(spec: NegativeSpec, frames: int, height: int, width: int) -> int:
    """Return how many random numbers decide the negatives of a clip.

    Args:
        spec: which negatives.
        frames: of a clip, T.
        height: of its frames, pixels.
        width: of its frames, pixels.

    Raises:
        ValueError: clips of this shape have no such negatives, see `require_room`.
    """
    require_room(spec, frames, min(height, width))
    kinds = [NEGATIVES[name] for name in spec.names]
    return spec.count * sum(kind.count_numbers(spec, frames, height, width) for kind in kinds)


def draw_numbers(
    spec: NegativeSpec, size: Sequence[int], rngs: Sequence[np.random.Generator]
) -> Tensor:
    """Sample the random numbers of clips, each from its own generator.

    Args:
        spec: which negatives.
        size: (T, H, W) of the clips.
        rngs: one generator per clip.

    Returns:
        (B, `count_numbers`) float32 in [0, 1).
    """
    n = count_numbers(spec, *size)
    return torch.from_numpy(np.stack([rng.random(n, np.float32) for rng in rngs]))


def require_room(spec: NegativeSpec, frames: int, size: int) -> None:
    """Raise ValueError if clips of a shape have no negatives of the chosen kinds.

    Args:
        spec: which negatives.
        frames: of a clip, T.
        size: shorter side of its frames, pixels.
    """
    if frames == 1 and (idle := [name for name in spec.names if name in TEMPORAL]):
        raise ValueError(
            f"{idle[0]} changes nothing in a clip of one frame; set data.frames above 1, or use"
            " patch or texture"
        )
    for name, kind in NEGATIVES.items():
        if name in spec.names and kind.require_room is not None:
            kind.require_room(spec, size)


def patch_sides(patch_px: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the smallest and largest patch side in frames of `size` pixels, at least 2 pixels.

    Raises ValueError if the sides are not in order, or if the largest patch is as large as the
    frame, which would then be its own negative.
    """
    low, high = (max(2, math.floor(side * size / _PUBLISHED_PX + 0.5)) for side in patch_px)
    if patch_px[0] > patch_px[1]:
        raise ValueError(
            f"patch_px=[{patch_px[0]},{patch_px[1]}]: the smallest side must come first"
        )
    if high >= size:
        raise ValueError(
            f"patch_px=[{patch_px[0]},{patch_px[1]}]: patches of {high} pixels are as large as a"
            f" frame of {size}; sides are for frames of {_PUBLISHED_PX} pixels, set smaller ones"
        )
    return low, high


# ------------------------------------------------------------------ rearranging pixels


def _patches(x: Tensor, numbers: Numbers, spec: NegativeSpec, *, every: int, shift: bool) -> Tensor:
    """Return a grid of random crops of the clip.

    Args:
        x: (B, C, T, H, W).
        numbers: the random numbers of each clip.
        spec: `patch_px` and `turn` are used.
        every: number of frames after which new crops are sampled.
        shift: take crops from other frames than those they replace.
    """
    _, _, frames, height, width = x.shape
    low, high = patch_sides(spec.patch_px, min(height, width))
    sides = low + numbers.below(high + 1 - low)
    rounds = _rounds(frames, every)
    across = _cells_across(height, width, low)
    shape = (rounds, across, across)
    # Top and left. The released code of Ge et al. 2021 never samples the last place of an axis.
    tables = [numbers.below(side - sides + 1, *shape) for side in (height, width)]
    if shift:
        began = every * torch.arange(rounds, device=x.device)
        tables.append(numbers.below(frames - every + 1, *shape) - began[:, None, None])
    if spec.turn:  # transposed, turned upside down, mirrored
        tables += [numbers.below(2, *shape) for _ in range(3)]
    return _take(x, _source(torch.stack(tables), sides, every, (frames, height, width), shift))


def _rounds(frames: int, every: int) -> int:
    """Return how often new crops are sampled, every so many frames."""
    return -(-frames // every)


def _cells_across(height: int, width: int, low: int) -> int:
    """Return the cells per side of the grid of crops.

    The grid is large enough for the smallest patches, of `low` pixels. Larger patches leave some of
    its random numbers unused.
    """
    return -(-max(height, width) // low)


def _source(
    tables: Tensor, sides: Tensor, every: int, size: tuple[int, int, int], shift: bool
) -> Tensor:
    """Return the source of each pixel of a patched clip.

    Args:
        tables: (k, B, rounds, cells, cells): top and left of each crop; then its shift in time, if
            any; then three flags (transposed, upside down, mirrored), if any.
        sides: (B,), sides of the patches.
        every: number of frames of a round.
        size: (T, H, W).
        shift: there is a shift in time.

    Returns:
        (B, T or 1, H W), see `_take`.
    """
    frames, height, width = size
    device = tables.device
    t = torch.arange(frames if tables.shape[2] > 1 else 1, device=device)
    row = torch.arange(height, device=device)
    column = torch.arange(width, device=device)

    # Look up the crop of each pixel: its round, and its cell in the grid of the clip's patches.
    side = sides[:, None, None, None]
    batch = torch.arange(len(sides), device=device).view(-1, 1, 1, 1)
    rows = row[:, None] // side
    columns = column // side
    crops = tables[:, batch, (t // every)[:, None, None], rows, columns]
    top, left, *more = crops.unbind(0)  # (B, t, H, W)

    # Position within the crop, transposed and mirrored where the flags say so.
    down = row[:, None] % side
    right = column % side
    if len(more) > 2:
        transposed, upside_down, mirrored = (flag > 0 for flag in more[-3:])
        down, right = torch.where(transposed, right, down), torch.where(transposed, down, right)
        down = torch.where(upside_down, side - 1 - down, down)
        right = torch.where(mirrored, side - 1 - right, right)

    place = ((top + down) * width + left + right).flatten(2)
    if tables.shape[2] == 1:
        return place
    when = more[0].flatten(2) + t[:, None] if shift else t[:, None]
    return when * height * width + place


def _take(x: Tensor, source: Tensor) -> Tensor:
    """Return the clip with each pixel read from its source.

    Args:
        x: (B, C, T, H, W).
        source: (B, T, H W): places among the T H W pixels of a channel; or (B, 1, H W): places
            among the H W pixels of a frame, the same in all frames.
    """
    b, c, frames = x.shape[:3]
    if source.shape[1] == 1:
        return x.flatten(3).gather(3, source[:, None].expand(b, c, frames, -1)).view_as(x)
    return x.flatten(2).gather(2, source.flatten(1)[:, None].expand(b, c, -1)).view_as(x)


def _at_times(x: Tensor, times: Tensor) -> Tensor:
    """Return the frames `times` (B, T) of each clip x (B, C, T, H, W)."""
    return x[torch.arange(len(x), device=x.device)[:, None], :, times].movedim(2, 1)


def _cells(size: int, grid: int) -> Tensor:
    """Return which of `grid` cells each of `size` pixels is in."""
    return torch.arange(size) * grid // size

"""Square Attack in space and time (Andriushchenko et al., ECCV 2020).

The searched tensor is delta (B, C, t, h, w) as a threat model shapes it. So a tube is searched by
squares, a flicker by intervals of frames, and a dense clip by cuboids. For an image it is the
published attack, with the same random numbers in the same order.
"""

import math

import torch
from torch import Tensor

from vidrobust.attacks.arguments import above_zero, at_least_one, between, drawn
from vidrobust.attacks.losses import Loss
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel

# numbers of queries after which the published schedule halves the changed fraction of the volume
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
Window = tuple[slice, slice, slice]  # frames, rows, columns


@torch.no_grad()
def square(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    rescale: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best clip of Square Attack, shaped as x.

    Each query changes one cuboid of the best delta so far. The fraction of the volume that the
    cuboid covers starts at p_init, and is halved after 10, 50, 200, ... 8000 queries. All samples
    of a batch share the cuboid's place. Free frames, patches and pixels lie at random places.

    Costs at most restarts * (queries + 1) forward passes.

    Args:
        loss: (B, ...) -> (B,), to maximise; it needs no gradient. The published attack uses
            `Misclassify` with the score margin.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        queries: of each start.
        p_init: the first fraction of the volume, above 0 and at most 1.
        restarts: random starts.
        rescale: the numbers of queries at the halvings are for 10000 queries, and scale with
            `queries`.
        generator: source of all random numbers.

    Raises:
        ValueError: x leaves [0, 1], or the loss is not one number per sample.
    """
    at_least_one(queries=queries, restarts=restarts)
    above_zero(p_init=p_init)
    between(0, 1, p_init=p_init)
    search = Search(loss, x, threat, generator, blind=True)
    for _ in range(restarts):
        if not search.begin():
            break
        draw = _Draws(generator, search.x)

        # the start: stripes in Linf, a grid of bumps in L2 and L1
        is_linf = threat.norm == "linf"
        start = _stripes(search, draw) if is_linf else _tiles(search, draw)
        delta = search.ball.project(start)
        value = search.look(delta)

        for query in range(queries):
            delta, value = search.drop(delta, value)
            if not len(search.rows):
                break

            # propose a change of one cuboid, and keep it where it raises the loss
            fraction = _fraction(p_init, int(query / queries * 10000) if rescale else query)
            propose = _flip_window if is_linf else _move_mass
            proposal = search.ball.project(propose(search, delta, fraction, draw))
            proposal_value = search.look(proposal)
            better = proposal_value > value
            if better.any():
                delta = torch.where(better.view(-1, 1, 1, 1, 1), proposal, delta)
            value = torch.maximum(proposal_value, value)
    return search.result()


class _Draws:
    """Random numbers in the order in which the published code draws them."""

    def __init__(self, generator: torch.Generator | None, x: Tensor) -> None:
        self.generator = generator
        self.x = x

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1)."""
        return drawn(torch.rand, shape, self.x, self.generator)

    def signs(self, *shape: int) -> Tensor:
        """Return random signs."""
        return (2 * self.uniform(*shape) - 1).sign()

    def below(self, count: int) -> int:
        """Return one of 0 ... count - 1; 0 for count 0, as the window fills that axis."""
        return int(count * self.uniform(1))


# ------------------------------------------------------------------ windows


def _fraction(p_init: float, query: int) -> float:
    """Return the fraction of the volume that a query changes."""
    return p_init / 2 ** sum(query > bound for bound in _HALVINGS)


def _sides(fraction: float, t: int, h: int, w: int) -> tuple[int, int]:
    """Return (frames, pixels), the sides of a cuboid with this fraction of the volume.

    It covers the same fraction of each axis that delta has.

    Args:
        fraction: of the volume, 0 to 1.
        t: frames of delta.
        h: rows of delta.
        w: columns of delta.
    """
    if t == 1:
        frames = 1
        pixels = round(math.sqrt(fraction * h * w))
    elif h * w == 1:
        frames = round(fraction * t)
        pixels = 1
    else:
        frames = round(fraction ** (1 / 3) * t)
        pixels = round(fraction ** (1 / 3) * math.sqrt(h * w))
    return max(frames, 1), min(max(pixels, 1), h, w)


def _window(frames: int, pixels: int, delta: Tensor, draw: _Draws) -> Window:
    """Return a cuboid of these sides at a random place."""
    t, h, w = delta.shape[2:]
    # As in the published code, the last place of each axis is never drawn, and an image draws no
    # frame.
    first = draw.below(t - frames) if t > 1 else 0
    top = draw.below(h - pixels)
    left = draw.below(w - pixels)
    return slice(first, first + frames), slice(top, top + pixels), slice(left, left + pixels)


def _index(window: Window) -> tuple[slice, ...]:
    """Return the index of a window in (B, C, t, h, w)."""
    return (slice(None), slice(None), *window)


# ------------------------------------------------------------------ Linf


def _stripes(search: Search, draw: _Draws) -> Tensor:
    """Return the start in Linf: +-eps in vertical stripes, one pixel wide, through all frames.

    A flicker has a sign per frame instead.
    """
    b, c, t, h, w = search.ball.low.shape
    signs = draw.signs(b, c, t, 1, 1) if h * w == 1 else draw.signs(b, c, 1, 1, w)
    return search.threat.eps * signs.expand(b, c, t, h, w)


def _flip_window(search: Search, delta: Tensor, fraction: float, draw: _Draws) -> Tensor:
    """Return delta with one cuboid at +-eps, one sign per channel.

    Args:
        search: the search, with the ball of delta.
        delta: the best one so far.
        fraction: of the volume that changes.
        draw: source of the random numbers.
    """
    t, h, w = _window(*_sides(fraction, *delta.shape[2:]), delta, draw)
    new = delta.clone()
    # twice eps, so that any value of the ball is projected onto +-eps
    new[:, :, t, h, w] += 2 * search.threat.eps * draw.signs(delta.shape[1], 1, 1, 1)
    return new


# ------------------------------------------------------------------ L2 and L1


def _tiles(search: Search, draw: _Draws) -> Tensor:
    """Return the start in L2 and L1: a grid of bumps, at least five per side.

    Each bump has a random sign per sample and channel.
    """
    b, c, t, h, w = search.ball.low.shape
    if h * w == 1:
        return _full_length(search, draw.signs(b, c, t, 1, 1))
    side = max(h // 5, 1)
    power = _power(search)
    edge = max((h - side * 5) // 2, 0)
    delta = torch.zeros_like(search.ball.low)
    for top in range(edge, edge + h // side * side, side):
        for left in range(edge, edge + w // side * side, side):
            bump = _bump(side, power, draw) * draw.signs(b, c, 1, 1, 1)
            tile = delta[..., top : top + side, left : left + side]
            tile += bump[..., : tile.shape[3], : tile.shape[4]]  # cut at the frame's edge
    return delta if power == 1 else _full_length(search, delta)


def _move_mass(search: Search, delta: Tensor, fraction: float, draw: _Draws) -> Tensor:
    """Return delta with the mass of two windows moved into one of them.

    The window that receives it also gets a bump, and the part of the budget that is not spent.

    Args:
        search: the search, with the ball of delta.
        delta: the best one so far.
        fraction: of the volume that changes.
        draw: source of the random numbers.
    """
    power = _power(search)
    per_frame = search.threat.norm == "l2_frame"
    channels = delta.shape[1]
    frames, pixels = _sides(fraction, *delta.shape[2:])
    if delta[0, 0, 0].numel() > 1:
        pixels = min(max(pixels, 3) | 1, *delta.shape[3:])  # odd, and at least 3
    receiver = _window(frames, pixels, delta, draw)
    donor = _window(frames, pixels, delta, draw)

    # the mass (sum of powers) that both windows hold, and what all of delta spends
    mass_dims = (3, 4) if per_frame else (2, 3, 4)
    in_windows = torch.zeros_like(delta)
    for window in (_index(receiver), _index(donor)):
        in_windows[window] = delta[window]
    held = _mass(in_windows, power, mass_dims)
    spent = _mass(delta, power, (1, *mass_dims))
    if per_frame:
        held = held[:, :, receiver[0]]
        spent = spent[:, :, receiver[0]]

    # the new shape: a bump of random sign on top of the old values at norm 1
    old = delta[_index(receiver)]
    bump = _bump(pixels, power, draw).expand(-1, -1, frames, -1, -1) / frames ** (1 / power)
    signs = draw.signs(len(delta), channels, 1, 1, 1)
    new = bump * signs + old / (1e-12 + _mass(old, power, mass_dims) ** (1 / power))

    # its mass: an equal part per channel of the unspent budget, and what the windows held
    budget = (search.threat.eps / search.ball.weight) ** power
    mass = (budget - spent).clamp(min=0) / channels + held
    if power == 1:
        # as in the published L1 attack: more than the budget, which the projection then cuts
        mass = mass * channels
    new = new / (1e-12 + _mass(new, power, mass_dims) ** (1 / power)) * mass ** (1 / power)

    delta = delta.clone()
    delta[_index(donor)] = 0
    delta[_index(receiver)] = new
    return delta if power == 1 else _full_length(search, delta)


def _mass(part: Tensor, power: int, dims: tuple[int, ...]) -> Tensor:
    """Return the sum of |values|^power over dims, which are kept."""
    return part.abs().pow(power).sum(dims, keepdim=True)


def _power(search: Search) -> int:
    return 1 if search.threat.norm == "l1" else 2


def _full_length(search: Search, delta: Tensor) -> Tensor:
    """Return delta scaled to its whole budget; in L2 per frame, each frame to its own."""
    dims = (1, 3, 4) if search.threat.norm == "l2_frame" else (1, 2, 3, 4)
    length = torch.linalg.vector_norm(delta, _power(search), dims, keepdim=True)
    return delta / (length + 1e-12) * (search.threat.eps / search.ball.weight)


def _bump(side: int, power: int, draw: _Draws) -> Tensor:
    """Return (1, 1, 1, side, side) of norm 1: a positive pyramid above or left of a negative one.

    Args:
        side: pixels.
        power: 1 for L1, 2 for L2.
        draw: decides between the two directions.
    """
    bump = torch.cat([_pyramid(side // 2, side, power), -_pyramid(side - side // 2, side, power)])
    bump = (bump / bump.abs().pow(power).sum() ** (1 / power)).to(draw.x)
    return (bump.T if draw.uniform(1) > 0.5 else bump).view(1, 1, 1, side, side)


def _pyramid(height: int, width: int, power: int) -> Tensor:
    """Return a (height, width) pyramid of norm 1.

    It is a sum of rectangles around the middle, each one pixel wider than the one above it. Their
    heights fall as 1 / n^2 in L2 and 1 / n^4 in L1.

    Args:
        height: rows.
        width: columns.
        power: 1 for L1, 2 for L2.
    """
    reach = max(height // 2, width // 2) + 1
    step = 1 / torch.arange(1, reach + 1.0) ** (2 if power == 2 else 4)
    # a pixel at distance d from the middle lies in all rectangles from the d-th on
    level = step.flip(0).cumsum(0).flip(0)
    distance = torch.maximum(
        (torch.arange(height) - height // 2).abs()[:, None],
        (torch.arange(width) - width // 2).abs(),
    )
    pyramid = level[distance]
    return pyramid / pyramid.abs().pow(power).sum().clamp(min=1e-12) ** (1 / power)

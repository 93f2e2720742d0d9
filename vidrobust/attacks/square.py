"""Square Attack in space and time (Andriushchenko et al., ECCV 2020).

The searched tensor is delta (B, C, t, h, w) as a threat model shapes it, so that a tube is searched
by squares, a flicker by intervals and a dense clip by cuboids. For an image it is the published
attack, draw for draw.
"""

import math

import torch
from torch import Tensor

from vidrobust.attacks.arguments import above_zero, at_least_one, between, drawn
from vidrobust.attacks.losses import Loss
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
Window = tuple[slice, slice, slice]


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
    """Square -> each sample's best clip, shaped as x. Costs at most restarts * (queries + 1)
    forward passes.

    Each query changes one cuboid of the best delta so far, whose share of the volume starts at
    `p_init` and is halved after 10, 50, 200, ... 8000 queries (rescale: those numbers are for 10000
    queries, and shrink with `queries`). All samples of a batch share the cuboid's place. Frames,
    patches and pixels that are free lie at random. loss: `Misclassify` with the score margin is the
    published one. Raises ValueError when x leaves [0, 1] or the loss is not one number a sample.
    """
    at_least_one(queries=queries, restarts=restarts)
    above_zero(p_init=p_init)
    between(0, 1, p_init=p_init)
    search = Search(loss, x, threat, generator, blind=True)
    for _ in range(restarts):
        if not search.begin():
            break
        draw = _Draws(generator, search.x)
        flat = threat.norm == "linf"
        delta = search.ball.project(_stripes(search, draw) if flat else _tiles(search, draw))
        value = search.look(delta)
        for query in range(queries):
            delta, value = search.drop(delta, value)
            if not len(search.rows):
                break
            share = _share(p_init, int(query / queries * 10000) if rescale else query)
            new = search.ball.project((_flip if flat else _move)(search, delta, share, draw))
            found = search.look(new)
            if (better := found > value).any():
                delta = torch.where(better.view(-1, 1, 1, 1, 1), new, delta)
            value = torch.maximum(found, value)
    return search.result()


class _Draws:
    """Random numbers in the order in which the published code draws them."""

    def __init__(self, generator: torch.Generator | None, x: Tensor) -> None:
        self.generator, self.x = generator, x

    def uniform(self, *shape: int) -> Tensor:
        return drawn(torch.rand, shape, self.x, self.generator)

    def signs(self, *shape: int) -> Tensor:
        return (2 * self.uniform(*shape) - 1).sign()

    def below(self, count: int) -> int:
        """One of 0 ... count - 1; 0 for count 0, as an axis that the window fills has one place."""
        return int(count * self.uniform(1))


def _share(p_init: float, query: int) -> float:
    """The share of the volume that a query changes."""
    return p_init / 2 ** sum(query > bound for bound in _HALVINGS)


def _sides(share: float, t: int, h: int, w: int) -> tuple[int, int]:
    """(frames, pixels) of a cuboid of this share of the volume, with the same share along each axis
    there is.
    """
    if t == 1:
        frames, pixels = 1, round(math.sqrt(share * h * w))
    elif h * w == 1:
        frames, pixels = round(share * t), 1
    else:
        frames, pixels = round(share ** (1 / 3) * t), round(share ** (1 / 3) * math.sqrt(h * w))
    return max(frames, 1), min(max(pixels, 1), h, w)


def _window(frames: int, pixels: int, delta: Tensor, draw: _Draws) -> Window:
    t, h, w = delta.shape[2:]
    first = draw.below(t - frames) if t > 1 else 0
    top, left = draw.below(h - pixels), draw.below(w - pixels)
    return slice(first, first + frames), slice(top, top + pixels), slice(left, left + pixels)


def _stripes(search: Search, draw: _Draws) -> Tensor:
    """Linf: +-eps in stripes as wide as a pixel, from top to bottom of all frames; for a flicker, a
    sign a frame.
    """
    b, c, t, h, w = search.ball.low.shape
    signs = draw.signs(b, c, t, 1, 1) if h * w == 1 else draw.signs(b, c, 1, 1, w)
    return search.threat.eps * signs.expand(b, c, t, h, w)


def _flip(search: Search, delta: Tensor, share: float, draw: _Draws) -> Tensor:
    """Linf: one cuboid at +-eps, a sign a channel."""
    t, h, w = _window(*_sides(share, *delta.shape[2:]), delta, draw)
    new = delta.clone()
    new[:, :, t, h, w] += 2 * search.threat.eps * draw.signs(delta.shape[1], 1, 1, 1)
    return new


def _tiles(search: Search, draw: _Draws) -> Tensor:
    """L2 and L1: a grid of bumps, at least five a side, each of a random sign a sample and
    channel.
    """
    b, c, t, h, w = search.ball.low.shape
    if h * w == 1:
        return _full_length(search, draw.signs(b, c, t, 1, 1))
    side, power = max(h // 5, 1), _power(search)
    edge = max((h - side * 5) // 2, 0)
    delta = torch.zeros_like(search.ball.low)
    for top in range(edge, edge + h // side * side, side):
        for left in range(edge, edge + w // side * side, side):
            bump = _bump(side, power, draw) * draw.signs(b, c, 1, 1, 1)
            place = delta[..., top : top + side, left : left + side]
            place += bump[..., : place.shape[3], : place.shape[4]]
    return delta if power == 1 else _full_length(search, delta)


def _move(search: Search, delta: Tensor, share: float, draw: _Draws) -> Tensor:
    """L2 and L1: what two windows hold moves into one of them, with a bump, and with the budget
    that is left.
    """
    power, c = _power(search), delta.shape[1]
    frames, pixels = _sides(share, *delta.shape[2:])
    if delta[0, 0, 0].numel() > 1:
        pixels = min(max(pixels, 3) | 1, *delta.shape[3:])
    here, there = (_window(frames, pixels, delta, draw) for _ in range(2))
    inside = (3, 4) if search.threat.norm == "l2_frame" else (2, 3, 4)

    def mass(part: Tensor, dims: tuple[int, ...] = inside) -> Tensor:
        return part.abs().pow(power).sum(dims, keepdim=True)

    moved = torch.zeros_like(delta)
    for t, h, w in (here, there):
        moved[:, :, t, h, w] = delta[:, :, t, h, w]
    held, spent = mass(moved), mass(delta, (1, *inside))
    if search.threat.norm == "l2_frame":
        held, spent = held[:, :, here[0]], spent[:, :, here[0]]
    old = delta[:, :, here[0], here[1], here[2]]
    bump = _bump(pixels, power, draw).expand(-1, -1, frames, -1, -1) / frames ** (1 / power)
    new = bump * draw.signs(len(delta), c, 1, 1, 1) + old / (1e-12 + mass(old) ** (1 / power))
    left = ((search.threat.eps / search.ball.weight) ** power - spent).clamp(min=0) / c + held
    left = (
        left * c if power == 1 else left
    )  # the published L1 attack asks for more than is there, and projects
    new = new / (1e-12 + mass(new) ** (1 / power)) * left ** (1 / power)
    delta = delta.clone()
    delta[:, :, there[0], there[1], there[2]] = 0
    delta[:, :, here[0], here[1], here[2]] = new
    return delta if power == 1 else _full_length(search, delta)


def _power(search: Search) -> int:
    return 1 if search.threat.norm == "l1" else 2


def _full_length(search: Search, delta: Tensor) -> Tensor:
    """delta with its whole budget; in L2 of a frame, that of each frame."""
    dims = (1, 3, 4) if search.threat.norm == "l2_frame" else (1, 2, 3, 4)
    length = torch.linalg.vector_norm(delta, _power(search), dims, keepdim=True)
    return delta / (length + 1e-12) * (search.threat.eps / search.ball.weight)


def _bump(side: int, power: int, draw: _Draws) -> Tensor:
    """(1, 1, 1, side, side) of norm 1: a positive pyramid above a negative one, or left of it."""
    bump = torch.cat([_pyramid(side // 2, side, power), -_pyramid(side - side // 2, side, power)])
    bump = (bump / bump.abs().pow(power).sum() ** (1 / power)).to(draw.x)
    return (bump.T if draw.uniform(1) > 0.5 else bump).view(1, 1, 1, side, side)


def _pyramid(height: int, width: int, power: int) -> Tensor:
    """Rectangles around the middle, each one pixel wider than the one above it; of norm 1."""
    reach = max(height // 2, width // 2) + 1
    step = 1 / torch.arange(1, reach + 1.0) ** (2 if power == 2 else 4)
    tail = step.flip(0).cumsum(0).flip(0)
    away = torch.maximum(
        (torch.arange(height) - height // 2).abs()[:, None],
        (torch.arange(width) - width // 2).abs(),
    )
    found = tail[away]
    return found / found.abs().pow(power).sum().clamp(min=1e-12) ** (1 / power)

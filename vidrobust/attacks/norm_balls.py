"""Exact projections onto norm balls within boxes, and steepest ascent in them.

All of it is for rows (N, n) of a batch, with box bounds low <= 0 <= high, and 0 a point of each
box. Most problems come down to one: the smallest q with sum_i min(q a_i, c_i) = target, which is
concave and piecewise linear in q, so that Newton's method from q = 0 climbs to it from the left and
ends after finitely many steps.
"""

import torch
from torch import Tensor


def solve_capped(slope: Tensor, cap: Tensor, target: Tensor) -> Tensor:
    """The smallest q >= 0 with sum_i min(q slope_i, cap_i) = target -> (N, 1); inf where the caps
    do not reach it.

    slope, cap >= 0: (N, n). target >= 0: (N, 1). Newton's steps never pass the solution; float32
    sums end them.
    """
    q = torch.zeros_like(target)
    for _ in range(
        64
    ):  # pieces that are met are few; the bound is for rows that crawl on rounding errors
        line = q * slope
        free = line < cap
        rate = (slope * free).sum(1, keepdim=True)
        missing = target - torch.minimum(line, cap).sum(1, keepdim=True)
        step = missing / rate
        if not (moving := (missing > 1e-7 * target) & (rate > 0)).any():
            break
        q = torch.where(moving, q + step, q)
    return torch.where((missing > 1e-5 * target) & (rate <= 0), torch.inf, q)


def bounds_toward(direction: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far each entry may move in the sign of `direction`; 0 where that is 0."""
    return torch.where(direction > 0, high, torch.where(direction < 0, -low, 0))


def scaled(u: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """clamp(s u, low, high) with the s that makes its L2 norm `radius`, or everything at its
    bound.
    """
    room = bounds_toward(u, low, high)
    u = u / u.abs().amax(1, keepdim=True).clamp(min=1e-30)  # squares neither overflow nor vanish
    s = solve_capped(u * u, room * room, radius * radius).sqrt()
    return torch.where(torch.isinf(s), u.sign() * room, (s * u).clamp(low, high))


def project_l2(u: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """The point nearest to u of the L2 ball and the box."""
    inside = u.clamp(low, high)
    too_long = inside.norm(dim=1, keepdim=True) > radius
    return torch.where(too_long, scaled(u, low, high, radius), inside) if too_long.any() else inside


def project_l1(u: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """The point nearest to u of the L1 ball and the box: u shrunk by one threshold, then
    clamped.
    """
    inside = u.clamp(low, high)
    if not (too_long := inside.abs().sum(1, keepdim=True) > radius).any():
        return inside
    # sum_i clamp(|u_i| - t, 0, room_i) is linear in t between the values |u_i| and |u_i| - room_i
    room, size = bounds_toward(u, low, high), u.abs()
    knots, order = torch.cat([size, size - room], 1).double().sort(dim=1, descending=True)
    sign = torch.where(order < u.shape[1], 1.0, -1.0).double()
    mass, count = (sign * knots).cumsum(1), sign.cumsum(1)
    at_knot = mass - knots * count  # the sum at t = knot, which grows as t falls
    last = ((at_knot <= radius).sum(1, keepdim=True) - 1).clamp(min=0)
    t = (mass.gather(1, last) - radius) / count.gather(1, last).clamp(min=1)
    shrunk = (u.sign() * (size - t.clamp(min=0)).clamp(min=0).to(u.dtype)).clamp(low, high)
    return torch.where(too_long, shrunk, inside)


def fill(weight: Tensor, room: Tensor, budget: Tensor, price: Tensor | None = None) -> Tensor:
    """Amounts 0 <= v <= room, taken by falling weight until the sum of price * v (price 1) is
    `budget`.
    """
    order = weight.argsort(dim=1, descending=True)
    most = room.gather(1, order).double()
    each = torch.ones_like(most) if price is None else price.gather(1, order).double()
    before = (each * most).cumsum(1) - each * most
    taken = torch.minimum(most, ((budget - before) / each.clamp(min=1e-30)).clamp(min=0))
    return torch.zeros_like(room).scatter(1, order, taken.to(room.dtype))


def ascend(norm: str, g: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """The v of the ball and the box with the largest g . v. norm: linf, l2 or l1."""
    if norm == "linf":
        return (radius * g.sign()).clamp(low, high)
    if norm == "l2":
        return scaled(g, low, high, radius)
    room = bounds_toward(g, low, high)
    return g.sign() * fill(torch.where(room > 0, g.abs(), -1), room, radius)


def to_hyperplane(norm: str, w: Tensor, low: Tensor, high: Tensor, rise: Tensor) -> Tensor:
    """The smallest v in the box with w . v = rise (N, 1), of any sign; everything at its bound if
    none gets there.

    norm: linf, l2 or l1, in which v is smallest (FAB, Croce and Hein 2020, section 3).
    """
    w = w * torch.where(rise < 0, -1.0, 1.0)
    rise, size, room = rise.abs(), w.abs(), bounds_toward(w, low, high)
    if norm == "l1":
        return w.sign() * fill(torch.where(room > 0, size, -1), room, rise, price=size)
    top = size.amax(1, keepdim=True).clamp(min=1e-30)
    size, rise = size / top, rise / top
    if norm == "linf":
        return w.sign() * torch.minimum(room, solve_capped(size, size * room, rise))
    q = solve_capped(size * size, size * room, rise)
    return w.sign() * torch.minimum(room, torch.where(torch.isinf(q), torch.inf, q * size))

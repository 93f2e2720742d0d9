"""Exact projections onto norm balls within boxes, and steepest ascent in them.

All functions work on rows (N, n) of a batch. The box bounds satisfy low <= 0 <= high, so that 0 is
a point of each box.

Most problems reduce to one: the smallest q with sum_i min(q a_i, c_i) = target. The sum is concave
and piecewise linear in q. So Newton's method from q = 0 increases to the solution from the left,
and ends after finitely many steps.
"""

import torch
from torch import Tensor


def solve_capped(slope: Tensor, cap: Tensor, target: Tensor) -> Tensor:
    """Return the smallest q >= 0 with sum_i min(q slope_i, cap_i) = target, (N, 1).

    q is infinite where the caps do not reach the target. Newton's steps never pass the solution;
    they end when float32 sums do not change any more.

    Args:
        slope: (N, n), at least 0.
        cap: (N, n), at least 0.
        target: (N, 1), at least 0.
    """
    q = torch.zeros_like(target)
    # Newton passes few of the linear pieces. The bound of 64 is for rows that crawl on rounding
    # errors.
    for _ in range(64):
        line = q * slope
        free = line < cap
        rate = (slope * free).sum(1, keepdim=True)
        missing = target - torch.minimum(line, cap).sum(1, keepdim=True)
        step = missing / rate
        moving = (missing > 1e-7 * target) & (rate > 0)
        if not moving.any():
            break
        q = torch.where(moving, q + step, q)
    return torch.where((missing > 1e-5 * target) & (rate <= 0), torch.inf, q)


def bounds_toward(direction: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return how far each entry may move in the sign of direction, at least 0.

    Args:
        direction: (N, n); where it is 0, so is the result.
        low: (N, n) lower bounds, at most 0.
        high: (N, n) upper bounds, at least 0.
    """
    return torch.where(direction > 0, high, torch.where(direction < 0, -low, 0))


def scaled(u: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Return clamp(s u, low, high) with the s that makes its L2 norm `radius`.

    Where no s does, every entry is at its bound.

    Args:
        u: (N, n) directions.
        low: (N, n) lower bounds, at most 0.
        high: (N, n) upper bounds, at least 0.
        radius: (N, 1) L2 norms.
    """
    room = bounds_toward(u, low, high)
    # scaled to a maximum of 1, squares neither overflow nor vanish
    u = u / u.abs().amax(1, keepdim=True).clamp(min=1e-30)
    s = solve_capped(u * u, room * room, radius * radius).sqrt()
    return torch.where(torch.isinf(s), u.sign() * room, (s * u).clamp(low, high))


def project_l2(u: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Return the point of the L2 ball and the box that is nearest to u.

    Args:
        u: (N, n) points.
        low: (N, n) lower bounds, at most 0.
        high: (N, n) upper bounds, at least 0.
        radius: (N, 1) radii of the balls.
    """
    inside = u.clamp(low, high)
    too_long = inside.norm(dim=1, keepdim=True) > radius
    return torch.where(too_long, scaled(u, low, high, radius), inside) if too_long.any() else inside


def project_l1(u: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Return the point of the L1 ball and the box that is nearest to u.

    It is u, shrunk toward 0 by one threshold per row and then clamped.

    Args:
        u: (N, n) points.
        low: (N, n) lower bounds, at most 0.
        high: (N, n) upper bounds, at least 0.
        radius: (N, 1) radii of the balls.
    """
    inside = u.clamp(low, high)
    too_long = inside.abs().sum(1, keepdim=True) > radius
    if not too_long.any():
        return inside

    # The L1 norm at threshold t is sum_i clamp(|u_i| - t, 0, room_i). It is linear in t between
    # the knots |u_i|, from which on entry i is 0, and |u_i| - room_i, up to which it is at its
    # bound. Going down the sorted knots, `mass` and `count` hold the sum's two coefficients.
    room = bounds_toward(u, low, high)
    size = u.abs()
    knots, order = torch.cat([size, size - room], 1).double().sort(dim=1, descending=True)
    sign = torch.where(order < u.shape[1], 1.0, -1.0).double()
    mass = (sign * knots).cumsum(1)
    count = sign.cumsum(1)
    at_knot = mass - knots * count  # the norm at t = knot, which increases as t decreases

    # the piece on which the norm reaches the radius, and the threshold there
    last = ((at_knot <= radius).sum(1, keepdim=True) - 1).clamp(min=0)
    t = (mass.gather(1, last) - radius) / count.gather(1, last).clamp(min=1)
    shrunk = (u.sign() * (size - t.clamp(min=0)).clamp(min=0).to(u.dtype)).clamp(low, high)
    return torch.where(too_long, shrunk, inside)


def fill(weight: Tensor, room: Tensor, budget: Tensor, price: Tensor | None = None) -> Tensor:
    """Return amounts 0 <= v <= room that spend the budget on the entries of largest weight.

    The entries are filled in the order of decreasing weight until the sum of price * v is the
    budget.

    Args:
        weight: (N, n) order of the entries.
        room: (N, n) largest amounts.
        budget: (N, 1) what may be spent.
        price: (N, n) cost per amount; None is 1.
    """
    order = weight.argsort(dim=1, descending=True)
    most = room.gather(1, order).double()
    cost = torch.ones_like(most) if price is None else price.gather(1, order).double()
    spent_before = (cost * most).cumsum(1) - cost * most
    affordable = ((budget - spent_before) / cost.clamp(min=1e-30)).clamp(min=0)
    taken = torch.minimum(most, affordable)
    return torch.zeros_like(room).scatter(1, order, taken.to(room.dtype))


def ascend(norm: str, g: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Return the v of the ball and the box with the largest g . v.

    Args:
        norm: linf, l2 or l1.
        g: (N, n) gradients.
        low: (N, n) lower bounds, at most 0.
        high: (N, n) upper bounds, at least 0.
        radius: (N, 1) radii of the balls.
    """
    if norm == "linf":
        return (radius * g.sign()).clamp(low, high)
    if norm == "l2":
        return scaled(g, low, high, radius)
    # L1: spend the radius on the largest entries first; those that cannot move come last
    room = bounds_toward(g, low, high)
    return g.sign() * fill(torch.where(room > 0, g.abs(), -1), room, radius)


def to_hyperplane(norm: str, w: Tensor, low: Tensor, high: Tensor, rise: Tensor) -> Tensor:
    """Return the smallest v in the box with w . v = rise (Croce and Hein 2020, FAB, section 3).

    Where no point of the box gets there, every entry is at its bound.

    Args:
        norm: linf, l2 or l1, in which v is smallest.
        w: (N, n) normals of the hyperplanes.
        low: (N, n) lower bounds, at most 0.
        high: (N, n) upper bounds, at least 0.
        rise: (N, 1), of any sign.
    """
    # turn the problem round where rise is negative
    w = w * torch.where(rise < 0, -1.0, 1.0)
    rise = rise.abs()
    size = w.abs()
    room = bounds_toward(w, low, high)
    if norm == "l1":
        # an amount v_i raises w . v by size_i per unit: the steepest entries go first
        return w.sign() * fill(torch.where(room > 0, size, -1), room, rise, price=size)
    # Linf and L2: v_i = min(q, room_i), and v_i = min(q size_i, room_i), for one q per row; slopes
    # are scaled to a maximum of 1
    top = size.amax(1, keepdim=True).clamp(min=1e-30)
    size = size / top
    rise = rise / top
    if norm == "linf":
        return w.sign() * torch.minimum(room, solve_capped(size, size * room, rise))
    q = solve_capped(size * size, size * room, rise)
    return w.sign() * torch.minimum(room, torch.where(torch.isinf(q), torch.inf, q * size))

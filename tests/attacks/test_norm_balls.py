"""Compare projections and ascent with bisection, greedy loops and random points."""

import pytest
import torch

from vidrobust.attacks import norm_balls as geometry

ROWS, N = 6, 40


def _problem(seed, tight=False):
    torch.manual_seed(seed)
    x = torch.rand(ROWS, N)
    if tight:
        x = torch.where(torch.rand(ROWS, N) < 0.3, x.round(), x)  # some bounds are 0
    return torch.randn(ROWS, N), -x, 1 - x


def _length(norm, v):
    lengths = {"linf": v.abs().amax(1), "l1": v.abs().sum(1), "l2": v.square().sum(1).sqrt()}
    return lengths[norm]


def _bisect(f, low, high):
    # f is true below the solution
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) else (low, middle)
    return low


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("radius", [0.01, 0.7, 2.0, 50.0])
def test_the_l2_projection_equals_a_bisection(radius, tight):
    u, low, high = _problem(0, tight)
    projected = geometry.project_l2(u, low, high, torch.full((ROWS, 1), radius))
    for row in range(ROWS):
        box = u[row].double().clamp(low[row].double(), high[row].double())
        if box.norm() > radius:

            def too_short(s, row=row):
                return (s * u[row].double()).clamp(
                    low[row].double(), high[row].double()
                ).norm() < radius

            box = (_bisect(too_short, 0.0, 1e4) * u[row].double()).clamp(
                low[row].double(), high[row].double()
            )
        assert torch.allclose(projected[row].double(), box, atol=1e-5)


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("radius", [0.01, 0.7, 5.0, 50.0])
def test_the_l1_projection_equals_a_bisection(radius, tight):
    u, low, high = _problem(1, tight)
    projected = geometry.project_l1(u, low, high, torch.full((ROWS, 1), radius))
    for row in range(ROWS):

        def shrunk(t, row=row):
            return (
                (u[row].sign() * (u[row].abs() - t).clamp(min=0))
                .clamp(low[row], high[row])
                .double()
            )

        t = (
            0.0
            if shrunk(0.0).abs().sum() <= radius
            else _bisect(lambda t: shrunk(t).abs().sum() > radius, 0.0, 10.0)
        )
        assert torch.allclose(projected[row].double(), shrunk(t), atol=1e-5)


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize(
    ("norm", "radius"), [("linf", 0.2), ("l2", 0.5), ("l2", 2.0), ("l1", 0.3), ("l1", 4.0)]
)
def test_steepest_ascent_beats_every_point_of_the_ball(norm, radius, tight):
    g, low, high = _problem(2, tight)
    ascent = geometry.ascend(norm, g, low, high, torch.full((ROWS, 1), radius))
    assert (
        (_length(norm, ascent) <= radius + 1e-5).all()
        and (ascent >= low).all()
        and (ascent <= high).all()
    )
    best = (g * ascent).sum(1)
    for _ in range(300):
        other = torch.randn(ROWS, N) * torch.rand(ROWS, N).pow(4)
        other = other + g * torch.rand(ROWS, 1) * 3
        other = (other * (radius / _length(norm, other).clamp(min=1e-9)).unsqueeze(1)).clamp(
            low, high
        )
        assert (best >= (g * other).sum(1) - 1e-5).all()
    if norm == "l1":  # greedy, coordinate by coordinate
        for row in range(ROWS):
            left, total = radius, 0.0
            for i in g[row].abs().argsort(descending=True).tolist():
                room = float(high[row, i] if g[row, i] > 0 else -low[row, i])
                taken = min(room, left)
                total, left = total + taken * abs(float(g[row, i])), left - taken
            assert float(best[row]) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("sign", [1, -1])
def test_nearest_points_of_hyperplanes_are_dual_to_steepest_ascent(norm, sign, tight):
    """The smallest v with w.v = c is as long as the steepest ascent that reaches c."""
    w, low, high = _problem(3, tight)
    for radius in ({"linf": (0.01, 0.4), "l2": (0.1, 1.5), "l1": (0.1, 5.0)})[norm]:
        reach = geometry.ascend(norm, sign * w, low, high, torch.full((ROWS, 1), radius))
        rise = (w * reach).sum(1, keepdim=True)
        nearest = geometry.to_hyperplane(norm, w, low, high, rise)
        assert torch.allclose((w * nearest).sum(1, keepdim=True), rise, rtol=1e-4, atol=1e-5)
        assert torch.allclose(_length(norm, nearest), _length(norm, reach), rtol=1e-3)
        assert (nearest >= low - 1e-6).all() and (nearest <= high + 1e-6).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_hyperplane_out_of_reach_takes_everything_to_its_bound(norm):
    w, low, high = _problem(4)
    nearest = geometry.to_hyperplane(norm, w, low, high, torch.full((ROWS, 1), 1e4))
    assert torch.allclose(nearest, torch.where(w > 0, high, low), atol=1e-6)


def test_solve_capped_reaches_its_target_with_numbers_of_all_sizes():
    torch.manual_seed(5)
    slope, cap = torch.rand(50, 300) ** 6 * 1e3, torch.rand(50, 300) ** 6
    # entries that never move, and entries that are full at once
    slope[:, :20], cap[:, 20:40] = 0, 0
    target = cap.masked_fill(slope == 0, 0).sum(1, keepdim=True) * torch.rand(50, 1)
    q = geometry.solve_capped(slope, cap, target)
    reached = torch.minimum(q * slope, cap).double().sum(1, keepdim=True)
    assert torch.allclose(reached, target.double(), rtol=1e-4)
    assert torch.isinf(geometry.solve_capped(slope, cap, 2 * cap.sum(1, keepdim=True))).all()


def test_rows_of_zeros_stay_where_they_are():
    zero, bound, radius = torch.zeros(2, 5), torch.ones(2, 5), torch.ones(2, 1)
    for norm in ("linf", "l2", "l1"):
        assert torch.equal(geometry.ascend(norm, zero, -bound, bound, radius), zero)
        assert torch.equal(geometry.to_hyperplane(norm, zero, -bound, bound, radius), zero)
    assert torch.equal(geometry.project_l1(zero, -bound, bound, radius), zero)

"""Check black-box attacks: queries, random places, and the shapes that they search."""

import pytest
import torch

from tests.attacks.helpers import accuracy, labelled, loss_of, seeded, small_net
from vidrobust.attacks import (
    SCORES,
    Passes,
    ThreatModel,
    contains,
    geo_trap,
    nes,
    parse_threat,
    square,
)
from vidrobust.attacks.query import warped_frames
from vidrobust.attacks.square import _sides


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (12, 3, 4, 12, 12)))


@pytest.mark.parametrize(
    ("attack", "options"), [(nes, {"samples": 10}), (geo_trap, {}), (square, {})]
)
def test_black_box_attacks_keep_to_their_queries_and_ask_for_no_gradient(problem, attack, options):
    net, x, y = problem
    counted = Passes(net)
    threat = ThreatModel("linf", 1e-5)  # nothing breaks, so that every query is spent
    attack(
        loss_of(counted, y, score=SCORES["margin"]),
        x,
        threat,
        queries=100,
        generator=seeded(),
        **options,
    )
    assert 90 * 12 <= counted.forward <= 101 * 12 and counted.backward == 0


@pytest.mark.parametrize(("attack", "queries"), [(nes, 1020), (geo_trap, 600), (square, 400)])
@pytest.mark.parametrize("support", ["dense", "tube", "flicker"])
def test_more_queries_break_more_samples(problem, attack, queries, support):
    net, x, y = problem
    # fewer degrees of freedom need a larger budget
    threat = ThreatModel("linf", (5 if support == "dense" else 16) / 255, support)
    loss = loss_of(net, y, score=SCORES["margin"])
    few, many = (
        attack(loss, x, threat, queries=n, generator=seeded()) for n in (queries // 10, queries)
    )
    assert contains(threat, x, many).all()
    assert accuracy(net, many, y) <= accuracy(net, few, y) and accuracy(net, many, y) < 1


@pytest.mark.parametrize("shape", [(4, 3, 4, 10, 12), (4, 3, 6, 8, 8)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l2_frame", "l1"])
def test_square_searches_cuboids_of_any_shape(norm, shape):
    """The published code fails on frames that are not square and on clips that are not cubes."""
    torch.manual_seed(0)
    w, x = torch.randn(shape[1:]), torch.rand(shape)
    for support in ("dense", "tube", "flicker"):
        threat = ThreatModel(
            norm, {"linf": 0.05, "l2": 0.5, "l2_frame": 0.3, "l1": 4.0}[norm], support
        )
        loss = lambda v: (v * w).flatten(1).sum(1)  # noqa: E731
        x_adv = square(loss, x, threat, queries=200, generator=seeded())
        assert contains(threat, x, x_adv).all() and (loss(x_adv) > loss(x)).all()


def test_the_frames_of_geo_trap_are_one_warped_frame():
    clip = torch.empty(2, 3, 5, 16, 16)
    # without spread all frames are equal
    still = warped_frames(clip, 0.0, False, seeded())
    assert torch.allclose(still, still[:, :, :1].expand_as(still), atol=1e-5)
    for affine in (False, True):
        moved = warped_frames(clip, 0.03, affine, seeded())
        assert not torch.allclose(moved[:, :, 0], moved[:, :, 1], atol=0.05)
        centre = moved[:, :, :, 4:12, 4:12].flatten(3)
        alike = torch.nn.functional.cosine_similarity(centre[:, :, 0], centre[:, :, 1], dim=2)
        assert alike.mean() > 0.4  # smooth maps of the same frame, not new noise


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (nes, {"queries": 10}),
        (nes, {"samples": 3}),
        (geo_trap, {"queries": 3}),
        (square, {"queries": 0}),
        (square, {"restarts": 0}),
    ],
)
def test_queries_that_allow_no_step_are_refused(problem, attack, options):
    net, x, y = problem
    with pytest.raises(ValueError, match="queries"):
        attack(loss_of(net, y), x, ThreatModel(), **options)


@pytest.mark.parametrize("name", ["frames1-linf-0.3", "patch4-linf-0.3", "pixels9-linf-0.3"])
@pytest.mark.parametrize("attack", [square, nes, geo_trap])
def test_black_box_attacks_work_without_gradients_at_random_places(problem, attack, name):
    net, x, y = problem

    # a model that gives no gradient
    def blind(v):
        with torch.no_grad():
            return net(v.detach())

    x_adv = attack(
        loss_of(blind, y, score=SCORES["margin"]),
        x,
        parse_threat(name),
        queries=120,
        generator=seeded(),
    )
    assert contains(parse_threat(name), x, x_adv).all() and accuracy(net, x_adv, y) < 1


@pytest.mark.parametrize("shape", [(10, 10, 10), (1, 10, 10), (20, 1, 1), (16, 56, 56)])
@pytest.mark.parametrize("fraction", [0.8, 0.1])
def test_a_cuboid_covers_the_same_fraction_of_every_axis(shape, fraction):
    frames, pixels = _sides(fraction, *shape)
    t, h, w = shape
    # height and width count as two axes
    axes = (t > 1) + 2 * (h > 1)
    assert frames == (1 if t == 1 else round(fraction ** (1 / axes) * t))
    assert pixels == (1 if h == 1 else round(fraction ** (1 / axes) * h))
    assert 0.6 * fraction < frames * pixels**2 / (t * h * w) < 1.6 * fraction

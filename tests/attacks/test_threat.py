"""Check threat models: projections, measurements, and names."""

import pytest
import torch

from tests.attacks.helpers import SHAPES, THREATS
from vidrobust.attacks import ThreatModel, contains, make_ball, measure, parse_threat, project


def _clip(shape, saturated=0.3):
    """Return random pixels, some black or white, where clipping hides how large delta is."""
    return (torch.rand(shape) * (1 + 2 * saturated) - saturated).clamp(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_projection_is_allowed_and_idempotent(threat, shape):
    # small changes, and changes far outside the budget
    for spread in (0.02, 0.5):
        x = _clip(shape)
        y = (x + spread * torch.randn(shape)).clamp(-0.2, 1.2)
        inside = project(threat, x, y)
        assert inside.shape == x.shape and contains(threat, x, inside).all()
        again = project(threat, x, inside)
        assert torch.allclose(again, inside, atol=2e-6)
        assert not torch.equal(inside, x)


def _exact(threat):
    """Return whether `project` is exact for a threat.

    L1 uses the frames, patches and pixels of the largest change, which need not be the nearest.
    """
    free = threat.support in ("frames", "patch", "pixels")
    return threat.support not in ("tube", "flicker") and not (
        free and threat.norm in ("l1", "l2_frame")
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", [t for t in THREATS if _exact(t)], ids=str)
def test_no_allowed_clip_is_nearer_than_the_projection(threat, shape):
    x, generator = _clip(shape), torch.Generator().manual_seed(0)
    y = x + 0.3 * torch.randn(shape)
    # the choice of a place is exact only where nothing is clipped
    if threat.norm != "linf" and threat.support in ("frames", "patch", "pixels"):
        y = y.clamp(0, 1)
    projected = project(threat, x, y)
    away = (projected - y).flatten(1).norm(dim=1)
    for scale in (1.0, 0.3, 0.03):
        for _ in range(20):  # from anywhere in the ball, and from around the projection
            ball = make_ball(
                threat, x, lambda: torch.rand(len(x), *x.shape[2:]).view(len(x), -1, *x.shape[-2:])
            )
            random = ball.apply(ball.random(generator))
            near = project(threat, x, projected + scale * 0.1 * torch.randn(shape))
            for other in (random, near):
                assert contains(threat, x, other).all()
                assert (away <= (other - y).flatten(1).norm(dim=1) + 1e-4).all()


@pytest.mark.parametrize("support", ["tube", "flicker"])
def test_a_shared_delta_is_projected_where_nothing_is_clipped(support):
    """The nearest constant is the mean. For saturated pixels the delta that explains them stays."""
    x = torch.rand(3, 3, 4, 5, 6) * 0.2 + 0.4
    y = x + 0.05 * torch.randn_like(x)
    dims = (2,) if support == "tube" else (3, 4)
    expected = x + (y - x).mean(dims, keepdim=True).clamp(-0.02, 0.02)
    assert torch.allclose(project(ThreatModel("linf", 0.02, support), x, y), expected, atol=1e-6)
    # all pixels but one are white, and hide how large delta is
    white = torch.ones_like(x)
    white[:, :, 0, 0, 0] = 0.5
    ball = make_ball(ThreatModel("linf", 0.3, support), white, lambda: x)
    moved = ball.apply(torch.full_like(ball.low, 0.2))
    assert torch.allclose(
        project(ThreatModel("linf", 0.3, support), white, moved), moved, atol=1e-6
    )


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_eps_0_projects_onto_the_clip_itself(threat):
    x = torch.rand(2, 3, 4, 6, 7)
    nothing = ThreatModel(threat.norm, 0.0, threat.support, threat.k)
    assert torch.allclose(project(nothing, x, torch.rand_like(x)), x, atol=1e-6)


def test_contains_measures_every_sample_from_its_pixels():
    threat, x = ThreatModel("linf", 8 / 255), torch.full((5, 3, 2, 4, 4), 0.5)
    y = x.clone()
    # samples: unchanged, at the budget, beyond it, NaN, beyond 1
    y[1, 0, 1, 2, 3] += 8 / 255
    y[2, 2, 0, 0, 0] -= 9 / 255
    y[3, 0, 0, 0, 0] = float("nan")
    x[4], y[4] = 1.0, 1.02
    assert contains(threat, x, y).tolist() == [True, True, False, False, False]
    assert measure(threat, x, y)[:3].tolist() == pytest.approx([0, 8 / 255, 9 / 255])


@pytest.mark.parametrize("frames", [1, 4])
def test_norms_equal_those_of_plain_loops(frames):
    x = torch.rand(2, 3, frames, 4, 5) * 0.5 + 0.25
    change = 0.1 * torch.randn_like(x)
    for sample in range(2):
        values = change[sample].flatten().tolist()
        per_frame = [
            sum(v * v for v in change[sample, :, t].flatten().tolist()) ** 0.5
            for t in range(frames)
        ]
        expected = {
            "linf": max(map(abs, values)),
            "l1": sum(map(abs, values)),
            "l2": sum(v * v for v in values) ** 0.5,
            "l2_frame": max(per_frame),
        }
        for norm, size in expected.items():
            assert measure(ThreatModel(norm, 1), x, x + change)[sample].item() == pytest.approx(
                size, rel=1e-4
            )
    if frames == 1:  # the L2 norm of the image, so that budgets transfer
        assert torch.equal(
            measure(ThreatModel("l2_frame"), x, x + change),
            measure(ThreatModel("l2"), x, x + change),
        )


def _changed(places, shape=(1, 3, 4, 6, 7)):
    x = torch.full(shape, 0.5)
    y = x.clone()
    for place in places:
        y[(0, slice(None), *place)] += 0.05
    return x, y


@pytest.mark.parametrize(
    ("name", "places", "inside"),
    [
        ("frames2-linf-0.1", [(0,), (3,)], True),
        ("frames2-linf-0.1", [(0,), (1,), (3,)], False),
        ("frames2@0+3-linf-0.1", [(0,), (3,)], True),
        ("frames2@0+3-linf-0.1", [(1,)], False),
        ("frames2@uniform-linf-0.1", [(1,), (3,)], True),
        ("frames2@uniform-linf-0.1", [(0,)], False),
        ("patch3-linf-0.1", [(0, 2, 2), (3, 4, 4)], True),
        ("patch3-linf-0.1", [(0, 1, 2), (3, 4, 2)], False),
        ("patch3-linf-0.1", [(0, 2, 1), (0, 2, 4)], False),
        ("patch3@1+2-linf-0.1", [(2, 1, 2), (0, 3, 4)], True),
        ("patch3@1+2-linf-0.1", [(2, 0, 2)], False),
        ("patch3@1+2-linf-0.1", [(2, 1, 5)], False),
        ("patch3@1+2-linf-0.1", [], True),
        ("border1-linf-0.1", [(0, 0, 3), (1, 5, 6), (2, 3, 0)], True),
        ("border1-linf-0.1", [(0, 1, 3)], False),
        ("pixels1-linf-0.1", [(0, 1, 3), (1, 2, 2)], True),
        ("pixels1-linf-0.1", [(0, 1, 3), (0, 2, 2)], False),
        ("tube-linf-0.1", [(t, 1, 1) for t in range(4)], True),
        ("tube-linf-0.1", [(t, 1, 1) for t in range(3)], False),
        ("flicker-linf-0.1", [(2,)], True),
        ("flicker-linf-0.1", [(2, 3)], False),
    ],
)
def test_contains_checks_where_a_perturbation_lies(name, places, inside):
    assert contains(parse_threat(name), *_changed(places)).item() is inside


def test_clipping_neither_forbids_a_shared_delta_nor_hides_a_larger_one():
    x = torch.tensor([0.5, 0.95, 1.0, 0.0]).view(1, 1, 1, 2, 2).repeat(1, 3, 1, 1, 1)
    flicker = ThreatModel("linf", 0.1, "flicker")
    y = (x + 0.1).clamp(0, 1)
    assert contains(flicker, x, y).item() and measure(flicker, x, y).item() == pytest.approx(0.1)
    y[0, :, 0, 0, 0] = 0.5  # the other pixels changed by 0.1, this one by 0
    assert not contains(flicker, x, y).item()
    assert not contains(ThreatModel("linf", 0.05, "flicker"), x, (x + 0.1).clamp(0, 1)).item()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_random_starts_fill_the_budget_and_follow_their_generator(threat):
    x = torch.full((2, 3, 4, 16, 16), 0.5)
    scores = torch.rand(2, 4, 16, 16)
    ball = make_ball(threat, x, lambda: scores)
    first, again = (ball.random(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, ball.random())
    assert contains(threat, x, ball.apply(first)).all()
    # most of the budget, in both directions
    sizes = measure(threat, x, ball.apply(first))
    assert (sizes > 0.7 * threat.eps).all() and (first > 0).any() and (first < 0).any()


def test_names_of_threats_are_read_back():
    names = [
        "linf-4/255",
        "linf-0.5/255",
        "linf-0",
        "l2-0.5",
        "l2-0.5/255",
        "linf-1.22/255",
        "l2_frame-1.25",
        "l1-12",
        "tube-linf-8/255",
        "flicker-l2-3",
        "frames4-linf-8/255",
        "frames2@0+5-l1-3",
        "frames2@uniform-linf-1/255",
        "patch30-linf-1",
        "patch30@random-linf-1",
        "patch30@10+12-l2-7",
        "border5-linf-1",
        "pixels100@random-linf-1",
    ]
    assert [str(parse_threat(name)) for name in names] == names
    assert parse_threat("linf-1") == ThreatModel("linf", 1.0) and parse_threat(
        "patch3@1+2-l2-7"
    ).place == (1, 2)


@pytest.mark.parametrize(
    "bad",
    [
        {"eps": -0.1},
        {"eps": float("nan")},
        {"eps": float("inf")},
        {"eps": 4},
        {"norm": "l7"},
        {"support": "nowhere"},
        {"k": 3},
        {"support": "frames"},
        {"support": "patch", "k": -1},
        {"support": "frames", "k": 2, "place": (1,)},
        {"support": "frames", "k": 2, "place": (1, 1)},
        {"support": "patch", "k": 2, "place": (1, 1, 1)},
        {"support": "patch", "k": 2, "place": "saliency"},
        {"support": "border", "k": 2, "place": (0, 0)},
        {"place": "random"},
    ],
)
def test_undefined_threats_are_refused(bad):
    with pytest.raises(ValueError, match="eps|no threat model|support="):
        ThreatModel(**bad)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "linf",
        "linf-",
        "linf-x",
        "l3-1",
        "flicker",
        "frames-linf-1",
        "linf-1/0",
        "frames2@x-linf-1",
        "4/255",
    ],
)
def test_texts_that_are_no_names_are_refused(name):
    with pytest.raises(
        ValueError, match="is no threat model|is no number|must be one of|at least 1"
    ):
        parse_threat(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frames5-linf-1", "5 frames of a clip of 4"),
        ("frames2@1+4-linf-1", "no frame 4"),
        ("patch7-linf-1", "not fit"),
        ("patch3@5+0-linf-1", "not fit"),
        ("border3-linf-1", "leaves nothing"),
        ("pixels43-linf-1", "43 pixels of"),
    ],
)
def test_supports_larger_than_the_clip_are_refused(name, message):
    x = torch.rand(2, 3, 4, 6, 7)
    with pytest.raises(ValueError, match=message):
        project(parse_threat(name), x, x)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4), (2, 3, 1, 4, 4, 1)])
def test_clips_of_other_numbers_of_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match="expected clips"):
        contains(ThreatModel(), torch.rand(shape), torch.rand(shape))


@pytest.mark.parametrize("eps", ["4/255", None, "small"])
def test_a_budget_that_is_not_a_number_is_refused(eps):
    with pytest.raises(ValueError, match="must be a number, such as 4 / 255; parse_threat reads"):
        ThreatModel("linf", eps)


def test_places_may_be_lists():
    threat = ThreatModel("linf", 0.1, "frames", 2, [0, 5])
    assert threat == ThreatModel("linf", 0.1, "frames", 2, (0, 5)) and hash(threat)
    x = torch.full((1, 3, 6, 4, 4), 0.5)
    assert not contains(threat, x, x + 0.05 * (torch.arange(6) == 3).view(6, 1, 1)).any()


def test_the_kind_of_a_threat_is_its_name_without_the_budget():
    for name in (
        "linf-0.00001",
        "l2-1e15",
        "flicker-linf-8/255",
        "frames2@0+5-l1-3",
        "patch3@1+2-l2_frame-0.5",
    ):
        threat = parse_threat(name)
        assert parse_threat(str(threat)) == threat and str(threat).startswith(threat.kind + "-")
    assert parse_threat("frames2@0+5-l1-1e-5").kind == "frames2@0+5-l1"


@pytest.mark.parametrize("place", [(0, 0), (1, 0, 1), (2, 2)])
def test_a_frame_that_is_listed_twice_is_refused(place):
    """It would be perturbed twice, by up to twice the budget."""
    for k in {len(place), len(set(place))}:
        with pytest.raises(ValueError, match="frames take k different frame numbers"):
            ThreatModel("linf", 0.1, "frames", k, place)
        with pytest.raises(ValueError, match="frames take k different frame numbers"):
            parse_threat(f"frames{k}@{'+'.join(map(str, place))}-linf-0.1")


@pytest.mark.parametrize("norm", ["l2", "l2_frame", "l1"])
@pytest.mark.parametrize("eps", ["1e39", "1e19", "1e300", "9e307/1e-5"])
def test_budgets_beyond_float32_are_refused_in_one_line(norm, eps):
    with pytest.raises(ValueError, match="eps=") as raised:
        parse_threat(f"{norm}-{eps}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("norm", ["l2", "l2_frame", "l1"])
@pytest.mark.parametrize("eps", [1e18, 1e9, 1e-12, 1e-30])
def test_the_largest_and_the_smallest_budgets_are_attacked(norm, eps):
    from vidrobust.attacks import pgd

    x, threat = torch.rand(2, 3, 2, 4, 4), ThreatModel(norm, eps)
    x_adv = pgd(lambda v: v.flatten(1).sum(1), x, threat, steps=3)
    assert contains(threat, x, x_adv).all()


@pytest.mark.parametrize(
    ("eps", "message_part"),
    [(1.001, r"any clip in \[0, 1\]$"), (1.5, "write 1.5/255"), (8, "write 8/255")],
)
def test_a_linf_budget_above_1_is_refused(eps, message_part):
    assert ThreatModel("linf", 1).eps == 1
    assert ThreatModel("l2", eps).eps == eps
    with pytest.raises(ValueError, match=message_part):
        ThreatModel("linf", eps)


def test_changes_below_black_do_not_count_in_the_choice_of_a_frame():
    """Frame 0 would go far below black, which it cannot, so the change of frame 1 is larger."""
    x = torch.zeros(1, 1, 2, 1, 1)
    x[:, :, 1] = 0.5
    asked = torch.tensor([-0.9, 0.8]).view(1, 1, 2, 1, 1)
    projected = project(ThreatModel("linf", 0.5, "frames", 1), x, asked)
    assert torch.allclose(projected.flatten(), torch.tensor([0.0, 0.8]))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_budgets_are_compared_up_to_the_rounding_of_a_pixel(norm):
    """The tolerance is 2^-24 per changed pixel, plus atol and a millionth of the budget."""
    x = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    threat, pixel = ThreatModel(norm, 0.125), 2.0**-24
    # the largest size without the tolerance of a pixel
    edge = 0.125 * (1 + 1e-6) + 1e-6
    for beyond, inside in ((0.9 * pixel, True), (1.1 * pixel, False)):
        assert contains(threat, x, x + edge + beyond).item() is inside

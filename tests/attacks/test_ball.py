"""Check the perturbations that a threat allows: shapes, gradients, places and bounds."""

import itertools

import pytest
import torch

from tests.attacks.helpers import SHAPES, THREATS
from vidrobust.attacks import ThreatModel, contains, make_ball, parse_threat
from vidrobust.attacks.ball import patch_scores


def _ball(threat, shape, seed=0):
    torch.manual_seed(seed)
    x = torch.rand(shape) * 0.4 + 0.3
    frames = 1 if len(shape) == 4 else shape[2]
    scores = torch.rand(shape[0], frames, *shape[-2:])
    return make_ball(threat, x, lambda: scores), x, scores


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_pull_is_the_gradient_of_apply(threat, shape):
    """Compared with autograd through apply itself."""
    ball, x, _ = _ball(threat, shape)
    # only entries that may change
    delta = (0.05 * torch.randn_like(ball.low) * (ball.low < ball.high)).requires_grad_()
    weight = torch.randn(shape)
    (expected,) = torch.autograd.grad((ball.apply(delta) * weight).sum(), delta)
    pulled = ball.pull(weight, delta.detach())
    assert torch.allclose(pulled, expected * (ball.low < ball.high), atol=1e-4)
    assert ball.apply(ball.zero()).equal(x)


@pytest.mark.parametrize("support", ["tube", "flicker"])
def test_clipped_pixels_do_not_count_in_the_gradient(support):
    x = torch.rand(2, 3, 4, 5, 6).round()  # all pixels are black or white
    # a positive delta is clipped at every white pixel
    ball = make_ball(ThreatModel("linf", 0.2, support), x, lambda: x)
    delta = torch.full_like(ball.low, 0.1).requires_grad_()
    weight = torch.randn(x.shape)
    (expected,) = torch.autograd.grad((ball.apply(delta) * weight).sum(), delta)
    assert torch.allclose(ball.pull(weight, delta.detach()), expected, atol=1e-5)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_ball_of_some_samples_equals_theirs_in_the_whole_batch(threat):
    ball, x, _ = _ball(threat, (6, 3, 4, 6, 7))
    delta = ball.random(torch.Generator().manual_seed(1))
    # in another order than in the batch
    rows = torch.tensor([4, 1])
    part = ball.at(rows)
    assert torch.equal(part.apply(delta[rows]), ball.apply(delta)[rows])
    assert torch.allclose(part.project(3 * delta[rows]), ball.project(3 * delta)[rows], atol=1e-6)
    assert torch.allclose(part.norms(delta[rows]), ball.norms(delta)[rows])
    assert torch.allclose(part.pull(x[rows], delta[rows]), ball.pull(x, delta)[rows])


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_norm_of_delta_equals_the_norm_of_the_change(threat):
    ball, x, _ = _ball(threat, (4, 3, 4, 6, 7))
    delta = ball.project(0.05 * torch.randn_like(ball.low))
    change = ball.apply(delta) - x
    per_frame = change.transpose(1, 2).flatten(2).norm(dim=2).amax(1)
    expected = {
        "linf": change.abs().flatten(1).amax(1),
        "l1": change.abs().flatten(1).sum(1),
        "l2": change.flatten(1).norm(dim=1),
        "l2_frame": per_frame,
    }[threat.norm]
    assert torch.allclose(ball.norms(delta), expected, rtol=1e-4)
    assert contains(threat, x, ball.apply(delta)).all()


def test_places_follow_the_score_the_threat_and_the_generator():
    shape = (3, 3, 5, 8, 9)
    # by the score: frames of largest mean, patches of largest sum, pixels of largest value
    ball, _, scores = _ball(parse_threat("frames2-linf-0.1"), shape)
    assert ball.where.tolist() == [sorted(s.mean((1, 2)).topk(2).indices.tolist()) for s in scores]
    ball, _, scores = _ball(parse_threat("patch3-linf-0.1"), shape)
    for sample, (top, left) in zip(scores, ball.where.tolist(), strict=True):
        sums = {
            (i, j): sample[:, i : i + 3, j : j + 3].sum().item()
            for i, j in itertools.product(range(6), range(7))
        }
        assert sums[top, left] == pytest.approx(max(sums.values()), rel=1e-5)
    ball, _, scores = _ball(parse_threat("pixels2-linf-0.1"), shape)
    free = (ball.low < ball.high)[:, 0]
    for sample, chosen in zip(scores, free, strict=True):
        for frame, marks in zip(sample, chosen, strict=True):
            assert frame[marks].sum().item() == pytest.approx(
                frame.flatten().topk(2).values.sum().item()
            )
    # by the threat: evenly spaced, or given
    assert _ball(parse_threat("frames2@uniform-linf-0.1"), shape)[0].where.tolist() == [[1, 3]] * 3
    assert _ball(parse_threat("frames2@4+0-linf-0.1"), shape)[0].where.tolist() == [[0, 4]] * 3
    assert _ball(parse_threat("patch3@1+2-linf-0.1"), shape)[0].where.tolist() == [[1, 2]] * 3
    # by the generator
    for name in ("frames2@random-linf-0.1", "patch3@random-linf-0.1", "pixels2@random-linf-0.1"):
        x = torch.rand(40, 3, 5, 8, 9)
        first, again, other = (
            make_ball(parse_threat(name), x, lambda: None, torch.Generator().manual_seed(seed))
            for seed in (0, 0, 1)
        )
        assert torch.equal(first.low, again.low) and not torch.equal(first.low, other.low)
        if first.where is not None:
            assert len(first.where.unique(dim=0)) > 8  # each sample has its own place


def test_a_ball_that_moves_has_the_bounds_of_its_new_place():
    x, places = torch.rand(2, 3, 6, 8, 8), torch.tensor([[4, 5], [0, 2]])
    ball = make_ball(ThreatModel("linf", 0.9, "frames", k=2), x, lambda: torch.rand(2, 6, 8, 8))
    moved = ball.moved_to(places)
    at_places = torch.stack([clip[:, frames] for clip, frames in zip(x, places, strict=True)])
    assert torch.equal(moved.low, -at_places) and torch.equal(moved.high, 1 - at_places)


def test_a_patch_may_be_as_high_as_the_frame():
    score = torch.rand(2, 3, 4, 6)
    expected = torch.stack([score[:, :, :, i : i + 4].sum((1, 2, 3)) for i in range(3)], 1)
    assert torch.allclose(patch_scores(score, 4), expected[:, None])

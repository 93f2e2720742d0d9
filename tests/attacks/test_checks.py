"""Models that look robust for the wrong reasons are told."""

import pytest
import torch
from torch import nn

from tests.attacks.models import labelled, seeded, small_net
from vidrobust.attacks import ThreatModel, self_checks, weak_white_box

THREAT = ThreatModel("linf", 2 / 255)


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (12, 3, 4, 12, 12)))


@pytest.mark.parametrize("name", ["linf-2/255", "l2-0.3", "l2_frame-0.2", "l1-2", "flicker-linf-8/255", "frames1-l2-1"])
def test_an_honest_model_has_nothing_said_against_it(problem, name):
    from vidrobust.attacks import parse_threat

    assert self_checks(*problem, parse_threat(name), generator=seeded()) == []


def test_a_random_model(problem):
    net, x, y = problem
    torch.manual_seed(0)
    found = self_checks(lambda v: net(v) + torch.randn(len(v), 6), x, y, THREAT, generator=seeded())
    assert any("draws random numbers; use suite rand" in line for line in found)


def test_norms_in_training_mode(problem):
    net, x, _ = problem
    batch = nn.Sequential(nn.BatchNorm3d(3, track_running_stats=False), *net).train()
    found = self_checks(batch, x, batch(x).argmax(1), THREAT, generator=seeded())
    assert any("depend on the rest of the batch: norms are in training mode" in line for line in found)


def test_another_branch_under_attack_than_in_prediction(problem):
    """As when an evaluator routes the attacked clip through other norm statistics."""
    net, x, y = problem
    found = self_checks(lambda v: net(v) * (0.5 if v.requires_grad else 1), x, y, THREAT, generator=seeded())
    assert any("other norm branches" in line for line in found)


def test_vanished_gradients_and_what_follows(problem):
    """Quantised input: the classifier works, no gradient reaches the pixels, large budgets do nothing."""
    net, x, _ = problem
    flat = lambda v: net((v * 4).round() / 4 + 0 * v)  # noqa: E731
    found = self_checks(flat, x, flat(x).argmax(1), THREAT, generator=seeded())
    assert any("the gradient is 0 for 12 of 12 clips" in line for line in found)
    assert any("right at a budget that allows any clip, above chance" in line for line in found)


def test_masked_gradients_lose_to_a_black_box(problem):
    """The gradient is that of another, harmless function: Square sees the true one."""
    net, x, y = problem

    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.clone()

        @staticmethod
        def backward(ctx, g):
            return -g

    found = self_checks(lambda v: net(Masked.apply(v)), x, y, ThreatModel("linf", 12 / 255), generator=seeded())
    assert any("Square breaks" in line for line in found)


def test_a_model_that_is_always_wrong_cannot_be_checked(problem):
    net, x, y = problem
    found = self_checks(net, x, (y + 1) % 6, THREAT)
    assert found == ["none of 12 clips is classified right: attacks cannot be checked"]


def test_a_suite_whose_black_box_or_parts_break_more_is_weak():
    black, parts = ("square",), ["apgd-tube"]
    broken_by = ["apgd-ce"] * 90 + [None] * 5 + ["square"] * 5
    assert ["black-box attacks broke 5 of 100" in line for line in weak_white_box(broken_by, black, parts)] == [True]
    assert weak_white_box(["apgd-ce"] * 99 + ["square"], black, parts) == []
    found = weak_white_box(["apgd-tube"] * 3 + [None] * 10, black, parts)
    assert len(found) == 1 and "parts of the threat broke 3 of 13" in found[0]


@pytest.mark.parametrize(
    ("clips", "said"), [(1, "too few clips"), (3, "too few clips"), (12, "above chance")]
)
def test_few_clips_are_not_above_chance(problem, clips, said):
    """A model without gradients keeps every clip.

    Of one alone that is no number to compare with chance.
    """
    net, x, y = problem

    def masked(v):
        return net(v.detach()) + 0 * v.flatten(1).sum(1, keepdim=True)

    found = self_checks(masked, x[:clips], y[:clips], THREAT, generator=seeded())
    (line,) = [line for line in found if "right at a budget that allows any clip" in line]
    assert said in line and line.startswith(f"{clips} of {clips} ")

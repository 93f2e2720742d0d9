"""Check that models which look robust for the wrong reasons are reported."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.attacks.helpers import labelled, seeded, small_net
from vidrobust.attacks import (
    ThreatModel,
    attack_step,
    autoattack,
    self_checks,
    suite_steps,
    weak_white_box,
    worst_case,
)
from vidrobust.evaluation import MicroBatches

THREAT = ThreatModel("linf", 2 / 255)


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (12, 3, 4, 12, 12)))


@pytest.mark.parametrize(
    "name", ["linf-2/255", "l2-0.3", "l2_frame-0.2", "l1-2", "flicker-linf-8/255", "frames1-l2-1"]
)
def test_an_honest_model_gives_no_doubts(problem, name):
    from vidrobust.attacks import parse_threat

    assert self_checks(*problem, parse_threat(name), generator=seeded()) == []


def test_a_random_model_is_reported(problem):
    net, x, y = problem
    torch.manual_seed(0)
    lines = self_checks(lambda v: net(v) + torch.randn(len(v), 6), x, y, THREAT, generator=seeded())
    assert any("draws random numbers; use suite rand" in line for line in lines)


def test_norms_that_use_batch_statistics_are_reported(problem):
    net, x, _ = problem
    batch = nn.Sequential(nn.BatchNorm3d(3, track_running_stats=False), *net).train()
    lines = self_checks(batch, x, batch(x).argmax(1), THREAT, generator=seeded())
    assert any(
        "depend on the rest of the batch: norms are in training mode" in line for line in lines
    )


def test_another_norm_branch_under_attack_than_in_prediction_is_reported(problem):
    """This happens when an evaluator routes attacked clips through other norm statistics."""
    net, x, y = problem
    lines = self_checks(
        lambda v: net(v) * (0.5 if v.requires_grad else 1), x, y, THREAT, generator=seeded()
    )
    assert any("different norm branches" in line for line in lines)


def test_vanished_gradients_and_unbroken_clips_are_reported(problem):
    """With quantised input the classifier works, but no gradient reaches the pixels."""
    net, x, _ = problem
    # rounding has a gradient of 0
    flat = lambda v: net((v * 4).round() / 4 + 0 * v)  # noqa: E731
    lines = self_checks(flat, x, flat(x).argmax(1), THREAT, generator=seeded())
    assert any("the gradient is 0 for 12 of 12 clips" in line for line in lines)
    assert any("right at a budget that allows any clip, above chance" in line for line in lines)


def test_masked_gradients_that_lose_to_a_black_box_attack_are_reported(problem):
    """The gradient is that of another, harmless function; Square uses the true one."""
    net, x, y = problem

    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.clone()

        @staticmethod
        def backward(ctx, g):
            return -g

    lines = self_checks(
        lambda v: net(Masked.apply(v)), x, y, ThreatModel("linf", 12 / 255), generator=seeded()
    )
    assert any("Square breaks" in line for line in lines)


def test_a_model_that_is_always_wrong_is_reported_as_unchecked(problem):
    net, x, y = problem
    lines = self_checks(net, x, (y + 1) % 6, THREAT)
    assert lines == ["none of 12 clips is classified right: attacks cannot be checked"]


def test_a_suite_whose_black_box_attacks_or_parts_break_more_is_weak():
    black, parts = ("square",), ["apgd-tube"]
    broken_by = ["apgd-ce"] * 90 + [None] * 5 + ["square"] * 5
    assert [
        "black-box attacks broke 5 of 100" in line
        for line in weak_white_box(broken_by, black, parts)
    ] == [True]
    # one clip may be chance
    assert weak_white_box(["apgd-ce"] * 99 + ["square"], black, parts) == []
    lines = weak_white_box(["apgd-tube"] * 3 + [None] * 10, black, parts)
    assert len(lines) == 1 and "parts of the threat broke 3 of 13" in lines[0]


def _normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm3d(3), *small_net())


@pytest.mark.parametrize("batch_size", [0, 1, 2, 3, 5])
def test_norms_in_training_mode_are_reported_at_every_batch_size(problem, batch_size):
    _, x, _ = problem
    net = _normed().train()
    y = copy.deepcopy(net)(x).argmax(1)
    with pytest.warns(UserWarning, match="norms are in training mode; call eval"):
        autoattack(
            lambda v: net(v), x, y, THREAT, effort=0.02, batch_size=batch_size, generator=seeded()
        )
    bounded = MicroBatches(lambda v: net(v), batch_size or 12)
    lines = self_checks(bounded, x, y, THREAT, batch_size=batch_size, generator=seeded())
    assert any("norms are in training mode; call eval" in line for line in lines)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_norms_in_training_mode_are_reported_with_few_clips(problem, n):
    _, x, _ = problem
    net = _normed().train()
    y = copy.deepcopy(net)(x[:n]).argmax(1)
    lines = self_checks(net, x[:n], y, THREAT, generator=seeded())
    assert any("norms are in training mode; call eval" in line for line in lines)


def test_a_norm_that_refuses_single_values_is_reported_as_in_training_mode(problem):
    net = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 4 * 144, 6), nn.BatchNorm1d(6)).train()
    _, x, _ = problem
    lines = self_checks(net, x[:3], net(x[:3]).argmax(1), THREAT, generator=seeded())
    assert any("norms are in training mode; call eval" in line for line in lines)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_norms_in_eval_mode_give_no_doubts(problem, batch_size):
    _, x, _ = problem
    net = _normed().eval()
    y = net(x).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoattack(net, x, y, THREAT, effort=0.02, batch_size=batch_size, generator=seeded())


@pytest.mark.parametrize("batch_size", [1, 2, 0])
def test_checks_skip_clips_that_are_wrong_from_the_start(problem, batch_size):
    net, x, y = problem
    # the first three clips are wrong
    y = torch.cat([(y[:3] + 1) % 6, y[3:]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoattack(
            net, x, y, THREAT, effort=0.02, batch_size=batch_size, checks=2, generator=seeded()
        )
    with pytest.warns(UserWarning, match="none of 12 clips is classified right"):
        autoattack(net, x, (net(x).argmax(1) + 1) % 6, THREAT, effort=0.02, batch_size=batch_size)


def test_single_clips_are_checked_as_batches_are(problem):
    """Vanished gradients are found in models that are attacked clip by clip."""
    net, x, _ = problem
    flat = lambda v: net((v * 4).round() / 4 + 0 * v)  # noqa: E731
    y = flat(x).argmax(1)
    for batch_size in (0, 1, 5):
        lines = self_checks(flat, x, y, THREAT, batch_size=batch_size, generator=seeded())
        assert any("the gradient is 0 for 12 of 12 clips" in line for line in lines)
        assert any("right at a budget that allows any clip, above chance" in line for line in lines)


def _blind(problem):
    """Return a model whose gradients vanish, clips, and labels.

    Square breaks clips that no white-box attack breaks.
    """
    net, x, _ = problem
    predict = lambda v: net((v * 30).round() / 30 + 0 * v)  # noqa: E731
    return predict, x, predict(x).argmax(1)


@pytest.mark.filterwarnings("ignore:the gradient is 0")
@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_autoattack_warns_that_square_broke_what_the_others_left(problem, batch_size):
    predict, x, y = _blind(problem)
    with pytest.warns(
        UserWarning, match="black-box attacks broke .* that the white-box attacks before them left"
    ):
        autoattack(
            predict,
            x,
            y,
            ThreatModel("linf", 6 / 255),
            effort=0.05,
            batch_size=batch_size,
            checks=0,
            generator=seeded(),
        )


@pytest.mark.filterwarnings("ignore:the gradient is 0")
def test_worst_case_warns_that_square_broke_what_the_others_left_unless_it_ran_alone(problem):
    predict, x, y = _blind(problem)
    threat = ThreatModel("linf", 6 / 255)
    steps = suite_steps("standard", threat, 4, 6, effort=0.05)
    with pytest.warns(UserWarning, match="black-box attacks broke"):
        worst_case(predict, x, y, threat, steps, generator=seeded())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        worst_case(predict, x, y, threat, [attack_step("square", queries=250)], generator=seeded())
        worst_case(predict, x, y, threat, steps, warn=False, generator=seeded())
    assert not [w for w in caught if "black-box" in str(w.message)]


@pytest.mark.parametrize(
    ("clips", "phrase"), [(1, "too few clips"), (3, "too few clips"), (12, "above chance")]
)
def test_few_clips_are_not_compared_with_chance(problem, clips, phrase):
    """A model without gradients keeps every clip; with few clips this may be chance."""
    net, x, y = problem

    def masked(v):
        return net(v.detach()) + 0 * v.flatten(1).sum(1, keepdim=True)

    lines = self_checks(masked, x[:clips], y[:clips], THREAT, generator=seeded())
    (line,) = [line for line in lines if "right at a budget that allows any clip" in line]
    assert phrase in line and line.startswith(f"{clips} of {clips} ")

"""Check which losses minimum-norm attacks accept, and how their results are used."""

import pytest
import torch

from tests.attacks.helpers import labelled, small_net
from vidrobust.attacks import (
    ATTACKS,
    MINIMUM_NORM,
    SCORES,
    Misclassify,
    ThreatModel,
    attack_step,
    contains,
    cw,
    fab,
    fab_t,
    fmn,
    measure,
    toward,
    worst_case,
)
from vidrobust.attacks.minimum import widened
from vidrobust.attacks.passes import Passes
from vidrobust.attacks.threat import parse_threat
from vidrobust.evaluation import MicroBatches


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (6, 3, 4, 12, 12)))


@pytest.mark.parametrize("attack", [fab, fmn, cw])
@pytest.mark.parametrize("score", ["ce", "escape", "cosine", "flicker_hinge"])
def test_a_score_that_is_not_zero_on_the_boundary_is_refused(problem, attack, score):
    net, x, y = problem
    with pytest.raises(ValueError, match=r"Misclassify\(predict, y, 'margin'\)"):
        attack(Misclassify(net, y, score), x, ThreatModel("l2", 1.0))


@pytest.mark.parametrize("score", ["margin", "dlr"])
def test_margin_and_dlr_give_smallest_perturbations(problem, score):
    net, x, y = problem
    x_adv = fmn(Misclassify(net, y, score), x, ThreatModel("l2", 5.0))
    assert (net(x_adv).argmax(1) != y).all() and (
        measure(ThreatModel("l2", 5.0), x, x_adv) > 0
    ).all()


@pytest.mark.parametrize("name", ["fmn", "cw", "fab-t"])
def test_smallest_perturbations_hold_in_other_batches_and_under_noise_of_kernels(problem, name):
    net, x, y = problem
    step = attack_step(name, minimal=True, steps=60)
    outcome = worst_case(
        net, x, y, ThreatModel("l2", 5.0), [step], generator=torch.Generator().manual_seed(0)
    )
    assert not any(outcome.robust)
    # one sample at a time, and with noise as of other kernels
    logits = torch.cat([net(one) for one in outcome.x_adv.split(1)])
    for size in (0, 1e-6, 3e-6):
        assert (logits * (1 + size * (2 * torch.rand_like(logits) - 1))).argmax(1).ne(y).all()
    noisy = lambda v: net(v) * (1 + 1e-6 * torch.randn(len(v), 6))  # noqa: E731
    again = worst_case(
        noisy, x, y, ThreatModel("l2", 5.0), [step], generator=torch.Generator().manual_seed(0)
    )
    assert not any(again.robust)


def test_a_custom_score_is_accepted(problem):
    net, x, y = problem
    twice = Misclassify(net, y, lambda logits, labels: 2 * SCORES["margin"](logits, labels))
    assert (net(fmn(twice, x, ThreatModel("l2", 5.0))).argmax(1) != y).all()


@pytest.mark.parametrize("attack", [fab, fmn])
def test_a_loss_that_is_positive_everywhere_gives_a_warning(problem, attack):
    net, x, y = problem
    with pytest.warns(UserWarning, match="positive only where a sample is broken"):
        x_adv = attack(
            lambda v: torch.nn.functional.cross_entropy(net(v), y, reduction="none"),
            x,
            ThreatModel("l2", 5.0),
            steps=5,
        )
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("name", MINIMUM_NORM)
def test_samples_that_nothing_breaks_are_returned_unchanged(problem, name):
    net, x, y = problem
    x_adv = ATTACKS[name](Misclassify(net, y, "margin"), x, ThreatModel("l2", 1e-4), steps=5)
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize(
    "name",
    [
        "linf-4/255",
        "l2-0.5",
        "l2_frame-0.3",
        "l1-5",
        "tube-linf-4/255",
        "flicker-l2-1",
        "frames2-linf-4/255",
        "patch4-l2-0.5",
        "border2-linf-9/255",
    ],
)
def test_widened_perturbations_fill_the_budget_and_stay_in_it(problem, name):
    _, x, _ = problem
    x, threat = x.clone(), parse_threat(name)
    x[0, :, 0] = 0.0  # a frame at the bound, where part of a shared change is clipped
    # a perturbation of a seventh of the budget, which widened() scales up
    small = ThreatModel(threat.norm, threat.eps / 7, threat.support, threat.k, threat.place)
    x_adv = ATTACKS["pgd"](
        lambda v: (v * torch.sin(torch.arange(12.0))).flatten(1).sum(1), x, small, steps=3
    )
    wide = widened(threat, x, x_adv)
    assert contains(threat, x, wide).all()
    least = (
        0.99 * small.eps if threat.norm == "l1" else 0.9 * threat.eps
    )  # in L1 few pixels change, and they soon become black or white
    assert (measure(threat, x, wide) > least)[1:].all()
    ratio = (wide - x)[1:] / (x_adv - x)[1:]
    assert (ratio[(x_adv - x)[1:].abs() > 1e-4] > 1).all()  # every change grows
    assert torch.equal(widened(threat, x, x), x)


def test_fab_goes_to_the_nearest_of_all_boundaries_and_not_to_the_likeliest_class():
    """Class 1 is the runner-up but far away; class 2 has a lower logit and a steep slope."""
    weight = torch.tensor([[0.0], [0.1], [1.0]])
    bias = torch.tensor([0.0, -0.05, -0.2])
    net = lambda v: (v.flatten(1).mean(1, keepdim=True) - 0.5) @ weight.T + bias  # noqa: E731
    x, y = torch.full((1, 3, 2, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    threat = ThreatModel("linf", 0.5)
    x_adv = fab(Misclassify(net, y, "margin"), x, threat, steps=20)
    assert measure(threat, x, x_adv).item() == pytest.approx(0.2, rel=1e-2)
    assert net(x_adv).argmax(1).item() == 2
    toward_the_likeliest = fab_t(Misclassify(net, y), x, threat, steps=1, targets=1)
    assert (
        torch.equal(toward_the_likeliest, x)
        or measure(threat, x, toward_the_likeliest).item() > 0.4
    )


def test_fab_makes_a_backward_pass_per_other_class(problem):
    net, x, y = problem
    counted = Passes(net)
    fab(
        Misclassify(counted, y, "margin"),
        x,
        ThreatModel("l2", 5.0),
        steps=4,
        restarts=2,
        minimal=True,
    )
    # 2 restarts x 4 steps x 2 forward passes x 6 clips; 5 other classes
    assert (counted.forward, counted.backward) == (2 * 4 * 2 * 6, 2 * 4 * 5 * 6)


@pytest.mark.parametrize(
    "name",
    [
        "linf-0.1",
        "tube-linf-0.1",
        "flicker-l2-5",
        "frames2-l1-200",
        "border2-l2-5",
        "patch6-linf-1",
    ],
)
@pytest.mark.parametrize("size", [1, 4, 99])
def test_fab_gives_the_same_clips_when_the_model_splits_its_batches(problem, name, size):
    net, x, y = problem
    threat = parse_threat(name)
    x_adv = fab(Misclassify(net, y, "margin"), x, threat, steps=8)
    assert contains(threat, x, x_adv).all()
    # MicroBatches runs the model on a few clips at a time
    bounded = fab(Misclassify(MicroBatches(net, size), y, "margin"), x, threat, steps=8)
    assert torch.allclose(x_adv, bounded, atol=1e-5)


def test_fab_toward_a_given_class_has_one_boundary_and_one_gradient(problem):
    net, x, y = problem
    counted, threat = Passes(net), ThreatModel("l2", 5.0)
    x_adv = fab(Misclassify(counted, y, toward((y + 1) % 6)), x, threat, steps=30)
    assert counted.forward == 2 * counted.backward == 2 * 30 * 6
    assert (net(x_adv).argmax(1) != y).all()


def test_fab_names_samples_of_nan_gradients(problem):
    net, x, y = problem

    def predict(v):
        logits = net(v)
        # the root of 0 has an infinite gradient, and times 0 gives NaN
        root = (v[:, 0, 0, 0, 0] - x[:, 0, 0, 0, 0]).abs().sqrt()
        return torch.cat([logits[:, :5], logits[:, 5:] + 0 * root.unsqueeze(1)], 1)

    with pytest.raises(
        ValueError, match=r"gradient of samples \[0, 1, 2, 3, 4, 5\] is NaN or infinite"
    ):
        fab(Misclassify(predict, y, "margin"), x, ThreatModel("l2", 5.0), steps=3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_cw_changes_black_and_white_pixels(value):
    """Its change of variables is infinite at these pixels, where no gradient would move them."""
    x = torch.full((2, 3, 2, 4, 4), value)

    def predict(v):
        moved = (1 - 2 * value) * (v - value).mean((1, 2, 3, 4))  # towards the other end
        return torch.stack([0.05 - moved, moved - 0.05], 1)

    threat, y = ThreatModel("l2", 5.0), torch.zeros(2, dtype=torch.long)
    x_adv = cw(Misclassify(predict, y, "margin"), x, threat, steps=100, searches=2, lr=0.2)
    assert (predict(x_adv).argmax(1) == 1).all() and contains(threat, x, x_adv).all()

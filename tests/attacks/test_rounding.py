"""Check suites with 8-bit pixels, and one run of smallest perturbations for every budget."""

import pytest
import torch

from tests.attacks.helpers import labelled, seeded, small_net
from vidrobust.attacks import (
    Step,
    ThreatModel,
    attack_step,
    contains,
    measure,
    pgd,
    rounded,
    rounds_away,
    worst_case,
)


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (16, 3, 4, 12, 12)))


@pytest.mark.parametrize("name", ["fmn", "fab-t", "cw"])
def test_one_run_of_smallest_perturbations_serves_every_budget(problem, name):
    net, x, _ = problem
    x = (x * 255).round() / 255
    large, y = ThreatModel("l2", 2.0), net(x).argmax(1)
    steps = [attack_step(name, minimal=True, steps=40)]
    outcome = worst_case(net, x, y, large, steps, generator=seeded())
    sizes = measure(large, x, outcome.x_adv)
    assert not any(outcome.robust) and (sizes < 2.0).all()
    # budgets just above the sizes of chosen samples, so that the counts are known
    budgets = sizes.sort().values[[0, 5, 10, 15]] * 1.001
    for count, eps in zip((1, 6, 11, 16), budgets.tolist(), strict=True):
        at_budget = outcome.within(net, x, y, ThreatModel("l2", eps))
        assert sum(by == name for by in at_budget.broken_by) == count
        threat = ThreatModel("l2", eps)
        assert (
            contains(threat, x, at_budget.x_adv).all()
            and contains(threat, x, rounded(at_budget.x_rounded, x)).all()
        )
        wrong = net(rounded(at_budget.x_rounded, x)).argmax(1) != y
        assert wrong.tolist() == [by is not None for by in at_budget.rounded_by]
        robust = torch.tensor(at_budget.robust)
        assert torch.equal(at_budget.x_adv[robust], x[robust])


def test_perturbations_that_rounding_undoes_are_widened(problem):
    """A smallest perturbation is below half a grey level here, and the budget is four."""
    net, x, y = problem
    x = (x * 255).round() / 255
    y = net(x).argmax(1)
    threat = ThreatModel("linf", 4 / 255)
    outcome = worst_case(
        net, x, y, threat, [attack_step("fmn", minimal=True)], rounding=True, generator=seeded()
    )
    assert not any(outcome.robust) and None not in outcome.rounded_by
    assert (net(rounded(outcome.x_rounded, x)).argmax(1) != y).all()
    assert contains(threat, x, rounded(outcome.x_rounded, x)).all()


def test_within_refuses_other_runs_and_larger_budgets(problem):
    net, x, y = problem
    large, small = ThreatModel("linf", 8 / 255), ThreatModel("linf", 2 / 255)
    smallest = attack_step("fmn", minimal=True)
    # other attacks, several attacks, and fmn that stops at the first broken clip
    for steps in ([attack_step("pgd")], [attack_step("pgd"), smallest], [attack_step("fmn")]):
        with pytest.raises(ValueError, match="not a run of smallest perturbations alone"):
            worst_case(net, x, y, large, steps).within(net, x, y, small)
    with pytest.raises(ValueError, match="not a run of smallest"):
        worst_case(net, x, y, large, [smallest], rounding=True).within(net, x, y, small)
    outcome = worst_case(net, x, y, small, [smallest])
    # a larger budget, another norm, another support
    for threat in (large, ThreatModel("l2", 0.001), ThreatModel("linf", 1 / 255, "tube")):
        with pytest.raises(ValueError, match="must be of kind linf and at most linf-2/255"):
            outcome.within(net, x, y, threat)


@pytest.mark.parametrize(
    ("eps", "whole", "gone"),
    [
        (0.4, True, True),
        (0.4, False, True),
        (0.9, True, True),
        (0.9, False, False),
        (1, True, False),
        (4, False, False),
    ],
)
def test_budgets_that_round_away_are_not_attacked_for_uint8(problem, eps, whole, gone):
    net, x, _ = problem
    x = (x * 255).round() / 255 if whole else x
    y, threat, sizes = net(x).argmax(1), ThreatModel("linf", eps / 255), []
    assert rounds_away(threat, x) is gone
    # the claim itself, on random noise of that size
    noise = x + eps / 255 * (2 * torch.rand_like(x) - 1)
    assert torch.equal(rounded(noise, x), rounded(x, x)) is gone

    def spy(loss, clips, threat, generator=None):
        sizes.append(len(clips))
        return pgd(loss, clips, threat, steps=30, generator=generator)

    outcome = worst_case(
        net, x, y, threat, [Step("a", spy), Step("b", spy)], rounding=True, generator=seeded()
    )
    if gone:
        clean = net(rounded(x, x)).argmax(1) != y
        assert [by is not None for by in outcome.rounded_by] == clean.tolist() and torch.equal(
            outcome.x_rounded, x
        )
        assert sizes == [16, sum(outcome.robust)][: 1 + any(outcome.robust)]

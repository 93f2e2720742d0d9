"""Suites and 8-bit pixels: one run for every budget, and what becomes of perturbations in a
file.
"""

import pytest
import torch

from tests.attacks.models import labelled, seeded, small_net
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
def test_one_run_of_a_smallest_perturbation_serves_every_budget(problem, name):
    net, x, _ = problem
    x = (x * 255).round() / 255
    large, y = ThreatModel("l2", 2.0), net(x).argmax(1)
    steps = [attack_step(name, minimal=True, steps=40)]
    found = worst_case(net, x, y, large, steps, generator=seeded())
    sizes = measure(large, x, found.x_adv)
    assert not any(found.robust) and (sizes < 2.0).all()
    budgets = sizes.sort().values[[0, 5, 10, 15]] * 1.001
    for count, eps in zip((1, 6, 11, 16), budgets.tolist(), strict=True):
        at = found.within(net, x, y, ThreatModel("l2", eps))
        assert sum(by == name for by in at.broken_by) == count
        threat = ThreatModel("l2", eps)
        assert (
            contains(threat, x, at.x_adv).all()
            and contains(threat, x, rounded(at.x_rounded, x)).all()
        )
        wrong = net(rounded(at.x_rounded, x)).argmax(1) != y
        assert wrong.tolist() == [by is not None for by in at.rounded_by]
        robust = torch.tensor(at.robust)
        assert torch.equal(at.x_adv[robust], x[robust])


def test_what_rounding_would_undo_is_widened_until_it_does_not(problem):
    """A smallest perturbation is under half a grey level here, and its budget four."""
    net, x, y = problem
    x = (x * 255).round() / 255
    y = net(x).argmax(1)
    threat = ThreatModel("linf", 4 / 255)
    found = worst_case(
        net, x, y, threat, [attack_step("fmn", minimal=True)], rounding=True, generator=seeded()
    )
    assert not any(found.robust) and None not in found.rounded_by
    assert (net(rounded(found.x_rounded, x)).argmax(1) != y).all()
    assert contains(threat, x, rounded(found.x_rounded, x)).all()


def test_within_refuses_what_it_cannot_tell(problem):
    net, x, y = problem
    large, small = ThreatModel("linf", 8 / 255), ThreatModel("linf", 2 / 255)
    smallest = attack_step("fmn", minimal=True)
    for steps in ([attack_step("pgd")], [attack_step("pgd"), smallest], [attack_step("fmn")]):
        with pytest.raises(ValueError, match="not a run of smallest perturbations alone"):
            worst_case(net, x, y, large, steps).within(net, x, y, small)
    with pytest.raises(ValueError, match="not a run of smallest"):
        worst_case(net, x, y, large, [smallest], rounding=True).within(net, x, y, small)
    found = worst_case(net, x, y, small, [smallest])
    for threat in (large, ThreatModel("l2", 0.001), ThreatModel("linf", 1 / 255, "tube")):
        with pytest.raises(ValueError, match="must be of kind linf and at most linf-2/255"):
            found.within(net, x, y, threat)


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
    noise = x + eps / 255 * (2 * torch.rand_like(x) - 1)
    assert torch.equal(rounded(noise, x), rounded(x, x)) is gone

    def spy(loss, clips, threat, generator=None):
        sizes.append(len(clips))
        return pgd(loss, clips, threat, steps=30, generator=generator)

    found = worst_case(
        net, x, y, threat, [Step("a", spy), Step("b", spy)], rounding=True, generator=seeded()
    )
    if gone:
        clean = net(rounded(x, x)).argmax(1) != y
        assert [by is not None for by in found.rounded_by] == clean.tolist() and torch.equal(
            found.x_rounded, x
        )
        assert sizes == [16, sum(found.robust)][: 1 + any(found.robust)]

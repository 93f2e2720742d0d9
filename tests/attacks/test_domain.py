"""Check that each attack runs exactly where its declaration says that it is defined."""

import inspect
import itertools
from typing import get_args

import pytest
import torch

from tests.attacks.helpers import labelled, seeded, small_net
from vidrobust.attacks import ATTACKS, Misclassify, Step, ThreatModel, attack_step, contains
from vidrobust.attacks.suite import DOMAINS
from vidrobust.attacks.threat import Norm, Support

SIZES = {"frames": 1, "patch": 3, "border": 1, "pixels": 4}
BUDGETS = {"linf": 0.05, "l2": 0.5, "l2_frame": 0.3, "l1": 2.0}
FEW = {"steps": 2, "queries": 60, "searches": 1, "targets": 2}


@pytest.fixture(scope="module")
def problem():
    net = small_net(size=8)
    return (net, *labelled(net, (2, 3, 4, 8, 8)))


def _options(name):
    parameters = inspect.signature(ATTACKS[name]).parameters
    return {option: value for option, value in FEW.items() if option in parameters}


@pytest.mark.parametrize(("norm", "support"), itertools.product(get_args(Norm), get_args(Support)))
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_runs_exactly_where_it_declares_itself_defined(problem, name, norm, support):
    net, x, y = problem
    threat = ThreatModel(norm, BUDGETS[norm], support, SIZES.get(support, 0))
    step = attack_step(name, **_options(name))
    loss = Misclassify(net, y, step.score)
    if threat in DOMAINS[name]:
        step.require_defined(threat)
        adversarial = ATTACKS[name](loss, x, threat, generator=seeded(), **_options(name))
        assert contains(threat, x, adversarial).all()
    else:
        with pytest.raises(ValueError, match="is defined for") as by_attack:
            ATTACKS[name](loss, x, threat, generator=seeded(), **_options(name))
        with pytest.raises(ValueError, match="is defined for") as by_declaration:
            step.require_defined(threat)
        assert str(by_attack.value) == str(by_declaration.value)


def test_every_attack_declares_its_domain():
    assert DOMAINS.keys() == ATTACKS.keys()


@pytest.mark.parametrize("name", [name for name, domain in DOMAINS.items() if domain.least_queries])
def test_the_least_number_of_queries_allows_a_step_and_one_fewer_does_not(problem, name):
    net, x, y = problem
    loss, threat = Misclassify(net, y, "margin"), ThreatModel("linf", 0.05)
    least = DOMAINS[name].least_queries
    attack_step(name, queries=least).require_defined(threat)
    assert not torch.equal(ATTACKS[name](loss, x, threat, queries=least, generator=seeded()), x)
    with pytest.raises(ValueError, match=f"queries={least - 1}: must be at least {least}"):
        attack_step(name, queries=least - 1).require_defined(threat)
    with pytest.raises(ValueError, match=f"queries={least - 1}"):
        ATTACKS[name](loss, x, threat, queries=least - 1)


def test_a_step_with_another_threat_than_the_suite_is_checked_against_that_threat():
    flicker_threat = ThreatModel("l2", 0.5, "flicker")
    Step("flicker", ATTACKS["flicker"], threat=flicker_threat).require_defined(
        ThreatModel("linf", 0.1)
    )


def test_an_attack_that_declares_nothing_is_defined_for_every_threat():
    Step("mine", lambda loss, x, threat, generator=None: x).require_defined(ThreatModel("l1", 2.0))

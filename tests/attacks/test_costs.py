"""The passes that formulas predict are those that attacks make where nothing breaks a clip."""

import inspect

import pytest
import torch
from torch import nn

from vidrobust.attacks import (
    ATTACKS,
    Cost,
    Step,
    ThreatModel,
    attack_step,
    largest_cost,
    worst_case,
)
from vidrobust.attacks.suite import DOMAINS, suite_steps

SHAPE = (3, 6, 8)
CLASSES = 5
DENSE = [ThreatModel(norm, 1e-3) for norm in ("linf", "l2", "l2_frame", "l1")]
PARTS = [
    ThreatModel("linf", 1e-3, "tube"),
    ThreatModel("l2", 1e-3, "flicker"),
    ThreatModel("linf", 1e-3, "frames", 2),
    ThreatModel("linf", 1e-3, "frames", 2, "uniform"),
    ThreatModel("l1", 1e-3, "frames", 2, "random"),
    ThreatModel("linf", 1e-3, "frames", 1, (2,)),
    ThreatModel("linf", 1e-3, "patch", 3),
    ThreatModel("linf", 1e-3, "patch", 3, (2, 1)),
    ThreatModel("l2", 1e-3, "border", 1),
    ThreatModel("linf", 1e-3, "pixels", 4),
    ThreatModel("linf", 1e-3, "pixels", 4, "random"),
]
# options that differ from the defaults, where an attack has them
SOME = {
    "steps": 4,
    "restarts": 2,
    "queries": 20,
    "targets": 3,
    "searches": 3,
    "shift": 2,
    "samples": 6,
    "candidates": 6,
    "stride": 2,
}


@pytest.fixture(scope="module")
def strong():
    """Make a classifier whose first class wins by far, with a gradient that is never 0."""
    torch.manual_seed(0)
    linear = nn.Linear(3 * 3 * 6 * 8, CLASSES)
    linear.weight.data *= 0.01
    linear.bias.data[0] = 6.0
    return nn.Sequential(nn.Flatten(1), linear).eval().requires_grad_(False)


def _passes(predict, step, threat, clips=2):
    torch.manual_seed(1)
    # values of uint8: no further pass looks at rounded clips
    x = torch.randint(60, 200, (clips, 3, *SHAPE)) / 255
    labels = torch.zeros(clips, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    outcome = worst_case(predict, x, labels, threat, [step], generator=generator)
    assert outcome.robust == [True] * clips
    return outcome.passes[step.name]


def _options(name):
    return {key: SOME[key] for key in inspect.signature(ATTACKS[name]).parameters if key in SOME}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_makes_the_passes_of_its_formula(strong, name):
    step = attack_step(name, **_options(name))
    threats = [threat for threat in DENSE + PARTS if threat in DOMAINS[name]]
    assert threats
    for threat in threats:
        cost = largest_cost(step, threat, SHAPE, CLASSES)
        assert _passes(strong, step, threat) == (2 * cost.forward, 2 * cost.backward), threat


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("frame-saliency", {"mode": "one_shot"}),
        ("frame-saliency", {"mode": "refresh"}),
        ("flicker", {"cyclic": True, "steps": 4}),
        ("pgd", {}),
        ("fab-t", {"targets": 9, "steps": 2}),
        ("apgd-t", {"targets": 9, "steps": 2}),
        ("geo-trap", {"queries": 5}),
        ("roa", {"steps": 2, "stride": 100}),
    ],
)
def test_other_options_change_the_cost_as_they_change_the_passes(strong, name, options):
    step = attack_step(name, **options)
    threat = next(threat for threat in DENSE + PARTS if threat in DOMAINS[name])
    cost = largest_cost(step, threat, SHAPE, CLASSES)
    assert _passes(strong, step, threat) == (2 * cost.forward, 2 * cost.backward)


@pytest.mark.parametrize("version", ["standard", "plus", "rand", "video"])
def test_the_steps_of_autoattack_have_costs(strong, version):
    threat = DENSE[0]
    for step in suite_steps(version, threat, SHAPE[0], CLASSES, effort=0.01):
        cost = largest_cost(step, threat, SHAPE, CLASSES)
        assert _passes(strong, step, threat) == (2 * cost.forward, 2 * cost.backward), step.name


def test_a_clip_that_breaks_costs_no_more(strong):
    weak = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 3 * 6 * 8, CLASSES)).eval()
    x = torch.rand(3, 3, *SHAPE)
    labels = weak(x).argmax(1)
    threat = ThreatModel("linf", 0.3)
    step = attack_step("pgd", steps=5)
    outcome = worst_case(weak, x, labels, threat, [step])
    assert not any(outcome.robust)
    assert outcome.passes["pgd"][0] < 3 * largest_cost(step, threat, SHAPE, CLASSES).forward


def test_costs_of_other_functions_are_refused():
    with pytest.raises(ValueError, match="own: the cost of this attack is unknown"):
        largest_cost(Step("own", lambda *_: None), DENSE[0], SHAPE, CLASSES)
    assert (Cost(1, 2) + Cost(3, 4)) * 2 == Cost(8, 12)

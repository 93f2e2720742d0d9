"""Attacks of each suite, and refusals before anything is decoded."""

import dataclasses

import pytest
import torch

from vidrobust import config
from vidrobust.attacks import ATTACKS, ThreatModel, parse_threat
from vidrobust.cli import common
from vidrobust.evaluation.adversarial.attack_settings import covered
from vidrobust.evaluation.adversarial.suites import SUITES, Suite, require_defined
from vidrobust.utils.errors import UserError

KINDS = [
    "linf-4/255",
    "l2-0.5",
    "l2_frame-0.5",
    "l1-5",
    "tube-linf-4/255",
    "flicker-linf-8/255",
    "frames2-linf-4/255",
    "patch4-linf-1",
    "patch4-l2-1",
    "border2-linf-1",
    "pixels5-linf-1",
]
FOR = {
    "cw": {"l2-0.5", "patch4-l2-1"},
    "flicker": {"flicker-linf-8/255"},
    "roa": {"patch4-linf-1"},
    "salt-and-pepper": {"pixels5-linf-1"},
    "frame-saliency": set(KINDS[:4]),
    "one-frame": set(KINDS[:4]),
    "fab": set(KINDS) - {"l2_frame-0.5"},
    "fab-t": set(KINDS) - {"l2_frame-0.5"},
}


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_held_against_every_threat(name):
    taken = set()
    for kind in KINDS:
        try:
            require_defined(Suite(name), [parse_threat(kind)])
            taken.add(kind)
        except UserError as error:
            assert str(error).startswith(f"eval.suite={name} under {kind}: ") and "\n" not in str(
                error
            )
    assert taken == FOR.get(name, set(KINDS))


@pytest.mark.parametrize(
    "kind", ["frames99@uniform-linf-4/255", "patch112@500+3-linf-1", "pixels9999-linf-1"]
)
def test_sizes_are_no_matter_here(kind):
    require_defined(Suite("video"), [parse_threat(kind)])  # config.py knows the clips


def test_options_that_do_nothing_are_named():
    assert Suite("autoattack", steps=50, queries=9, restarts=2).without_effect() == [
        "steps",
        "restarts",
        "queries",
    ]
    assert Suite("autoattack", effort=0.5).without_effect() == []
    assert Suite("pgd", steps=50, restarts=2, effort=0.5).without_effect() == ["effort"]
    assert Suite("square", steps=50, queries=9).without_effect() == ["steps"]
    assert Suite("fmn", restarts=2, queries=9).without_effect() == ["restarts", "queries"]
    assert all(Suite(name).without_effect() == [] for name in SUITES)


def test_a_step_size_is_a_fraction_of_the_budget():
    suite = Suite("pgd", steps=20, step=0.25)
    assert str(suite) == "pgd-20x1, step 0.25 eps"
    assert Suite("fmn", step=0.25).without_effect() == ["step"]
    for eps in (8 / 255, 0.5):
        (step,) = suite(ThreatModel(eps=eps), 1, 10)
        assert step.attack.keywords["step_size"] == eps / 4
    # a budget of 0 has no step
    (step,) = suite(ThreatModel(eps=0.0), 1, 10)
    assert "step_size" not in step.attack.keywords
    x = torch.full((2, 3, 1, 4, 4), 0.5)
    (step,) = Suite("pgd", steps=1, step=0.25)(ThreatModel(eps=8 / 255), 1, 10)
    moved = step.attack(
        lambda v: v.flatten(1).sum(1), x, ThreatModel(eps=8 / 255), random_start=False
    )
    assert torch.allclose(moved - x, torch.tensor(2 / 255))


def test_the_defaults_are_those_of_the_options():
    defaults = config.loads("").eval
    for field in dataclasses.fields(Suite):
        if field.name != "name":
            assert getattr(defaults, field.name) == field.default


def test_the_help_names_every_suite():
    text = next(line for line in common.parser("").epilog.splitlines() if " eval.suite=" in line)
    assert all(name in text.replace(",", " ").split() for name in SUITES)


def test_smallest_perturbations_serve_a_family():
    assert [name for name in ATTACKS if Suite(name).smallest] == ["fab", "fab-t", "fmn", "cw"]
    (step,) = Suite("fmn", steps=7)(ThreatModel(), 4, 10)
    assert step.attack.keywords == {"steps": 7, "minimal": True}


def test_how_much_of_a_frame_a_threat_covers():
    found = {
        name: covered(parse_threat(name), 36)
        for name in (
            "patch30-linf-1",
            "border5-linf-1",
            "pixels100-linf-1",
            "linf-1",
            "frames2-linf-1",
        )
    }
    assert found == {
        "patch30-linf-1": 900 / 1296,
        "border5-linf-1": 1 - 676 / 1296,
        "pixels100-linf-1": 100 / 1296,
        "linf-1": 0,
        "frames2-linf-1": 0,
    }


def test_fewer_queries_than_one_step_takes_are_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"eval.suite=nes under linf-4/255: queries=20: .* 52"):
        require_defined(Suite("nes", queries=20), [parse_threat("linf-4/255")])
    require_defined(Suite("nes", queries=52), [parse_threat("linf-4/255")])

"""Compare the constants of attacks with a literal copy of the published numbers.

Defaults are read from signatures. Behaviour, such as schedules, exponents and probes, is measured.
"""

import inspect
import itertools
import math

import pytest
import torch

from tests.attacks.helpers import seeded
from vidrobust.attacks import (
    ATTACKS,
    SCORES,
    Misclassify,
    ThreatModel,
    apgd,
    attack_step,
    autoattack,
    cw,
    fmn,
    geo_trap,
    impersonate,
    mim,
    nes,
    parse_threat,
    pgd,
    square,
    suite_steps,
    universal,
)
from vidrobust.attacks import apgd as apgd_function
from vidrobust.attacks import minimum as minimum_module
from vidrobust.attacks.ball import Ball
from vidrobust.attacks.minimum import _to_boundary
from vidrobust.attacks.query import warped_frames
from vidrobust.attacks.search import Search
from vidrobust.attacks.square import _bump, _Draws, _fraction, _pyramid, _sides, _tiles

APGD = inspect.getmodule(apgd_function)
LINF = ThreatModel("linf", 8 / 255)


def _options(attack):
    """Return the keyword options and their defaults, except for the generator."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(attack).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "generator"
    }


APGD_STEPS = {"steps": 100, "restarts": 1, "rho": 0.75}
APGD_T = {"targets": 9, "steps": 100, "restarts": 1, "rho": 0.75}
FAB = {"steps": 100, "restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9, "minimal": False}
FAB_T = {"targets": 9, **FAB}
SQUARE = {"queries": 5000, "p_init": 0.8, "restarts": 1, "rescale": False}
FIVE = {"restarts": 5}

AUTOATTACK = {
    ("standard", "linf"): [
        ("apgd-ce", APGD_STEPS),
        ("apgd-t", APGD_T),
        ("fab-t", FAB_T),
        ("square", SQUARE),
    ],
    ("standard", "l2"): [
        ("apgd-ce", APGD_STEPS),
        ("apgd-t", APGD_T),
        ("fab-t", FAB_T),
        ("square", SQUARE),
    ],
    ("standard", "l1"): [
        ("apgd-ce", APGD_STEPS | FIVE),
        ("apgd-t", APGD_T | {"targets": 5}),
        ("fab-t", FAB_T),
        ("square", SQUARE),
    ],
    **{
        ("plus", norm): [
            ("apgd-ce", APGD_STEPS | FIVE),
            ("apgd-dlr", APGD_STEPS | FIVE),
            ("fab", FAB | FIVE),
            ("square", SQUARE),
            ("apgd-t", APGD_T),
            ("fab-t", FAB_T),
        ]
        for norm in ("linf", "l2", "l1")
    },
    **{
        ("rand", norm): [("apgd-ce", APGD_STEPS), ("apgd-dlr", APGD_STEPS)]
        for norm in ("linf", "l2", "l1")
    },
}


@pytest.mark.parametrize(("version", "norm"), AUTOATTACK)
def test_versions_of_autoattack_have_the_published_attacks_and_options(version, norm):
    steps = suite_steps(version, ThreatModel(norm, 0.1), frames=16, classes=10)
    assert [(step.name, _options(step.attack)) for step in steps] == AUTOATTACK[version, norm]
    assert [step.draws for step in steps] == [20 if version == "rand" else 1] * len(steps)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_versions_of_autoattack_equal_those_of_the_published_package(version, norm):
    package = pytest.importorskip("pyautoattack.autoattack")
    theirs = package.AutoAttack(
        torch.nn.Identity(), norm={"linf": "Linf"}.get(norm, norm.upper()), version=version
    )
    ours = suite_steps(version, ThreatModel(norm, 0.1), frames=1, classes=10)
    assert [step.name for step in ours] == theirs.attacks_to_run
    for step in ours:
        options = _options(step.attack)
        if step.name in ("apgd-ce", "apgd-dlr"):
            assert options["restarts"] == theirs.apgd.n_restarts
            assert options["steps"] == theirs.apgd.n_iter
            assert step.draws == theirs.apgd.eot_iter
        elif step.name == "apgd-t":
            assert options["targets"] == theirs.apgd_targeted.n_target_classes
            assert options["restarts"] == theirs.apgd_targeted.n_restarts
        elif step.name == "square":
            assert options["queries"] == theirs.square.n_queries
            assert options["p_init"] == theirs.square.p_init
        # FAB; its restarts count for the untargeted attack only
        else:
            fab = theirs.fab
            assert [options[name] for name in ("steps", "alpha_max", "eta", "beta")] == [
                fab.n_iter,
                fab.alpha_max,
                fab.eta,
                fab.beta,
            ]
            assert options["restarts"] == (fab.n_restarts if step.name == "fab" else 1)


def test_the_video_version_adds_flicker_tube_a_quarter_of_the_frames_and_one_frame():
    parts = suite_steps("video", LINF, frames=16, classes=10)[4:]
    assert [(step.name, str(step.threat)) for step in parts] == [
        ("apgd-flicker", "flicker-linf-8/255"),
        ("apgd-tube", "tube-linf-8/255"),
        ("apgd-frames4", "frames4-linf-8/255"),
        ("apgd-frames1", "frames1-linf-8/255"),
    ]
    assert all(_options(step.attack) == APGD_STEPS for step in parts)


DEFAULTS = {
    "fgsm": {},
    "pgd": {"steps": 10, "step_size": None, "restarts": 1, "random_start": True, "best": True},
    "mim": {"steps": 10, "step_size": None, "momentum": 1.0},
    "apgd-ce": APGD_STEPS,
    "apgd-dlr": APGD_STEPS,
    "apgd-t": APGD_T,
    "fab": FAB,
    "fab-t": FAB_T,
    "fmn": {"steps": 100, "alpha": 1.0, "gamma": 0.05, "minimal": False},
    "cw": {"steps": 100, "searches": 6, "c": 1.0, "lr": 0.01, "confidence": 0.0, "minimal": False},
    "square": SQUARE,
    "nes": {"queries": 5000, "samples": 50, "sigma": 0.001, "step_size": None, "momentum": 0.9},
    "geo-trap": {
        "queries": 60000,
        "step_size": 0.025,
        "explore": 0.1,
        "probe": 0.1,
        "rate": 0.1,
        "spread": 0.1,
        "affine": False,
    },
    "temporal-translation": {"steps": 10, "step_size": None, "shift": 7, "momentum": 1.0},
    "frame-saliency": {"mode": "iterative", "steps": 10},
    "one-frame": {"steps": 20},
    "sparse": {"steps": 100, "lam": 0.01, "lr": 0.001},
    "flicker": {"steps": 100, "lam": 1.0, "beta": 0.5, "lr": 0.01, "cyclic": False},
    "roa": {"steps": 30, "step_size": None, "stride": 5, "candidates": 10},
    "salt-and-pepper": {"steps": 5},
}


def test_every_attack_has_its_published_defaults():
    assert {name: _options(attack) for name, attack in ATTACKS.items()} == DEFAULTS
    assert _options(impersonate) == {"steps": 50, "step_size": 0.01}
    assert _options(universal) == {"epochs": 5, "step_size": None, "shift": False}
    assert _options(autoattack) == {"effort": 1.0, "batch_size": 0, "checks": 8}
    assert inspect.signature(autoattack).parameters["version"].default == "standard"


def test_every_attack_maximises_its_published_score():
    names = {name: attack_step(name).score for name in ATTACKS}
    assert {name: score for name, score in names.items() if score != "ce"} == {
        "apgd-dlr": "dlr",
        "fab": "margin",
        "fab-t": "margin",
        "fmn": "margin",
        "cw": "margin",
        "square": "margin",
        "nes": "margin",
        "geo-trap": "margin",
        "sparse": "escape",
        "flicker": "flicker_hinge",
    }
    # the hinge is -l for gaps above m, and 0 for a wrong class that leads by more than m
    p = torch.tensor([[0.6, 0.4], [0.525, 0.475], [0.3, 0.7]])  # l = p_y - p_other + 0.05
    scores = SCORES["flicker_hinge"](p.log(), torch.tensor([0, 0, 0]))
    assert scores.tolist() == pytest.approx([-0.25, -0.1, 0.0], abs=1e-5)


# ------------------------------------------------------------------ step sizes


@pytest.mark.parametrize(("attack", "steps", "factor"), [(pgd, 4, 2.5), (mim, 4, 1.0)])
def test_a_step_of_pgd_and_mim_has_its_published_size(attack, steps, factor):
    x, inputs = torch.full((1, 3, 2, 4, 4), 0.5), []

    def loss(v):
        inputs.append(v.detach())
        return v.flatten(1).sum(1)

    options = {"random_start": False} if attack is pgd else {}
    attack(loss, x, LINF, steps=steps, **options)
    assert (inputs[1] - inputs[0]).abs().max().item() == pytest.approx(
        min(factor / steps, 1) * 8 / 255, rel=1e-4
    )


def test_temporal_translation_has_a_gaussian_kernel():
    """The weights are Gaussian, with standard deviation shift / 3, over -7 ... 7."""
    x, calls = torch.full((1, 1, 16, 1, 1), 0.5), []
    weights = [math.exp(-0.5 * (3 * i / 7) ** 2) for i in range(-7, 8)]
    expected = [w / sum(weights) for w in weights]

    def loss(v):
        calls.append(1)
        return v[:, 0, 0, 0, 0] * 1.0  # frame 0 only

    # momentum divides by the mean size, so the weights are read from the direction of an L2 step
    x_adv = ATTACKS["temporal-translation"](loss, x, ThreatModel("l2", 1e-2), steps=1)
    change = (x_adv - x).flatten()
    measured = torch.cat([change[9:], change[:8]]) / change.sum()
    assert measured.tolist() == pytest.approx(expected, rel=1e-2)
    assert len(calls) == 15


# ------------------------------------------------------------------ APGD


def _recorded_sizes(monkeypatch, rises, steps=100):
    """Return the step size over eps of each step, for a loss that rises where rises(call)."""
    sizes, state = [], {"calls": 0, "value": 0.0}
    real = Ball.ascend

    def ascend(self, gradient, size, start=None):
        sizes.append(float(torch.as_tensor(size).flatten()[0]) / self.threat.eps)
        return real(self, gradient, size, start)

    def loss(v):
        state["value"] += 1.0 if rises(state["calls"]) else -1e-3
        state["calls"] += 1
        moved = v.flatten(1).sum(1)
        return state["value"] + moved - moved.detach()

    monkeypatch.setattr(Ball, "ascend", ascend)
    apgd(loss, torch.full((1, 3, 1, 4, 4), 0.5), LINF, steps=steps, generator=seeded())
    return sizes


def test_apgd_halves_its_step_at_the_published_checkpoints(monkeypatch):
    """0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps; 2 eps at first, then halved."""
    sizes = _recorded_sizes(monkeypatch, lambda call: False)
    assert len(sizes) == 100
    halved = [i for i in range(1, 100) if sizes[i] != sizes[i - 1]]
    assert halved == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sizes[0] == pytest.approx(2.0)
    assert [sizes[i] for i in halved] == pytest.approx([2.0 / 2**n for n in range(1, 9)])


@pytest.mark.parametrize(("rising", "halves"), [(16, True), (17, False), (22, False)])
def test_apgd_keeps_its_step_where_more_than_three_quarters_of_the_steps_rose(
    monkeypatch, rising, halves
):
    """rho = 0.75: 16.5 of 22 steps."""
    sizes = _recorded_sizes(monkeypatch, lambda call: 22 - rising < call <= 22)
    assert (sizes[22] < sizes[21]) is halves


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_mixes_three_quarters_of_the_step_with_a_quarter_of_momentum(norm):
    """x' = x + 0.75 (z - x) + 0.25 (x - before), z the projected step; z itself at first."""
    x, deltas = torch.full((1, 1, 1, 8, 8), 0.5), []
    torch.manual_seed(0)
    # another gradient in each step
    slopes = torch.randn(101, 1, 1, 1, 8, 8)
    threat = ThreatModel(norm, 0.1)

    def loss(v):
        deltas.append(v.detach() - x)
        return (v * slopes[len(deltas) - 1]).flatten(1).sum(1)

    apgd(loss, x, threat, steps=100, generator=seeded())
    ball = Ball(threat, x, torch.full((1,), 0.1), -x, 1 - x)
    for step in range(20):  # from step 22 on it returns to its best point
        current, before = deltas[step], deltas[max(step - 1, 0)]
        move = ball.ascend(slopes[step], torch.full((1,), 0.2), current)
        ahead = ball.project(current + move)
        a = 1.0 if step == 0 else 0.75
        expected = ball.project(current + a * (ahead - current) + (1 - a) * (current - before))
        assert torch.allclose(deltas[step + 1], expected, atol=1e-6)


def test_apgd_in_l1_shrinks_its_budget_in_the_published_phases(monkeypatch):
    phases, real = [], APGD._ascend_l1

    def spied(search, delta, steps, *, first, keep):
        phases.append((round(float(search.ball.eps[0]) / 5.0, 6), steps, first, keep))
        return real(search, delta, steps, first=first, keep=keep)

    monkeypatch.setattr(APGD, "_ascend_l1", spied)
    apgd(
        lambda v: v.flatten(1).sum(1),
        torch.rand(1, 3, 2, 8, 8),
        ThreatModel("l1", 5.0),
        generator=seeded(),
    )
    assert phases == [(3.0, 30, True, False), (2.0, 30, False, False), (1.0, 40, False, True)]


def test_apgd_in_l1_has_sparse_steps_as_published(monkeypatch):
    """Steps move a fifth of the entries; after each 4 % of the steps, those used divided by 1.5."""
    counts, best, real = [], [], APGD._keep_largest

    def spied(gradient, count):
        counts.append(float(count[0]))
        return real(gradient, count)

    monkeypatch.setattr(APGD, "_keep_largest", spied)
    real_return = APGD._return_to_best

    def return_to_best(state, to_best):
        best.append((int((state.best != 0).sum()), float(state.size[0])))
        real_return(state, to_best)

    monkeypatch.setattr(APGD, "_return_to_best", return_to_best)
    x = torch.rand(1, 3, 1, 10, 10)
    torch.manual_seed(0)
    w = torch.randn(1, 3, 1, 10, 10)
    search = Search(lambda v: (v * w).flatten(1).sum(1), x, ThreatModel("l1", 5.0), seeded())
    search.begin()
    APGD._ascend_l1(search, search.ball.random(search.generator), 100, first=True, keep=True)
    # 0.2 of 300 entries until the first check after 4 steps
    assert counts[:4] == pytest.approx([0.2 * 300] * 4)
    assert len(best) == 25
    for check, (used, _) in enumerate(best[:-1]):
        assert counts[4 * (check + 1)] == pytest.approx(used / 1.5)
    # the step size: full where the best became sparser, else divided by 1.5, at least a tenth
    sizes, entries = [5.0, *(size for _, size in best)], [300, *(used for used, _ in best)]
    for n in range(1, 26):
        sparser = entries[n] < 0.95 * entries[n - 1]
        assert sizes[n] == pytest.approx(5.0 if sparser else max(sizes[n - 1] / 1.5, 0.5))


@pytest.mark.parametrize(("used", "size"), [(284, 5.0), (286, 5.0 / 1.5)])
def test_apgd_in_l1_grows_its_step_where_the_best_uses_a_twentieth_fewer_entries(
    monkeypatch, used, size
):
    """0.95 of 300 entries is 285."""
    sizes = []

    def remember_best(state, value, better):
        entries = torch.zeros(300).index_fill(0, torch.arange(used), 1e-3)
        state.best = entries.view(1, 3, 1, 10, 10)

    def return_to_best(state, to_best):
        sizes.append(float(state.size[0]))

    monkeypatch.setattr(APGD, "_remember_best", remember_best)
    monkeypatch.setattr(APGD, "_return_to_best", return_to_best)
    x = torch.full((1, 3, 1, 10, 10), 0.5)
    search = Search(lambda v: v.flatten(1).sum(1), x, ThreatModel("l1", 5.0), seeded())
    search.begin()
    APGD._ascend_l1(search, search.ball.zero(), 100, first=True, keep=True)
    assert sizes[0] == pytest.approx(size)


# ------------------------------------------------------------------ FAB, FMN, Carlini and Wagner


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_step_of_fab_goes_a_twentieth_beyond_and_a_tenth_back(norm):
    """x' = (1 - a) (x + 1.05 d1) + a (x0 + 1.05 d0), a = min(|d1| / (|d1| + |d0|), 0.1)."""
    x = torch.full((1, 1, 1, 1, 1), 0.5)
    search = minimum_module.Smallest(
        lambda v: v.flatten(1).sum(1) - 0.7, x, ThreatModel(norm, 0.5), None, True
    )
    search.begin()
    for start, alpha in ((0.15, 0.1), (0.001, 0.1)):
        delta = torch.full((1, 1, 1, 1, 1), start)
        value, gradient = search.gradient(delta)
        moved = _to_boundary(search, delta, value, gradient, 0.1, 1.05)
        d1, d0 = 0.2 - start, 0.2
        alpha = min(d1 / (d1 + d0), 0.1)
        assert moved.item() == pytest.approx(
            (1 - alpha) * (start + 1.05 * d1) + alpha * 1.05 * d0, rel=1e-4
        )


def test_fab_keeps_nine_tenths_of_a_breaking_perturbation():
    x, deltas = torch.full((1, 1, 1, 1, 1), 0.5), []

    def loss(v):
        deltas.append(float(v.detach()) - 0.5)
        return v.flatten(1).sum(1) - 0.7

    # one value per clip, and the boundary at 0.2
    ATTACKS["fab"](loss, x, ThreatModel("l2", 0.5), steps=3, minimal=True)
    assert deltas[1] == pytest.approx(1.05 * 0.2, rel=1e-3), "the first step, from 0"
    assert deltas[2] == pytest.approx(0.9 * deltas[1], rel=1e-4)


def test_random_starts_of_fab_lie_within_half_the_budget(monkeypatch):
    starts, real = [], Ball.random

    def random(self, generator=None):
        starts.append(real(self, generator))
        return starts[-1]

    monkeypatch.setattr(Ball, "random", random)
    x, deltas = torch.full((1, 3, 1, 8, 8), 0.5), []

    def loss(v):
        deltas.append(v.detach() - x)
        return v.flatten(1).sum(1) - 1e6

    ATTACKS["fab"](loss, x, ThreatModel("l2", 0.5), steps=2, restarts=3, minimal=True)
    assert len(starts) == 2, "the first start is the clip itself"
    assert deltas[4].norm().item() == pytest.approx(0.25, rel=1e-3)


def test_steps_of_fmn_decay_along_a_cosine(monkeypatch):
    """Steps from alpha = 1 to 0.01, gamma from 0.05 to 0.001, along a cosine."""
    x, deltas = torch.full((1, 1, 1, 8, 8), 0.5), []

    def loss(v):
        deltas.append(v.detach() - x)
        return v.flatten(1).sum(1) - 1e6  # nothing breaks it, so that every projection is wide

    radii, real = [], Ball.with_eps

    def with_eps(self, eps):
        radii.append(float(eps[0]))
        return real(self, eps)

    monkeypatch.setattr(Ball, "with_eps", with_eps)
    fmn(loss, x, ThreatModel("l2", 10.0), steps=10)
    first = (deltas[1] - deltas[0]).norm().item()
    assert first == pytest.approx(1.0, rel=1e-4)
    lengths = [0.01 + 0.99 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    moved = [(after - before).norm().item() for before, after in itertools.pairwise(deltas)]
    assert moved[:4] == pytest.approx(lengths[:4], rel=1e-3)


@pytest.mark.parametrize("steps", [1, 10])
def test_a_broken_sample_shrinks_the_ball_of_fmn_by_gamma(monkeypatch, steps):
    radii, real = [], Ball.with_eps

    def with_eps(self, eps):
        radii.append(float(eps[0]))
        return real(self, eps)

    # each projection asks for a ball of the current radius
    monkeypatch.setattr(Ball, "with_eps", with_eps)
    x = torch.full((1, 1, 1, 8, 8), 0.5)
    fmn(lambda v: v.flatten(1).sum(1) - 32.8, x, ThreatModel("l2", 0.5), steps=steps)
    gamma = 0.05 * (0.02 + 0.98 * 1.0)
    assert radii[0] == pytest.approx(0.1 * (1 + gamma), rel=1e-4), (
        "the linearised boundary, and gamma beyond"
    )
    if steps > 1:
        second = 0.05 * (0.02 + 0.98 * (1 + math.cos(math.pi / 10)) / 2)
        assert radii[1] == pytest.approx(0.1 * (1 + gamma) * (1 - second), rel=1e-4)


def test_the_radius_of_fmn_changes_by_a_fiftieth_of_gamma_at_the_end(monkeypatch):
    radii, real = [], Ball.with_eps

    def with_eps(self, eps):
        radii.append(float(eps[0]))
        return real(self, eps)

    monkeypatch.setattr(Ball, "with_eps", with_eps)
    x = torch.full((1, 1, 1, 8, 8), 0.5)
    fmn(lambda v: v.flatten(1).sum(1) - 32.8, x, ThreatModel("l2", 0.5), steps=40)
    # gamma itself decays along a cosine, to a fiftieth
    for step in (10, 20, 30, 39):
        gamma = 0.05 * (0.02 + 0.98 * (1 + math.cos(math.pi * step / 40)) / 2)
        change = abs(radii[step] / radii[step - 1] - 1)
        assert change == pytest.approx(gamma, abs=2e-5)


@pytest.mark.parametrize(
    ("breaks", "weights"),
    [(False, [1, 10, 100, 1000, 10000, 100000]), (True, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125])],
)
def test_carlini_and_wagner_multiply_or_halve_the_weight(monkeypatch, breaks, weights):
    runs = []

    # replaces a run of Adam by its outcome
    def descend(search, weight, steps, lr, confidence):
        runs.append((float(weight[0]), steps, lr, confidence))
        return torch.full_like(weight, breaks, dtype=torch.bool)

    monkeypatch.setattr(minimum_module, "_descend", descend)
    cw(lambda v: v.flatten(1).sum(1) - 1e6, torch.rand(1, 1, 1, 2, 2), ThreatModel("l2", 1.0))
    assert runs == [(pytest.approx(weight), 100, 0.01, 0.0) for weight in weights]


def test_carlini_and_wagner_bisect_the_weight(monkeypatch):
    weights, answers = [], iter([False, True, False, True, True, True])

    # replaces a run of Adam by a given outcome
    def descend(search, weight, *_):
        weights.append(float(weight[0]))
        return torch.full_like(weight, next(answers), dtype=torch.bool)

    monkeypatch.setattr(minimum_module, "_descend", descend)
    cw(lambda v: v.flatten(1).sum(1) - 1e6, torch.rand(1, 1, 1, 2, 2), ThreatModel("l2", 1.0))
    assert weights == pytest.approx([1, 10, 5.5, 7.75, 6.625, 6.0625])


# ------------------------------------------------------------------ Square

# query -> the divisor of p_init
SCHEDULE = {
    0: 1,
    10: 1,
    11: 2,
    50: 2,
    51: 4,
    200: 4,
    201: 8,
    500: 8,
    501: 16,
    1000: 16,
    1001: 32,
    2000: 32,
    2001: 64,
    4000: 64,
    4001: 128,
    6000: 128,
    6001: 256,
    8000: 256,
    8001: 512,
    10**6: 512,
}


@pytest.mark.parametrize("query", SCHEDULE)
@pytest.mark.parametrize("p_init", [0.8, 0.3])
def test_square_halves_its_fraction_at_the_published_queries(query, p_init):
    assert _fraction(p_init, query) == pytest.approx(p_init / SCHEDULE[query])


@pytest.mark.parametrize("rescale", [False, True])
def test_square_rescales_its_schedule_to_the_queries(monkeypatch, rescale):
    """With rescale the schedule treats the 100 queries as 10000."""
    module, asked = inspect.getmodule(square), []

    def fraction(p_init, query):
        asked.append((p_init, query))
        return 0.01

    monkeypatch.setattr(module, "_fraction", fraction)
    square(
        lambda v: v.flatten(1).sum(1) * 0,
        torch.rand(1, 3, 1, 8, 8),
        LINF,
        queries=100,
        rescale=rescale,
    )
    assert asked == [(0.8, int(query / 100 * 10000) if rescale else query) for query in range(100)]


@pytest.mark.parametrize(
    ("fraction", "shape", "sides"),
    [
        (0.25, (1, 8, 8), (1, 4)),
        (0.5, (1, 8, 8), (1, 6)),
        (0.25, (8, 1, 1), (2, 1)),
        (0.125, (8, 8, 8), (4, 4)),
        (1e-9, (8, 8, 8), (1, 1)),
        (0.125, (16, 8, 8), (8, 4)),
        (1.0, (1, 4, 8), (1, 4)),
    ],
)
def test_a_cuboid_has_the_sides_of_its_fraction_of_the_volume(fraction, shape, sides):
    """A side is the root of the fraction for images, the cube root for clips."""
    assert _sides(fraction, *shape) == sides


# rectangles around the middle: 1, then 1 + 1/4 + ... in L2 (exponent 2) and 1 + 1/16 + ... in L1
# (exponent 4)
RINGS = {
    2: [1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9],
    4: [1 + 1 / 16 + 1 / 81, 1 / 16 + 1 / 81, 1 / 81],
}


@pytest.mark.parametrize(("power", "exponent"), [(2, 2), (1, 4)])
def test_the_pyramid_of_square_has_the_exponent_of_its_norm(power, exponent):
    heights = torch.tensor(
        [[RINGS[exponent][max(abs(i - 2), abs(j - 2))] for j in range(5)] for i in range(5)]
    )
    length = float(heights.pow(power).sum()) ** (1 / power)
    assert torch.allclose(_pyramid(5, 5, power), heights / length, atol=1e-6)


@pytest.mark.parametrize(("norm", "power"), [("L2", 2), ("L1", 1)])
@pytest.mark.parametrize("side", [3, 5, 7, 11])
def test_bumps_of_square_equal_those_of_the_published_package(norm, power, side):
    module = pytest.importorskip("pyautoattack.square")
    theirs = module.SquareAttack(torch.nn.Identity(), norm=norm, device="cpu")
    for height in (side // 2, side - side // 2):
        assert torch.allclose(
            _pyramid(height, side, power), theirs.eta_rectangles(height, side), atol=1e-6
        )
    ours = _bump(side, power, _Draws(seeded(), torch.zeros(1))).view(side, side)
    straight = torch.cat(
        [theirs.eta_rectangles(side // 2, side), -theirs.eta_rectangles(side - side // 2, side)]
    )
    straight = straight / straight.abs().pow(power).sum() ** (1 / power)
    assert torch.allclose(ours, straight, atol=1e-6) or torch.allclose(ours, straight.T, atol=1e-6)


# ------------------------------------------------------------------ NES and Geo-TRAP


def test_nes_probes_in_antithetic_pairs_and_steps_along_their_mean():
    x, deltas = torch.full((1, 1, 1, 4, 4), 0.5), []
    torch.manual_seed(0)
    w = torch.randn(1, 1, 1, 4, 4)

    def loss(v):
        deltas.append(v.detach() - x)
        return (v * w).flatten(1).sum(1)

    nes(
        loss,
        x,
        ThreatModel("l2", 0.1),
        queries=2 * 7 + 1,
        samples=6,
        sigma=0.01,
        generator=seeded(),
    )
    assert len(deltas) == 15, "the clip, and two steps of six probes and a look"
    # repeat the random numbers of the attack
    draws = torch.Generator().manual_seed(0)
    estimate = torch.zeros_like(x)
    for pair in range(3):
        u = torch.randn(x.shape, generator=draws)
        up, down = deltas[1 + 2 * pair], deltas[2 + 2 * pair]
        assert torch.allclose(up, 0.01 * u, atol=1e-6)
        assert torch.allclose(down, -0.01 * u, atol=1e-6)
        estimate += (w * u).sum() * u / 3
    step = deltas[7]
    assert torch.allclose(step / step.norm(), estimate / estimate.norm(), atol=1e-3)
    assert step.norm().item() == pytest.approx(0.1, rel=1e-3), (
        "2.5 eps over 2 steps, and within the budget"
    )


def test_nes_steps_along_a_running_mean():
    """The second step goes along 0.9 of the first mean and 0.1 of the new estimate."""
    x, deltas = torch.full((1, 1, 1, 4, 4), 0.5), []
    torch.manual_seed(0)
    w = torch.randn(1, 1, 1, 4, 4)

    def loss(v):
        deltas.append(v.detach() - x)
        return (v * w).flatten(1).sum(1)

    nes(
        loss,
        x,
        ThreatModel("l2", 9.0),
        queries=2 * 3 + 1,
        samples=2,
        sigma=0.01,
        step_size=0.1,
        generator=seeded(),
    )
    draws = torch.Generator().manual_seed(0)
    first, second = (torch.randn(x.shape, generator=draws) for _ in range(2))
    means = [0.1 * (w * first).sum() * first]
    means.append(0.9 * means[0] + 0.1 * (w * second).sum() * second)
    # inputs 3 and 6 are the results of the first and the second step
    moved = deltas[6] - deltas[3]
    assert torch.allclose(moved / moved.norm(), means[1] / means[1].norm(), atol=1e-2)


def test_geo_trap_moves_its_guess_by_the_difference_of_two_probes():
    x, deltas, values = torch.full((1, 3, 4, 8, 8), 0.5), [], []
    torch.manual_seed(0)
    w = torch.randn(x.shape)

    def loss(v):
        deltas.append(v.detach() - x)
        values.append((v * w).flatten(1).sum(1))
        return values[-1]

    geo_trap(loss, x, ThreatModel("l2", 1.0), queries=7, generator=seeded())
    draws = torch.Generator().manual_seed(0)
    u = warped_frames(x, 0.1, False, draws)
    unit = u / u.norm()
    assert torch.allclose(deltas[1], 0.1 * unit, atol=1e-5)
    assert torch.allclose(deltas[2], -0.1 * unit, atol=1e-5)
    guess = 0.1 * ((values[1] - values[2]) / (0.1 * 0.1)) * u
    step = deltas[3]
    assert step.norm().item() == pytest.approx(0.025, rel=1e-3)
    assert torch.allclose(step / step.norm(), guess / guess.norm(), atol=1e-4)
    # the second step probes around the guess, from where the first one ended
    other = warped_frames(x, 0.1, False, draws)
    for probe, sign in ((deltas[4], 1), (deltas[5], -1)):
        direction = guess + sign * 0.1 * other
        assert torch.allclose(probe - step, 0.1 * direction / direction.norm(), atol=1e-4)


# ------------------------------------------------------------------ other attacks


def test_universal_steps_are_a_tenth_of_the_budget():
    batches = [(torch.full((2, 3, 2, 4, 4), 0.5), torch.zeros(2))]
    delta = universal(lambda v, y: v.flatten(1).sum(1), batches, LINF, epochs=3)
    # three epochs of one batch are three steps
    assert delta.max().item() == pytest.approx(0.3 * 8 / 255, rel=1e-4)


def test_flicker_and_sparse_start_at_a_thousandth():
    for name, threat in (("flicker", "flicker-linf-0.1"), ("sparse", "linf-0.1")):
        sizes, x = [], torch.full((1, 3, 4, 4, 4), 0.5)

        def loss(v, sizes=sizes, x=x):
            sizes.append((v.detach() - x).abs().max().item())
            return v.flatten(1).sum(1)

        ATTACKS[name](loss, x, parse_threat(threat), steps=1, generator=seeded())
        assert sizes[0] == pytest.approx(1e-3, rel=1e-3)


def test_roa_starts_from_grey_on_a_grid_of_five():
    x, inputs = torch.rand(1, 3, 1, 20, 20), []

    def predict(v):
        inputs.append(v.detach())
        return torch.stack([-v.flatten(1).sum(1), v.flatten(1).sum(1)], 1)

    threat = ThreatModel("linf", 1.0, "patch", 4)
    ATTACKS["roa"](Misclassify(predict, torch.tensor([1])), x, threat, steps=1)
    # the places of the grey patches among all inputs
    grey = [torch.isclose(v, torch.tensor(0.5)).all(1)[0, 0] for v in inputs]
    tried = {tuple(spot.nonzero().amin(0).tolist()) for spot in grey if spot.sum() == 16}
    assert len(tried) == 10
    assert all(top % 5 == 0 and left % 5 == 0 for top, left in tried)


@pytest.mark.parametrize(("height", "edge"), [(12, 1), (18, 1), (10, 0), (14, 2)])
def test_square_lays_its_tiles_in_the_middle(height, edge):
    """The grid has at least five tiles per side, with the remainder split between the edges."""
    x = torch.full((1, 3, 1, height, height), 0.5)
    search = Search(lambda v: v.flatten(1).sum(1), x, ThreatModel("l2", 1.0), seeded(), blind=True)
    assert search.begin()
    delta = _tiles(search, _Draws(seeded(), x))
    rows = (delta != 0).any(-1).any(1)[0, 0].nonzero().flatten()
    assert rows.min() == edge

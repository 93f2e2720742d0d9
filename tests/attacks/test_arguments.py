"""Check that options out of their range are refused by name and value."""

import pytest
import torch

from tests.attacks.helpers import labelled, small_net
from vidrobust.attacks import (
    ATTACKS,
    BadSamples,
    Misclassify,
    ThreatModel,
    attack_step,
    autoattack,
    parse_threat,
    self_checks,
    worst_case,
)
from vidrobust.attacks.arguments import at_least_one, drawn


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (4, 3, 4, 12, 12)))


def test_counts_below_one_are_refused_by_name():
    at_least_one(steps=1, restarts=3)
    with pytest.raises(ValueError, match="steps=2, restarts=0: must be at least 1"):
        at_least_one(steps=2, restarts=0)


def test_random_numbers_follow_the_generator_and_have_the_type_of_the_tensor():
    like = torch.empty(0, dtype=torch.float64)
    first, again = (
        drawn(torch.randn, (3, 2), like, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first, again) and first.shape == (3, 2) and first.dtype == torch.float64
    # without a generator they are torch's own
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    assert torch.equal(drawn(torch.rand, (4,), torch.empty(1), None), expected)


@pytest.mark.parametrize("count", [2.5, True, "3", None])
def test_counts_that_are_not_whole_numbers_are_refused(count):
    with pytest.raises(ValueError, match=f"steps={count}: must be a whole number, at least 1"):
        at_least_one(steps=count)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("apgd-t", "targets", 0),
        ("fab-t", "targets", -1),
        ("fab-t", "targets", 2.5),
        ("fmn", "alpha", -1),
        ("fmn", "alpha", 0),
        ("fmn", "gamma", -0.1),
        ("fmn", "gamma", 1.5),
        ("fab", "eta", 0.5),
        ("fab-t", "eta", 0.5),
        ("fab", "alpha_max", -0.1),
        ("fab", "beta", 1.5),
        ("fab", "restarts", 0),
        ("apgd-ce", "rho", -0.1),
        ("apgd-t", "rho", 2),
        ("mim", "momentum", -1),
        ("cw", "confidence", -1),
        ("square", "p_init", 0),
        ("square", "p_init", 1.5),
        ("square", "queries", 0),
        ("nes", "sigma", 0),
        ("nes", "step_size", -1),
        ("nes", "momentum", 1),
        ("geo-trap", "probe", 0),
        ("geo-trap", "explore", 0),
        ("geo-trap", "rate", 0),
        ("geo-trap", "step_size", -1),
        ("temporal-translation", "shift", -1),
        ("temporal-translation", "shift", 1.5),
        ("sparse", "lam", -1),
        ("flicker", "lam", -1),
        ("flicker", "beta", -1),
        ("pgd", "step_size", float("nan")),
        ("pgd", "step_size", float("inf")),
        ("pgd", "steps", 2.5),
    ],
)
def test_options_that_would_attack_nothing_are_refused_by_name_and_value(name, option, value):
    net = small_net()
    x, y = labelled(net, (2, 3, 4, 12, 12))
    threat = parse_threat("flicker-linf-4/255" if name == "flicker" else "l2-1")
    loss = Misclassify(net, y, "margin" if name in ("fab", "fmn", "cw") else "ce")
    # both by the attack itself and by a suite
    with pytest.raises(ValueError, match=f"{option}={value}".replace(".", r"\.")):
        ATTACKS[name](loss, x, threat, **{option: value})
    with pytest.raises(ValueError, match=f"{option}={value}".replace(".", r"\.")):
        worst_case(net, x, y, threat, [attack_step(name, **{option: value})])


@pytest.mark.parametrize("name", ["batch_size", "checks"])
@pytest.mark.parametrize("value", [-1, 2.5, True])
def test_batch_size_and_checks_must_be_whole_numbers(name, value):
    net = small_net()
    x, y = labelled(net, (2, 3, 4, 12, 12))
    with pytest.raises(ValueError, match=f"{name}={value}: must be a whole number, 0 or more"):
        autoattack(net, x, y, parse_threat("linf-1/255"), **{name: value})


def test_momentum_must_be_finite_and_not_negative(problem):
    net, x, y = problem
    for name in ("mim", "temporal-translation"):
        for momentum in (torch.inf, torch.nan, -1):
            with pytest.raises(ValueError, match=f"momentum={momentum}"):
                ATTACKS[name](
                    Misclassify(net, y), x, ThreatModel("linf", 0.1), steps=2, momentum=momentum
                )


@pytest.mark.parametrize("samples", [-1, 0, 1, 3, 2.5])
def test_nes_needs_an_even_number_of_samples(problem, samples):
    net, x, y = problem
    with pytest.raises(ValueError, match=f"samples={samples}"):
        ATTACKS["nes"](
            Misclassify(net, y), x, ThreatModel("linf", 0.1), queries=100, samples=samples
        )


@pytest.mark.parametrize("text", ["linf-8/1e999", "linf-1e999", "l2-inf", "linf-nan"])
def test_an_infinite_budget_is_refused(text):
    with pytest.raises(ValueError, match="number|at least 0|no threat model"):
        parse_threat(text)


@pytest.mark.parametrize("size", [-1, 2.5, True])
def test_self_checks_refuse_a_batch_size_that_is_not_a_whole_number(problem, size):
    net, x, y = problem
    with pytest.raises(ValueError, match=f"batch_size={size}: must be a whole number"):
        self_checks(net, x, y, ThreatModel("linf", 0.1), batch_size=size)


@pytest.mark.parametrize("write", [lambda x: x.sub_(0.1), lambda x: x.data.sub_(0.1)])
def test_a_model_that_writes_into_its_input_is_refused_and_the_clips_stay_unchanged(problem, write):
    net, x, y = problem
    before = x.clone()

    def predict(v):
        write(v)
        return net(v)

    for attack in (
        lambda: worst_case(predict, x, y, ThreatModel("linf", 0.1), [attack_step("pgd", steps=2)]),
        lambda: autoattack(predict, x, y, ThreatModel("linf", 0.1), effort=0.02),
    ):
        with pytest.raises(ValueError, match="writes into its input"):
            attack()
        # only a copy of the clips was changed
        assert torch.equal(x, before)


def test_averaged_and_clamped_probabilities_are_refused(problem):
    net, x, y = problem

    def coarse(v):
        return (net(v).bfloat16().softmax(1) + net(v + 0.01).bfloat16().softmax(1)).float() / 2

    # neither sums to exactly 1
    for predict in (coarse, lambda v: net(v).softmax(1).clamp(1e-6)):
        with pytest.raises(ValueError, match="probabilities"):
            worst_case(predict, x, y, ThreatModel("linf", 0.1), [attack_step("pgd", steps=2)])


def test_a_sample_without_a_finite_logit_is_named(problem):
    net, x, y = problem

    def predict(v):
        return torch.where(torch.arange(len(v))[:, None] == 1, -torch.inf, net(v))

    with pytest.raises(BadSamples, match=r"infinite logits for samples \[1\]"):
        worst_case(predict, x, y, ThreatModel("linf", 0.1), [attack_step("pgd", steps=2)])

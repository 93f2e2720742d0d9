"""Supervised comparators against their formulas."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.methods.helpers import EPS, ascend, assert_same, attack, grads
from vidrobust import config
from vidrobust.attacks import ThreatModel, contains
from vidrobust.config import ModelConfig
from vidrobust.methods import (
    AdversarialTraining,
    Adversary,
    Free,
    Supervised,
    Trades,
    build_adversary,
)
from vidrobust.methods.adversarial.adversarial_training import divergence
from vidrobust.methods.adversarial.overfitting import OverfittingWatch
from vidrobust.models import add_branches, build_model

pytestmark = pytest.mark.usefixtures("exact")

TINY = ModelConfig(backbone="r2plus1d_10", width=4)


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    return torch.rand(4, 1, 3, request.param, 16, 16), torch.arange(4), torch.tensor([0, 1, 2, 0])


def model():
    return build_model(TINY, "linear", 3)


def ce(net, labels):
    return lambda v: F.cross_entropy(net(v), labels, reduction="none")


def test_divergence_is_kl():
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    p, q = a.softmax(1), b.softmax(1)
    expected = [
        sum(float(p[i, k]) * float((p[i, k] / q[i, k]).log()) for k in range(4)) for i in range(5)
    ]
    assert (
        divergence(a, b).tolist() == pytest.approx(expected, abs=1e-5)
        and divergence(a, a).abs().max() < 1e-6
    )


def test_pgd_training_is_cross_entropy_of_adversarial_clips(batch):
    views, ids, labels = batch
    net = model()
    method = AdversarialTraining(copy.deepcopy(net), attack(branches=("clean",)))
    ours = method(views, ids, labels)["loss"]
    net.eval()
    x_adv = ascend(ce(net, labels), views[:, 0])
    net.train()
    assert_same(ours, ce(net, labels)(x_adv), method.model, net)


def test_fast_training_is_its_formula(batch):
    """A random point of the budget, one signed step of 1.25 eps with norms in train mode,
    projected.
    """
    views, ids, labels = batch
    net, x = model(), views[:, 0]
    wanted = config.AdversaryConfig(name="fast", threats=[f"linf-{EPS}"])
    method = AdversarialTraining(copy.deepcopy(net), build_adversary(wanted))
    torch.manual_seed(0)
    ours = method(views, ids, labels)["loss"]
    statistics = copy.deepcopy(net)
    torch.manual_seed(0)
    v = (x + (2 * torch.rand(x.shape) - 1) * EPS).clamp(0, 1).requires_grad_(True)
    (g,) = torch.autograd.grad(ce(net, labels)(v).sum(), v)
    x_adv = (x + (v.detach() + 1.25 * EPS * g.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    expected = ce(statistics, labels)(x_adv)
    assert_same(ours, expected, method.model, statistics)
    assert all(torch.allclose(b, method.model.get_buffer(k)) for k, b in statistics.named_buffers())


def test_trades_is_its_formula(batch):
    views, ids, labels = batch
    net, x = model(), views[:, 0]
    method = Trades(copy.deepcopy(net), attack(branches=("clean",), random_start=True), beta=3.0)
    torch.manual_seed(0)
    ours = method(views, ids, labels)["loss"]
    net.eval()
    clean = net(x).detach()
    torch.manual_seed(0)
    start = (x + ((2 * torch.rand(x.shape) - 1) * EPS)).clamp(0, 1)
    moved = start
    for _ in range(2):
        v = moved.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(divergence(clean, net(v)).sum(), v)
        moved = (x + (v.detach() + 0.75 * EPS * g.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    net.train()
    logits = net(x)
    expected = F.cross_entropy(logits, labels, reduction="none") + 3 * divergence(
        logits, net(moved)
    )
    assert_same(ours, expected, method.model, net)


def test_branches_train_clean_clips_as_well(batch):
    views, ids, labels = batch
    net = add_branches(model(), ("adv", "adv2"))
    threats = [ThreatModel("linf", EPS), ThreatModel("l2", 0.5)]
    method = AdversarialTraining(
        net, Adversary(threats, combine="branches", branches=("adv", "adv2"))
    )
    found = method(views, ids, labels)
    found["loss"].mean().backward()
    for branch in ("clean", "adv", "adv2"):
        assert any(
            p.grad is not None for k, p in net.named_parameters() if f".branches.{branch}." in k
        )


def test_eps_0_is_supervised_to_the_last_bit(batch):
    net = model()
    plain, method = (
        Supervised(copy.deepcopy(net)),
        AdversarialTraining(net, Adversary([ThreatModel("linf", 0)], branches=("clean",))),
    )
    assert torch.equal(method(*batch)["loss"], plain(*batch)["loss"])


def test_trades_with_branches_compares_with_the_clean_one_and_trains_its_selector(batch):
    views, ids, labels = batch
    net = add_branches(model(), ("adv",))
    net.backbone.selector = torch.nn.Linear(net.backbone.dim, 2)
    method = Trades(
        net, Adversary([ThreatModel("linf", EPS)], steps=1, random_start=True, combine="branches")
    )
    found = method(views, ids, labels)
    slopes = grads(found["loss"], net)
    assert slopes["backbone.selector.weight"].abs().max() > 0
    assert {key.split(".branches.")[1].split(".")[0] for key in slopes if ".branches." in key} == {
        "clean",
        "adv",
    }


def test_beta_0_is_supervised_to_the_last_bit(batch):
    net = model().eval()
    found = [
        method(*batch)["loss"]
        for method in (
            Supervised(net),
            Trades(net, attack(branches=("clean",), random_start=True), beta=0.0),
        )
    ]
    assert torch.equal(*found)


def test_free_training_moves_the_perturbation_with_the_gradient_of_the_step(batch):
    """A replay sees what the last backward pass made of the perturbation; the next batch begins
    anew.
    """
    views, ids, labels = batch
    net, x, threat = model().eval(), views[:, 0], ThreatModel("linf", EPS)
    method = Free(net, Adversary([threat], random_start=True, branches=("clean",)), replays=3)
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    gradients = []
    for _ in range(3):
        loss = method(views, ids, labels)["loss"]
        loss.mean().backward()
        v = seen[-1].clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(F.cross_entropy(net(v), labels), v)[0])
        seen.pop()
    for before, after, gradient in zip(seen, seen[1:], gradients, strict=False):
        moved = (x + (before - x + EPS * gradient.sign()).clamp(-EPS, EPS)).clamp(0, 1)
        assert torch.allclose(after, moved, atol=1e-6)
    assert all(contains(threat, x, s).all() for s in seen)
    other = torch.rand_like(views)
    method(other, ids, labels)
    assert contains(threat, other[:, 0], seen[-1]).all() and method.replays == 3


def test_free_training_tells_once_of_a_perturbation_that_nothing_moves(batch, caplog):
    net = model()
    torch.nn.init.zeros_(net.head.weight)
    method = Free(
        net, Adversary([ThreatModel("linf", EPS)], random_start=True, branches=("clean",))
    )
    for _ in range(3):
        method(*batch)["loss"].mean().backward()
    assert (
        len(caplog.records) == 1
        and "changes nothing: the gradient of the attacked loss has norm 0" in caplog.text
    )


def test_free_training_refuses_what_it_cannot_use():
    for threats in ([ThreatModel(), ThreatModel("l2", 1)], [ThreatModel("linf", 0.1, "patch", 4)]):
        with pytest.raises(ValueError, match="takes one threat, dense, tube or flicker"):
            Free(model(), Adversary(threats))


def test_a_selector_learns_the_branch_of_a_clip_and_moves_nothing_else(batch):
    """Cross-entropy of clean clips and of each kind of adversarial ones, from features without
    gradient.
    """
    views, ids, labels = batch
    threats = [ThreatModel("linf", EPS), ThreatModel("l2", 0.5)]
    adversary = Adversary(threats, combine="branches", branches=("adv", "adv2"))
    plain = add_branches(model(), ("adv", "adv2"))
    net = copy.deepcopy(plain)
    net.backbone.selector = torch.nn.Linear(net.backbone.dim, 3)
    ours = AdversarialTraining(net, adversary)(views, ids, labels)
    theirs = AdversarialTraining(plain, adversary)(views, ids, labels)
    assert torch.allclose(ours["loss"], theirs["loss"] + ours["loss_selector"], atol=1e-5)
    a, b = grads(ours["loss"], net), grads(theirs["loss"], plain)
    assert (
        a.pop("backbone.selector.weight").abs().max() > 0
        and a.pop("backbone.selector.bias") is not None
    )
    assert all(torch.equal(a[key], b[key]) for key in b) and a.keys() == b.keys()
    assert all(torch.equal(v, net.get_buffer(k)) for k, v in plain.named_buffers())


def watched(*accuracies):
    """A watch after epochs with these accuracies under the training's attack and under PGD."""
    watch, rows = OverfittingWatch(), []
    for own, pgd in accuracies:
        watch.record(torch.tensor(own), torch.tensor(pgd))
        rows.append(watch.report())
    return watch, rows


def test_catastrophic_overfitting_is_told_once(caplog):
    _, rows = watched((0.4, 0.3), (0.5, 0.35), (0.9, 0.1), (0.95, 0.0))
    assert rows[2] == {
        "own_attack_accuracy": pytest.approx(0.9),
        "pgd_accuracy": pytest.approx(0.1),
    }
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith(
        "catastrophic overfitting: 10% of a batch are right under PGD, after 35%"
    )


@pytest.mark.parametrize("last", [(0.3, 0.25), (0.15, 0.1), (0.5, 0.36)])
def test_a_worse_epoch_is_none(caplog, last):
    """Noise; a model that forgets altogether; and no fall."""
    watch, rows = watched((0.4, 0.35), last)
    assert not caplog.records and rows[1]
    assert watch.report() == {}, "an epoch that was not looked at"


def test_the_watch_sees_both_attacks_once_an_epoch_and_changes_no_training():
    """FGSM and PGD break the same clips of a linear model; random numbers and statistics stay."""
    views, labels = torch.rand(6, 1, 3, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    wanted = config.AdversaryConfig(name="fast", threats=["linf-0.5"], start="clip")
    found = []
    for watching in (True, False):
        torch.manual_seed(0)
        method = AdversarialTraining(model(), build_adversary(wanted)).train()
        assert method.watch is not None
        method.start_epoch()
        method.watch.due = watching
        losses = [method(views, labels, labels)["loss"] for _ in range(2)]
        found.append((torch.stack(losses), torch.rand(1), dict(method.model.named_buffers())))
        assert (method.report() == {}) != watching
    (loss, drawn, norms), (alone, same, others) = found
    assert torch.equal(loss, alone) and torch.equal(drawn, same)
    assert all(torch.equal(value, others[key]) for key, value in norms.items())
    assert (
        AdversarialTraining(model(), build_adversary(config.AdversaryConfig(name="pgd"))).watch
        is None
    )


def test_the_watchs_accuracies_are_those_of_the_two_attacks():
    views, labels = torch.rand(6, 1, 3, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    method = AdversarialTraining(
        model(), build_adversary(config.AdversaryConfig(name="fast", threats=["linf-1e-6"]))
    )
    # with the norm statistics before the step, which changes them
    with torch.no_grad():
        right = float((method.eval().model(views[:, 0]).argmax(1) == labels).double().mean())
    method.train().start_epoch()
    method(views, labels, labels)
    told = method.report()
    assert told["own_attack_accuracy"] == pytest.approx(right) == told["pgd_accuracy"], (
        "nothing is changed"
    )

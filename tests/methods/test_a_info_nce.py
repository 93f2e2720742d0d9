"""A-InfoNCE's asymmetric positives and hard negatives, and AIR's regularisers, against plain loops."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tests.methods.test_adversarial import TINY, attack
from tests.methods.test_build import load
from vidrobust.errors import UserError
from vidrobust.methods import SimCLR, a2s, acl, clae, dynacl, nt_xent, rocl
from vidrobust.methods.build import build_method
from vidrobust.methods.hard_negatives import hard_negatives
from vidrobust.methods.invariance import air, regularizer, sir
from vidrobust.models import add_branches, build_model

T = 0.5


def unit(z):
    return F.normalize(z, dim=1)


def test_asymmetric_positives_weigh_gradients_and_change_no_value():
    """The gradient of a clean and an adversarial positive: 2 d to the clean factor, 2 - 2 d to the other."""
    z, ids = torch.randn(8, 5, dtype=torch.float64), torch.arange(4).repeat(2)
    adversarial, d = torch.arange(8) >= 4, 0.2
    leaf = z.clone().requires_grad_(True)
    ours = nt_xent(leaf, ids, T, asymmetric=(adversarial, d))
    (found,) = torch.autograd.grad(ours.sum(), leaf)
    assert torch.allclose(ours, nt_xent(z, ids, T), atol=1e-5)
    leaf = z.clone().requires_grad_(True)
    n, still = unit(leaf), unit(leaf).detach()
    losses = []
    for i in range(8):
        logits = []
        for j in range(8):
            own = other = 1.0
            if ids[i] == ids[j] and adversarial[i] != adversarial[j]:
                own, other = (2 - 2 * d, 2 * d) if adversarial[i] else (2 * d, 2 - 2 * d)
            logits.append(
                (own * n[i] @ still[j] + other * still[i] @ n[j] - (own + other - 1) * still[i] @ still[j]) / T
            )
        rest = torch.stack([logits[j] for j in range(8) if j != i])
        losses.append(rest.logsumexp(0) - logits[(i + 4) % 8])
    (expected,) = torch.autograd.grad(torch.stack(losses).sum(), leaf)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(
        found, torch.autograd.grad(nt_xent(leaf, ids, T).sum(), leaf)[0], atol=1e-3
    )
    half = nt_xent(leaf, ids, T, asymmetric=(adversarial, 0.5))
    assert torch.allclose(
        *(torch.autograd.grad(loss.sum(), leaf)[0] for loss in (half, nt_xent(leaf, ids, T))), atol=1e-5
    )


@pytest.mark.parametrize(("beta", "tau"), [(1.0, 0.12), (0.0, 0.0), (2.0, 0.5)])
def test_hard_negatives_are_their_formula(beta, tau):
    torch.manual_seed(0)
    logits = torch.randn(6, 9) / T
    positives, ignore = torch.zeros(6, 9, dtype=torch.bool), torch.rand(6, 9) < 0.2
    positives[torch.arange(6), torch.arange(6)] = True
    positives[2, 7] = True
    found = hard_negatives(logits, positives, ignore, T, beta=beta, tau=tau)
    for i in range(6):
        neg = [math.exp(float(logits[i, j])) for j in range(9) if not positives[i, j] and not ignore[i, j]]
        pos = [math.exp(float(logits[i, j])) for j in range(9) if positives[i, j]]
        imp = [value**beta for value in neg]
        total = sum(a * b for a, b in zip(imp, neg, strict=True)) / (sum(imp) / len(imp))
        ng = (-tau * len(neg) * sum(pos) / len(pos) + total) / (1 - tau)
        assert float(found[i]) == pytest.approx(math.log(max(ng, len(neg) * math.exp(-1 / T))), abs=1e-4)


def test_hardness_0_without_debiasing_is_nt_xent_and_gradients_are_finite():
    z, ids = torch.randn(8, 5).requires_grad_(True), torch.arange(4).repeat(2)
    plain, same = nt_xent(z, ids, T), nt_xent(z, ids, T, hard=(0.0, 0.0))
    assert torch.allclose(plain, same, atol=1e-5)
    assert torch.allclose(*(torch.autograd.grad(loss.sum(), z)[0] for loss in (plain, same)), atol=1e-5)
    hard = nt_xent(z, ids, T, hard=(1.0, 0.12))
    for chunk in (0, 3):
        again = nt_xent(z, ids, T, hard=(1.0, 0.12), chunk=chunk)
        assert torch.allclose(hard, again, atol=1e-6)
        assert torch.isfinite(torch.autograd.grad(again.sum(), z)[0]).all()
    alone = nt_xent(z[:2], torch.zeros(2, dtype=torch.long), T, hard=(1.0, 0.12))
    assert torch.isfinite(torch.autograd.grad(alone.sum(), z)[0]).all(), "a batch of one"


def spied(make, kept):
    def views(*arguments):
        kept.append(make(*arguments))
        return kept[-1]

    return views


@pytest.mark.parametrize("pairing", [clae, rocl, acl, a2s])
@pytest.mark.usefixtures("exact")
def test_the_attack_and_the_clean_stream_stay_as_they_are(pairing):
    """Only losses with adversarial views change."""
    views, ids = torch.rand(4, 2, 3, 1, 16, 16), torch.arange(4)
    model = add_branches(build_model(TINY, "projector")).eval()
    made = []
    for options in ({}, {"hard": (1.0, 0.12)}, {"asymmetry": 0.2}):
        method = SimCLR(model, T, attack(), pairing=pairing, **options)
        make, kept = method.adversary.views, []
        method.adversary.views = lambda net, aim, x, p, make=make, kept=kept: (
            kept.append(make(net, aim, x, p)) or kept[0]
        )
        made.append((method(views, ids, ids), kept[0][0].x))
    (plain, x), (hard, x_hard), (asymmetric, x_asymmetric) = made
    assert torch.equal(x, x_hard) and torch.equal(x, x_asymmetric)
    assert not torch.allclose(plain["loss_adv"], hard["loss_adv"], rtol=1e-6)
    assert torch.allclose(plain["loss_adv"], asymmetric["loss_adv"], rtol=1e-9)
    if "loss_clean" in plain:
        assert torch.equal(plain["loss_clean"], hard["loss_clean"])


def log_softmax(values):
    top = math.log(sum(math.exp(v) for v in values))
    return [v - top for v in values]


def test_air_is_its_formula_by_a_loop():
    z1, z2, a1, a2, o = (torch.randn(5, 4) for _ in range(5))
    like = lambda z, other: log_softmax([float(unit(z)[i] @ unit(other)[i]) / T for i in range(5)])  # noqa: E731
    divergence = lambda p, q: sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))  # noqa: E731
    assert float(sir(z1, z2, o, T).mean()) == pytest.approx(divergence(like(z2, o), like(z1, o)), abs=1e-5)
    q1, q2 = ([p + c for p, c in zip(like(a, o), like(a, z), strict=True)] for a, z in ((a1, z1), (a2, z2)))
    assert float(air(a1, a2, z1, z2, o, T).mean()) == pytest.approx(divergence(q2, q1), abs=1e-5)
    both = regularizer(z1, z2, a1, a2, o, temperature=T, clean=0.5, adversarial=0.25)
    assert torch.allclose(both, 0.5 * sir(z1, z2, o, T) + 0.25 * air(a1, a2, z1, z2, o, T), atol=1e-6)
    assert (sir(z1, z1, o, T).abs() < 1e-6).all() and sir(z1, z2, o, T).mean() > 0


def test_airs_terms_are_added_to_the_streams():
    views, ids = torch.rand(4, 3, 3, 1, 16, 16), torch.arange(4)
    model = add_branches(build_model(TINY, "projector")).eval()
    extra = partial(regularizer, temperature=T, clean=0.5, adversarial=0.5)
    plain = SimCLR(model, T, attack(), pairing=dynacl)(views[:, :2], ids, ids)
    ours = SimCLR(model, T, attack(), pairing=partial(dynacl, invariance=extra), original=True)(views, ids, ids)
    assert torch.allclose(ours["loss"], plain["loss"] + ours["loss_invariance"], atol=1e-5)
    assert torch.equal(ours["loss_clean"], plain["loss_clean"]), "the original is no view"
    ours["loss_invariance"].mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for k, p in model.named_parameters() if ".adv." in k)


def test_they_are_built_as_configured():
    a = "method.adversary."
    made = build_method(load(a + "name=rocl", a + "asymmetry=0.2", a + "hardness=1"), 3)
    assert made.asymmetry == 0.2 and made.hard == (1, 0.12)
    assert build_method(load(a + "name=rocl"), 3).asymmetry is None
    assert build_method(load(a + "name=dynacl", a + "air=0.5"), 3).pairing.keywords["invariance"].keywords == {
        "temperature": 0.5, "clean": 0, "adversarial": 0.5,
    }  # fmt: skip
    fn = "method.false_negatives."
    with pytest.raises(UserError, match="hardness: hard negatives have weights of their own"):
        build_method(load(a + "name=rocl", a + "hardness=1", fn + "rule=fixed", fn + "action=downweight"), 3)

"""Compare A-InfoNCE and the regularisers of AIR with their formulas written as plain loops."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tests.methods.helpers import TINY, attack, load
from vidrobust.losses.air import air, regularizer, sir
from vidrobust.losses.hard_negatives import hard_denominator
from vidrobust.losses.info_nce import Asymmetry, Hardness
from vidrobust.methods import (
    AdversarialSimCLR,
    LossSettings,
    ViewSettings,
    a2s,
    acl,
    clae,
    dynacl,
    nt_xent,
    rocl,
)
from vidrobust.methods.build import build_method
from vidrobust.models import add_branches, build_model
from vidrobust.utils.errors import UserError

T = 0.5


def unit(z):
    return F.normalize(z, dim=1)


def kinds():
    """Return ids and kinds of eight rows: four clean ones, then their adversarial views."""
    return torch.arange(4).repeat(2), torch.arange(8) >= 4


@pytest.mark.parametrize("stop", [False, True])
def test_asymmetric_positives_weight_the_losses_of_mixed_pairs(stop):
    """Clean anchors have weight 0.2, adversarial ones 0.8; candidates get no gradient."""
    ids, adversarial = kinds()
    ids = torch.cat([ids, torch.arange(4)])  # a second clean view
    adversarial = torch.cat([adversarial, torch.zeros(4, dtype=torch.bool)])
    z = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    ours = nt_xent(z, ids, T, asymmetric=Asymmetry(adversarial, 0.2, 0.8), stop=stop)
    n = unit(z)
    losses = []
    for i in range(12):
        terms = []
        for j in range(12):
            if j == i or ids[i] != ids[j]:
                continue
            mixed = adversarial[i] != adversarial[j]
            other = n.detach() if stop or mixed else n
            row = torch.stack([n[i] @ other[k] / T for k in range(12) if k != i])
            weight = 1.0 if not mixed else (0.8 if adversarial[i] else 0.2)
            terms.append(weight * (row.logsumexp(0) - n[i] @ other[j] / T))
        losses.append(sum(terms) / len(terms))
    expected = torch.stack(losses)
    assert torch.allclose(ours, expected, atol=1e-12)
    output = (torch.autograd.grad(loss.sum(), z, retain_graph=True)[0] for loss in (ours, expected))
    assert torch.allclose(*output, atol=1e-12)
    chunked = nt_xent(z, ids, T, asymmetric=Asymmetry(adversarial, 0.2, 0.8), stop=stop, chunk=5)
    assert torch.allclose(chunked, ours, atol=1e-12)


@pytest.mark.parametrize(("beta", "tau"), [(1.0, 0.12), (0.0, 0.0), (2.0, 0.5)])
@pytest.mark.parametrize("floor", [math.exp(-1 / T), 1.0])
def test_hard_denominator_matches_its_formula(beta, tau, floor):
    """Compute the mean positive, and negatives weighted by the mean of the candidate's row."""
    logits = torch.randn(6, 6, dtype=torch.float64) / T
    positives, ignore = torch.zeros(6, 6, dtype=torch.bool), torch.rand(6, 6) < 0.2
    positives[torch.arange(6), torch.arange(6).roll(3)] = True
    positives[2, 0] = True
    ignore.fill_diagonal_(False)  # every anchor keeps a negative, which the loop below needs
    output = hard_denominator(logits, positives, ignore, beta=beta, tau=tau, floor=floor)
    s = logits.tolist()
    negative = [[not (positives[i, j] or ignore[i, j]) for j in range(6)] for i in range(6)]
    mean = [sum(math.exp(beta * s[j][k]) for k in range(6) if negative[j][k]) / 6 for j in range(6)]
    for i in range(6):
        pos = [math.exp(s[i][j]) for j in range(6) if positives[i, j]]
        hard = [math.exp((1 + beta) * s[i][j]) / mean[j] for j in range(6) if negative[i][j]]
        n, mean_positive = len(hard), sum(pos) / len(pos)
        ng = max((sum(hard) - tau * n * mean_positive) / (1 - tau), n * floor)
        assert output[i].tolist() == pytest.approx(
            [math.log(mean_positive), math.log(ng)], abs=1e-9
        )


def test_nt_xent_uses_the_hard_denominator_and_has_finite_gradients():
    ids, _ = kinds()
    z = torch.randn(8, 5, dtype=torch.float64).requires_grad_(True)
    hard = Hardness(1.0, 0.12, math.exp(-1 / T))
    ours = nt_xent(z, ids, T, hard=hard)
    n = unit(z)
    logits, diagonal = n @ n.T / T, torch.eye(8, dtype=torch.bool)
    positives = (ids[:, None] == ids) & ~diagonal
    total = hard_denominator(logits, positives, diagonal, beta=1.0, tau=0.12, floor=hard.floor)
    expected = (total.logsumexp(1, keepdim=True) - logits)[positives]
    assert torch.allclose(ours, expected, atol=1e-12)
    assert torch.isfinite(torch.autograd.grad(ours.sum(), z)[0]).all()
    alone = nt_xent(z[:2], torch.zeros(2, dtype=torch.long), T, hard=hard)
    assert torch.isfinite(torch.autograd.grad(alone.sum(), z)[0]).all(), "a batch of one"
    with pytest.raises(
        ValueError, match="chunk=3: hard negatives are weighted by the rows of all anchors"
    ):
        nt_xent(z, ids, T, hard=hard, chunk=3)


@pytest.mark.parametrize("pairing", [clae, rocl, acl, a2s])
@pytest.mark.usefixtures("exact")
def test_asymmetry_and_hardness_change_only_losses_with_adversarial_views(pairing):
    """Adversarial examples and the loss of the clean stream stay the same."""
    views, ids = torch.rand(4, 2, 3, 1, 16, 16), torch.arange(4)
    model = add_branches(build_model(TINY, "projector")).eval()
    results = []
    for options in ({}, {"hardness": Hardness(1.0, 0.12, 0.1)}, {"asymmetry": (0.4, 1.6)}):
        method = AdversarialSimCLR(model, LossSettings(T, **options), attack(), pairing=pairing)
        make, kept = method.adversary.views, []
        method.adversary.views = lambda net, aim, x, p, make=make, kept=kept: (
            kept.append(make(net, aim, x, p)) or kept[0]
        )
        results.append((method(views, ids, ids), kept[0][0].x))
    (plain, x), (hard, x_hard), (asymmetric, x_asymmetric) = results
    assert torch.equal(x, x_hard) and torch.equal(x, x_asymmetric)
    assert not torch.allclose(plain["loss_adv"], hard["loss_adv"], rtol=1e-6)
    mixed = pairing in (clae, rocl, a2s)  # the pairs of acl are all of one kind
    assert mixed != torch.allclose(plain["loss_adv"], asymmetric["loss_adv"], rtol=1e-9)
    if "loss_clean" in plain:
        assert torch.equal(plain["loss_clean"], hard["loss_clean"])


def log_softmax(values):
    top = math.log(sum(math.exp(v) for v in values))
    return [v - top for v in values]


def test_air_matches_its_formula():
    z1, z2, a1, a2, o = (torch.randn(5, 4) for _ in range(5))

    def like(z, other):
        return log_softmax([float(unit(z)[i] @ unit(other)[i]) / T for i in range(5)])

    q1, q2 = (
        [p + c for p, c in zip(like(a, o), like(a, z), strict=True)]
        for a, z in ((a1, z1), (a2, z2))
    )
    for released in (True, False):
        term = (
            math.exp if released else float
        )  # the released code passes q to torch's kl_div in place of log q

        def divergence(p, q, term=term):
            return sum(math.exp(a) * (a - term(b)) for a, b in zip(p, q, strict=True))

        clean = divergence(like(z2, o), like(z1, o))
        assert float(sir(z1, z2, o, T, released).mean()) == pytest.approx(clean, abs=1e-5)
        assert float(air(a1, a2, z1, z2, o, T, released).mean()) == pytest.approx(
            divergence(q2, q1), abs=1e-5
        )
        both = regularizer(
            z1, z2, a1, a2, o, temperature=T, clean=0.5, adversarial=0.25, released=released
        )
        terms = sir(z1, z2, o, T, released), air(a1, a2, z1, z2, o, T, released)
        assert torch.allclose(both, 0.5 * terms[0] + 0.25 * terms[1], atol=1e-6)
    assert (sir(z1, z1, o, T, False).abs() < 1e-6).all() and sir(z1, z2, o, T, False).mean() > 0


def test_air_is_added_to_the_loss_of_both_streams():
    views, ids = torch.rand(4, 3, 3, 1, 16, 16), torch.arange(4)
    model = add_branches(build_model(TINY, "projector")).eval()
    extra = partial(regularizer, temperature=T, clean=0.5, adversarial=0.5)
    plain = AdversarialSimCLR(model, LossSettings(T), attack(), pairing=dynacl)(
        views[:, :2], ids, ids
    )
    pairing = partial(dynacl, invariance=extra)
    method = AdversarialSimCLR(
        model, LossSettings(T), attack(), pairing=pairing, views=ViewSettings(original=True)
    )
    ours = method(views, ids, ids)
    assert torch.allclose(ours["loss"], 2 * plain["loss"] + ours["loss_invariance"], atol=1e-5), (
        "the invariance term is not halved"
    )
    assert torch.equal(ours["loss_clean"], plain["loss_clean"]), "the original clip is not a view"
    ours["loss_invariance"].mean().backward()
    assert any(
        p.grad is not None and p.grad.abs().max() > 0
        for k, p in model.named_parameters()
        if ".adv." in k
    )


def test_a_info_nce_and_air_are_built_from_the_configuration():
    a = "method.adversary."
    method = build_method(load(a + "name=rocl", a + "asymmetry=0.2", a + "hardness=1"), 3)
    assert method.loss.asymmetry == (0.2, 0.8) and method.loss.hardness == Hardness(
        1, 0.12, math.exp(-2)
    )
    overrides = ["name=advcl", "asymmetry=0.2", "pair_weight=0.7", "hardness=1"]
    method = build_method(load(*(a + override for override in overrides)), 3)
    assert method.loss.asymmetry == pytest.approx((0.28, 1.12)) and method.loss.hardness.floor == 1
    with pytest.raises(
        UserError, match="method.chunk=4: method.adversary.hardness weights negatives by all"
    ):
        build_method(load(a + "name=rocl", a + "hardness=1", "method.chunk=4"), 3)
    assert build_method(load(a + "name=rocl"), 3).loss.asymmetry is None
    assert build_method(load(a + "name=dynacl", a + "air=0.5"), 3).pairing.keywords[
        "invariance"
    ].keywords == {
        "temperature": 0.5,
        "clean": 0,
        "adversarial": 0.5,
        "released": True,
    }
    fn = "method.false_negatives."
    with pytest.raises(UserError, match="hardness: hard negatives have weights of their own"):
        build_method(
            load(a + "name=rocl", a + "hardness=1", fn + "rule=fixed", fn + "action=downweight"), 3
        )

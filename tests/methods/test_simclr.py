import copy
from functools import partial

import pytest
import torch

from tests.helpers import one_step
from tests.methods.helpers import EPS
from vidrobust.attacks import ThreatModel
from vidrobust.config import Config, ModelConfig
from vidrobust.methods import (
    AdversarialSimCLR,
    Adversary,
    LossSettings,
    SimCLR,
    build_method,
    clae,
    nt_xent,
)
from vidrobust.models import add_branches, build_model

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8)


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    return (
        torch.rand(4, 2, 3, request.param, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )


def test_simclr_is_nt_xent_of_its_two_views(batch):
    method = SimCLR(build_model(TINY, "projector"), LossSettings(0.5))
    views, ids, labels = batch
    z = torch.cat([method.model(views[:, 0]), method.model(views[:, 1])])
    expected = nt_xent(z, torch.cat([ids, ids]), 0.5)
    loss = method(views, ids, labels)["loss"]
    assert loss.shape == (4,) and torch.allclose(loss, (expected[:4] + expected[4:]) / 2)


def test_labels_are_not_looked_at(batch):
    views, ids, labels = batch
    method = SimCLR(build_model(TINY, "projector"), LossSettings(0.5)).eval()
    assert torch.equal(method(views, ids, labels)["loss"], method(views, ids, labels + 3)["loss"])


def test_alpha_0_reduces_to_simclr_to_the_last_bit(batch):
    """Loss, gradients and clean statistics."""
    plain = SimCLR(build_model(TINY, "projector"), LossSettings(0.5))
    branched = add_branches(copy.deepcopy(plain.model))
    with_clae = AdversarialSimCLR(
        branched, LossSettings(0.5), one_step(8 / 255), pairing=partial(clae, alpha=0.0)
    )
    losses = [method(*batch)["loss"] for method in (plain, with_clae)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.mean().backward()
    theirs = {k.replace(".branches.clean.", "."): p for k, p in branched.named_parameters()}
    for key, p in plain.model.named_parameters():
        assert torch.equal(p.grad, theirs[key].grad), key
    buffers = {k.replace(".branches.clean.", "."): b for k, b in branched.named_buffers()}
    for key, b in plain.model.named_buffers():
        assert torch.equal(b, buffers[key]), key


@pytest.mark.usefixtures("exact")
def test_the_adversarial_term_is_the_papers(batch):
    """L(z1, z2) + alpha L(z1, z_adv) (Ho and Vasconcelos 2020), its two views embedded apart."""
    views, ids, labels = batch
    x1, x2, eps, alpha, two = views[:, 0], views[:, 1], EPS, 0.7, torch.cat([ids, ids])
    model = add_branches(build_model(TINY, "projector"))
    pairing = partial(clae, alpha=alpha)
    method = AdversarialSimCLR(
        copy.deepcopy(model), LossSettings(0.5), one_step(eps), pairing=pairing
    )
    ours = method(views, ids, labels)["loss"]
    z1, z2 = model(x1), model(x2)
    with model.use_branch("adv"):
        za = model(x1).detach()
        x_tilde = x1.clone().requires_grad_(True)
        zb = model(x_tilde)
        (gradient,) = torch.autograd.grad(nt_xent(torch.cat([za, zb]), two, 0.5).mean(), x_tilde)
        x_adv = (x1 + eps * gradient.sign()).clamp(0, 1)
        z_adv = model(x_adv)
    expected = (
        nt_xent(torch.cat([z1, z2]), two, 0.5).mean()
        + alpha * nt_xent(torch.cat([z1, z_adv]), two, 0.5).mean()
    )
    assert ours.mean().item() == pytest.approx(expected.item(), abs=1e-5)


def test_build_method_follows_the_configuration():
    cfg = Config(model=TINY)
    assert build_method(cfg, 5).adversary is None
    cfg.method.adversary.name, cfg.method.adversary.threats = "clae", ["linf-0.01"]
    made = build_method(cfg, 5).adversary
    assert (
        isinstance(made, Adversary)
        and made.threats == (ThreatModel("linf", 0.01),)
        and made.starts_at_x
    )
    cfg.method.name, cfg.method.adversary.name = "supervised", "none"
    assert build_method(cfg, 5).model.head.out_features == 5

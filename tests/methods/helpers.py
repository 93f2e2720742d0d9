"""Small models, an attack and the contrastive loss as loops, for tests of methods."""

import pytest
import torch
from torch.nn import functional as F

from vidrobust import config
from vidrobust.attacks import ThreatModel
from vidrobust.config import ModelConfig
from vidrobust.methods import Adversary
from vidrobust.models import add_branches, build_model

# with fewer channels or hidden units, all of them may be dead
TINY = ModelConfig(backbone="r2plus1d_10", width=8, hidden=64, dim=8)
# exact in single precision, so that a step of 0.75 eps and the budget are met exactly
EPS = 1 / 64
T = 0.5


def load(*words: str) -> config.Config:
    """Return a configuration of a small image model, with options."""
    return config.loads("", ["model.backbone=resnet18", "model.width=8", "data.frames=1", *words])


def branched():
    """Return a model with a clean and an adversarial norm branch."""
    return add_branches(build_model(TINY, "projector"))


def attack(**options):
    """Return an adversary of two steps."""
    return Adversary([ThreatModel("linf", EPS)], **{"steps": 2, "step": 0.75} | options)


def ascend(loss, x, steps=2, size=0.75 * EPS):
    """Return the last iterate of signed steps from x, projected after each."""
    moved = x.clone()
    for _ in range(steps):
        v = moved.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(loss(v).sum(), v)
        moved = (x + (v.detach() + size * g.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    return moved


def loop(z, ids, stop=False):
    """Return NT-Xent (N,) of rows z (N, D) by two loops.

    Args:
        z: embeddings of any norm.
        ids: (N,), equal for positives.
        stop: the second factor of a similarity is constant.
    """
    z = F.normalize(z, dim=1)
    other = z.detach() if stop else z
    losses = []
    for i in range(len(z)):
        total = sum(torch.exp(z[i] @ other[j] / T) for j in range(len(z)) if j != i)
        positives = [j for j in range(len(z)) if j != i and ids[j] == ids[i]]
        terms = [-torch.log(torch.exp(z[i] @ other[j] / T) / total) for j in positives]
        losses.append(sum(terms) / len(positives))
    return torch.stack(losses)


def cosine(a, b):
    """Return the cosine of two vectors as a number."""
    return float((a * b).detach().sum() / a.norm() / b.norm())


def grads(loss, model):
    """Return the gradients of a mean loss by name."""
    model.zero_grad()
    loss.mean().backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, model, other):
    """Assert that two losses and their gradients are equal, and that the gradients are not 0."""
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=1e-6)
    a, b = grads(ours, model), grads(theirs, other)
    largest = max(g.abs().max() for g in b.values())
    assert a.keys() == b.keys() and largest > 1e-4
    for key in a:
        assert torch.allclose(a[key], b[key], atol=1e-6 * largest), key

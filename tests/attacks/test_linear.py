"""Compare attacks with closed-form optima of linear models, for every norm and support."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.attacks.helpers import THREATS
from vidrobust.attacks import ThreatModel, apgd, contains, cw, fab, fgsm, fmn, measure, pgd

SHAPES = [(4, 3, 1, 6, 7), (4, 3, 4, 6, 7), (4, 3, 6, 7)]
# a quarter of the budgets of THREATS
CASES = [
    (replace(threat, eps=threat.eps / 4), shape)
    for threat, shape in itertools.product(THREATS, SHAPES)
]


def _places(threat, w):
    """Return (C, T, H, W): 1 where the best perturbation may change values.

    Frames and squares are found by brute force.
    """
    free = torch.zeros_like(w)
    if threat.support == "frames":
        free[:, w.abs().mean((0, 2, 3)).topk(threat.k).indices] = 1
    elif threat.support == "patch":
        spots = [
            (w[..., i : i + 3, j : j + 3].abs().sum().item(), i, j)
            for i, j in itertools.product(range(4), range(5))
        ]
        _, i, j = max(spots)
        free[..., i : i + 3, j : j + 3] = 1
    elif threat.support == "border":
        free[:] = 1
        free[..., 1:-1, 1:-1] = 0
    elif threat.support == "pixels":
        each = w.abs().mean(0).flatten(1)
        free = (
            torch.zeros_like(each)
            .scatter(1, each.topk(threat.k, 1).indices, 1)
            .view_as(w[0])
            .expand_as(w)
        )
    else:
        free[:] = 1
    return free


def _best(threat, w, x):
    """Return the largest w . (x_adv - x) of one sample.

    x is far enough from 0 and 1 that only the budget limits it.
    """
    g = (w * _places(threat, w)).double()
    dims = {"tube": (1,), "flicker": (2, 3)}.get(threat.support, ())
    copies = 1
    if dims:
        copies = w.numel() // g.sum(dims, keepdim=True).numel()
        g = g.sum(dims, keepdim=True)  # an entry of delta changes `copies` values
    if threat.norm == "linf":
        return threat.eps * g.abs().sum()
    if threat.norm == "l1":
        return threat.eps / copies * g.abs().max()
    if threat.norm == "l2" or threat.support == "tube":
        return threat.eps / (copies**0.5 if threat.norm == "l2" else 1) * g.norm()
    return threat.eps / copies**0.5 * g.transpose(0, 1).flatten(1).norm(dim=1).sum()


def _linear(threat, shape):
    torch.manual_seed(0)
    w, x = torch.randn(shape[1:]), torch.full(shape, 0.5) + 0.05 * torch.rand(shape)
    full = w.unsqueeze(1) if len(shape) == 4 else w
    loss = lambda v: ((v - x) * w).flatten(1).sum(1)  # noqa: E731
    return loss, x, torch.stack([_best(threat, full, sample) for sample in x]).float()


@pytest.mark.parametrize(("threat", "shape"), CASES, ids=lambda v: str(v))
def test_fgsm_and_pgd_reach_the_optimum_of_every_threat(threat, shape):
    if threat.norm == "l1":  # the largest entry may take the whole budget
        threat = ThreatModel(
            "l1", 0.3 if threat.support != "flicker" else 3.0, threat.support, threat.k
        )
    loss, x, best = _linear(threat, shape)
    for x_adv in (fgsm(loss, x, threat), pgd(loss, x, threat, random_start=False)):
        assert x_adv.shape == x.shape and contains(threat, x, x_adv).all()
        assert torch.allclose(loss(x_adv), best, rtol=2e-4)
    # from a random start it only has to come close
    x_adv = pgd(loss, x, threat, steps=30, generator=torch.Generator().manual_seed(0))
    assert contains(threat, x, x_adv).all() and (loss(x_adv) >= 0.9 * best).all()


@pytest.mark.parametrize(("threat", "shape"), CASES, ids=lambda v: str(v))
def test_apgd_reaches_the_optimum_of_every_threat(threat, shape):
    loss, x, best = _linear(threat, shape)
    x_adv = apgd(loss, x, threat, steps=60, generator=torch.Generator().manual_seed(0))
    assert contains(threat, x, x_adv).all()
    if (
        threat.norm == "l1"
    ):  # bounds count here: FGSM is the optimum, as the test above shows where they do not
        best = loss(fgsm(loss, x, threat))
    assert (loss(x_adv) >= (0.85 if threat.norm == "l1" else 0.999) * best).all()


@pytest.mark.parametrize(("threat", "shape"), CASES, ids=lambda v: str(v))
def test_minimum_norm_attacks_find_the_distance_to_the_boundary(threat, shape):
    """The best perturbation of size eps just crosses the boundary."""
    loss, x, _ = _linear(threat, shape)
    reach = loss(fgsm(loss, x, threat)) * (1 - 1e-4)
    large = ThreatModel(threat.norm, threat.eps * 20, threat.support, threat.k)
    # each norm with the attacks that are defined for it
    attacks = [lambda crossed: fmn(crossed, x, large)]
    if threat.norm != "l2_frame":
        attacks.append(lambda crossed: fab(crossed, x, large, minimal=True, steps=60))
    if threat.norm == "l2":
        attacks.append(lambda crossed: cw(crossed, x, large))
    for attack in attacks:
        x_adv = attack(lambda v: loss(v) - reach)
        size = measure(threat, x, x_adv)
        assert (loss(x_adv) > reach).all()
        # never below the distance, and at most 2 % above it
        assert (size >= threat.eps * 0.999).all() and (size <= threat.eps * 1.02).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l2_frame"])
def test_apgd_halves_its_step_until_it_is_at_an_optimum_inside_the_ball(norm):
    """With steps of 2 eps it would jump over the optimum forever."""
    torch.manual_seed(0)
    x, threat = torch.full((3, 3, 2, 4, 4), 0.5), ThreatModel(norm, 0.2)
    inside = torch.randn_like(x)
    best = x + inside * (0.1 / measure(threat, x, x + inside)).view(-1, 1, 1, 1, 1)
    x_adv = apgd(
        lambda v: -(v - best).square().flatten(1).sum(1),
        x,
        threat,
        generator=torch.Generator().manual_seed(0),
    )
    assert (measure(threat, best, x_adv) < 0.02).all()

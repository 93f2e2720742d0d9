import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from vidrobust.config import Config, ModelConfig, loads
from vidrobust.methods import (
    Adversary,
    InstDisc,
    LossSettings,
    SupCon,
    build_method,
    plain,
    require_options,
    uel,
)
from vidrobust.models import add_branches, build_model
from vidrobust.utils.errors import UserError

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8)


def dot(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_plain_is_one_directional_softmax(temperature):
    a, b = 3 * torch.randn(5, 4), torch.randn(5, 4)
    for i, found in enumerate(plain(a, b, temperature).tolist()):
        p = [math.exp(dot(a[i], b[j]) / temperature) for j in range(5)]
        assert found == pytest.approx(-math.log(p[i] / sum(p)), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.3, 0.5])
def test_uel_is_its_double_loop(temperature):
    """-log P_ii' - sum over j of log(1 - P_ij), over the rows of both views."""
    for _ in range(5):
        a, b = 3 * torch.randn(4, 6), torch.randn(4, 6)
        rows, losses = [*a, *b], []
        for i in range(8):
            e = {j: math.exp(dot(rows[i], rows[j]) / temperature) for j in range(8) if j != i}
            p = {j: value / sum(e.values()) for j, value in e.items()}
            partner = (i + 4) % 8
            losses.append(
                -math.log(p[partner]) - sum(math.log(1 - p[j]) for j in p if j != partner)
            )
        expected = [(losses[i] + losses[i + 4]) / 2 for i in range(4)]
        assert uel(a, b, temperature).tolist() == pytest.approx(expected, abs=1e-3)


def test_no_gradient_of_uel_reaches_the_second_factor():
    """The released code stops it; with both factors the gradient is twice as large."""
    a = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.detach().T / 0.3).masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
    p = logits.softmax(1)
    positive = torch.arange(8).roll(4)
    own = p[torch.arange(8), positive]
    wrong = torch.log(1 - p).sum(1) - torch.log(1 - own)
    expected = torch.autograd.grad((-own.log() - wrong).sum() / 2, (a, b))
    found = torch.autograd.grad(uel(a, b, 0.3).sum(), (a, b))
    assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(found, expected, strict=True))


def test_uel_stays_finite_where_a_stranger_is_all_there_is():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = uel(a, torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), 0.01)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(a.grad).all()


def test_their_projector_may_be_linear():
    cfg = Config(model=dataclasses.replace(TINY, hidden=0))
    cfg.method.name = "uel"
    head = build_method(cfg, 3).model.head
    assert len(head) == 1 and head(torch.zeros(2, 32)).shape == (2, 8)
    with pytest.raises(UserError, match="model.hidden=0: the projector of byol has a hidden layer"):
        require_options(loads("", ["model.hidden=0", "method.name=byol"]))


@pytest.mark.parametrize("name", ["plain", "uel"])
def test_with_an_adversary_both_terms_are_this_loss(name):
    cfg = Config(model=dataclasses.replace(TINY, hidden=64))  # of 8 hidden units, all may be dead
    cfg.method.name, cfg.method.adversary.name = name, "clae"
    method = build_method(cfg, 3)
    assert isinstance(method, InstDisc) and isinstance(method.adversary, Adversary)
    views, ids = torch.rand(4, 2, 3, 1, 16, 16), torch.arange(4)
    found = method.eval()(views, ids, ids)
    pair = {"plain": plain, "uel": uel}[name]
    z = [method.model(views[:, v]) for v in (0, 1)]
    assert torch.allclose(found["loss_clean"], pair(z[0], z[1], 0.5), atol=1e-5)
    assert (
        torch.allclose(found["loss"], found["loss_clean"] + found["loss_adv"])
        and "loss_adv" in found
    )
    cfg.method.clips_per_video = 3
    with pytest.raises(UserError, match=f"clips_per_video=3: {name} compares two views"):
        build_method(cfg, 3)


def test_supcon_is_its_double_loop_also_for_a_label_seen_once():
    method = SupCon(add_branches(build_model(TINY, "projector")), LossSettings(0.3)).eval()
    views, labels = torch.rand(5, 2, 3, 2, 16, 16), torch.tensor([0, 1, 0, 2, 1])
    found = method(views, torch.arange(5), labels)["loss"]
    z, y = torch.cat([method.model(views[:, v]) for v in (0, 1)]), labels.repeat(2)
    losses = []
    for i in range(10):
        e = {j: math.exp(dot(z[i], z[j]) / 0.3) for j in range(10) if j != i}
        same = [j for j in e if y[j] == y[i]]
        losses.append(sum(-math.log(e[j] / sum(e.values())) for j in same) / len(same))
    assert found.tolist() == pytest.approx(
        [(losses[i] + losses[i + 5]) / 2 for i in range(5)], abs=1e-4
    )

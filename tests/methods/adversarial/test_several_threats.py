"""Adversarial views within several budgets: averaged, the worst of them, or each with a norm
branch.
"""

import copy

import pytest
import torch

from tests.methods.helpers import EPS, TINY, T, branched
from vidrobust.attacks import ThreatModel
from vidrobust.methods import AdversarialSimCLR, Adversary, LossSettings, nt_xent
from vidrobust.models import add_branches, build_model

pytestmark = pytest.mark.usefixtures("exact")


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    return (
        torch.rand(4, 2, 3, request.param, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )


def test_several_threats_are_averaged_or_have_branches(batch):
    views, ids, labels = batch
    threats = [ThreatModel("linf", EPS), ThreatModel("l2", 0.5)]
    model = add_branches(build_model(TINY, "projector"), ("adv", "adv2"))
    for combine, branches in (
        ("average", ("adv",)),
        ("branches", ("adv", "adv2")),
        ("worst", ("adv",)),
    ):
        net = copy.deepcopy(model)
        method = AdversarialSimCLR(
            net,
            LossSettings(T),
            Adversary(threats, combine=combine, branches=branches, train_mode=True),
        )
        found = method(views, ids, labels)
        found["loss"].mean().backward()
        used = {
            key.split(".branches.")[1].split(".")[0]
            for key, p in net.named_parameters()
            if ".branches." in key and p.grad is not None and p.grad.abs().max() > 0
        }
        assert used == {"clean", *branches}, combine
    one = [
        AdversarialSimCLR(copy.deepcopy(model), LossSettings(T), Adversary([t], train_mode=True))(
            views, ids, labels
        )["loss_adv"]
        for t in threats
    ]
    adversary = Adversary(threats, train_mode=True)
    both = AdversarialSimCLR(copy.deepcopy(model), LossSettings(T), adversary)(views, ids, labels)[
        "loss_adv"
    ]
    assert torch.allclose(both, torch.stack(one).mean(0), atol=1e-5)


def test_the_worst_view_has_the_largest_loss_against_the_view_as_it_was(batch):
    """Also for CLAE, whose one step compares each view with itself."""
    views, ids, labels = batch
    threats = [ThreatModel("linf", EPS), ThreatModel("l2", 0.5)]
    model = branched().eval()
    kept = []
    method = AdversarialSimCLR(model, LossSettings(T), Adversary(threats, combine="worst"))
    make = method.adversary.views
    method.adversary.views = lambda *arguments: kept.append(make(*arguments)) or kept[-1]
    method(views, ids, labels)
    x1, two = views[:, 0], ids.repeat(2)
    with model.use_branch("adv"), torch.no_grad():
        anchor = model(x1)

        def loss(v):
            return nt_xent(torch.cat([anchor, model(v)]), two, T).view(2, -1).mean(0)

        each = [
            Adversary([t])
            .views(model, lambda model: lambda v: loss_of(model, anchor, two, v), x1, 0)[0]
            .x
            for t in threats
        ]
        chosen = torch.stack([loss(x) for x in each]).argmax(0)
    for i, kind in enumerate(chosen.tolist()):
        apart = [(kept[0][0].x[i] - x[i]).abs().mean() for x in each]
        assert apart[kind] < apart[1 - kind], "which view is taken of each clip"


def test_the_worst_of_one_threat_costs_what_it_alone_costs(batch):
    """And is the same."""
    views, ids, labels = batch
    found = []
    for combine in ("average", "worst"):
        torch.manual_seed(0)
        model, calls = branched(), []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        method = AdversarialSimCLR(
            model,
            LossSettings(T),
            Adversary([ThreatModel("linf", EPS)], combine=combine, train_mode=True),
        )
        found.append((method(views, ids, labels)["loss"], len(calls)))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def loss_of(model, anchor, ids, v):
    return nt_xent(torch.cat([anchor, model(v)]), ids, T).view(2, -1).mean(0)

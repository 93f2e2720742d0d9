"""Adversarial views of training: budgets, modes, schedules, several threats, and a model that stays
as it is.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from tests.helpers import one_step
from vidrobust.attacks import ThreatModel, contains, parse_threat
from vidrobust.config import ModelConfig
from vidrobust.methods import (
    AdversarialSimCLR,
    AdversarialView,
    Adversary,
    EpsSchedule,
    LossSettings,
    acl,
    nt_xent,
)
from vidrobust.methods.adversarial.adversary import selector_loss, worst_views
from vidrobust.models import add_branches, build_model, use_branch

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8)
IDS = torch.arange(6).repeat(2)


def pair(a, b):
    return nt_xent(torch.cat([a, b]), IDS, 0.5).view(2, -1).mean(0)


def model(names=("adv",)):
    return add_branches(build_model(TINY, "projector"), names).train()


def away(net, x):
    """An aim: away from where the clips' embeddings are, in the mode and branch of the attack."""

    def aim(model):
        with torch.no_grad():
            start = net(x)
        return lambda v: (net(v) - start).square().sum(1)

    return aim


def clae_aim(net):
    def loss(v):
        z = net(v)
        return pair(z.detach(), z)

    return lambda model: loss


def test_the_view_obeys_its_budget_and_leaves_the_model_as_it_was():
    net = model()
    net.head[0].weight.requires_grad_(False)
    net.backbone.trunk[0].eval()
    net.head[2].weight.grad = torch.full_like(net.head[2].weight, 3.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]
    frozen = [p.requires_grad for p in net.parameters()]
    x = torch.rand(6, 3, 2, 16, 16)
    for adversary in (
        one_step(0.03),
        Adversary([ThreatModel("linf", 0.03)], steps=3, random_start=True),
    ):
        (view,) = adversary.views(net, clae_aim(net), x, 0.5)
        assert view.branch == "adv" and (view.x != x).any((1, 2, 3, 4)).all()
        assert contains(ThreatModel("linf", 0.03), x, view.x).all()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert flags == [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]
    assert frozen == [p.requires_grad for p in net.parameters()]
    assert (net.head[2].weight.grad == 3).all()
    assert all(p.grad is None for n, p in net.named_parameters() if n != "head.2.weight")


def test_the_view_raises_the_contrastive_loss():
    torch.manual_seed(0)
    net, x = model(), torch.rand(6, 3, 2, 16, 16)
    (view,) = one_step(0.005).views(net, clae_aim(net), x, 0.5)
    with torch.no_grad(), net.use_branch("adv"):
        z, z_adv = net(x), net(view.x)
    assert pair(z, z_adv).mean() > pair(z, z).mean()


@pytest.mark.parametrize("train_mode", [False, True])
def test_mode_and_branch_are_those_of_the_attack(train_mode):
    net, seen = model(("adv", "adv2")), []
    threats = [ThreatModel("linf", 0.03), ThreatModel("l2", 0.5)]
    adversary = Adversary(
        threats, train_mode=train_mode, combine="branches", branches=("adv", "adv2")
    )
    norm = next(m for m in net.modules() if hasattr(m, "branch"))

    def aim(model):
        seen.append((norm.branch, net.training, norm.branches["adv"].training))
        return lambda v: net(v).square().sum(1)

    views = adversary.views(net, aim, torch.rand(2, 3, 1, 16, 16), 0.0)
    assert [view.branch for view in views] == ["adv", "adv2"]
    assert seen == [("adv", train_mode, train_mode), ("adv2", train_mode, train_mode)]
    assert norm.branch == "clean" and net.training


def test_eps_0_is_the_view_itself(caplog):
    net, x = model(), torch.rand(6, 3, 1, 16, 16)
    (view,) = one_step(0.0).views(net, clae_aim(net), x, 0.0)
    assert torch.equal(view.x, x) and not caplog.records


@pytest.mark.parametrize("frames", [1, 4, 16])
@pytest.mark.parametrize(
    "name",
    [
        "linf-8/255",
        "tube-linf-8/255",
        "flicker-linf-8/255",
        "l2-1",
        "l2_frame-0.5",
        "l1-20",
        "frames1-linf-0.1",
        "patch6-linf-1",
        "border2-linf-1",
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_budget_holds(name, frames, steps):
    torch.manual_seed(0)
    net, threat = model(), parse_threat(name)
    x = torch.rand(3, 3, frames, 16, 16)
    (view,) = Adversary([threat], steps=steps, random_start=True).views(net, away(net, x), x, 0.0)
    assert contains(threat, x, view.x).all() and not torch.equal(view.x, x)


def test_the_last_iterate_is_the_plain_loops():
    net, x = model(), torch.rand(4, 3, 2, 16, 16)
    goal = torch.randn(8)
    (view,) = Adversary([ThreatModel("linf", 0.02)], steps=3, step=0.5).views(
        net, lambda model: lambda v: net(v) @ goal, x, 0
    )
    net.eval()
    expected = x.clone()
    with use_branch(net, "adv"):
        for _ in range(3):
            v = expected.requires_grad_(True)
            (g,) = torch.autograd.grad((net(v) @ goal).sum(), v)
            expected = (x + (v.detach() + 0.01 * g.sign() - x).clamp(-0.02, 0.02)).clamp(0, 1)
    assert torch.allclose(view.x, expected, atol=1e-6)


def test_an_attack_that_changes_nothing_is_told_once_with_its_gradient(caplog):
    net, flat = model(), lambda model: lambda v: net(v).sum(1)
    nn.init.zeros_(net.head[2].weight)
    adversary, x = one_step(0.03), torch.rand(6, 3, 1, 16, 16)
    for _ in range(2):
        assert torch.equal(adversary.views(net, flat, x, 0.0)[0].x, x)
    assert (
        len(caplog.records) == 1
        and "changes nothing: the gradient of the attacked loss has norm 0" in caplog.text
    )
    caplog.clear()
    one_step(0.03).views(model(), clae_aim(model()), x, 0.0)
    assert not caplog.records


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"combine": "mean"}, {"combine": "branches", "branches": ("a", "b")}]
)
def test_adversaries_that_cannot_be(options):
    with pytest.raises(ValueError, match="at least one step|one branch for each of the 1 threats"):
        Adversary([ThreatModel()], **options)


def test_each_threat_is_looked_at_and_a_change_that_cancels_is_told(caplog):
    """A flicker whose pixels pull it both ways stays where it is, whatever their gradients are."""
    pull = torch.ones(1, 1, 1, 16, 16)
    pull[..., ::2] = -1
    net, x = model(), torch.rand(4, 3, 1, 16, 16) * 0.5 + 0.25
    adversary = Adversary([parse_threat("linf-0.1"), parse_threat("flicker-linf-0.1")])
    adversary.views(net, lambda model: lambda v: (v * pull).flatten(1).sum(1), x, 0.0)
    assert len(caplog.records) == 1 and "(flicker-linf) changes nothing" in caplog.text


def test_a_view_that_has_not_moved_teaches_no_branch():
    """At the beginning of a schedule eps is 0 and the view is the clean clip."""
    net, x = model(), torch.rand(4, 3, 1, 16, 16)
    net.backbone.selector = nn.Linear(net.backbone.dim, 2)
    alone, same, moved = (
        selector_loss(net, x, views)
        for views in (
            [],
            [AdversarialView(x.clone(), "adv")],
            [AdversarialView((x + 0.01).clamp(0, 1), "adv")],
        )
    )
    assert torch.equal(alone, same) and not torch.equal(alone, moved)


def test_ranks_begin_at_different_points_and_go_on_alike(monkeypatch):
    net, x = model(), torch.rand(2, 3, 1, 16, 16)
    adversary, found = Adversary([ThreatModel("linf", 0.05)], random_start=True), []
    monkeypatch.setattr("vidrobust.utils.distributed.world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("vidrobust.utils.distributed.rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        found.append((adversary.views(net, away(net, x), x, 0.0)[0].x, torch.get_rng_state()))
    assert not torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_model_of_nan_makes_views_and_no_error():
    """The loss that is learned is NaN as well, and says so with the batch and the last
    checkpoint.
    """
    net, x = model(), torch.rand(4, 3, 1, 16, 16)
    nn.init.constant_(net.head[2].weight, torch.nan)
    for threat in ("linf-0.03", "l2-1", "patch4-linf-1", "flicker-linf-0.1"):
        for options in ({"train_mode": True}, {"steps": 2, "random_start": True}):
            adversary = Adversary([parse_threat(threat)], **options)
            (view,) = adversary.views(net, lambda model: lambda v: net(v).sum(1), x, 0.0)
            assert view.x.shape == x.shape


def test_the_first_views_of_a_budget_are_checked(monkeypatch):
    net, x = model(), torch.rand(2, 3, 1, 16, 16)
    adversary = Adversary([ThreatModel("linf", 0.03)], budget=EpsSchedule("linear", warmup=0.5))
    aim = lambda model: lambda v: net(v).sum(1)  # noqa: E731
    monkeypatch.setattr(
        "vidrobust.methods.adversarial.adversary.pgd",
        lambda loss, x, *_, **__: (x + 0.5).clamp(0, 1),
    )
    adversary.views(net, aim, x, 0.0)  # nothing may move yet
    with pytest.raises(RuntimeError, match="adversarial clips exceed linf"):
        adversary.views(net, aim, x, 0.1)


@pytest.mark.parametrize("name", ["linf-0.03", "patch4-linf-1"])
def test_passes_do_not_depend_on_the_clips(name):
    """Ranks make the same ones, whose losses they compute together."""
    net, counts = model(), []
    for x in (torch.rand(2, 3, 1, 16, 16), torch.zeros(2, 3, 1, 16, 16)):
        calls = []
        adversary = Adversary([parse_threat(name)])
        adversary.views(
            net,
            lambda model, calls=calls: lambda v: calls.append(1) or (v * v).flatten(1).sum(1),
            x,
            0.0,
        )
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_the_worst_view_of_each_clip_is_taken():
    x = torch.rand(5, 3, 1, 4, 4) * 0.5 + 0.25
    weight = torch.randn(5, 3, 1, 4, 4)
    loss = lambda v: (v * weight).flatten(1).sum(1)  # noqa: E731
    threats = [ThreatModel("linf", 0.01), ThreatModel("l2", 0.05)]
    adversary = Adversary(threats, combine="worst", branches=("clean",))
    net = nn.Module()
    net.use_branch = lambda branch: use_branch(net, branch)
    (view,) = adversary.views(net, lambda model: loss, x, 0.0)
    best = [
        x + 0.01 * weight.sign(),
        x + 0.05 * weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1),
    ]
    gains = torch.stack([loss(b) for b in best])
    assert torch.allclose(loss(view.x), gains.amax(0), atol=1e-5)
    mixed = worst_views(
        [torch.zeros(2, 1), torch.ones(2, 1)], lambda v: torch.tensor([1.0, -1.0]) * (0.5 - v[:, 0])
    )
    assert mixed.tolist() == [[0.0], [1.0]]


def test_schedules():
    assert [EpsSchedule().fraction(p) for p in (0, 0.5)] == [1, 1]
    assert [EpsSchedule("linear", warmup=0.2).fraction(p) for p in (0, 0.1, 0.2, 0.9)] == [
        0,
        0.5,
        1,
        1,
    ]
    assert EpsSchedule("linear", warmup=0).fraction(0) == 1
    assert [EpsSchedule("curriculum", first=0.25).fraction(p) for p in (0, 0.5, 1)] == [
        0.25,
        0.625,
        1,
    ]
    threat, x, net = ThreatModel("linf", 0.04), torch.rand(2, 3, 1, 16, 16), model()
    adversary = Adversary([threat], budget=EpsSchedule("curriculum", first=0.25))
    for progress, eps in ((0, 0.01), (1, 0.04)):
        (view,) = adversary.views(net, lambda model: lambda v: net(v).sum(1), x, progress)
        assert (view.x - x).abs().max() == pytest.approx(eps, abs=1e-6)


def test_the_adaptive_schedule_draws_what_has_large_losses():
    torch.manual_seed(0)
    budget = EpsSchedule("adaptive")
    seen = [budget.fraction(0.05) for _ in range(300)]
    assert sorted(set(seen)) == pytest.approx([i / 9 for i in range(10)])
    for _ in range(300):
        share = budget.fraction(0.05)
        budget.record(torch.full((4,), 9.0 if share == 1 else 0.001))
    assert float(budget.chances[9]) == pytest.approx(0.1), "looked at after a tenth of the run"
    drawn = [budget.fraction(0.1) for _ in range(100)]
    assert sum(share == 1 for share in drawn) > 90
    kept = EpsSchedule("adaptive")
    kept.load_state_dict(budget.state_dict())
    torch.manual_seed(1)
    first = [budget.fraction(0.15) for _ in range(5)]
    torch.manual_seed(1)
    assert [kept.fraction(0.15) for _ in range(5)] == first, "a resumed run draws the same"


def test_the_random_start_follows_torchs_generator():
    net, x = model(), torch.rand(2, 3, 1, 16, 16)
    adversary = Adversary([ThreatModel("linf", 0.05)], steps=2, random_start=True)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(adversary.views(net, away(net, x), x, 0.0)[0].x)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(("steps", "random_start"), itertools.product((1, 2), (False, True)))
def test_only_one_step_from_the_clips_themselves_starts_there(steps, random_start):
    assert Adversary([ThreatModel()], steps=steps, random_start=random_start).starts_at_x == (
        steps == 1 and not random_start
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_bf16_and_float32_agree(frames):
    """Not among the formulas, whose networks are in double precision: those autocast leaves
    alone.
    """
    views, ids = torch.rand(4, 2, 3, frames, 16, 16), torch.arange(4)
    wide = ModelConfig(backbone="r2plus1d_10", width=8, hidden=64, dim=8)
    model = add_branches(build_model(wide, "projector")).eval()
    method = AdversarialSimCLR(
        model,
        LossSettings(0.5),
        Adversary([ThreatModel("linf", 0.02)], steps=2, step=0.6),
        pairing=acl,
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = method(views, ids, ids)["loss"]
    whole = method(views, ids, ids)["loss"]
    assert not torch.equal(half, whole), "computed otherwise"
    assert half.dtype == torch.float32 and math.isclose(
        half.mean().item(), whole.mean().item(), rel_tol=0.05
    )

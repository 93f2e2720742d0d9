"""Pairings of clean and adversarial views against transcriptions of their formulas."""

import copy
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import one_step
from tests.methods.helpers import EPS, TINY, T, ascend, assert_same, attack, branched, grads, loop
from vidrobust.attacks import ThreatModel, contains
from vidrobust.methods import (
    AdversarialSimCLR,
    InstDisc,
    LossSettings,
    Pairs,
    Removal,
    SimCLR,
    a2a,
    a2s,
    acl,
    clae,
    clae_published,
    detect,
    dynacl,
    nt_xent,
    plain,
    rocl,
    uel,
)
from vidrobust.methods.false_negatives.rules import quantile
from vidrobust.models import build_model

pytestmark = pytest.mark.usefixtures("exact")

PAIRINGS = {
    "clae": clae,
    "rocl": rocl,
    "acl": acl,
    "a2a": a2a,
    "dynacl": dynacl,
    "a2s": a2s,
    "published": clae_published,
}


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    return (
        torch.rand(4, 2, 3, request.param, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )


def test_clae_as_published(batch):
    """Normalised eps, no clamp, two passes in the attack; all three passes of the branch move its
    statistics.
    """
    views, ids, labels = batch
    x1, x2, two, eps, alpha = views[:, 0], views[:, 1], ids.repeat(2), 1 / 32, 0.7
    model = branched()
    pairing = partial(clae_published, alpha=alpha, eps=eps)
    method = AdversarialSimCLR(copy.deepcopy(model), LossSettings(T), one_step(0), pairing=pairing)
    ours = method(views, ids, labels)
    z1, z2 = model(x1), model(x2)
    with model.use_branch("adv"):
        za = model(x1)
        x_tilde = x1.clone().requires_grad_(True)
        zb = model(x_tilde)
        (g,) = torch.autograd.grad(loop(torch.cat([za.detach(), zb]), two).mean(), x_tilde)
        std = torch.tensor([0.22803, 0.22145, 0.216989]).view(1, 3, 1, 1, 1)
        assert torch.equal(std, model.backbone.std)
        x_adv = x1 + eps * std * g.sign()
        z_adv = model(x_adv)
    expected = (
        loop(torch.cat([z1, z2]), two).mean() + alpha * loop(torch.cat([z1, z_adv]), two).mean()
    )
    assert x_adv.max() > 1 or x_adv.min() < 0, "nothing is clamped"
    assert_same(ours["loss"], expected, method.model, model)
    for (key, a), (_, b) in zip(method.model.named_buffers(), model.named_buffers(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), key


def test_the_norms_of_rocl_see_its_three_views_as_one_batch(batch):
    """Behind a pass of the second loss's two, and nothing of the attack."""
    model = build_model(TINY, "projector")
    alone, seen = copy.deepcopy(model), []
    method = AdversarialSimCLR(model, LossSettings(T), attack(branches=("clean",)), pairing=rocl)
    make = method.adversary.views
    method.adversary.views = lambda *arguments: seen.append(make(*arguments)) or seen[-1]
    method(*batch)
    alone(torch.cat([batch[0][:, 1], seen[0][0].x]))
    alone(torch.cat([batch[0][:, 0], batch[0][:, 1], seen[0][0].x]))
    assert all(torch.equal(value, model.get_buffer(key)) for key, value in alone.named_buffers())


def test_further_steps_of_clae_compare_with_the_view_as_it_was(batch):
    views, ids, labels = batch
    model, two = branched(), ids.repeat(2)
    method = AdversarialSimCLR(copy.deepcopy(model), LossSettings(T), attack(train_mode=False))
    ours = method(views, ids, labels)
    x1 = views[:, 0]
    z1, z2 = model(x1), model(views[:, 1])
    with model.use_branch("adv"):
        model.eval()
        anchor = model(x1).detach()
        x_adv = ascend(lambda v: nt_xent(torch.cat([anchor, model(v)]), two, T), x1)
        model.train()
        z_adv = model(x_adv)
    assert_same(
        ours["loss"],
        loop(torch.cat([z1, z2]), two).mean() + loop(torch.cat([z1, z_adv]), two).mean(),
        method.model,
        model,
    )


def test_rocl_is_its_formula(batch):
    """Three views, every pair positive, an anchor's two added up, + NT-Xent(x_adv, x2) / 256;
    eval-mode attack.

    Second factors are constant, also in the attack.
    """
    views, ids, labels = batch
    model = build_model(TINY, "projector")
    method = AdversarialSimCLR(
        copy.deepcopy(model), LossSettings(T), attack(branches=("clean",)), pairing=rocl
    )
    ours = method(views, ids, labels)["loss"]
    x1, x2 = views[:, 0], views[:, 1]
    model.eval()
    other = model(x2).detach()
    x_adv = ascend(lambda v: nt_xent(torch.cat([model(v), other]), ids.repeat(2), T, stop=True), x1)
    model.train()
    pair = loop(model(torch.cat([x_adv, x2])), ids.repeat(2), stop=True).mean()
    z = model(torch.cat([x1, x2, x_adv]))  # norms see all three
    three = loop(z, ids.repeat(3), stop=True).mean()
    assert_same(ours, 2 * three + pair / 256, method.model, model)


@pytest.mark.parametrize("kind", ["acl", "a2a", "dynacl"])
def test_acl_is_its_formula(batch, kind):
    """Both views are attacked together in eval mode; half of the clean stream and half of the
    adversarial one.
    """
    views, ids, labels = batch
    model, two = branched(), ids.repeat(2)
    method = AdversarialSimCLR(
        copy.deepcopy(model), LossSettings(T), attack(), pairing=PAIRINGS[kind]
    )
    ours = method(views, ids, labels, 0.52)["loss"]
    z1, z2 = model(views[:, 0]), model(views[:, 1])
    with model.use_branch("adv"):
        model.eval()
        both = ascend(lambda v: nt_xent(model(v), two, T), torch.cat([views[:, 0], views[:, 1]]))
        model.train()
        a1, a2 = model(both[:4]), model(both[4:])
    clean = loop(torch.cat([z1, z2]), two).mean()
    adv = loop(torch.cat([a1, a2]), two).mean()
    weight = 1 + 10 * 0.05 * 2 / 3 if kind == "dynacl" else 1
    expected = adv if kind == "a2a" else 0.5 * ((2 - weight) * clean + weight * adv)
    assert_same(ours, expected, method.model, model)


def test_a2s_is_its_formula(batch):
    """The first view is attacked alone, against the second one's clean embedding, which is what is
    learned.
    """
    views, ids, labels = batch
    model, two = branched(), ids.repeat(2)
    method = AdversarialSimCLR(copy.deepcopy(model), LossSettings(T), attack(), pairing=a2s)
    ours = method(views, ids, labels)["loss"]
    z2 = model(views[:, 1])
    model.eval()
    other = model(views[:, 1]).detach()
    with model.use_branch("adv"):
        x_adv = ascend(lambda v: nt_xent(torch.cat([model(v), other]), two, T), views[:, 0])
        model.train()
        a1 = model(x_adv)
    assert_same(ours, loop(torch.cat([a1, z2]), two).mean(), method.model, model)


@pytest.mark.parametrize("kind", ["clae", "rocl", "acl", "a2a", "a2s", "dynacl"])
def test_a_rule_that_finds_nothing_changes_nothing(batch, kind):
    """To the last bit, in train mode: what the rule looks at leaves no trace in the norms."""
    one_norm = kind in ("rocl", "a2a")
    model = build_model(TINY, "projector") if one_norm else branched()
    found = []
    for removal in (None, Removal(lambda sims, pairs: torch.zeros_like(sims, dtype=torch.bool))):
        adversary = attack(branches=("clean",)) if one_norm else attack()
        method = AdversarialSimCLR(
            copy.deepcopy(model), LossSettings(T), adversary, removal, pairing=PAIRINGS[kind]
        ).train()
        found.append((method(*batch)["loss"], dict(method.model.named_buffers())))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())


def test_dynacls_weight_climbs_in_twenty_parts_to_two_at_most():
    model, x = branched().eval(), torch.rand(4, 2, 3, 1, 16, 16)
    method = AdversarialSimCLR(model, LossSettings(T), attack(), pairing=dynacl)
    for progress, weight in ((0, 1), (0.049, 1), (0.05, 1 + 1 / 30), (0.999, 1 + 19 / 30)):
        found = method(x, torch.arange(4), torch.arange(4), progress)
        expected = 0.5 * ((2 - weight) * found["loss_clean"] + weight * found["loss_adv"])
        assert torch.allclose(found["loss"], expected, atol=1e-5)


WEIGHTLESS = {
    "clae": partial(clae, alpha=0.0),
    "published": partial(clae_published, alpha=0.0),
    "acl": partial(acl, weight=0.0),
}


@pytest.mark.parametrize("kind", WEIGHTLESS)
def test_without_weight_it_is_the_clean_objective_to_the_last_bit(batch, kind):
    """Loss, gradients and clean statistics, with the attack made."""
    model = branched()
    plain = SimCLR(copy.deepcopy(model), LossSettings(T))
    method = AdversarialSimCLR(
        model,
        LossSettings(T),
        one_step(EPS) if kind == "published" else attack(),
        pairing=WEIGHTLESS[kind],
    )
    ours, theirs = method(*batch)["loss"], plain(*batch)["loss"]
    assert torch.equal(ours, theirs)
    a, b = grads(ours, method.model), grads(theirs, plain.model)
    assert all(torch.equal(a[key], b[key]) for key in b) and b
    assert all(
        torch.equal(v, model.get_buffer(k))
        for k, v in plain.model.named_buffers()
        if ".clean." in k
    )


@pytest.mark.parametrize("kind", PAIRINGS)
def test_the_attack_has_a_gradient_and_the_clean_norms_do_not_see_it(batch, kind):
    """The clean branch's statistics are those of the clean passes alone, bit by bit."""
    views, ids, labels = batch
    model = branched()
    alone, x_published = copy.deepcopy(model), []
    model.register_forward_pre_hook(lambda module, inputs: x_published.append(inputs[0].detach()))
    method = AdversarialSimCLR(
        model,
        LossSettings(T),
        one_step(EPS) if kind == "published" else attack(),
        pairing=PAIRINGS[kind],
    )
    moved = []
    if kind != "published":
        make = method.adversary.views
        method.adversary.views = lambda net, aim, x, p: (
            moved.append((x, found := make(net, aim, x, p))) or found
        )
    found = method(views, ids, labels)
    assert torch.isfinite(found["loss"]).all() and found["loss"].shape == (4,)
    if kind == "published":
        moved_by = (x_published[-1] - views[:, 0]) / model.backbone.std
        assert torch.allclose(moved_by.abs(), torch.full_like(moved_by, 0.03), atol=1e-5)
    for x, made in moved:
        assert all(not torch.equal(view.x[i], x[i]) for view in made for i in range(len(x)))
        assert all(contains(ThreatModel("linf", EPS), x, view.x).all() for view in made)
    passes = {
        "a2a": [],
        "a2s": [views[:, 1]],
        "rocl": [views[:, 1], torch.cat([views[:, 0], views[:, 1]])],
    }
    for clips in passes.get(kind, [views[:, 0], views[:, 1]]):
        alone(clips)
    for key, value in alone.named_buffers():
        if ".branches.clean." in key:
            assert torch.equal(value, model.get_buffer(key)), key


@pytest.mark.parametrize("kind", ["clae", "rocl", "acl", "a2a", "a2s", "dynacl"])
def test_what_is_found_between_clean_views_is_masked_in_the_attack_and_in_the_adversarial_loss(
    batch, kind
):
    """The masks are those of the clean embeddings, in place of which the adversarial ones stand."""
    views, ids, labels = batch
    rule = partial(quantile, rate=0.4)
    method = AdversarialSimCLR(
        branched().eval(), LossSettings(T), attack(), Removal(rule), pairing=PAIRINGS[kind]
    )
    seen = []
    losses = method.contrast

    def spy(z, ids, labels, masks, **options):
        seen.append((len(z), masks.ignore))
        return losses(z, ids, labels, masks, **options)

    method.contrast = spy
    method(views, ids, labels)
    z = [method.model(views[:, v]).detach() for v in (0, 1)]
    for count, ignore in seen:
        # looked for among the two clean views, whatever stands in their places
        unit, keys = F.normalize(torch.cat(z), dim=1), ids.repeat(2)
        two = detect(rule, unit @ unit.T, Pairs((keys, keys)))
        rows = torch.arange(8).repeat(2)[: 4 * count]  # the third view stands for the first
        assert torch.equal(ignore, two[rows][:, rows]) and ignore.any()
    assert len(seen) >= 3, "the attack's losses as well"


@pytest.mark.parametrize("pair", [plain, uel])
def test_plain_and_uel_take_clae_in_their_own_loss(batch, pair):
    views, ids, labels = batch
    model = branched()
    method = InstDisc(
        copy.deepcopy(model), LossSettings(T), pair, one_step(EPS), partial(clae, alpha=0.5)
    )
    ours = method(views, ids, labels)["loss"]
    x1 = views[:, 0]
    z1, z2 = model(x1), model(views[:, 1])
    with model.use_branch("adv"):
        v = x1.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(pair(model(x1).detach(), model(v), T).sum(), v)
        z_adv = model((x1 + EPS * g.sign()).clamp(0, 1))
    assert_same(ours, pair(z1, z2, T).mean() + 0.5 * pair(z1, z_adv, T).mean(), method.model, model)

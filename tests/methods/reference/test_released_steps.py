"""Our methods against the steps of their authors' code.

Compared are loss, clips, gradient, a step of the optimizer and running statistics.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.methods.reference import released
from tests.methods.reference.released import EPS, T
from vidrobust.attacks import ThreatModel
from vidrobust.config import ModelConfig, OptimConfig
from vidrobust.losses.air import regularizer
from vidrobust.losses.info_nce import Hardness
from vidrobust.methods import (
    BYOL,
    TARO,
    AdvCLSettings,
    AdversarialSimCLR,
    Adversary,
    Distill,
    InstDisc,
    LossSettings,
    MomentumEncoder,
    SimCLR,
    SupCon,
    ViewSettings,
    acl,
    dynacl,
    rocl,
    uel,
)
from vidrobust.methods.adversarial.advcl import AdvCL
from vidrobust.methods.adversarial.taro import confusing
from vidrobust.models import Backbone, add_branches, build_model
from vidrobust.models.momentum import SplitEncoder
from vidrobust.training.optim import build_optimizer

pytestmark = pytest.mark.usefixtures("exact")

TINY = ModelConfig(backbone="r2plus1d_10", width=8, hidden=64, dim=8, head_norm=True)
STEPS, SIZE = 2, EPS / 4
LARS, SGD = ("lars", 5.0, 1e-6), ("sgd", 0.5, 1e-4)
STEP = {"lars": released.lars_step, "sgd": released.sgd_step}


@pytest.fixture(params=[1, 4], ids=["T=1", "T=4"])
def batch(request):
    return (
        torch.rand(6, 3, 3, request.param, 16, 16),
        torch.arange(6),
        torch.tensor([0, 1, 0, 2, 1, 1]),
    )


def attack(**options):
    return Adversary([ThreatModel("linf", EPS)], **{"steps": STEPS, "step": 0.25} | options)


def branched(names=("adv",)):
    return add_branches(build_model(TINY, "projector"), names, momentum=0.1)


def seen_clips(method, name="adversary"):
    """A list that fills with the clips that a method's adversary makes."""
    found, adversary = [], getattr(method, name)
    make = adversary.views

    def views(*arguments):
        made = make(*arguments)
        found.extend(view.x for view in made)
        return made

    adversary.views = views
    return found


def assert_released(method, ours, theirs, module, optimizer=SGD, departs=()):
    """Loss to 1e-9, gradients, a step of the optimizer and statistics to 1e-7.

    departs: prefixes of buffers that differ on purpose.
    """
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    ours.backward(), theirs.backward()
    mine = {key: p for key, p in method.named_parameters() if p.grad is not None}
    other = {key: p for key, p in module.named_parameters() if p.grad is not None}
    assert mine.keys() == other.keys() and mine
    assert max(p.grad.abs().max() for p in other.values()) > 1e-4
    for key, p in mine.items():
        assert torch.allclose(p.grad, other[key].grad, atol=1e-7), key
    name, lr, decay = optimizer
    stepped = STEP[name](other.values(), lr, decay)
    options = OptimConfig(
        name=name, lr=lr, weight_decay=decay, decay_norms=True, lars_exclude=False
    )
    build_optimizer(method, options).step()
    for (key, p), wanted in zip(mine.items(), stepped, strict=True):
        assert torch.allclose(p, wanted, atol=1e-7), key
    buffers = dict(module.named_buffers())
    for key, value in method.named_buffers():
        if key in buffers and not key.startswith(departs):
            assert torch.allclose(value.double(), buffers[key].double(), atol=1e-7), key


def assert_same_clips(found, *wanted):
    for clips, theirs in zip(found, wanted, strict=True):
        assert torch.equal(torch.sign((clips - theirs).abs() - 1e-12), -torch.ones_like(clips)), (
            "signs agree"
        )


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_of_supcontrast(batch, temperature):
    """Both views are one batch; the factor T / 0.07."""
    views, ids, labels = batch
    scale = temperature / 0.07
    method = SimCLR(
        build_model(TINY, "projector"),
        LossSettings(temperature, scale=scale),
        views=ViewSettings(joint=True),
    )
    other = copy.deepcopy(method)
    loss = released.simclr(other.model, views, ids, temperature, scale)
    assert_released(method, method(views[:, :2], ids, labels)["loss"].mean(), loss, other)


def test_supcon(batch):
    views, ids, labels = batch
    method = SupCon(
        build_model(TINY, "projector"),
        LossSettings(0.1, scale=0.1 / 0.07),
        views=ViewSettings(joint=True),
    )
    other = copy.deepcopy(method)
    loss = released.simclr(other.model, views, labels, 0.1, 0.1 / 0.07)
    assert_released(method, method(views[:, :2], ids, labels)["loss"].mean(), loss, other)


def test_a_pass_a_view_departs_from_it(batch):
    """Our default, CLAE's arrangement, changes the batches of norms, and so the loss."""
    views, ids, labels = batch
    method = SimCLR(build_model(TINY, "projector"), LossSettings(T))
    loss = released.simclr(copy.deepcopy(method.model), views, ids)
    departure = abs(float(method(views[:, :2], ids, labels)["loss"].mean() - loss))
    assert 1e-5 < departure < 1


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_byol_and_simsiam(batch, name):
    views, ids, labels = batch
    model = build_model(TINY, "projector")
    predictor = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)
    )
    slow = MomentumEncoder(model, 0.9, increases=False) if name == "byol" else None
    method = BYOL(model, predictor, slow)
    with torch.no_grad():
        for p in method.model.parameters():
            p.mul_(1.1)  # so that the momentum encoder is not the model
    other = copy.deepcopy(method)
    if name == "simsiam":
        loss = released.simsiam(other.model, other.predictor, views)
    else:
        other.target.follow(other.model, 0.0)
        loss = released.byol(other.model, other.predictor, other.target.model, views)
    assert_released(method, method(views[:, :2], ids, labels)["loss"].mean(), loss, other)


def test_uel_and_its_attack(batch):
    """CLAE's step on UEL's criterion: the adversarial clip and both losses."""
    views, ids, labels = batch
    adversary = Adversary([ThreatModel("linf", EPS)], train_mode=True)
    method = InstDisc(branched(), LossSettings(T), uel, adversary)
    made, other = seen_clips(method), copy.deepcopy(method)
    net, x1 = other.model, views[:, 0]
    z = [net(views[:, v]) for v in (0, 1)]
    with net.use_branch("adv"):
        probe = copy.deepcopy(net)
        v = x1.clone().requires_grad_(True)
        anchor = probe(x1).detach()
        (g,) = torch.autograd.grad(released.uel_loss(anchor, probe(v)), v)
        x_adv = (x1 + EPS * g.sign()).clamp(0, 1)
        z_adv = net(x_adv)
    loss = released.uel_loss(*z) + released.uel_loss(z[0], z_adv)
    ours = method(views[:, :2], ids, labels)["loss"].mean()
    assert_same_clips(made, x_adv)
    assert_released(method, ours, loss, other)


ROCL = {
    "plain": ({}, {}),
    "IP": ({"positives": (0.2, 0.8)}, {"asymmetry": (0.2, 0.8)}),
    "HN": ({"hard": (1.0, 0.12)}, {"hardness": Hardness(1.0, 0.12, torch.e ** (-1 / T))}),
}
ROCL["IP and HN"] = tuple(ROCL["IP"][i] | ROCL["HN"][i] for i in (0, 1))


@pytest.mark.parametrize("kind", ROCL)
def test_rocl_and_its_asymmetric_variants(batch, kind):
    views, ids, labels = batch
    theirs, ours = ROCL[kind]
    method = AdversarialSimCLR(
        build_model(TINY, "projector"),
        LossSettings(T, **ours),
        attack(branches=("clean",)),
        pairing=rocl,
    )
    made, other = seen_clips(method), copy.deepcopy(method)
    loss, x_adv = released.rocl(other.model, views, ids, STEPS, SIZE, **theirs)
    found = method(views[:, :2], ids, labels)["loss"].mean()
    assert_same_clips(made, x_adv)
    assert_released(method, found, loss, other, LARS)


def test_acl_one_batch_of_both_views(batch):
    views, ids, labels = batch
    method = AdversarialSimCLR(
        branched(), LossSettings(T), attack(), pairing=acl, views=ViewSettings(joint=True)
    )
    made, other = seen_clips(method), copy.deepcopy(method)
    loss, x_adv, *_ = released.acl(other.model, views, ids, STEPS, SIZE, other.model)
    found = method(views[:, :2], ids, labels)["loss"].mean()
    assert_same_clips(made, x_adv)
    assert_released(method, found, loss, other, LARS)


def test_dynacl_has_a_momentum_encoder_in_both_streams_and_in_the_attack(batch):
    views, ids, labels = batch
    model = branched()
    method = AdversarialSimCLR(
        model,
        LossSettings(T),
        attack(),
        pairing=dynacl,
        slow=MomentumEncoder(model, 0.9, increases=False),
    )
    with torch.no_grad():
        for p in method.model.parameters():
            p.mul_(1.1)
    made, other = seen_clips(method), copy.deepcopy(method)
    encode = SplitEncoder(other.model, other.slow).train()
    loss, x_adv, *_ = released.acl(encode, views, ids, STEPS, SIZE, other.model, weight=1 + 10 / 30)
    other.slow.follow(other.model, 0.52)
    found = method(views[:, :2], ids, labels, 0.52)["loss"].mean()
    assert_same_clips(made, x_adv)
    assert torch.equal(method.slow.model.head[0].weight, other.slow.model.head[0].weight), (
        "behind the batch"
    )
    assert_released(method, found, loss, other, LARS)
    assert all(p.grad is None for p in method.slow.parameters())


@pytest.mark.parametrize("progress", [0.0, 0.52])
def test_air(batch, progress):
    """The contrastive losses are not halved, and the sums are the released ones."""
    views, ids, labels = batch
    extra = partial(regularizer, temperature=T, clean=0.5, adversarial=0.5)
    pairing = partial(dynacl, invariance=extra)
    method = AdversarialSimCLR(
        branched(),
        LossSettings(T),
        attack(),
        pairing=pairing,
        views=ViewSettings(original=True, joint=True),
    )
    made, other = seen_clips(method), copy.deepcopy(method)
    weight = 1 + int(20 * progress) / 20 * 2 / 3
    half, x_adv, z, a = released.acl(
        other.model, views, ids, STEPS, SIZE, other.model, weight=weight
    )
    clean, adversarial = released.air_terms(z, a, other.model(views[:, 2]))
    loss = 2 * half + 0.5 * clean + 0.5 * adversarial
    found = method(views, ids, labels, progress)["loss"].mean()
    assert_same_clips(made, x_adv)
    assert_released(method, found, loss, other, LARS)


def test_advcl(batch):
    """Frequencies at the radius stay, the loss has T / 0.07, the head's norms are shared."""
    views, ids, labels = batch
    model = build_model(
        TINY, "projector", branches=("adv", "adv_ce"), momentum=0.1, branched_head=False
    )
    adversaries = [attack(branches=(name,), train_mode=True) for name in ("adv", "adv_ce")]
    method = AdvCL(
        model,
        LossSettings(T, scale=T / 0.07),
        *adversaries,
        settings=AdvCLSettings(clusters=(2, 3), radius=5.0),
    )
    method.pseudo.labels = torch.stack([labels % 2, labels], 1)
    made, made_ce, other = (
        seen_clips(method),
        seen_clips(method, "ce_adversary"),
        copy.deepcopy(method),
    )
    known = other.pseudo.labels
    probe = copy.deepcopy(other)  # its attack moves running statistics, which ours leaves alone
    loss, x_cl, x_ce = released.advcl(
        probe.model, probe.heads, views, ids, known, STEPS, SIZE, radius=5.0
    )
    found = method(views, ids, labels)["loss"].mean()
    assert_same_clips([*made, *made_ce], x_cl, x_ce)
    running = tuple(key for key, _ in probe.named_buffers())
    assert_released(method, found, loss, probe, departs=running)
    ours, theirs = dict(method.named_buffers()), dict(probe.named_buffers())
    means = [key for key in theirs if "running_mean" in key and ".adv." in key]
    moved = max(float((ours[key] - theirs[key]).abs().max()) for key in means)
    assert moved > 1e-4, "the departure: the released attack moves them"


def test_taro_on_simsiam(batch):
    """Targets are chosen in training mode; that moves running statistics there, and not here."""
    views, ids, labels = batch
    predictor = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)
    )
    method = TARO(build_model(TINY, "projector"), predictor, attack(branches=("clean",)))
    made, other = seen_clips(method), copy.deepcopy(method)
    probe = copy.deepcopy(other)
    chosen = [released.taro_targets(probe.model, probe.predictor, views[:, v]) for v in (0, 1)]
    loss, moved = released.taro(other.model, other.predictor, views, chosen, STEPS, SIZE)
    found = method(views[:, :2], ids, labels)["loss"].mean()
    assert_same_clips(made, moved)
    assert_released(method, found, loss, other)
    still = torch.equal(probe.model.head[1].running_mean, method.model.head[1].running_mean)
    assert not still, "the departure"


def test_taro_chooses_otherwise_in_eval_mode():
    """Why the mode matters: on fresh weights few choices are the same."""
    method = TARO(build_model(TINY, "projector"), nn.Linear(8, 8), attack(branches=("clean",)))
    x = torch.rand(24, 3, 1, 16, 16)
    trained = method._target_clips(x)
    features = method.eval().model.backbone(x)
    z = method.predictor(method.model.head(features))
    assert not torch.equal(trained, confusing(features, features, z, slice(0, 24)))


def test_deacl(batch):
    views, ids, labels = batch
    method = Distill(build_model(TINY, "none"), attack(branches=("clean",)))
    teacher = build_model(TINY, "none").backbone
    with torch.no_grad():
        for p in method.model.parameters():
            p.mul_(1.05)
    method.set_teacher(teacher)
    assert isinstance(teacher, Backbone)
    made, other = seen_clips(method), copy.deepcopy(method)
    loss, x_adv = released.deacl(other.model, other.teacher, views[:, 0], STEPS, SIZE)
    found = method.train()(views[:, :1], ids, labels)["loss"].mean()
    assert_same_clips(made, x_adv)
    assert_released(method, found, loss, other)


def test_random_starts_stay_in_the_range_of_pixels():
    """ACL's and DeACL's code begins up to eps outside of [0, 1], for one step: ours does not."""
    x = torch.zeros(4, 3, 1, 8, 8)
    x[2:] = 1
    starts = []

    def loss(v):
        starts.append(v.detach().clone())
        return v.flatten(1).sum(1)

    Adversary([ThreatModel("linf", EPS)], steps=1, random_start=True)._attack(
        loss, x, ThreatModel("linf", EPS)
    )
    assert starts[0].min() >= 0 and starts[0].max() <= 1 and (starts[0] != x).float().mean() > 0.4

"""Non-semantic negatives in the losses, against transcriptions of Ge et al. 2021."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import one_step
from tests.methods.helpers import EPS, T, ascend, assert_same, attack, branched
from vidrobust.attacks import ThreatModel
from vidrobust.config import Config, ModelConfig
from vidrobust.losses.cosine import cosines
from vidrobust.methods import (
    BYOL,
    TARO,
    AdversarialSimCLR,
    Adversary,
    InstDisc,
    LossSettings,
    MoCo,
    MoCoSettings,
    MomentumEncoder,
    SimCLR,
    a2a,
    acl,
    build_method,
    build_negatives,
    clae,
    plain,
    rocl,
)
from vidrobust.methods.adversarial.adversary import frozen_statistics
from vidrobust.models import build_model
from vidrobust.utils.errors import UserError
from vidrobust.views import NegativeSpec

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=64, dim=8)
ALPHA = 1.5
exact = pytest.mark.usefixtures("exact")


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    """Two views of four videos, and two negatives each."""
    return (
        torch.rand(4, 4, 3, request.param, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )


def extended(z, ids, t, stop=False):
    """Return NT-Xent of V views' rows z by two loops, each row also with its own video's negatives
    t (B, M, D).
    """
    z, t = F.normalize(z, dim=1), F.normalize(t, dim=2)
    other, t = (z.detach(), t.detach()) if stop else (z, t)
    found = []
    for i in range(len(z)):
        more = sum(torch.exp(ALPHA * (z[i] @ t[i % len(t), m]) / T) for m in range(t.shape[1]))
        total = sum(torch.exp(z[i] @ other[j] / T) for j in range(len(z)) if j != i) + more
        own = [j for j in range(len(z)) if j != i and ids[j] == ids[i]]
        found.append(
            sum(-torch.log(torch.exp(z[i] @ other[j] / T) / total) for j in own) / len(own)
        )
    return torch.stack(found)


def embedded(model, views):
    with frozen_statistics(model):
        return torch.stack([model(views[:, 2]), model(views[:, 3])], 1)


def test_cosines_are_of_each_video_with_its_own_negatives():
    z, t = torch.randn(3, 4, 5), torch.randn(4, 2, 5).bfloat16()
    found = cosines(list(z), t)
    assert found.shape == (12, 2) and found.dtype == torch.float32
    for v in range(3):
        for b in range(4):
            for m in range(2):
                want = F.cosine_similarity(z[v, b], t[b, m].float(), dim=0)
                assert found[v * 4 + b, m] == pytest.approx(want.item(), abs=1e-6)


def test_mocos_logits_are_the_published_ones(batch):
    """-log e^(q.k/T) / (e^(q.k/T) + sum_i e^(q.k_i/T) + sum_m e^(alpha q.t_m/T)), t by the momentum
    encoder.
    """
    views, ids, labels = batch
    model = build_model(TINY, "projector")
    method = MoCo(
        model,
        MomentumEncoder(model, 0.9, increases=False),
        MoCoSettings(T, 12, 8, alpha_negatives=ALPHA),
    )
    method.encoder.start_from(model)
    with torch.no_grad():
        for p in method.model.parameters():
            p += 0.05 * torch.randn_like(p)
    query, keys, queue = (
        copy.deepcopy(method.model),
        copy.deepcopy(method.encoder.model),
        method.queue.clone(),
    )
    parts = method(views, ids, labels)
    q = F.normalize(query(views[:, 0]), dim=1).detach()
    with torch.no_grad():
        for slow, fast in zip(keys.parameters(), query.parameters(), strict=True):
            slow.mul_(0.9).add_(0.1 * fast)
        k, *t = (F.normalize(keys(views[:, v]), dim=1) for v in (1, 2, 3))
    wanted = []
    for i in range(4):
        own = math.exp(q[i] @ k[i] / T)
        others = sum(math.exp(q[i] @ n / T) for n in queue)
        pushed = sum(math.exp(ALPHA * (q[i] @ each[i]) / T) for each in t)
        wanted.append(-math.log(own / (own + others + pushed)))
    assert parts["loss"].tolist() == pytest.approx(wanted, abs=1e-3)
    assert torch.allclose(method.queue[:4], k, atol=1e-3) and torch.equal(
        method.queue[4:], queue[4:]
    )
    near = torch.stack([(q * each).sum(1) for each in t]).mean(0)
    assert torch.allclose(parts["negative_cosine"], near, atol=1e-3)
    parts["loss"].mean().backward()
    assert all(p.grad is None for p in method.encoder.parameters())


@exact
def test_simclr_pushes_both_views_from_the_negatives_of_the_first(batch):
    views, ids, labels = batch
    method = SimCLR(build_model(TINY, "projector"), LossSettings(T, alpha_negatives=ALPHA))
    twin = copy.deepcopy(method.model)
    z = torch.cat([twin(views[:, 0]), twin(views[:, 1])])
    found = method(views, ids, labels)
    assert_same(
        found["loss"], extended(z, ids.repeat(2), embedded(twin, views)), method.model, twin
    )
    assert found["negative_cosine"].shape == (4,)


@exact
def test_clae_meets_them_in_its_attack_and_its_loss(batch):
    views, ids, labels = batch
    model, two = branched(), ids.repeat(2)
    method = AdversarialSimCLR(
        copy.deepcopy(model),
        LossSettings(T, alpha_negatives=ALPHA),
        one_step(EPS),
        pairing=partial(clae, alpha=0.7),
    )
    ours = method(views, ids, labels)["loss"]
    z1, z2, t = model(views[:, 0]), model(views[:, 1]), embedded(model, views)
    with model.use_branch("adv"):
        za = model(views[:, 0]).detach()
        x = views[:, 0].clone().requires_grad_(True)
        loss = extended(torch.cat([za, model(x)]), two, t.detach())
        (g,) = torch.autograd.grad(loss.sum(), x)
        z_adv = model((views[:, 0] + EPS * g.sign()).clamp(0, 1))
    wanted = (
        extended(torch.cat([z1, z2]), two, t).mean()
        + 0.7 * extended(torch.cat([z1, z_adv]), two, t).mean()
    )
    assert_same(ours, wanted, method.model, model)


@exact
@pytest.mark.parametrize("pairing", [rocl, acl])
def test_rocl_and_acl_meet_them(batch, pairing):
    views, ids, labels = batch
    model, two = (build_model(TINY, "projector") if pairing is rocl else branched()), ids.repeat(2)
    adversary = attack(branches=("clean",)) if pairing is rocl else attack()
    method = AdversarialSimCLR(
        copy.deepcopy(model), LossSettings(T, alpha_negatives=ALPHA), adversary, pairing=pairing
    )
    ours = method(views, ids, labels)["loss"]
    x1, x2 = views[:, 0], views[:, 1]
    t = embedded(model, views)
    if pairing is acl:
        z1, z2 = model(x1), model(x2)
    branch = "clean" if pairing is rocl else "adv"
    with model.use_branch(branch):
        model.eval()
        if pairing is rocl:
            with torch.no_grad():
                other = model(x2)

            def attacked(v, other=other):
                return extended(torch.cat([model(v), other]), two, t.detach(), stop=True)

            x_adv = ascend(attacked, x1)
        else:
            aim = lambda v: extended(model(v), two, t.detach())  # noqa: E731
            x_adv = ascend(aim, torch.cat([x1, x2]))
        model.train()
        if pairing is rocl:
            pair = extended(model(torch.cat([x_adv, x2])), two, t, stop=True).mean()
            z = model(torch.cat([x1, x2, x_adv]))
        else:
            a1, a2 = model(x_adv[:4]), model(x_adv[4:])
    if pairing is rocl:
        wanted = 2 * extended(z, ids.repeat(3), t, stop=True).mean() + pair / 256
    else:
        clean, adv = extended(torch.cat([z1, z2]), two, t), extended(torch.cat([a1, a2]), two, t)
        wanted = 0.5 * (clean.mean() + adv.mean())
    assert_same(ours, wanted, method.model, model)


@exact
def test_plain_has_them_in_its_one_direction(batch):
    views, ids, labels = batch
    method = InstDisc(build_model(TINY, "projector"), LossSettings(T, alpha_negatives=ALPHA), plain)
    twin = copy.deepcopy(method.model)
    a, b = (F.normalize(twin(views[:, v]), dim=1) for v in (0, 1))
    t = F.normalize(embedded(twin, views), dim=2)
    wanted = []
    for i in range(4):
        total = sum(torch.exp(a[i] @ b[j] / T) for j in range(4))
        total = total + sum(torch.exp(ALPHA * (a[i] @ t[i, m]) / T) for m in range(2))
        wanted.append(-torch.log(torch.exp(a[i] @ b[i] / T) / total))
    assert_same(method(views, ids, labels)["loss"], torch.stack(wanted), method.model, twin)


@exact
@pytest.mark.parametrize("name", ["byol", "simsiam"])
@pytest.mark.parametrize("adversarial", [False, True], ids=["clean", "taro"])
def test_positives_alone_are_pushed_from_them_by_a_term(batch, name, adversarial):
    views, ids, labels = batch
    model = build_model(TINY, "normed_projector")
    target = MomentumEncoder(model, 0.9, increases=False) if name == "byol" else None
    adversary = Adversary(
        [ThreatModel("linf", 0.0)], branches=("clean",)
    )  # it leaves clips as they are
    if adversarial:
        predictor, settings = nn.Linear(8, 8), {"weight": 0.5, "alpha_negatives": ALPHA}
        method = TARO(model, predictor, adversary, target, **settings)
    else:
        method = BYOL(model, nn.Linear(8, 8), target, alpha_negatives=ALPHA)
    method.prepare([])
    kept = copy.deepcopy(method)
    parts = method(views, ids, labels)
    if target is not None:
        kept.target.follow(kept.model, 0.0)
    other = kept.model if target is None else kept.target
    z = [kept.model(views[:, v]) for v in (0, 1)]
    aims = [each.detach() if target is None else other(views[:, v]) for v, each in enumerate(z)]
    predicted = [kept.predictor(each) for each in z]
    with torch.no_grad():
        t = [other(views[:, v]) for v in (2, 3)]

    def cos(a, b):
        return F.cosine_similarity(a, b, dim=1)

    def between(v, w):
        pushed = sum(cos(predicted[u], each) for u in (v, w) for each in t) / 4
        one = 2 - cos(predicted[v], aims[w]) - cos(predicted[w], aims[v]) + ALPHA * pushed
        return (
            one / 2 - 1 if target is None else 2 * one
        )  # SimSiam's -cos, and BYOL's sum of both directions

    near = sum(cos(predicted[0], each) for each in t) / 2
    assert torch.allclose(parts["negative_cosine"].double(), near, atol=1e-5)
    expected = (
        between(0, 0) + 0.5 * 2 * between(0, 1) if adversarial else between(0, 1)
    )  # a1 is x1, and a2 x2
    assert torch.allclose(parts["loss"].double(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["simclr", "supcon", "moco", "plain", "byol", "simsiam"])
@pytest.mark.parametrize("option", ["alpha", "count"])
def test_without_weight_or_number_there_are_none(name, option):
    cfg = Config(model=TINY)
    cfg.data.frames, cfg.method.name, cfg.method.queue = 4, name, 64
    cfg.method.negatives.names = ["patch", "shuffle"]
    build_method(cfg, 5)  # takes them
    assert build_negatives(cfg.method.negatives) == (NegativeSpec(("patch", "shuffle")), False)
    setattr(cfg.method.negatives, option, 0)
    assert build_negatives(cfg.method.negatives)[0].names == ()


@pytest.mark.parametrize("name", ["simclr", "simsiam", "moco", "byol"])
def test_norms_that_are_measured_do_not_see_them(batch, name):
    cfg = Config(model=TINY)
    cfg.method.name, cfg.method.queue, cfg.train.batch_size, cfg.data.frames = (
        name,
        8,
        4,
        batch[0].shape[2],
    )
    torch.manual_seed(0)
    without = build_method(cfg, 5)
    cfg.method.negatives.names, cfg.method.negatives.count = ["patch"], 2
    torch.manual_seed(0)
    pushed = build_method(cfg, 5)
    views, ids, labels = batch
    for method, seen in ((without, views[:, :2]), (pushed, views)):
        torch.manual_seed(1)
        method.train()(seen, ids, labels)
    theirs = dict(pushed.model.named_buffers())
    for key, buffer in without.model.named_buffers():
        assert torch.equal(buffer, theirs[key]), key


def test_nothing_clean_is_embedded_for_the_log_alone(batch):
    """a2a has no clean stream, and so no cosine of it."""
    views, ids, labels = batch
    method = AdversarialSimCLR(
        build_model(TINY, "projector"),
        LossSettings(T, alpha_negatives=ALPHA),
        attack(branches=("clean",)),
        pairing=a2a,
    )
    assert "negative_cosine" not in method(views, ids, labels)
    assert "negative_cosine" in SimCLR(
        build_model(TINY, "projector"), LossSettings(T, alpha_negatives=ALPHA)
    )(views, ids, labels)


@pytest.mark.parametrize("name", ["uel", "supervised", "distill"])
def test_methods_without_a_place_for_them_refuse_them(name):
    cfg = Config(model=TINY)
    cfg.method.name, cfg.method.negatives.names = name, ["patch"]
    with pytest.raises(UserError, match=rf"method.negatives.names=\[patch\]: {name} "):
        build_method(cfg, 5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"names": ["patches"]},
            "method.negatives.names: unknown name 'patches'; did you mean 'patch'",
        ),
        ({"patch_px": [16]}, "must be two sides"),
        ({"names": ["patch", "patch"]}, "must list each name once"),
    ],
)
def test_what_is_no_negative_is_refused(change, reason):
    cfg = Config(model=TINY)
    cfg.data.frames, cfg.method.negatives.names = 1, ["patch"]
    for key, value in change.items():
        setattr(cfg.method.negatives, key, value)
    with pytest.raises(UserError, match=reason):
        build_method(cfg, 5)

"""MoCo v2 against a transcription of its step, and its queue by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import one_step
from tests.methods.helpers import EPS, assert_same
from vidrobust.config import Config, ModelConfig
from vidrobust.data import Record
from vidrobust.methods import MoCo, MoCoSettings, MomentumEncoder, Removal, build_method
from vidrobust.methods.false_negatives.rules import fixed
from vidrobust.models import add_branches, build_model
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8)


def moco(size: int = 12, momentum: float = 0.9, removal=None, **options) -> MoCo:
    model = build_model(TINY, "projector")
    encoder = MomentumEncoder(model, momentum, increases=False)
    return MoCo(model, encoder, MoCoSettings(0.2, size, 8, **options), removal)


def records(count: int) -> list[Record]:
    return [Record(f"v{i}", f"v{i}", i % 2, f"g{i // 2}") for i in range(count)]


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    return (
        torch.rand(4, 2, 3, request.param, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )


def test_three_steps_are_the_published_ones(batch):
    """l = -log exp(q.k/T) / (exp(q.k/T) + sum over the queue), keys by a momentum encoder, first in
    first out.
    """
    views, ids, labels = batch
    method = moco()
    query, keys = copy.deepcopy(method.model), copy.deepcopy(method.encoder.model)
    queue = method.queue.clone()
    for step in range(3):
        with torch.no_grad():  # the query encoder trains in between
            for ours, theirs in zip(method.model.parameters(), query.parameters(), strict=True):
                change = 0.01 * torch.randn_like(ours)
                ours += change
                theirs += change
        found = method(views, ids + 4 * step, labels)["loss"]
        q = F.normalize(query(views[:, 0]), dim=1)
        with torch.no_grad():
            for slow, fast in zip(keys.parameters(), query.parameters(), strict=True):
                slow.mul_(0.9).add_(0.1 * fast)
            k = F.normalize(keys(views[:, 1]), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
        assert torch.allclose(
            found,
            F.cross_entropy(logits, torch.zeros(4, dtype=torch.long), reduction="none"),
            atol=1e-3,
        )
        queue[4 * step : 4 * step + 4] = k
        assert torch.allclose(method.queue, queue, atol=1e-3)
        assert method.queue_ids.tolist() == [*range(4 * step + 4), *[-1] * (8 - 4 * step)]
    found.mean().backward()
    assert all(p.grad is not None for p in method.model.parameters())
    assert all(p.grad is None for p in method.encoder.parameters())


@pytest.mark.usefixtures("exact")
def test_claes_view_asks_the_same_keys_and_queue(batch):
    """x_adv = x1 + eps sign(grad of the loss of x1 against its key and the queue); L(q) + alpha
    L(q_adv).
    """
    views, ids, labels = batch
    model = add_branches(build_model(replace(TINY, hidden=64), "projector"))
    method = MoCo(
        model,
        MomentumEncoder(model, 0.9, increases=False),
        MoCoSettings(0.2, 12, 8, alpha=0.7),
        adversary=one_step(EPS),
    )
    query, keys, queue = (
        copy.deepcopy(model),
        copy.deepcopy(method.encoder.model),
        method.queue.clone(),
    )
    x1, first = views[:, 0], torch.zeros(4, dtype=torch.long)
    ours = method(views, ids, labels)["loss"]

    def loss(v):
        q = F.normalize(query(v), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
        return F.cross_entropy(logits, first, reduction="none")

    with torch.no_grad():  # the momentum encoder moves toward itself
        k = F.normalize(keys(views[:, 1]), dim=1)
    clean = loss(x1)
    with query.use_branch("adv"):
        v = x1.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(loss(v).sum(), v)
        adv = loss((x1 + EPS * g.sign()).clamp(0, 1))
    assert_same(ours, clean + 0.7 * adv, model, query)


def test_keys_of_the_batch_are_negatives_of_its_other_queries(batch):
    """With in_batch, and not in evaluation: q against its key, the others' and what is left."""
    views, ids, labels = batch
    method = moco(momentum=1.0, in_batch=True)
    older = method.queue[4:].clone()
    found = method(views, ids, labels)["loss"]
    q, k = (
        F.normalize(each, dim=1)
        for each in (method.model(views[:, 0]), method.encoder(views[:, 1]))
    )
    for i in range(4):
        negatives = torch.cat([k[:i], k[i + 1 :], older])
        logits = torch.cat([q[i] @ k[i : i + 1].T, q[i] @ negatives.T]) / 0.2
        assert torch.allclose(found[i], logits.logsumexp(0) - logits[0], atol=1e-4)
    assert method.queue_ids.tolist() == [0, 1, 2, 3, *[-1] * 8]
    assert torch.allclose(method.queue[:4], k, atol=1e-4)
    queue = method.queue.clone()
    method.eval()(views, ids + 4, labels)
    assert torch.equal(method.queue, queue)


def test_the_oldest_keys_leave_also_where_the_queue_is_no_multiple_of_the_batch(batch):
    views, ids, labels = batch
    method = moco(size=6)
    for step in range(3):
        method(views, ids + 4 * step, labels)
    assert method.queue_ids.tolist() == [6, 7, 8, 9, 10, 11]
    method.eval()(views, ids, labels)
    assert method.queue_ids.tolist() == [6, 7, 8, 9, 10, 11], "evaluation leaves it alone"
    method.train()(views[:2], ids[:2], labels[:2])
    assert method.queue_ids.tolist() == [0, 1, 8, 9, 10, 11], (
        "a batch of another size takes the oldest, too"
    )


def test_a_videos_own_earlier_keys_are_not_its_negatives(batch):
    views, ids, labels = batch
    method = moco(momentum=1.0).eval()
    plain = method(views, ids, labels)["loss"]
    method.queue_ids[:3] = 0
    without = method(views, ids, labels)["loss"]
    assert without[0] < plain[0] and torch.equal(without[1:], plain[1:])
    q, k = (
        F.normalize(method.model(views[:1, 0]), dim=1),
        F.normalize(method.encoder(views[:1, 1]), dim=1),
    )
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue[3:].T], 1) / 0.2
    assert torch.allclose(
        without[0], F.cross_entropy(logits, torch.zeros(1, dtype=torch.long)), atol=1e-5
    )


@pytest.mark.parametrize("action", ["eliminate", "attract", "downweight"])
def test_false_negatives_in_the_queue(batch, action):
    views, ids, labels = batch
    seen = []

    def rule(similarities, pairs):
        seen.append((similarities, pairs))
        return fixed(similarities, pairs, 0.1)

    method = moco(momentum=1.0, removal=Removal(rule, action)).eval()
    method.prepare(records(20))
    method.queue_ids[:] = torch.arange(4, 16)
    loss = method(views, ids, labels)["loss"]
    q, k = (
        F.normalize(method.model(views[:, 0]), dim=1),
        F.normalize(method.encoder(views[:, 1]), dim=1),
    )
    s = q @ method.queue.T
    assert torch.allclose(seen[0][0], s, atol=1e-5) and torch.equal(
        seen[0][1].ids[1], method.queue_ids
    )
    own, found = (q * k).sum(1), s > 0.1
    found[found.all(1), 0] = False  # the guard: rarely needed
    weight = torch.where(
        found, {"eliminate": 0.0, "attract": 1.0, "downweight": 1 - s}[action], 1.0
    )
    total = (own / 0.2).exp() + (weight * (s / 0.2).exp()).sum(1)
    expected = total.log() - own / 0.2
    if action == "attract":
        expected = total.log() - (own / 0.2 + (found * s / 0.2).sum(1)) / (1 + found.sum(1))
    if not found.all(1).any():
        assert torch.allclose(loss, expected, atol=1e-4)


def test_several_clips_are_several_positives(batch):
    views, ids, labels = torch.rand(4, 3, 3, 1, 16, 16), *batch[1:]
    method = moco(clips=3).eval()
    q = F.normalize(method.model(views[:, 0]), dim=1)
    keys = [F.normalize(method.encoder(views[:, v]), dim=1) for v in (1, 2)]
    logits = torch.cat([*[(q * k).sum(1, keepdim=True) for k in keys], q @ method.queue.T], 1) / 0.2
    expected = -logits.log_softmax(1)[:, :2].mean(1)
    assert torch.allclose(method(views, ids, labels)["loss"], expected, atol=1e-5)
    method.train()(views, ids, labels)
    assert method.queue_ids[:8].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_momentum_schedules_and_range():
    encoder = MomentumEncoder(build_model(TINY, "projector"), 0.9)
    assert [encoder.at(p) for p in (0, 0.5, 1)] == pytest.approx([0.9, 0.95, 1.0])
    assert MomentumEncoder(encoder.model, 0.9, increases=False).at(1) == 0.9
    with pytest.raises(ValueError, match=r"momentum=1.5: must be 0 to 1"):
        MomentumEncoder(encoder.model, 1.5)
    other = build_model(TINY, "projector")
    encoder.start_from(other)
    assert all(
        torch.equal(a, b)
        for a, b in zip(encoder.model.parameters(), other.parameters(), strict=True)
    )


def test_a_queue_larger_than_the_data_set_is_refused():
    with pytest.raises(
        UserError, match=r"method.queue=12 is larger than the data set \(11 videos\)"
    ):
        moco().prepare(records(11))


def test_it_is_built_as_configured():
    cfg = Config(model=TINY)
    cfg.method.name, cfg.method.queue, cfg.method.norm, cfg.train.batch_size = "moco", 16, "own", 8
    cfg.method.false_negatives.rule = "topk"
    method = build_method(cfg, 3)
    assert (
        isinstance(method, MoCo) and method.queue.shape == (16, 8) and not method.settings.shuffle
    )
    assert method.removal is not None and method.removal.siblings
    cfg.train.batch_size = 17
    with pytest.raises(UserError, match="method.queue=16 is less than the 17 keys of a batch"):
        build_method(cfg, 3)
    cfg.method.adversary.name = "rocl"
    with pytest.raises(UserError, match="adversary.name=rocl: moco takes clae"):
        build_method(cfg, 3)


def test_keys_of_several_ranks_are_computed_in_mixed_batches(monkeypatch):
    """On rank 1 of two, an encoder reveals the mean of its batch, as norms would."""
    method = moco(shuffle=True)
    x, order = torch.rand(8, 3), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    halves = [x[order[:4]].mean(0), x[order[4:]].mean(0)]
    method.encoder = torch.nn.Module()
    method.encoder.forward = lambda part: part - part.mean(0)
    mixed = torch.cat([x[order[:4]] - halves[0], x[order[4:]] - halves[1]])
    answers = [x, mixed]
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather", lambda sent: answers.pop(0))
    found = method._shuffled_keys(x[4:])
    for row, place in enumerate(range(4, 8)):
        half = halves[order.tolist().index(place) // 4]
        assert torch.allclose(found[row], x[place] - half)
    assert not torch.allclose(found, x[4:] - x[4:].mean(0)) and not answers

"""Activations that are computed again give the gradients of those that are kept."""

import copy

import pytest
import torch
from torch import nn

from tests.methods.helpers import attack, branched, load
from vidrobust.data import Record
from vidrobust.losses.info_nce import nt_xent
from vidrobust.methods import build_method
from vidrobust.models import recompute
from vidrobust.models.backbone import Backbone, BackboneParts
from vidrobust.models.recompute import recompute_blocks
from vidrobust.models.stages import blocks_of

CLIPS = torch.rand(8, 3, 2, 16, 16, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(4).repeat(2)


class Small(nn.Module):
    """Features (B, 6) of clips, by blocks with a norm, dropout and places in time."""

    def __init__(self, norm, dropout=0.0):
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv3d(3, 8, 3, 2, 1), norm(8), nn.GELU(), nn.Dropout(dropout)),
            nn.Sequential(nn.Conv3d(8, 6, 3, 2, 1), norm(6), nn.GELU(), nn.Dropout(dropout)),
        )

    def forward(self, x):
        return self.blocks(x).mean((2, 3, 4))


def small(norm=nn.BatchNorm3d, dropout=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    parts = BackboneParts(Small(norm, dropout), 6, (0.5,) * 3, (0.2,) * 3)
    return Backbone(parts).to(dtype)


def group_norm(channels):
    return nn.GroupNorm(2, channels)


def gradients(network):
    return [p.grad for p in network.parameters()]


def loss_of(z):
    return nt_xent(z, IDS.to(z.device), 0.2).mean()


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_micro_batches_are_gradcache_written_out(size, dropout):
    ours, theirs = small(dropout=dropout), small(dropout=dropout)
    ours.micro_batch = size
    torch.manual_seed(3)
    loss = loss_of(ours(CLIPS))
    loss.backward()

    # the embeddings without a graph, the gradient at them, and the micro-batches with it; the
    # statistics of norms are those of the first passes alone
    parts = CLIPS.split(size)
    states, embeddings = [], []
    torch.manual_seed(3)
    with torch.no_grad():
        for part in parts:
            states.append(torch.get_rng_state())
            embeddings.append(theirs(part))
    statistics = copy.deepcopy([*theirs.buffers()])
    z = torch.cat(embeddings).requires_grad_(True)
    expected = loss_of(z)
    expected.backward()
    # autograd runs from the last part to the first
    for part, state, g in reversed([*zip(parts, states, z.grad.split(size), strict=True)]):
        torch.set_rng_state(state)
        theirs(part).backward(g)

    assert torch.equal(loss, expected)
    assert equal(gradients(ours), gradients(theirs))
    assert equal(ours.buffers(), statistics)
    assert all(float(g.abs().max()) > 0 for g in gradients(ours))


@pytest.mark.parametrize("norm", [group_norm, "frozen"])
@pytest.mark.parametrize("size", [1, 4])
def test_without_batch_statistics_the_gradient_is_that_of_the_whole_batch(norm, size):
    kind = nn.BatchNorm3d if norm == "frozen" else norm
    ours, whole = small(kind, dtype=torch.float64), small(kind, dtype=torch.float64)
    ours.micro_batch = size
    for network in (ours, whole):
        network.train(norm != "frozen")
        loss_of(network(CLIPS.double())).backward()
    for a, b in zip(gradients(ours), gradients(whole), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-15) and float(b.abs().max()) > 0


def test_the_gradient_reaches_clips_and_both_norm_modes_are_kept():
    ours, whole = small().eval(), small().eval()
    ours.micro_batch = 2
    found = []
    for network in (ours, whole):
        x = CLIPS.clone().requires_grad_(True)
        found.append(torch.autograd.grad(loss_of(network(x)), x)[0])
    assert torch.allclose(*found, rtol=1e-4, atol=1e-9) and float(found[0].abs().max()) > 0
    assert not any(module.training for module in ours.modules())


def test_modes_and_branches_are_those_of_the_forward_pass():
    """The backward pass may run when the network has long been in another mode and branch."""
    model = branched()
    twin = copy.deepcopy(model)
    model.backbone.micro_batch = 2
    for each in (model, twin):
        each.train()
        with each.use_branch("adv"):
            size = 2 if each is twin else 8
            z = torch.cat([each.backbone(part) for part in CLIPS.split(size)])
        each.eval()
        loss_of(z).backward()
    ours = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    theirs = {k: p.grad for k, p in twin.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and any(".branches.adv." in key for key in ours)
    assert not any(".branches.clean." in key for key in ours)
    for key, gradient in ours.items():
        assert torch.allclose(gradient, theirs[key], rtol=1e-4, atol=1e-7)
    assert equal(model.buffers(), twin.buffers())
    assert not any(module.training for module in model.modules())


def test_passes_without_a_gradient_keep_no_graph():
    network = small()
    network.micro_batch = 3
    with torch.no_grad():
        z = network(CLIPS)
    assert z.shape == (8, 6) and not z.requires_grad
    assert torch.equal(z[6:], network(CLIPS[6:]))  # parts need not be equal


WORDS = {
    "simclr": [],
    "supcon": ["method.name=supcon"],
    "clae": ["method.adversary.name=clae"],
    "acl": ["method.adversary.name=acl", "method.joint_views=true"],
    "dynacl": ["method.adversary.name=dynacl", "method.joint_views=true"],
    "removal": ["method.false_negatives.rule=fixed"],
    "negatives": ["method.negatives.names=[patch]"],
    "moco": ["method.name=moco", "method.queue=8"],
    "moco_clae": ["method.name=moco", "method.queue=8", "method.adversary.name=clae"],
    "byol": ["method.name=byol"],
    "uel": ["method.name=uel", "method.adversary.name=clae"],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_methods_have_the_loss_and_gradient_of_the_same_parts_kept(words, monkeypatch):
    """A whole step, attack included, against one that keeps the activations of all parts."""
    results = []
    for keeps in (False, True):
        if keeps:
            monkeypatch.setattr(recompute, "recomputed", lambda network, forward, x: forward(x))
        torch.manual_seed(0)
        method = build_method(load("train.batch_size=4", *words), 4)
        for module in method.modules():
            if isinstance(module, Backbone):
                module.micro_batch = 2
        method.prepare([Record(f"v{i}", f"v{i}", i % 2, f"g{i // 2}") for i in range(8)])
        method.train()
        views = method.views + (1 if "negatives" in str(words) else 0)
        clips = torch.rand(4, views, 3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
        parts = method(clips, torch.arange(4), torch.tensor([0, 1, 0, 1]), 0.5)
        parts["loss"].mean().backward()
        results.append((parts["loss"].detach(), method))
    (ours, method), (theirs, twin) = results
    assert torch.equal(ours, theirs) and bool(ours.isfinite().all())
    for (name, p), (_, q) in zip(method.named_parameters(), twin.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name
    assert equal(method.buffers(), twin.buffers())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_blocks_are_computed_again_with_the_same_result(dropout):
    ours, kept = small(dropout=dropout), small(dropout=dropout)
    keys = ours.state_dict().keys()
    blocks = blocks_of(ours)
    assert blocks == [*ours.trunk.blocks]
    recompute_blocks(blocks)
    calls = []
    ours.trunk.blocks[0][0].register_forward_hook(lambda *_: calls.append(1))
    for network in (ours, kept):
        torch.manual_seed(5)
        loss_of(network(CLIPS)).backward()
    assert equal(gradients(ours), gradients(kept)) and equal(ours.buffers(), kept.buffers())
    assert len(calls) == 2  # forward, and again in the backward pass
    assert ours.state_dict().keys() == keys


def test_a_copy_computes_its_own_blocks_again():
    network = small(group_norm)
    recompute_blocks(blocks_of(network))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    loss_of(twin(CLIPS)).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in twin.parameters())
    assert all(p.grad is None for p in network.parameters())


def test_an_attack_on_recomputed_blocks_is_the_same():
    views = []
    for again in (False, True):
        torch.manual_seed(0)
        model = branched().train()
        if again:
            recompute_blocks(blocks_of(model.backbone))
        adversary = attack()
        loss = lambda x, model=model: model(x).square().sum(1)  # noqa: E731
        (view,) = adversary.views(model, lambda _, loss=loss: loss, CLIPS, 0.0)
        views.append(view.x)
    assert torch.equal(*views) and not torch.equal(views[0], CLIPS)

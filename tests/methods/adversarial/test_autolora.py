"""AutoLoRa's step against its formulas, norm branches, other threats, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.helpers import ascend, attack
from vidrobust import config
from vidrobust.config import ModelConfig
from vidrobust.methods import build_method, require_options, skips_weights, without_effect
from vidrobust.methods.adversarial.autolora import AutoLora
from vidrobust.models import add_branches, build_model
from vidrobust.models.low_rank_branch import LowRankBranch
from vidrobust.utils.errors import UserError

LABELS = torch.tensor([0, 1, 2, 0])
RANK = 2
NAME = "method.adversary.name=autolora"
SUPERVISED = ["method.name=supervised"]


def made(backbone="r2plus1d_10", branches=(), accuracy=0.3):
    """Return a method in training, whose branch has moved."""
    model = build_model(ModelConfig(backbone=backbone, width=8), "linear", 3)
    if branches:
        add_branches(model, branches)
    branch = LowRankBranch(model.backbone, RANK)
    for b in branch.b:
        nn.init.normal_(b, std=0.1)
    method = AutoLora(model, attack(branches=branches or ("clean",)), branch)
    method.record_accuracy(accuracy)
    return method.train()


def released(method, x, labels, s, scale=6.0):
    """Take a step as in the released code, whose weights with the branch are written into a copy.

    Returns:
        The loss, the gradients of model and branch by name, and the running statistics.
    """
    plain, branch = method.model, method.branch
    plain.eval()
    x_adv = ascend(lambda v: F.cross_entropy(plain(v), labels, reduction="none"), x)
    plain.train()
    moved = copy.deepcopy(plain)
    weights = dict(moved.backbone.named_parameters())
    with torch.no_grad():
        for key, a, b in zip(branch.keys, branch.a, branch.b, strict=True):
            weights[key] += (b @ a).reshape(weights[key].shape) / RANK
    nat = moved(x)
    for buffer, updated in zip(plain.buffers(), moved.buffers(), strict=True):
        buffer.copy_(updated)
    adv = plain(x_adv)
    p, log_q = nat.softmax(1), adv.log_softmax(1)
    divergence = (p * (p.log() - log_q)).sum() / len(x)
    lambda1, lambda2 = 1 - s, scale * s
    loss = lambda1 * F.cross_entropy(nat, labels) + (1 - lambda1) * F.cross_entropy(adv, labels)
    loss = loss + lambda2 * divergence
    loss.backward()
    # the head learns from both, the branch from clean clips by the chain rule, all else from adv
    gradients = {f"model.{key}": each.grad for key, each in plain.named_parameters()}
    for key, each in moved.head.named_parameters():
        gradients[f"model.head.{key}"] = gradients[f"model.head.{key}"] + each.grad
    for place, (key, a, b) in enumerate(zip(branch.keys, branch.a, branch.b, strict=True)):
        g = weights[key].grad.reshape(len(b), a.shape[1]) / RANK
        gradients[f"branch.a.{place}"] = b.T @ g
        gradients[f"branch.b.{place}"] = g @ a.T
    return loss, gradients, dict(plain.named_buffers())


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("backbone", ["r2plus1d_10", "resnet18"])
@pytest.mark.parametrize("accuracy", [0.0, 0.3, 1.0])
def test_the_step_of_autolora_at_a_given_accuracy_is_the_released_one(backbone, frames, accuracy):
    method = made(backbone, accuracy=accuracy)
    views, ids = torch.rand(4, 1, 3, frames, 32, 32), torch.arange(4)
    loss, gradients, buffers = released(copy.deepcopy(method), views[:, 0], LABELS, accuracy)
    ours = method(views, ids, LABELS)["loss"].mean()
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-9)
    found = {key: each.grad for key, each in method.named_parameters()}
    assert found.keys() == gradients.keys()
    largest = max(g.abs().max() for g in gradients.values())
    assert largest > 1e-4
    for key, g in gradients.items():
        assert torch.allclose(found[key], g, atol=1e-7 * max(1, float(largest))), key
    for key, value in method.model.named_buffers():
        assert torch.allclose(value.double(), buffers[key].double(), atol=1e-7), key


@pytest.mark.usefixtures("exact")
def test_the_loss_is_a_mean_of_losses_per_clip():
    method = made()
    parts = method(torch.rand(4, 1, 3, 2, 16, 16), torch.arange(4), LABELS)
    total = 0.7 * parts["loss_clean"] + 0.3 * parts["loss_adv"]
    assert parts["loss"].shape == (4,)
    assert torch.allclose(parts["loss"], total + 6 * 0.3 * parts["loss_divergence"])


def test_the_attack_uses_the_network_without_the_branch(monkeypatch):
    method = made()
    modes = []
    forward = method.model.forward

    def seen(x):
        key = method.branch.keys[0]
        weight = method.model.backbone.get_submodule(key.removesuffix(".weight")).weight
        modes.append((isinstance(weight, nn.Parameter), method.model.training))
        return forward(x)

    monkeypatch.setattr(method.model, "forward", seen)
    method(torch.rand(4, 1, 3, 2, 16, 16), torch.arange(4), LABELS)
    # two steps of the attack, clean clips, adversarial clips
    assert modes == [(True, False), (True, False), (False, True), (True, True)]


def test_with_norm_branches_clean_clips_go_through_the_clean_one():
    method = made(branches=("adv",))
    before = {key: value.clone() for key, value in method.model.named_buffers()}
    method(torch.rand(4, 1, 3, 2, 16, 16), torch.arange(4), LABELS)["loss"].mean().backward()
    for key, value in method.model.named_buffers():
        if "running_mean" in key:
            assert not torch.equal(value, before[key]), key
    for key, each in method.model.named_parameters():
        assert (each.grad is None) == (".clean." in key), key


THREATS = ["l2-0.5", "flicker-linf-8/255", "tube-linf-8/255", "patch8-linf-1"]


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("frames", [1, 3])
def test_any_threat_model_can_be_trained_against(threat, frames):
    words = ["model.backbone=r2plus1d_10", "model.width=4", f"data.frames={frames}"]
    words += ["data.size=16", f"method.adversary.threats=[{threat}]", "method.adversary.steps=2"]
    cfg = config.loads("", [*SUPERVISED, NAME, *words])
    method = build_method(cfg, 3).train()
    method.record_accuracy(0.5)
    loss = method(torch.rand(4, 1, 3, frames, 16, 16), torch.arange(4), LABELS)["loss"]
    loss.mean().backward()
    assert loss.isfinite().all()
    assert all(p.grad is not None for p in method.parameters())


def test_weights_without_gradient_are_those_of_norm_branches():
    words = [*SUPERVISED, NAME]
    assert not skips_weights(config.loads("", words))
    assert skips_weights(config.loads("", [*words, "method.adversary.combine=branches"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.name=simclr", NAME], "method.adversary.name=autolora: simclr takes"),
        ([*SUPERVISED, NAME, "method.freeze=true"], "method.freeze=true: autolora trains a branch"),
        ([*SUPERVISED, NAME, "train.compile=true"], "train.compile: autolora replaces weights"),
        (["method.name=simclr", "optim.schedule=auto"], "simclr has no classifier"),
        ([*SUPERVISED, "optim.schedule=auto"], "set optim.auto_threats="),
        (
            [*SUPERVISED, NAME, "optim.schedule=auto", "train.average=0.9"],
            "train.average=0.9: optim.schedule",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        require_options(config.loads("", words))


def test_options_without_effect_are_named():
    words = [*SUPERVISED, "optim.patience=0.5", "train.measured=3"]
    words += ["optim.auto_threats=[linf-4/255]", "method.adversary.rank=4"]
    idle = {"optim.patience", "train.measured", "optim.auto_threats", "method.adversary.rank"}
    assert set(without_effect(config.loads("", words))) == idle
    cfg = config.loads("", [*words, NAME, "optim.schedule=auto"])
    assert without_effect(cfg) == []

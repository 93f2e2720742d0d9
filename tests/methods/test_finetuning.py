"""Frozen backbones, attacks through them, and soft labels with adversaries, against formulas."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import tiny
from tests.methods.helpers import EPS, ascend, assert_same, attack
from vidrobust import config
from vidrobust.attacks import ThreatModel
from vidrobust.config import ModelConfig
from vidrobust.methods import (
    METHODS,
    AdversarialTraining,
    Adversary,
    Supervised,
    Trades,
    build_method,
    require_options,
    skips_weights,
    without_effect,
)
from vidrobust.methods.adversarial.adversarial_training import divergence
from vidrobust.methods.soft_labels import LabelSettings, mixed, smoothed
from vidrobust.models import add_branches, build_model
from vidrobust.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("exact")

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def batch():
    return torch.rand(4, 1, 3, 2, 16, 16), torch.arange(4), LABELS


def model(head="linear"):
    cfg = ModelConfig(backbone="r2plus1d_10", width=4, head=head)
    return build_model(cfg, "linear", 3, clip=(3, 2, 16, 16))


def frozen(head="linear"):
    net = model(head)
    net.freeze_backbone()
    return net


@pytest.mark.parametrize("head", ["linear", "attentive"])
@pytest.mark.parametrize("adversary", ["none", "pgd", "trades", "fast", "free"])
def test_a_frozen_backbone_stays_bitwise_and_the_head_learns(batch, adversary, head):
    words = ["method.name=supervised", "method.freeze=true", f"method.adversary.name={adversary}"]
    cfg = config.loads("", tiny(*words, f"model.head={head}"))
    method = build_method(cfg, 3).train()
    before = copy.deepcopy(method.model.state_dict())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        method(*batch)["loss"].mean().backward()
        optimizer.step()
    after = method.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and all(key.startswith("head.") for key in moved)
    assert not method.model.backbone.training and method.model.head.training
    assert all(p.grad is None for p in method.model.backbone.parameters())


def test_alf_is_its_formula(batch):
    """Cross-entropy of PGD through backbone and head, all in eval mode (DynACL's test_LF.py)."""
    views, ids, _ = batch
    net = frozen()
    method = AdversarialTraining(copy.deepcopy(net), attack(branches=("clean",))).train()
    ours = method(views, ids, LABELS)["loss"]
    net.eval()

    def loss(v):
        return F.cross_entropy(net(v), LABELS, reduction="none")

    assert_same(ours, loss(ascend(loss, views[:, 0])), method.model, net)


def test_the_attack_of_fast_training_uses_the_norms_of_the_frozen_backbone(batch):
    net = frozen()
    adversary = Adversary([ThreatModel("linf", EPS)], branches=("clean",), train_mode=True)
    modes = []
    net.backbone.register_forward_hook(lambda module, x, y: modes.append(module.training))
    AdversarialTraining(net, adversary).train()(*batch)
    assert modes and not any(modes)


def test_frozen_norm_branches_are_used_and_kept(batch):
    net = add_branches(model(), ("adv",))
    net.freeze_backbone()
    before = copy.deepcopy(net.backbone.state_dict())
    threats = [ThreatModel("linf", EPS)]
    method = Trades(net, Adversary(threats, combine="branches", random_start=True))
    method.train()(*batch)["loss"].mean().backward()
    after = net.backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothing_is_in_the_loss_and_in_the_attack(batch, smoothing):
    views, ids, _ = batch
    net = model()
    settings = LabelSettings(smoothing)
    method = AdversarialTraining(
        copy.deepcopy(net), attack(branches=("clean",)), label_settings=settings
    )
    ours = method(views, ids, LABELS)["loss"]

    def loss(v):
        return F.cross_entropy(net(v), LABELS, reduction="none", label_smoothing=smoothing)

    net.eval()
    x_adv = ascend(loss, views[:, 0])
    net.train()
    assert_same(ours, loss(x_adv), method.model, net)


def test_pgd_training_attacks_the_soft_labels_of_mixed_clips(batch):
    views, ids, _ = batch
    net = model()
    settings = LabelSettings(0.1, mixup=0.8, cutmix=1.0)
    method = AdversarialTraining(
        copy.deepcopy(net), attack(branches=("clean",)), label_settings=settings
    )
    torch.manual_seed(2)
    ours = method(views, ids, LABELS)["loss"]
    torch.manual_seed(2)
    x, targets = mixed(views[:, 0], LABELS, 3, settings)
    assert not torch.equal(x, views[:, 0])

    def loss(v):
        return -(targets * net(v).log_softmax(1)).sum(1)

    net.eval()
    x_adv = ascend(loss, x)
    net.train()
    assert_same(ours, loss(x_adv), method.model, net)


def test_trades_with_mixed_clips_is_its_formula(batch):
    views, ids, _ = batch
    net = model()
    settings = LabelSettings(0.1, mixup=0.8)
    adversary = attack(branches=("clean",), random_start=True)
    method = Trades(copy.deepcopy(net), adversary, beta=3.0, label_settings=settings)
    torch.manual_seed(2)
    ours = method(views, ids, LABELS)["loss"]
    torch.manual_seed(2)
    x, targets = mixed(views[:, 0], LABELS, 3, settings)
    net.eval()
    clean = net(x).detach()
    moved = (x + ((2 * torch.rand(x.shape) - 1) * EPS)).clamp(0, 1)
    for _ in range(2):
        v = moved.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(divergence(clean, net(v)).sum(), v)
        moved = (x + (v.detach() + 0.75 * EPS * g.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    net.train()
    logits = net(x)
    expected = -(targets * logits.log_softmax(1)).sum(1) + 3 * divergence(logits, net(moved))
    assert_same(ours, expected, method.model, net)


def test_clips_are_mixed_in_training_alone(batch):
    views, ids, labels = batch
    method = Supervised(model(), label_settings=LabelSettings(0.0, mixup=0.8)).eval()
    expected = F.cross_entropy(method.model(views[:, 0]), labels, reduction="none")
    assert torch.equal(method(views, ids, labels)["loss"], expected)


def test_the_head_may_be_trained_first_on_mixed_clips(batch):
    views, ids, _ = batch
    settings = LabelSettings(0.1, mixup=0.8)
    method = Supervised(model("attentive"), head_first=0.5, label_settings=settings)
    torch.manual_seed(2)
    ours = method(views, ids, LABELS, 0.2)["loss"]
    torch.manual_seed(2)
    x, targets = mixed(views[:, 0], LABELS, 3, settings)
    logits = method.model.eval()(x)
    assert torch.allclose(ours, -(targets * logits.log_softmax(1)).sum(1))


def test_one_step_training_on_mixed_clips_watches_no_accuracy():
    adversary = Adversary([ThreatModel("linf", EPS)], branches=("clean",))
    assert AdversarialTraining(model(), adversary).watch is not None
    settings = LabelSettings(mixup=0.8)
    assert AdversarialTraining(model(), adversary, label_settings=settings).watch is None


def test_smoothed_rows_sum_to_one():
    assert torch.allclose(smoothed(LABELS, 3, 0.3).sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.head=attentive"], "model.head=attentive: simclr has no classifier; of supervised"),
        (
            ["method.name=supervised", "model.head=attentive", "train.compile=true"],
            "train.compile: a compiled backbone gives no tokens",
        ),
        (
            ["method.name=supervised", "method.freeze=true", "method.head_first=0.5"],
            "method.head_first=0.5: with method.freeze only the head ever learns; set 0",
        ),
        (
            [
                "method.name=supervised",
                "method.freeze=true",
                "method.adversary.name=pgd",
                "method.adversary.combine=branches",
                "method.adversary.selector=true",
            ],
            "method.adversary.selector: it is a part of the backbone",
        ),
        (
            ["method.name=supervised", "method.adversary.name=free", "method.mixup=0.8"],
            "method.mixup=0.8: free adversarial training repeats a batch",
        ),
    ],
)
def test_options_that_do_not_go_together_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as refusal:
        require_options(config.loads("", words))
    assert "\n" not in str(refusal.value)


def test_options_without_effect_are_known():
    words = ["method.name=supervised", "optim.name=adamw", "method.freeze=true"]
    words += ["optim.layer_decay=0.7", "model.head_blocks=4", "optim.betas=[0.9,0.95]"]
    idle = without_effect(config.loads("", words))
    assert set(idle) == {"optim.layer_decay", "model.head_blocks"}
    words = ["method.name=simclr", "method.freeze=true", "model.head_scale=0"]
    assert set(without_effect(config.loads("", words))) == {"method.freeze", "model.head_scale"}


def test_a_head_of_tokens_leaves_weights_without_gradient_unless_they_are_frozen():
    words = ["method.name=supervised", "model.head=attentive"]
    assert skips_weights(config.loads("", words))
    assert not skips_weights(config.loads("", [*words, "method.freeze=true"]))
    assert not skips_weights(config.loads("", words[:1]))
    assert "freeze" in METHODS["supervised"].fixed

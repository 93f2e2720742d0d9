"""Rates of layers against tables written by hand, and their groups in the optimizer."""

import pytest
import torch

from tests.helpers import tiny_videomae
from vidrobust.config import ModelConfig, OptimConfig
from vidrobust.methods import Supervised
from vidrobust.models import Backbone, build_model
from vidrobust.models.backbone import BackboneParts
from vidrobust.training.layer_decay import rate_factors
from vidrobust.training.optim import build_optimizer, learning_rate, set_rate
from vidrobust.utils.errors import UserError


def by_name(backbone, decay):
    factors = rate_factors(backbone, decay)
    return {name: factors[p] for name, p in backbone.stored.named_parameters()}


def test_layers_of_a_video_transformer_are_those_of_videomae(tmp_path):
    """L = 3 blocks: embeddings 0, blocks 1 to 3, final norm and head L + 1 = 4."""
    tiny_videomae(tmp_path / "vit")
    model = build_model(ModelConfig(backbone=f"hf:{tmp_path / 'vit'}"), "linear", 3)
    table = {
        "videomae.embeddings.patch_embeddings.projection.weight": 0.5**4,
        "videomae.embeddings.patch_embeddings.projection.bias": 0.5**4,
        "videomae.encoder.layer.0.attention.attention.query.weight": 0.5**3,
        "videomae.encoder.layer.0.layernorm_after.bias": 0.5**3,
        "videomae.encoder.layer.1.output.dense.weight": 0.5**2,
        "videomae.encoder.layer.2.intermediate.dense.weight": 0.5,
        "fc_norm.weight": 1.0,
        "fc_norm.bias": 1.0,
    }
    found = by_name(model.backbone, 0.5)
    assert {name: found[name] for name in table} == table


def test_layers_of_r2plus1d_are_its_stages():
    backbone = build_model(ModelConfig(backbone="r2plus1d_18"), "linear", 3).backbone
    found = by_name(backbone, 0.5)
    table = {"stem": 0.5**5, "layer1": 0.5**4, "layer2": 0.5**3, "layer3": 0.5**2, "layer4": 0.5}
    assert {name: table[name.split(".")[0]] for name in found} == found
    assert {name.split(".")[0] for name in found} == table.keys()


def test_rates_of_groups_follow_the_schedule_times_their_factor():
    model = build_model(ModelConfig(backbone="r2plus1d_10", width=4), "linear", 3)
    cfg = OptimConfig(name="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.5)
    method = Supervised(model)
    optimizer = build_optimizer(method, cfg, model.backbone)
    set_rate(optimizer, 0.2)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    factors = rate_factors(model.backbone, 0.5)
    for p in method.parameters():
        assert rates[p] == pytest.approx(0.2 * factors.get(p, 1.0))
    for group in optimizer.param_groups:
        decays = {p.ndim > 1 for p in group["params"]}
        assert decays in (set(), {group["weight_decay"] == 0.05})
    # one rate: the two groups that checkpoints without layer_decay have
    assert len(build_optimizer(method, OptimConfig(), model.backbone).param_groups) == 2


def test_a_frozen_backbone_is_in_no_group():
    model = build_model(ModelConfig(backbone="r2plus1d_10", width=4), "linear", 3)
    model.freeze_backbone()
    optimizer = build_optimizer(Supervised(model), OptimConfig(layer_decay=0.5), model.backbone)
    learned = {p for group in optimizer.param_groups for p in group["params"]}
    assert learned == set(model.head.parameters())


def test_a_network_without_stages_is_refused():
    module = torch.nn.Linear(3, 4)
    backbone = Backbone(BackboneParts(module, 4, (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(UserError, match="no list of stages"):
        rate_factors(backbone, 0.5)


def test_adamw_takes_its_betas_and_eps():
    cfg = OptimConfig(name="adamw", betas=[0.8, 0.95], eps=1e-6)
    (group, _) = build_optimizer(torch.nn.Linear(2, 2), cfg).param_groups
    assert group["betas"] == (0.8, 0.95) and group["eps"] == 1e-6


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_decays_to_its_last_value(schedule):
    """VideoMAE: final + (peak - final) (1 + cos(pi i / n)) / 2 at step i of n."""
    cfg = OptimConfig(lr=1.0, final_lr=0.1, warmup=0.2, schedule=schedule)
    rates = [learning_rate(step, 10, cfg) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    middle = 0.1 + 0.9 * 0.5
    assert rates[6] == pytest.approx(middle) and rates[-1] > 0.1
    assert learning_rate(10, 10, cfg) == pytest.approx(0.1)

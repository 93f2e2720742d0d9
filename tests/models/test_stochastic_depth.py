"""Stochastic depth: rates per block, both forms of its module, networks without it."""

import pytest
import torch
from torchvision.ops import StochasticDepth

from tests.helpers import videomae_config
from vidrobust.config import ModelConfig
from vidrobust.models import configured_backbone
from vidrobust.models.stochastic_depth import DropPath, set_drop_path
from vidrobust.utils.errors import UserError


def rates_of(network):
    modules = [m for m in network.modules() if isinstance(m, DropPath | StochasticDepth)]
    return [m.rate if isinstance(m, DropPath) else m.p for m in modules]


def test_a_sample_is_dropped_whole_and_the_mean_stays():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    dropped = DropPath(0.25)(x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert bool((dropped.flatten(1).std(1) == 0).all())
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(DropPath(0.25).eval()(x), x)


@pytest.mark.parametrize(
    ("name", "blocks", "modules"),
    [
        ("torchvision:swin3d_t", 12, 12),
        ("torchvision:convnext_tiny", 18, 18),
        ("torchvision:mvit_v2_s", 16, 16),
        ("timm:vit_tiny_patch16_224", 12, 24),
    ],
)
def test_rates_rise_linearly_to_the_last_block(name, blocks, modules):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = configured_backbone(ModelConfig(backbone=name, drop_path=0.3))
    per_block = modules // blocks
    expected = [0.3 * i / (blocks - 1) for i in range(blocks) for _ in range(per_block)]
    assert rates_of(backbone) == pytest.approx(expected)
    own = configured_backbone(ModelConfig(backbone=name))
    assert own.state_dict().keys() == backbone.state_dict().keys()


def test_videomae_of_transformers_gets_stochastic_depth_in_both_branches():
    transformers = pytest.importorskip("transformers")
    network = transformers.VideoMAEForVideoClassification(videomae_config())
    keys = network.state_dict().keys()
    clips = torch.rand(2, 2, 3, 32, 32)
    before = network.eval()(clips).logits
    assert set_drop_path(network, 0.4) == 3
    assert rates_of(network) == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])
    assert network.state_dict().keys() == keys
    assert torch.equal(network(clips).logits, before)
    # with every branch left out, a block is the identity
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 1 - 1e-9
    layer = network.videomae.encoder.layer[1].train()
    x = torch.rand(2, 4, 8)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("name", ["r2plus1d_18", "torchvision:r3d_18", "torchvision:vit_b_32"])
def test_networks_without_it_are_refused_by_name(name):
    message = f"model.drop_path=0.1: {name} has no stochastic depth; set model.drop_path=-1"
    with pytest.raises(UserError, match=message):
        configured_backbone(ModelConfig(backbone=name, drop_path=0.1))

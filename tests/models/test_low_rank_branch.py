"""The branch of low rank: shapes, values, which weights change, what is refused."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from vidrobust.models import build_backbone
from vidrobust.models.low_rank_branch import LowRankBranch
from vidrobust.utils.errors import UserError

SMALL = {
    "resnet18": {"width": 8, "stem": "cifar"},
    "r2plus1d_10": {"width": 4},
    "resnet3d_18": {"width": 16},
    "resnext3d_101": {},
}


def small(name):
    return build_backbone(name, **SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_products_have_the_shapes_of_the_weights(name):
    backbone = small(name)
    branch = LowRankBranch(backbone, 2)
    weights = dict(backbone.named_parameters())
    for key, a, b in zip(branch.keys, branch.a, branch.b, strict=True):
        w = weights[key].shape[-1]
        assert a.shape[0] == b.shape[1] == 2 * w
        assert (b @ a).numel() == weights[key].numel()
    normal = torch.cat([a.detach().flatten() for a in branch.a])
    assert float(normal.std()) == pytest.approx(1, abs=0.1)
    assert all(not b.any() for b in branch.b)


def test_shapes_for_images_are_those_of_the_released_code():
    """A (rank k, in k) and B (out k, rank k)."""
    backbone = small("resnet18")
    branch = LowRankBranch(backbone, 3)
    modules = dict(backbone.named_modules())
    for key, a, b in zip(branch.keys, branch.a, branch.b, strict=True):
        conv = modules[key.removesuffix(".weight")]
        k = conv.kernel_size[0]
        assert a.shape == (3 * k, conv.in_channels * k)
        assert b.shape == (conv.out_channels * k, 3 * k)


@pytest.mark.parametrize("name", SMALL)
def test_convolutions_of_the_stages_change_and_the_stem_does_not(name):
    backbone = small(name)
    convs = {
        f"{key}.weight"
        for key, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d)
    }
    stem = convs - set(LowRankBranch(backbone, 1).keys)
    expected = {"r2plus1d_10": {"trunk.0.0.weight", "trunk.0.3.weight"}}
    assert stem == expected.get(name, {"trunk.conv1.weight"})


def test_networks_of_other_packages_have_branches():
    for name in ("torchvision:r3d_18", "torchvision:r2plus1d_18"):
        keys = LowRankBranch(build_backbone(name), 1).keys
        assert keys and not any("stem" in key for key in keys)
        assert all(key.startswith("trunk.network.layer") for key in keys)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", ["resnet18", "r2plus1d_10"])
def test_with_b_of_0_the_branch_is_the_plain_network_bitwise(name, frames):
    backbone = small(name)
    branch = LowRankBranch(backbone, 8)
    x = torch.rand(2, 3, frames, 16, 16)
    for mode in (True, False):
        backbone.train(mode)
        assert torch.equal(functional_call(backbone, branch(backbone), (x,)), backbone(x))


def test_the_weights_are_those_of_the_formula_and_gradient_reaches_the_branch_alone():
    backbone = small("r2plus1d_10")
    branch = LowRankBranch(backbone, 2)
    for b in branch.b:
        nn.init.normal_(b)
    before = {key: p.detach().clone() for key, p in backbone.named_parameters()}
    weights = branch(backbone)
    assert weights.keys() == before.keys()
    for key, value in weights.items():
        if key not in branch.keys:
            assert torch.equal(value, before[key]) and not value.requires_grad
            continue
        place = branch.keys.index(key)
        product = (branch.b[place] @ branch.a[place]) / 2
        assert torch.allclose(value, before[key] + product.reshape(before[key].shape))
    functional_call(backbone, weights, (torch.rand(2, 3, 2, 16, 16),)).sum().backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(p.grad is not None and p.grad.any() for p in branch.parameters())


class Blocks(nn.Module):
    """A network of blocks, all linear."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x):
        x = x.mean((2, 3, 4))
        for block in self.blocks:
            x = block(x)
        return x


def backbone_of(module):
    backbone = small("resnet18")
    backbone.trunk = module
    return backbone


def normed():
    network = small("resnet18").trunk
    parametrizations.weight_norm(network.layer1[0].conv1)
    return network


@pytest.mark.parametrize(
    "make",
    [Blocks, nn.Identity, normed, lambda: torch.jit.script(Blocks())],
    ids=["no convolutions", "no stages", "weights of weights", "TorchScript"],
)
def test_a_network_without_weights_to_change_is_refused(make):
    with pytest.raises(UserError, match="no stages with convolutions whose weights a branch"):
        LowRankBranch(backbone_of(make()), 8)

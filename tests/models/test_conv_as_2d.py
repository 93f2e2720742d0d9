"""Factorised convolutions in two dimensions are those in three."""

import copy

import pytest
import torch
from torch import nn

from tests.methods.helpers import TINY
from vidrobust.models import build_model
from vidrobust.models.conv_as_2d import compute_as_2d

FORMS = {
    "spatial": {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
    "spatial stride": {"kernel_size": (1, 5, 3), "stride": (1, 2, 2), "padding": (0, 2, 0)},
    "spatial dilation": {"kernel_size": (1, 3, 3), "dilation": (1, 2, 2), "bias": False},
    "stride in time": {"kernel_size": (1, 3, 3), "stride": (2, 1, 1)},
    "temporal": {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)},
    "temporal stride": {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "padding": (1, 0, 0)},
    "temporal dilation": {"kernel_size": (2, 1, 1), "dilation": (2, 1, 1)},
    "pointwise": {"kernel_size": 1},
    "pointwise stride": {"kernel_size": 1, "stride": 2, "bias": False},
    "groups": {"kernel_size": (3, 1, 1), "groups": 2, "padding": (1, 0, 0)},
}
OTHERS = {
    "cube": {"kernel_size": 3},
    "stride in space": {"kernel_size": (3, 1, 1), "stride": (1, 2, 2)},
    "padding in space": {"kernel_size": (3, 1, 1), "padding": (1, 1, 1)},
    "padding in time": {"kernel_size": (1, 3, 3), "padding": (1, 1, 1)},
    "no zeros": {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "padding_mode": "replicate"},
}


def conv(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return nn.Conv3d(4, 6, **options).to(dtype)


def clips(shape=(2, 4, 5, 7, 6), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def passed(network, x):
    """Return output, gradient of the clips and gradients of the weights."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
    y = network(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("length", [1, 3, 6])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
def test_outputs_and_gradients_are_those_of_three_dimensions(options, length, order):
    if length == 1 and options.get("dilation", (1,))[0] == 2:
        length = 4  # a dilated kernel in time needs frames
    ours, theirs = conv(**options), conv(**options)
    assert compute_as_2d(ours) == 0
    x = clips((2, 4, length, 7, 6)).contiguous(memory_format=order)
    for a, b in zip(passed(ours, x), passed(theirs, x), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    assert ours(x).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_keep_their_form(options):
    ours, theirs = conv(**options), conv(**options)
    assert compute_as_2d(ours) == 1
    assert torch.equal(ours(clips()), theirs(clips()))


def test_a_network_and_its_copies_have_their_own_weights_and_the_same_keys():
    torch.manual_seed(0)
    plain = build_model(TINY, "projector").eval()
    model = copy.deepcopy(plain)
    assert compute_as_2d(model) == 0  # all convolutions of R(2+1)D are factorised
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = clips((2, 3, 4, 16, 16), torch.float32).sigmoid()
    assert torch.allclose(model(x), plain(x), rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.allclose(twin(x), plain(x), rtol=1e-4, atol=1e-5)


def test_weight_gradients_in_bf16_are_near_those_in_full_precision():
    """Those of torch's Conv3d on CPUs are NaN now and then."""
    for options in FORMS.values():
        exact = conv(torch.float32, **options)
        rough = copy.deepcopy(exact)
        compute_as_2d(rough)
        x = clips(dtype=torch.float32)
        exact(x).square().sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            y = rough(x)
        y.float().square().sum().backward()
        a, b = rough.weight.grad, exact.weight.grad
        assert float((a - b).norm() / b.norm()) < 0.02


class Doubled(nn.Conv3d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledInside(nn.Conv3d):
    def _conv_forward(self, x, weight, bias):
        return 2 * super()._conv_forward(x, weight, bias)


@pytest.mark.parametrize("kind", [Doubled, DoubledInside])
def test_subclasses_that_compute_something_else_keep_their_form(kind):
    network = kind(4, 6, (1, 3, 3)).double()
    expected = network(clips())
    assert compute_as_2d(network) == 1
    assert torch.equal(network(clips()), expected)

"""Convolutions of small maps are those of torch, up to rounding."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidrobust.models import small_maps
from vidrobust.models.conv_as_2d import compute_as_2d
from vidrobust.models.resnet import resnet18
from vidrobust.models.small_maps import conv2d

SIDES = list(itertools.product((1, 2, 3, 5), (1, 2, 4)))
SHAPES = [
    (h, w, k, m, stride, padding)
    for (h, w), k, m, stride, padding in itertools.product(
        SIDES, (1, 3, 5, 7), (1, 3), (1, 2, 3), (0, 1, 3)
    )
    if h + 2 * padding >= k and w + 2 * padding >= m
]


def passes(function, *inputs):
    """The output, and the gradients of a fixed weighting of it."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad((y * weights).sum(), leaves)]


def test_outputs_and_gradients_of_all_small_shapes():
    generator = torch.Generator().manual_seed(0)
    for h, w, k, m, stride, padding in SHAPES:
        x = torch.randn(2, 3, h, w, generator=generator)
        weight = torch.randn(4, 3, k, m, generator=generator)

        def ours(x, weight, step=stride, edge=padding):
            return conv2d(x, weight, None, (step, step), (edge, edge), (1, 1), 1)

        def theirs(x, weight, step=stride, edge=padding):
            return F.conv2d(x, weight, None, step, edge)

        for a, b in zip(passes(ours, x, weight), passes(theirs, x, weight), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_weights_that_meet_only_padding_are_left_out():
    assert small_maps._used_taps(side=1, kernel=3, stride=1, padding=1) == (1, 2)
    assert small_maps._used_taps(side=2, kernel=3, stride=2, padding=1) == (1, 3)
    assert small_maps._used_taps(side=2, kernel=3, stride=1, padding=1) == (0, 3)
    assert small_maps._used_taps(side=3, kernel=7, stride=1, padding=3) == (1, 6)
    # without them a second place would appear, or one get lost
    assert small_maps._used_taps(side=1, kernel=1, stride=1, padding=1) == (0, 1)


@pytest.mark.parametrize(
    "side,dtype,by_matrices",
    [
        (2, torch.float32, True),
        (3, torch.float32, False),
        (4, torch.bfloat16, True),
        (5, torch.bfloat16, False),
    ],
)
def test_a_product_of_matrices_is_used_where_it_is_faster(side, dtype, by_matrices):
    x = torch.randn(2, 8, side, side, dtype=dtype)
    weight = torch.randn(8, 8, 3, 3, dtype=dtype, requires_grad=True)

    def ours(weight):
        return conv2d(x, weight, None, (1, 1), (1, 1), (1, 1), 1)

    assert ("ByMatrices" in ours(weight).grad_fn.name()) == by_matrices
    with torch.no_grad():
        assert not ours(weight).requires_grad


def test_the_gradient_has_a_gradient():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    apply = small_maps._ByMatrices.apply
    assert torch.autograd.gradcheck(lambda *a: apply(*a, (1, 1), (1, 1)), (x, weight))
    assert torch.autograd.gradgradcheck(lambda *a: apply(*a, (1, 1), (1, 1)), (x, weight))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resnet_on_small_images_is_the_same_network(bf16):
    """At 32 pixels the last stage of the ImageNet form has maps of one pixel."""
    torch.manual_seed(0)
    plain = resnet18(8, "imagenet").module
    ours = copy.deepcopy(plain)
    assert compute_as_2d(ours) == 0
    assert ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(8, 3, 1, 32, 32)
    results = []
    for network in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = network(x)
        y.float().pow(2).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in network.parameters()])
        results.append((y.float(), grads))
    (y, grads), (y_ours, grads_ours) = results
    tolerance = 0.05 if bf16 else 1e-4
    assert (y - y_ours).norm() <= tolerance * y.norm()
    assert (grads - grads_ours).norm() <= tolerance * grads.norm()
    # the eight outer weights of a kernel on one pixel have no gradient
    outer = ours.layer4[1].conv1.weight.grad.clone()
    assert outer[:, :, 1, 1].abs().sum() > 0
    outer[:, :, 1, 1] = 0
    assert not outer.any()


def test_other_convolutions_are_left_to_torch():
    """Groups, dilation, a bias and single images, and modules with a forward of their own."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 3)
    for options in ({"groups": 2}, {"dilation": 2, "padding": 2}, {"bias": True}):
        conv = nn.Conv2d(4, 4, 3, **{"bias": False, "padding": 1} | options)
        expected = conv(x)
        compute_as_2d(conv)
        assert torch.equal(conv(x), expected)
        assert torch.allclose(conv(x[0]), expected[0], atol=1e-6)

    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    double = Doubled(4, 4, 3)
    compute_as_2d(double)
    assert "forward" not in vars(double)

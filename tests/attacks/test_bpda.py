"""The value is exact, and the gradient is that of the stand-in."""

import pytest
import torch
from torch import nn

from vidrobust.attacks import BPDA, ThreatModel, pgd
from vidrobust.attacks.losses import Misclassify


def quantised(x):
    return (4 * x).round() / 4


@pytest.mark.parametrize("frames", [1, 3])
def test_value_and_gradient(frames):
    x = torch.rand(2, 3, frames, 4, 4, requires_grad=True)
    layer = BPDA(quantised)
    assert torch.equal(layer(x), quantised(x))
    (3 * layer(x)).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3)), "the identity"
    x.grad = None
    BPDA(quantised, lambda v: v.square())(x).sum().backward()
    assert torch.allclose(x.grad, 2 * x)


def test_an_attack_passes_a_quantisation_that_hides_the_gradient():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 16, 2))
    x = torch.rand(16, 3, 1, 4, 4)
    threat = ThreatModel("linf", 0.2)

    def broken(layer):
        model = nn.Sequential(layer, head).eval()
        y = model(x).argmax(1)
        x_adv = pgd(Misclassify(model, y), x, threat, steps=10, random_start=False)
        return int((model(x_adv).argmax(1) != y).sum())

    class Plain(nn.Module):
        def forward(self, v):
            return quantised(v)

    with pytest.warns(UserWarning, match="the gradient is 0 for every sample"):
        hidden = broken(Plain())
    assert hidden == 0 and broken(BPDA(quantised)) > 8


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"forward gives \(2,\), but backward \(2, 3\)"):
        BPDA(lambda x: x.sum(1), lambda x: x)(torch.rand(2, 3))

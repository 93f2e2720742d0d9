import torch
from torch.nn import functional as F

from vidrobust.evaluation import fit_probe


def _objective(weight, bias, x, y, l2):
    return F.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()


def test_it_is_the_minimum_and_the_standardisation_is_folded_in():
    torch.manual_seed(0)
    features, y = torch.randn(200, 5) * torch.tensor([1, 10, 100, 0.1, 1]) + 50, torch.randint(3, (200,))
    layer = fit_probe(features, y, 3, l2=0.01)
    mean, std = features.mean(0), features.std(0, correction=0)
    weight = (layer.weight * std).detach().requires_grad_(True)
    bias = (layer.bias + layer.weight @ mean).detach().requires_grad_(True)
    loss = _objective(weight, bias, (features - mean) / std, y, 0.01)
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-3
    expected = ((features - mean) / std) @ weight.T + bias
    assert torch.allclose(layer(features), expected, atol=1e-3)


def test_it_separates_what_is_separable_and_cannot_what_is_not():
    torch.manual_seed(0)
    y = torch.arange(4).repeat(50)
    good = F.one_hot(y, 4).float() + 0.1 * torch.randn(200, 4)
    assert (fit_probe(good, y, 4)(good).argmax(1) == y).all()
    noise = torch.randn(2000, 4)
    test = torch.randn(2000, 4)
    labels = torch.arange(4).repeat(500)
    assert (fit_probe(noise, labels, 4)(test).argmax(1) == labels).float().mean() < 0.32


def test_it_is_deterministic_and_bears_constant_features():
    features, y = torch.randn(60, 6), torch.randint(3, (60,))
    features[:, 2] = 7.0
    a, b = fit_probe(features, y, 3), fit_probe(features, y, 3)
    assert torch.equal(a.weight, b.weight) and torch.isfinite(a.weight).all()
    assert a.weight[:, 2].abs().max() < 1e-4

import pytest
import torch
from torch.nn import functional as F

from vidrobust.evaluation import fit_probe
from vidrobust.utils.errors import UserError


def _objective(weight, bias, x, y, l2):
    return F.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()


def test_the_probe_is_the_minimum_with_the_standardisation_folded_in():
    torch.manual_seed(0)
    features, y = (
        torch.randn(200, 5) * torch.tensor([1, 10, 100, 0.1, 1]) + 50,
        torch.randint(3, (200,)),
    )
    layer = fit_probe(features, y, 3, l2=0.01)
    mean, std = features.mean(0), features.std(0, correction=0)
    weight = (layer.weight * std).detach().requires_grad_(True)
    bias = (layer.bias + layer.weight @ mean).detach().requires_grad_(True)
    loss = _objective(weight, bias, (features - mean) / std, y, 0.01)
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-3
    expected = ((features - mean) / std) @ weight.T + bias
    assert torch.allclose(layer(features), expected, atol=1e-3)


def test_the_probe_separates_separable_classes_and_not_noise():
    torch.manual_seed(0)
    y = torch.arange(4).repeat(50)
    good = F.one_hot(y, 4).float() + 0.1 * torch.randn(200, 4)
    assert (fit_probe(good, y, 4)(good).argmax(1) == y).all()
    noise = torch.randn(2000, 4)
    test = torch.randn(2000, 4)
    labels = torch.arange(4).repeat(500)
    assert (fit_probe(noise, labels, 4)(test).argmax(1) == labels).float().mean() < 0.32


def test_the_probe_is_deterministic_and_ignores_a_constant_feature():
    features, y = torch.randn(60, 6), torch.randint(3, (60,))
    features[:, 2] = 7.0
    a, b = fit_probe(features, y, 3), fit_probe(features, y, 3)
    assert torch.equal(a.weight, b.weight) and torch.isfinite(a.weight).all()
    assert a.weight[:, 2].abs().max() < 1e-4


def _classes(n=400):
    torch.manual_seed(0)
    y = torch.arange(4).repeat(n // 4)
    return F.one_hot(y, 4).float() + 0.25 * torch.randn(n, 4), y


@pytest.mark.parametrize("scale", [1e-3, 1e-7, 1e-12, 1e-20, 1e-25, 1e6])
def test_the_probe_does_not_depend_on_the_scale_of_features(scale):
    features, y = _classes()
    expected = fit_probe(features, y, 4)
    scaled = fit_probe(scale * features, y, 4)
    accuracy = [
        (layer(x).argmax(1) == y).float().mean()
        for layer, x in ((expected, features), (scaled, scale * features))
    ]
    assert accuracy[0] > 0.95
    assert abs(accuracy[0] - accuracy[1]) < 0.01
    assert torch.allclose(scaled(scale * features), expected(features), atol=0.05)


def test_small_and_large_features_count_equally():
    """Only the small feature separates the classes."""
    torch.manual_seed(0)
    y = torch.arange(2).repeat(200)
    features = torch.randn(400, 6)
    features[:, 3] = 1e-8 * (2.0 * y - 1 + 0.2 * torch.randn(400))
    layer = fit_probe(features, y, 2)
    assert (layer(features).argmax(1) == y).float().mean() > 0.99


@pytest.mark.parametrize("constant", [0.0, 7.0, 0.1, 1e-9, -1e-20, 1e8])
def test_constant_features_are_ignored(constant):
    features, y = _classes()
    expected = fit_probe(features, y, 4)
    layer = fit_probe(torch.cat([features, torch.full((400, 1), constant)], 1), y, 4)
    assert (
        layer.weight[:, 4] == 0
    ).all() or constant == 1e8  # its mean is off by more than a millionth's millionth
    assert torch.allclose(layer.weight[:, :4], expected.weight, atol=1e-3)


def test_rounding_errors_around_a_constant_are_ignored():
    """Its weight would be ten million, for changes of one unit in the last place of 1."""
    features, y = _classes()
    noise = 1 + 2.0**-23 * torch.randint(0, 2, (400, 1))
    layer = fit_probe(torch.cat([features, noise], 1), y, 4)
    assert (layer.weight[:, 4] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_features_are_refused_with_the_names_of_the_clips(value):
    features, y = _classes()
    features[[5, 399], 2] = value
    with pytest.raises(
        UserError,
        match="features of the probe: NaN or infinite for v2, v199; find what overflows",
    ):
        fit_probe(features, y, 4, names=[f"v{i}" for i in range(200)])
    with pytest.raises(UserError, match="NaN or infinite for row 5, row 399;"):
        fit_probe(features, y, 4)

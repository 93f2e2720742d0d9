"""VICReg against a loop over videos and dimensions."""

import math

import pytest
import torch

from vidrobust import config
from vidrobust.methods import build_method
from vidrobust.methods.vicreg import VICReg, vicreg_terms
from vidrobust.utils.errors import UserError


def by_loops(a, b):
    """The three terms with the means of the released code."""
    n, d = a.shape
    invariance = [sum((a[i, j] - b[i, j]).item() ** 2 for j in range(d)) / d for i in range(n)]
    variance = covariance = 0.0
    for z in (a, b):
        mean = [sum(z[i, j].item() for i in range(n)) / n for j in range(d)]
        for j in range(d):
            var = sum((z[i, j].item() - mean[j]) ** 2 for i in range(n)) / (n - 1)
            variance += max(0.0, 1 - math.sqrt(var + 1e-4)) / d / 2
            for k in range(d):
                if k != j:
                    terms = (
                        (z[i, j].item() - mean[j]) * (z[i, k].item() - mean[k]) for i in range(n)
                    )
                    covariance += (sum(terms) / (n - 1)) ** 2 / d
    return invariance, variance, covariance


def test_its_terms_are_the_papers():
    a, b = torch.randn(2, 6, 5, dtype=torch.float64) * 0.7
    invariance, variance, covariance = vicreg_terms(a, b)
    expected = by_loops(a, b)
    assert invariance.tolist() == pytest.approx(expected[0], abs=1e-12)
    assert variance.tolist() == pytest.approx([expected[1]] * 6, abs=1e-12)
    assert covariance.tolist() == pytest.approx([expected[2]] * 6, abs=1e-12)


def test_gradients_reach_both_views():
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    a.requires_grad_()
    b.requires_grad_()
    torch.autograd.gradcheck(lambda a, b: sum(term.sum() for term in vicreg_terms(a, b)), (a, b))


@pytest.mark.parametrize("frames", [1, 4])
def test_a_step_weighs_the_terms_as_the_paper(frames):
    words = [
        "method.name=vicreg",
        "model.backbone=r2plus1d_10",
        "model.width=4",
        f"data.frames={frames}",
    ]
    torch.manual_seed(0)
    method = build_method(config.loads("", [*words, "model.hidden=8", "model.dim=6"]), 3)
    assert isinstance(method, VICReg)
    parts = method(torch.rand(4, 2, 3, frames, 16, 16), torch.arange(4), torch.arange(4))
    expected = (
        25 * parts["loss_invariance"] + 25 * parts["loss_variance"] + parts["loss_covariance"]
    )
    assert parts["loss"].shape == (4,)
    assert torch.allclose(parts["loss"], expected)
    parts["loss"].mean().backward()
    assert all(p.grad is not None for p in method.parameters())


def test_three_views_are_the_mean_of_their_pairs():
    torch.manual_seed(0)
    words = ["method.name=vicreg", "model.backbone=resnet18", "model.width=8", "data.frames=1"]
    method = build_method(config.loads("", [*words, "method.clips_per_video=3"]), 3).eval()
    views = torch.rand(4, 3, 3, 1, 16, 16)
    whole = method(views, torch.arange(4), torch.arange(4))["loss"]
    method.views = 2
    pairs = [
        method(views[:, pair], torch.arange(4), torch.arange(4))["loss"]
        for pair in ([0, 1], [0, 2], [1, 2])
    ]
    assert torch.allclose(whole, torch.stack(pairs).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.false_negatives.rule=fixed", "rule=fixed: vicreg has no negatives; set none"),
        ("method.negatives.names=[patch]", "vicreg has no negatives; leave it empty"),
        ("method.adversary.name=clae", "name=clae: vicreg has no adversarial views; set none"),
    ],
)
def test_what_it_does_not_take(word, message):
    with pytest.raises(UserError, match=message):
        build_method(config.loads("", ["method.name=vicreg", word]), 3)

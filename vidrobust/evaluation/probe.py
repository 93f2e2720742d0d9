"""Linear probe: multinomial logistic regression on frozen features (the protocol SLF)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fit_probe(features: Tensor, labels: Tensor, classes: int, *, l2: float = 1e-3, iterations: int = 300) -> nn.Linear:
    """The minimum of mean cross-entropy + l2/2 |W|^2 on standardised features, as a layer on the raw ones.

    features (M, D), labels (M,) in 0..classes-1. L-BFGS from zero: deterministic, no rate or epoch to choose,
    nothing selected on test data. Returns nn.Linear (D -> classes) on the device of the features; the
    standardisation is folded into it.
    """
    mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    x = (features - mean) / std
    weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    layer = nn.Linear(x.shape[1], classes, device=x.device)
    with torch.no_grad():
        layer.weight.copy_(weight / std)
        layer.bias.copy_(bias - (weight / std) @ mean)
    return layer

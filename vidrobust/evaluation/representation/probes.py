"""Fit a linear probe: multinomial logistic regression on frozen features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.attacks.arguments import at_least_one, between
from vidrobust.evaluation.representation.finite import require_finite

_SMALL = 1e-6  # deviations below it are computed at another scale
_LEAST = 1e-30  # a feature that varies by less has no finite weight in float32


def fit_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    l2: float = 1e-3,
    iterations: int = 300,
    names: Sequence[str] | None = None,
) -> nn.Linear:
    """Return the minimum of mean cross-entropy + l2/2 |W|^2, as a layer on the raw features.

    It is that on standardised features.

    L-BFGS from zero: deterministic, no rate or epoch to choose, nothing selected on test data. The
    layer is on the device of the features; the standardisation is folded into it. A feature that is
    constant, or varies by less than a millionth of its mean, which is float32's rounding, has
    weight 0.

    Args:
        features: (M, D).
        labels: (M,) in 0..classes-1.
        classes: how many there are.
        l2: weight of the penalty.
        iterations: of L-BFGS at most.
        names: of the clips, or of the videos of which each has several clips, for messages.

    Raises:
        UserError: for features that are NaN or infinite, with the clips.
        ValueError: for l2 below 0, and for iterations below 1.
    """
    at_least_one(iterations=iterations)
    between(0, float("inf"), l2=l2)
    require_finite(features, "features of the probe", names)
    mean, std = features.mean(0), features.std(0, correction=0)
    x = (features - mean) / std.clamp_min(_SMALL)
    std = _standardise_small(features, mean, std, x)
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


def _standardise_small(features: Tensor, mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
    """Standardise features of small deviation into x -> deviations, infinite for constant ones.

    A deviation of 1e-25 is lost in float32, as its square is; that of features divided by their
    range is not.
    """
    small = (std < _SMALL).nonzero().flatten()
    if not len(small):
        return std
    away = features[:, small] - mean[small]
    reach = away.abs().amax(0)
    constant = (reach <= _LEAST) | (reach <= 1e-6 * mean[small].abs())
    away = away / torch.where(constant, 1.0, reach)
    away = away - away.mean(0)
    spread = away.std(0, correction=0)
    x[:, small] = torch.where(constant, 0.0, away / torch.where(constant, 1.0, spread))
    std = std.clone()
    std[small] = torch.where(constant, torch.inf, spread * reach)
    return std

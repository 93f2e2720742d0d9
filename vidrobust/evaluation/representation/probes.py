"""Fit a linear probe: multinomial logistic regression on frozen features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.attacks.arguments import at_least_one, between
from vidrobust.evaluation.representation.finite import require_finite

_SMALL = 1e-6  # standard deviations below it are computed at another scale
_LEAST = 1e-30  # a feature that varies by less has no finite weight in float32
_ROUNDING = 1e-6  # of a feature's mean: smaller variations are rounding errors of float32


def fit_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    l2: float = 1e-3,
    iterations: int = 300,
    names: Sequence[str] | None = None,
) -> nn.Linear:
    """Fit the layer that minimises mean cross-entropy + l2 / 2 |W|^2 on standardised features.

    The layer takes raw features, as the standardisation is folded into it. It is on the device of
    the features.

    L-BFGS starts from zero. So the result is deterministic, there is no learning rate or epoch to
    choose, and nothing is selected on test data.

    A feature has weight 0 if it is constant, or varies by less than a millionth of its mean. So
    small a variation is the rounding error of float32.

    Args:
        features: features of the training clips, (M, D).
        labels: classes of the clips, (M,), in 0..classes-1.
        classes: number of classes.
        l2: weight of the penalty, at least 0.
        iterations: largest number of iterations of L-BFGS.
        names: names of the clips, or of videos with several consecutive clips each, for messages.

    Raises:
        UserError: for features that are NaN or infinite, with the clips.
        ValueError: for l2 below 0, and for iterations below 1.
    """
    return fit_linear(
        features,
        classes,
        lambda logits: F.cross_entropy(logits, labels),
        l2=l2,
        iterations=iterations,
        names=names,
    )


def fit_linear(
    features: Tensor,
    classes: int,
    loss: Callable[[Tensor], Tensor],
    *,
    l2: float,
    iterations: int,
    names: Sequence[str] | None = None,
) -> nn.Linear:
    """Fit the layer that minimises a loss of its outputs + l2 / 2 |W|^2; see `fit_probe`.

    Args:
        features: features of the training clips, (M, D).
        classes: number of outputs.
        loss: outputs (M, classes) -> the loss, a scalar.
        l2: weight of the penalty, at least 0.
        iterations: largest number of iterations of L-BFGS.
        names: names of the clips, or of videos with several consecutive clips each, for messages.

    Raises:
        UserError: for features that are NaN or infinite, with the clips.
        ValueError: for l2 below 0, and for iterations below 1.
    """
    at_least_one(iterations=iterations)
    between(0, float("inf"), l2=l2)
    require_finite(features, "features of the probe", names)

    # Standardise.
    mean = features.mean(0)
    std = features.std(0, correction=0)
    x = (features - mean) / std.clamp_min(_SMALL)
    std = _standardise_small(features, mean, std, x)

    # Minimise.
    weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective = loss(x @ weight.T + bias) + l2 / 2 * weight.square().sum()
        objective.backward()
        return objective

    optimizer.step(closure)

    # Fold the standardisation into the layer; the weight of a constant feature is divided by an
    # infinite deviation, which makes it 0.
    layer = nn.Linear(x.shape[1], classes, device=x.device)
    with torch.no_grad():
        layer.weight.copy_(weight / std)
        layer.bias.copy_(bias - (weight / std) @ mean)
    return layer


def _standardise_small(features: Tensor, mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
    """Standardise features with a small deviation, in place in x.

    The square of a deviation of 1e-25 is 0 in float32, and so is the computed deviation. The
    deviation of such features is computed after dividing them by their range.

    Args:
        features: raw features, (M, D).
        mean: their means, (D,).
        std: their standard deviations, (D,).
        x: standardised features, (M, D); columns of small deviation are overwritten.

    Returns:
        The standard deviations, (D,); infinite for constant features.
    """
    small = (std < _SMALL).nonzero().flatten()
    if not len(small):
        return std
    centred = features[:, small] - mean[small]
    reach = centred.abs().amax(0)
    constant = (reach <= _LEAST) | (reach <= _ROUNDING * mean[small].abs())
    scaled = centred / torch.where(constant, 1.0, reach)
    scaled = scaled - scaled.mean(0)
    spread = scaled.std(0, correction=0)
    x[:, small] = torch.where(constant, 0.0, scaled / torch.where(constant, 1.0, spread))
    std = std.clone()
    std[small] = torch.where(constant, torch.inf, spread * reach)
    return std

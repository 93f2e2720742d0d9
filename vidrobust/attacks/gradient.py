"""Attacks that follow the gradient: FGSM and PGD.

An attack raises any per-sample loss, `loss(x) -> (B,)`. It takes gradients with respect to the input alone:
the parameters' gradients and flags and the norms' statistics are what they were before.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidrobust.attacks.threat import ThreatModel

Loss = Callable[[Tensor], Tensor]


def fgsm(loss: Loss, x: Tensor, threat: ThreatModel) -> Tensor:
    """One full step from x itself (Goodfellow et al., ICLR 2015) -> x_adv, shaped as x.

    loss: (B, ...) -> (B,) to maximise; samples may share a loss, as in a contrastive batch.
    Raises ValueError when x leaves [0, 1] or the loss is not one number a sample.
    """
    _check_input(x)
    _, gradient = _value_and_gradient(loss, x)
    return threat.project(x, threat.step(x, gradient, threat.eps))


def pgd(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al., ICLR 2018) -> each sample's best iterate, shaped as x.

    The best is over all steps of all restarts, the starts included, so restarts never help the defender.
    loss: (B, ...) -> (B,) to maximise. step_size: in the threat's norm; None is 2.5 eps / steps.
    restarts are useless without random_start. Costs restarts * (steps + 1) forward, restarts * steps backward.
    Raises ValueError when x leaves [0, 1], the loss is not one number a sample, or is NaN throughout.
    """
    _check_input(x)
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps={steps}, restarts={restarts}: both must be at least 1")
    if threat.eps == 0:
        return x.clone()
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    best, best_loss = x.clone(), x.new_full((len(x),), -torch.inf, dtype=torch.float32)

    def keep(x_adv: Tensor, value: Tensor) -> None:
        better = value.float() > best_loss
        best[better], best_loss[better] = x_adv[better], value[better].float()

    for _ in range(restarts):
        x_adv = threat.random_start(x, generator) if random_start else x
        for _ in range(steps):
            value, gradient = _value_and_gradient(loss, x_adv)
            keep(x_adv, value)
            x_adv = threat.project(x, threat.step(x_adv, gradient, size))
        with torch.no_grad():
            keep(x_adv, loss(x_adv))
    if torch.isneginf(best_loss).any():
        lost = torch.isneginf(best_loss).nonzero().flatten().tolist()
        raise ValueError(f"the loss of samples {lost} is NaN at every iterate")
    return best


def _value_and_gradient(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor]:
    """((B,) detached, gradient of the sum shaped as x). No parameter's gradient is computed."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = loss(x)
        if value.shape != (len(x),):
            raise ValueError(f"the loss must be one number a sample, (B,); got {tuple(value.shape)} for B={len(x)}")
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def _check_input(x: Tensor) -> None:
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"the input must lie in [0, 1], this one spans [{x.min():g}, {x.max():g}]; "
                         "attack before normalisation, and let the model normalise")  # fmt: skip

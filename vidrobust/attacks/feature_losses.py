"""Attacks on features, without labels (Petrov and Kwiatkowska 2022).

Each is a loss for any attack: `pgd(push_away(encode, x), x, threat)`. PGD's random start matters:
at x itself the gradient of a distance to f(x) is 0. encode: (B, C, T, H, W) in [0, 1] -> (B, D), in
eval mode.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidrobust.attacks.gradient import pgd
from vidrobust.attacks.losses import Loss
from vidrobust.attacks.outputs import as_tensor, called
from vidrobust.attacks.threat import ThreatModel

Encode = Callable[[Tensor], Tensor]


def push_away(encode: Encode, x: Tensor) -> Loss:
    """The loss |f(x') - f(x)|^2: untargeted, away from where the clips are."""
    with torch.no_grad():
        start = _encoded(encode, x).float()
    return lambda v: (_encoded(encode, v).float() - start).square().flatten(1).sum(1)


def pull_toward(encode: Encode, target: Tensor) -> Loss:
    """The loss -|f(x') - f(target)|^2: targeted, toward where other clips (B, C, T, H, W) are."""
    with torch.no_grad():
        aim = _encoded(encode, target).float()
    return lambda v: -(_encoded(encode, v).float() - aim).square().flatten(1).sum(1)


def own_loss(
    encode: Encode, pair_loss: Callable[[Tensor, Tensor], Tensor], other_view: Tensor
) -> Loss:
    """The loss that the model was trained with, of (f(other view), f(x')): L-PGD there, CLAE's step
    in training.

    pair_loss: (B, D), (B, D) -> (B,), such as `nt_xent` of two views. Samples of a batch may share
    it, as negatives do.
    """
    with torch.no_grad():
        anchor = _encoded(encode, other_view)
    return lambda v: pair_loss(anchor, _encoded(encode, v))


def _encoded(encode: Encode, x: Tensor) -> Tensor:
    """Return encode(x). Raises ValueError for what is no tensor, and where it writes into x."""
    return as_tensor(called(encode, x, "encode"), "encode")


def impersonate(
    encode: Encode,
    classify: Callable[[Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 50,
    step_size: float | None = 0.01,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Clips x made to look like the target clips to a probe that the attack never sees -> (x_adv,
    success (B,) bool).

    PGD on `pull_toward`; classify: features (B, D) -> logits (B, K). Success: the probe says of
    x_adv what it says of the target. The published setting: Linf 0.10, steps of 0.01, up to 50 of
    them; the budget is around x throughout.
    """
    x_adv = pgd(
        pull_toward(encode, target),
        x,
        threat,
        steps=steps,
        step_size=step_size,
        generator=generator,
    )
    with torch.no_grad():
        said, aim = (classify(_encoded(encode, clips)) for clips in (x_adv, target))
        success = said.argmax(1) == aim.argmax(1)
    return x_adv, success

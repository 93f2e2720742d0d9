"""Attacks on features, without labels (Petrov and Kwiatkowska 2022).

Each is a loss for any attack: `pgd(push_away(encode, x), x, threat)`. The random start of PGD
matters: at x itself the gradient of a distance to f(x) is 0.

`encode` is the encoder f: (B, C, T, H, W) in [0, 1] -> (B, D), in eval mode.
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
    """Return the untargeted loss |f(x') - f(x)|^2, which moves features away from those of x."""
    # the clean features are constants: computed once, without a graph
    with torch.no_grad():
        clean = _encoded(encode, x).float()
    return lambda v: (_encoded(encode, v).float() - clean).square().flatten(1).sum(1)


def pull_toward(encode: Encode, target: Tensor) -> Loss:
    """Return the targeted loss -|f(x') - f(target)|^2; target: other clips (B, C, T, H, W)."""
    with torch.no_grad():
        goal = _encoded(encode, target).float()
    return lambda v: -(_encoded(encode, v).float() - goal).square().flatten(1).sum(1)


def leave_neighbors(encode: Encode, x: Tensor, gallery: Tensor, neighbors: int) -> Loss:
    """Return the margin by which the nearest gallery item is a new one, without labels.

    The loss is the largest similarity to the items that are not among the nearest ones of x, minus
    the largest similarity to those that are. So it is positive exactly where the nearest item is
    none of the nearest ones of x. Unlike `push_away`, it is spent on the order of the items, and
    not on a distance that may leave the order as it is.

    Args:
        encode: clips -> features (B, D), scaled and centred as those of the gallery.
        x: clean clips (S, C, T, H, W).
        gallery: (M, D), M at least 2; similarity is the inner product.
        neighbors: number of nearest items of x that it is moved away from, 1 to M - 1.
    """
    if not 1 <= neighbors < len(gallery):
        raise ValueError(f"neighbors={neighbors}: must be 1 to {len(gallery) - 1}, the other items")
    items = gallery.float().T
    with torch.no_grad():
        clean = _encoded(encode, x).float() @ items
        near = torch.zeros_like(clean, dtype=torch.bool)
        near.scatter_(1, clean.topk(neighbors, dim=1).indices, True)

    def margin(v: Tensor) -> Tensor:
        similarity = _encoded(encode, v).float() @ items
        outside = similarity.masked_fill(near, -torch.inf).amax(1)
        return outside - similarity.masked_fill(~near, -torch.inf).amax(1)

    return margin


def own_loss(
    encode: Encode, pair_loss: Callable[[Tensor, Tensor], Tensor], other_view: Tensor
) -> Loss:
    """Return the loss that the model was trained with, as a function of the attacked view.

    PGD on it is L-PGD of Petrov and Kwiatkowska 2022. With x itself as `other_view`, a step on it
    is the attack of CLAE (Ho and Vasconcelos 2020).

    Args:
        encode: the encoder f.
        pair_loss: features (B, D) of both views -> (B,), such as `nt_xent` of two views. Samples
            of a batch may depend on each other, as negatives do.
        other_view: (B, C, T, H, W) the view that is not attacked.
    """
    with torch.no_grad():
        anchor = _encoded(encode, other_view)
    return lambda v: pair_loss(anchor, _encoded(encode, v))


def _encoded(encode: Encode, x: Tensor) -> Tensor:
    """Return encode(x).

    Raises:
        ValueError: the result is no floating tensor, or encode writes into x.
    """
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
    """Make clips look like target clips to a probe that the attack does not use.

    The attack is PGD on `pull_toward`. The published setting is Linf 0.10 and up to 50 steps of
    0.01. The budget is around x throughout.

    Args:
        encode: the encoder f.
        classify: the probe, features (B, D) -> logits (B, K).
        x: (B, C, T, H, W) the clips to change.
        target: (B, C, T, H, W) the clips to resemble.
        threat: which perturbations are allowed.
        steps: of PGD.
        step_size: in the threat's norm; None is 2.5 eps / steps.
        generator: source of the random start.

    Returns:
        x_adv, and (B,) bool: the probe predicts the same class for x_adv as for the target.
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
        # the probe judges the result, and had no part in the attack
        predicted = classify(_encoded(encode, x_adv)).argmax(1)
        intended = classify(_encoded(encode, target)).argmax(1)
    return x_adv, predicted == intended

"""One perturbation for a whole data set."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from vidrobust.attacks.arguments import above_zero, at_least_one, drawn_below
from vidrobust.attacks.ball import Ball
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.search import judged_gradient
from vidrobust.attacks.threat import ThreatModel, as_clip, check_input, shared_dims

UNIVERSAL_DOMAIN = Domain("a universal perturbation", supports=("dense", "tube", "flicker"))
PairLoss = Callable[[Tensor, Tensor], Tensor]


def universal(
    loss: PairLoss,
    batches: Iterable[tuple[Tensor, Tensor]],
    threat: ThreatModel,
    *,
    epochs: int = 5,
    step_size: float | None = None,
    shift: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one delta that raises the loss of all clips, (1, C, T, H, W).

    It is projected ascent on the gradient of each batch's loss (Moosavi-Dezfooli et al. 2017;
    Shafahi et al. 2020). T, or H and W, are 1 where the threat shares delta along them.
    `apply_universal` adds delta to clips.

    Args:
        loss: (x, y) -> (B,), to maximise.
        batches: an iterable of (x, y), iterated `epochs` times; x (B, C, T, H, W) in [0, 1], all
            clips of one size.
        threat: of support dense, tube or flicker.
        epochs: passes over the batches.
        step_size: in the threat's norm; None is eps / 10.
        shift: add delta to clips from a random frame on, around the end, so that it works at any
            offset in time.
        generator: source of the random frames.

    Raises:
        ValueError: for other supports, for no batch, for an iterator that is empty after one epoch,
            and for clips outside [0, 1].
    """
    UNIVERSAL_DOMAIN.require(threat)
    if epochs > 1 and iter(batches) is batches:
        raise ValueError(
            "batches is an iterator, and empty after one epoch: give a list or a DataLoader"
        )
    at_least_one(epochs=epochs)
    above_zero(step_size=step_size)
    size = threat.eps / 10 if step_size is None else step_size
    delta: Tensor | None = None
    for _ in range(epochs):
        for x, y in batches:
            check_input(x)
            if delta is None:
                delta = torch.zeros_like(_ball_of_any_clip(threat, x).low)
            offset = drawn_below(delta.shape[2], generator) if shift else 0

            # the gradient at the perturbed clips; pixels that clipping holds do not count
            x_adv = apply_universal(delta, x, offset)
            gradient = as_clip(judged_gradient(partial(_loss_of, loss, y), x_adv)[2])
            moved = as_clip(x) + delta.roll(offset, 2)
            counted = gradient * ((moved > -1e-6) & (moved < 1 + 1e-6))

            # summed over clips and shared pixels, and rolled back to where delta is
            dims = shared_dims(threat.support)
            per_clip = counted.sum(dims, keepdim=True) if dims else counted
            total = per_clip.sum(0, keepdim=True).roll(-offset, 2)
            delta = _ball_of_any_clip(threat, x).step(delta, total, size)
    if delta is None:
        raise ValueError("batches is empty: give at least one batch of clips")
    return delta


def _loss_of(loss: PairLoss, y: Tensor, x: Tensor) -> Tensor:
    return loss(x, y)


def apply_universal(delta: Tensor, x: Tensor, shift: int = 0) -> Tensor:
    """Return clip(x + delta, 0, 1), shaped as x.

    Args:
        delta: (1, C, T, H, W), of `universal`.
        x: the clips.
        shift: roll delta by so many frames.
    """
    return (as_clip(x) + delta.roll(shift, 2)).clamp(0, 1).view_as(x)


def _ball_of_any_clip(threat: ThreatModel, x: Tensor) -> Ball:
    """Return the ball of one delta for clips of any colour, whose bounds are -1 and 1."""
    clip = as_clip(x[:1])
    dims = shared_dims(threat.support)
    bound = torch.ones_like(clip.amax(dims, keepdim=True) if dims else clip)
    return Ball(threat, x[:1], torch.full((1,), threat.eps, device=x.device), -bound, bound)

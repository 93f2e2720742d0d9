"""One perturbation for a whole data set."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vidrobust.attacks.arguments import above_zero, at_least_one
from vidrobust.attacks.ball import Ball
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.search import judged_gradient
from vidrobust.attacks.threat import ThreatModel, as_clip, check_input, shared_dims

DOMAIN = Domain("a universal perturbation", supports=("dense", "tube", "flicker"))
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
    """One delta that raises the loss of all clips (Moosavi-Dezfooli et al. 2017; Shafahi et al.
    2020), (1, C, T, H, W).

    Projected ascent on the gradient of each batch's loss. loss: (x, y) -> (B,); batches: an
    iterable, gone through `epochs` times, of (x (B, C, T, H, W) in [0, 1], y), all of one size.
    step_size: in the threat's norm, None is eps / 10. shift: delta is laid over clips from a random
    frame on, around the end, so that it works whenever it begins. Supports dense, tube and flicker.
    `apply_universal` lays delta over clips. Raises ValueError for other supports, for no batch, and
    where clips are not in [0, 1].
    """
    DOMAIN.require(threat)
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
                delta = torch.zeros_like(_one(threat, x).low)
            by = int(torch.randint(delta.shape[2], (), generator=generator)) if shift else 0
            x_adv = apply_universal(delta, x, by)
            gradient = as_clip(judged_gradient(lambda v, y=y: loss(v, y), x_adv)[2])  # type: ignore[misc]
            ball = _one(threat, x)
            moved = as_clip(x) + delta.roll(by, 2)
            counted = gradient * ((moved > -1e-6) & (moved < 1 + 1e-6))
            dims = shared_dims(threat.support)
            whole = (
                (counted.sum(dims, keepdim=True) if dims else counted)
                .sum(0, keepdim=True)
                .roll(-by, 2)
            )
            delta = ball.step(delta, whole, size)
    if delta is None:
        raise ValueError("no batch to find a universal perturbation for")
    return delta


def apply_universal(delta: Tensor, x: Tensor, shift: int = 0) -> Tensor:
    """clip(x + delta rolled by `shift` frames, 0, 1), shaped as x."""
    return (as_clip(x) + delta.roll(shift, 2)).clamp(0, 1).view_as(x)


def _one(threat: ThreatModel, x: Tensor) -> Ball:
    """The ball of deltas for clips of any colour: -1 to 1."""
    clip = as_clip(x[:1])
    dims = shared_dims(threat.support)
    bound = torch.ones_like(clip.amax(dims, keepdim=True) if dims else clip)
    return Ball(threat, x[:1], torch.full((1,), threat.eps, device=x.device), -bound, bound)

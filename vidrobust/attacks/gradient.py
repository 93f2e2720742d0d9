"""Gradient attacks: FGSM, PGD, MIM.

An attack maximises any per-sample loss, `loss(x) -> (B,)`, and returns each sample's best iterate.

It takes gradients with respect to the input only. Parameters, their gradients and their flags stay
as they were. In eval mode the statistics of norm layers stay too. In training mode every forward
pass moves their running means, also the passes of an attack.
"""

import torch
from torch import Tensor

from vidrobust.attacks.arguments import above_zero, at_least_one, between
from vidrobust.attacks.losses import Loss
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel


def fgsm(
    loss: Loss, x: Tensor, threat: ThreatModel, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return x after one full step from x itself (Goodfellow et al., ICLR 2015), shaped as x.

    In every norm the step goes to the maximum of the linearised loss over the whole ball.

    Args:
        loss: (B, ...) -> (B,), to maximise. The losses of samples may depend on each other, as in
            a contrastive batch.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        generator: source of a random place, for threats that have one.

    Raises:
        ValueError: x leaves [0, 1], the loss is not one number per sample, or its gradient is NaN.
    """
    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.best
    _, gradient = search.gradient(search.ball.zero())
    ball = search.ball
    return ball.apply(ball.project(ball.ascend(gradient, threat.eps)))


def pgd(  # noqa: PLR0913  (a public signature)
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    best: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best iterate of projected gradient ascent (Madry et al., ICLR 2018).

    The best is taken over all steps of all restarts, including the starts. So more restarts never
    help the defender. With a `Misclassify` loss a wrong iterate beats any right one, and a sample
    that is wrong costs no further passes.

    Costs at most restarts * (steps + 1) forward and restarts * steps backward passes, and one of
    each where the gradient chooses a place. With best=False it costs one forward pass less, and
    always two of each for a place.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        steps: of each start.
        step_size: in the threat's norm; None is 2.5 eps / steps.
        restarts: starts. More than one is useless without random_start.
        random_start: begin at a random point of the ball; False: at x.
        best: return each sample's best iterate. False is for training: return the last iterate of
            one start, as the best iterates of samples that share a loss are from different steps.
            It then makes the same passes whatever the clips are. It neither warns of a gradient of
            0 nor refuses NaN, which the training loss will show.
        generator: source of random starts and places.

    Returns:
        Perturbed clips, shaped as x.

    Raises:
        ValueError: x leaves [0, 1], the loss is not one number per sample, or its gradient is NaN.
    """
    at_least_one(steps=steps, restarts=restarts)
    above_zero(step_size=step_size)
    search = Search(loss, x, threat, generator, steady=not best)
    # all steps together are 2.5 eps long: enough to cross the ball from any start, and to move
    # along its boundary (Madry et al. 2018)
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    if not best:
        return _last_iterate(search, steps, size, random_start)
    for _ in range(restarts):
        if not search.begin():
            break
        start = search.ball.random(generator) if random_start else search.ball.zero()
        climb(search, start, steps, size)
    return search.result()


def _last_iterate(search: Search, steps: int, size: float, random_start: bool) -> Tensor:
    """Return the last iterate of one start: PGD as adversarial training uses it."""
    if not search.begin():
        return search.best
    ball = search.ball
    delta = ball.random(search.generator) if random_start else ball.zero()
    for _ in range(steps):
        delta = ball.step(delta, search.slope(delta), size)
    return ball.apply(delta)


def climb(
    search: Search, delta: Tensor, steps: int, size: float, momentum: float | None = None
) -> Tensor:
    """Run projected steepest ascent from delta, and return where the unfinished samples end.

    Args:
        search: keeps the best iterates.
        delta: where to begin, a row per sample of the search's ball.
        steps: number of steps.
        size: of a step, in the threat's norm.
        momentum: step along a sum of gradients that decays by this factor; None: along the
            gradient itself.
    """
    # without momentum an empty tensor, which `drop` can index like the others
    total = torch.zeros_like(delta) if momentum is not None else delta[:, :0]
    for _ in range(steps):
        # evaluate the current iterate, and leave out the samples that it finishes
        _, gradient = search.gradient(delta)
        delta, gradient, total = search.drop(delta, gradient, total)
        if not len(search.rows):
            return delta

        # gradients are scaled to a mean size of 1 before they are summed (Dong et al. 2018,
        # algorithm 1)
        if momentum is not None:
            mean_size = gradient.abs().flatten(1).mean(1).clamp(min=1e-12)
            total = momentum * total + gradient / mean_size.view(-1, 1, 1, 1, 1)
            gradient = total

        delta = search.ball.step(delta, gradient, size)
    # the last iterate has not been evaluated yet
    search.look(delta)
    return search.drop(delta)[0]


def mim(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | None = None,
    momentum: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the best iterate of the momentum iterative method (Dong et al., CVPR 2018).

    MIM is PGD from x itself along a decaying sum of gradients, each scaled to a mean size of 1. It
    transfers between models better than PGD. Costs steps + 1 forward and steps backward passes.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        steps: number of steps.
        step_size: in the threat's norm; None is eps / steps.
        momentum: factor by which the sum decays per step, at least 0.
        generator: source of a random place, for threats that have one.

    Raises:
        ValueError: as `pgd` does.
    """
    at_least_one(steps=steps)
    above_zero(step_size=step_size)
    between(0, float("inf"), momentum=momentum)
    search = Search(loss, x, threat, generator)
    size = threat.eps / steps if step_size is None else step_size
    if search.begin():
        climb(search, search.ball.zero(), steps, size, momentum)
    return search.result()

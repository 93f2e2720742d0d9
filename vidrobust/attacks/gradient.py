"""Gradient attacks: FGSM, PGD, MIM.

An attack raises any per-sample loss, `loss(x) -> (B,)`, and returns each sample's best iterate. It
takes gradients with respect to the input alone: the parameters, their gradients and their flags
stay as they were. In eval mode the norms' statistics stay, too; a model in training mode moves its
running means with every forward pass, those of an attack as well.
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
    """One full step from x itself (Goodfellow et al., ICLR 2015) -> x_adv, shaped as x.

    In norms other than Linf, too, it goes to the maximum of the linearised loss over the whole
    ball. loss: (B, ...) -> (B,) to maximise; samples may share a loss, as in a contrastive batch.
    generator: for a place that is drawn. Raises ValueError when x leaves [0, 1], the loss is not
    one number a sample, or its gradient is NaN.
    """
    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.best
    _, gradient = search.gradient(search.ball.zero())
    ball = search.ball
    return ball.apply(ball.project(ball.ascend(gradient, threat.eps)))


def pgd(
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
    """Projected gradient ascent (Madry et al., ICLR 2018) -> each sample's best iterate, shaped as
    x.

    The best is over all steps of all restarts, the starts included, so restarts never help the
    defender. With a `Misclassify` loss a wrong iterate beats any right one, and a sample that is
    wrong costs nothing more. loss: (B, ...) -> (B,) to maximise. step_size: in the threat's norm;
    None is 2.5 eps / steps. Restarts are useless without random_start. best=False: the last iterate
    of the only start, as training takes it: where samples share a loss the best of each are of
    different moments. It neither tells a gradient of 0 nor refuses NaN, which the loss that is
    learned will be as well, and makes the same passes whatever the clips are. Costs at most
    restarts * (steps + 1) forward, restarts * steps backward passes, and one of each where the
    gradient chooses a place; the last iterate costs one forward pass less, and for a place always
    two of each. Raises ValueError when x leaves [0, 1], the loss is not one number a sample, or its
    gradient is NaN.
    """
    at_least_one(steps=steps, restarts=restarts)
    above_zero(step_size=step_size)
    search = Search(loss, x, threat, generator, steady=not best)
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    if not best:
        return _last_iterate(search, steps, size, random_start)
    for _ in range(restarts):
        if not search.begin():
            break
        climb(
            search,
            search.ball.random(generator) if random_start else search.ball.zero(),
            steps,
            size,
        )
    return search.result()


def _last_iterate(search: Search, steps: int, size: float, random_start: bool) -> Tensor:
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
    """Projected steepest ascent from `delta` -> where the samples that are not finished end.

    momentum: steps go along a sum of gradients of mean size 1 that decays by it.
    """
    total = torch.zeros_like(delta) if momentum is not None else delta[:, :0]
    for _ in range(steps):
        _, gradient = search.gradient(delta)
        delta, gradient, total = search.drop(delta, gradient, total)
        if not len(search.rows):
            return delta
        if momentum is not None:
            mean = gradient.abs().flatten(1).mean(1).clamp(min=1e-12)
            gradient = total = momentum * total + gradient / mean.view(-1, 1, 1, 1, 1)
        delta = search.ball.step(delta, gradient, size)
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
    """Momentum iterative method (Dong et al., CVPR 2018): PGD from x itself along a sum of
    gradients.

    The gradients have mean size 1, their sum decays by `momentum`; step_size None is eps / steps.
    Transfers between models better than PGD. Costs steps + 1 forward, steps backward passes. Raises
    ValueError as `pgd` does.
    """
    at_least_one(steps=steps)
    above_zero(step_size=step_size)
    between(0, float("inf"), momentum=momentum)
    search = Search(loss, x, threat, generator)
    if search.begin():
        climb(
            search,
            search.ball.zero(),
            steps,
            threat.eps / steps if step_size is None else step_size,
            momentum,
        )
    return search.result()

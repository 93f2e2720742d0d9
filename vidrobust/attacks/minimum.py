"""Attacks that look for the smallest perturbation: FAB, FMN and Carlini and Wagner's.

They take a loss that is positive exactly where a sample is broken: `Misclassify` with the score `margin`, `dlr` or
`toward`, or any other, such as the distance of two representations less a threshold. eps is the budget within which a
result counts. With `minimal` they go on below it, so that one run gives the accuracy at every smaller budget (`measure`
the results); without, a sample is finished once it is broken. Samples that nothing breaks come back as they were.
"""

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from vidrobust.attacks import geometry
from vidrobust.attacks.apgd import likeliest
from vidrobust.attacks.arguments import above_zero, at_least_one
from vidrobust.attacks.losses import Loss, Misclassify
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel, as_clip, explain, measure, norm_of


class Smallest(Search):
    """A search whose best is a broken clip within the budget; without one the clip itself stays.

    minimal: the smallest one, and no sample finishes. Otherwise the one of highest loss, and a sample finishes with it.
    """

    def __init__(
        self, loss: Loss, x: Tensor, threat: ThreatModel, generator: torch.Generator | None, minimal: bool
    ) -> None:
        if isinstance(loss, Misclassify) and not loss.crosses_zero:
            raise ValueError("a smallest perturbation needs a score that is positive exactly where a sample is broken: "
                             "Misclassify(predict, y, 'margin')")  # fmt: skip
        super().__init__(loss, x, threat, generator)
        self.size = torch.full((len(x),), torch.inf, device=x.device)
        self.minimal = minimal

    def _keep(self, x_adv: Tensor, value: Tensor, level: Tensor) -> None:
        self.broken = self._is_broken(value, level)
        size = measure(self.threat, self.ball.x, x_adv)
        allowed = size <= self.threat.eps * (1 + 1e-6)
        before = self.level[self.rows]
        value = value.float()
        ahead = size < self.size[self.rows] if self.minimal else value > self.value[self.rows]
        better = self.broken & allowed & ((level > before) | ((level == before) & ahead))
        rows = self.rows[better]
        self.best[rows], self.size[rows], self.level[rows] = x_adv[better], size[better], level[better]
        self.value[rows] = value[better]
        self._finished = self._done(level, value) & allowed

    def result(self) -> Tensor:
        self.require_numbers()
        if len(self.x) and (self.size < 1e-6).all() and not isinstance(self._loss, Misclassify):
            warnings.warn("the loss is positive for every sample as it is, so that none was changed: is it positive "
                          "only where a sample is broken?", stacklevel=3)  # fmt: skip
        return self.best

    def _done(self, level: Tensor, value: Tensor) -> Tensor:
        return (level >= 2) & (not self.minimal)


def fab(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    minimal: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fast Adaptive Boundary attack (Croce and Hein, ICML 2020) -> the smallest broken clip it finds, or x.

    Each step goes to the linearised boundary (`eta`: a little beyond), biased toward x by up to `alpha_max`, and from
    a broken point back toward x by `beta`. Restarts after the first begin at random points at half the budget.
    loss: positive where broken. Norms linf, l2, l1. Costs restarts * 2 steps forward, restarts * steps backward passes.
    """
    search = Smallest(loss, x, _require_norm(threat, "FAB", ("linf", "l2", "l1")), generator, minimal)
    _runs(search, None, restarts, steps, alpha_max, eta, beta)
    return search.result()


def fab_t(
    loss: Misclassify,
    x: Tensor,
    threat: ThreatModel,
    *,
    targets: int = 9,
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    minimal: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """FAB-T: `fab` toward each of the `targets` likeliest wrong classes in turn. The score of `loss` is not used."""
    search = Smallest(replace(loss, score="margin"), x, _require_norm(threat, "FAB", ("linf", "l2", "l1")), generator,
                      minimal)  # fmt: skip
    for score in likeliest(loss, search.x, targets, ratio=False):
        _runs(search, replace(loss, score=score), restarts, steps, alpha_max, eta, beta)
    return search.result()


def _runs(
    search: Smallest, loss: Loss | None, restarts: int, steps: int, alpha_max: float, eta: float, beta: float
) -> None:
    at_least_one(steps=steps, restarts=restarts)
    for restart in range(restarts):
        if not search.begin(loss):
            return
        delta = search.ball.random(search.generator) / 2 if restart else search.ball.zero()
        for _ in range(steps):
            value, gradient = search.gradient(delta)
            delta, value, gradient = search.drop(delta, value, gradient)
            if not len(search.rows):
                break
            delta = _to_boundary(search, delta, value, gradient, alpha_max, eta)
            search.look(delta)
            delta = torch.where(search.broken.view(-1, 1, 1, 1, 1), beta * delta, delta)
            (delta,) = search.drop(delta)
            if not len(search.rows):
                break


def _to_boundary(
    search: Smallest, delta: Tensor, value: Tensor, gradient: Tensor, alpha_max: float, eta: float
) -> Tensor:
    """From delta, and a little from 0 as well, to where the linearised loss is 0."""
    ball = search.ball
    w, at, low, high = (part.flatten(1) for part in (gradient, delta, ball.low, ball.high))
    norm, value = search.threat.norm, value.float().unsqueeze(1)
    from_delta = geometry.to_hyperplane(norm, w, low - at, high - at, -value)
    from_zero = geometry.to_hyperplane(norm, w, low, high, (w * at).sum(1, keepdim=True) - value)
    a, b = (ball.norms(part.view_as(delta)).clamp(min=1e-8).unsqueeze(1) for part in (from_delta, from_zero))
    alpha = (a / (a + b)).clamp(max=alpha_max)
    return ((at + eta * from_delta) * (1 - alpha) + eta * from_zero * alpha).clamp(low, high).view_as(delta)


def fmn(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    alpha: float = 1.0,
    gamma: float = 0.05,
    minimal: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fast minimum-norm attack (Pintor et al., NeurIPS 2021) -> the smallest broken clip it finds, or x.

    Steps along the gradient, of L2 length `alpha` falling to alpha / 100 along a cosine, are projected onto a ball that
    shrinks by `gamma` (falling to gamma / 50) while the sample is broken and grows while it is not; before a sample is
    first broken, the ball reaches to the linearised boundary. loss: positive where broken. Any norm and support.
    Costs steps + 1 forward, steps backward passes.
    """
    at_least_one(steps=steps)
    search = Smallest(loss, x, threat, generator, minimal)
    if not search.begin():
        return search.result()
    delta = search.ball.zero()
    radius = torch.full((len(delta),), torch.inf, device=x.device)
    for step in range(steps):
        value, gradient = search.gradient(delta)
        broken = search.broken.float()
        delta, value, gradient, radius, broken = search.drop(delta, value, gradient, radius, broken)
        if not len(search.rows):
            break
        ball, fall = search.ball, (1 + math.cos(math.pi * step / steps)) / 2
        g = gamma * (0.02 + 0.98 * fall)
        size, best = ball.norms(delta), search.size[search.rows]
        slope = (gradient * ball.ascend(gradient, 1.0)).flatten(1).sum(1).clamp(min=1e-12)  # the dual norm
        reach = (size - value.float() / slope) * (1 + g)  # a little beyond, or rounding keeps it on this side
        outside = torch.where(torch.isinf(best), reach, radius * (1 + g))
        radius = torch.where(broken > 0, torch.minimum(torch.minimum(radius, size) * (1 - g), best), outside)
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)
        moved = delta + alpha * (0.01 + 0.99 * fall) * gradient / length
        delta = ball.with_eps(radius.clamp(min=0)).project(moved)
    else:
        search.look(delta)
    return search.result()


def cw(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    searches: int = 6,
    c: float = 1.0,
    lr: float = 0.01,
    confidence: float = 0.0,
    minimal: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Carlini and Wagner's L2 attack (S&P 2017) -> the smallest broken clip it finds, or x.

    Adam on w, where delta = low + (high - low) (tanh w + 1) / 2, minimises |delta|^2 + c max(confidence - loss, 0);
    c is searched per sample over `searches` runs, by bisection, times ten while nothing breaks. Norm l2, any support.
    Costs searches * (steps + 1) forward, searches * steps backward passes.
    """
    at_least_one(steps=steps, searches=searches)
    above_zero(c=c, lr=lr)
    search = Smallest(loss, x, _require_norm(threat, "Carlini and Wagner's attack", ("l2",)), generator, minimal)
    weight = torch.full((len(x),), c, device=x.device)
    least, most = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    for _ in range(searches):
        if not search.begin():
            break
        rows = search.rows
        ever = _descend(search, weight[rows], steps, lr, confidence)
        least[rows] = torch.where(ever, least[rows], weight[rows])
        most[rows] = torch.where(ever, weight[rows], most[rows])
        weight = torch.where(torch.isinf(most), 10 * weight, (least + most) / 2)
    return search.result()


def _descend(search: Smallest, weight: Tensor, steps: int, lr: float, confidence: float) -> Tensor:
    """One run of Adam over the rows of the search -> whether each was broken, at any size."""
    ball, ever = search.ball, torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    half, middle = (ball.high - ball.low) / 2, (ball.high + ball.low) / 2
    w = torch.atanh((-middle / half.clamp(min=1e-12)).clamp(-1 + 1e-6, 1 - 1e-6)).requires_grad_()  # delta = 0
    adam = torch.optim.Adam([w], lr=lr)
    for _ in range(steps):
        with torch.no_grad():
            bend = w.tanh()
            delta = middle + half * bend
        value, gradient = search.gradient(delta)
        ever |= search.broken
        pull = weight * (value.float() < confidence)
        slope = 2 * ball.weight**2 * delta - pull.view(-1, 1, 1, 1, 1) * gradient
        w.grad = slope * half * (1 - bend * bend)
        adam.step()
    with torch.no_grad():
        search.look(middle + half * w.tanh())
    return ever | search.broken


def widened(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> Tensor:
    """x_adv with each sample's perturbation grown along itself to the whole budget; what did not change stays.

    A smallest perturbation is gone after rounding; this one is not, and most often still wrong.
    """
    delta = explain(threat, x, x_adv)[0]
    growth = (threat.eps / norm_of(threat.norm, delta).clamp(min=1e-12)).view(-1, 1, 1, 1, 1)
    return (as_clip(x) + growth * delta).clamp(0, 1).view_as(x)


def _require_norm(threat: ThreatModel, attack: str, norms: tuple[str, ...]) -> ThreatModel:
    if threat.norm not in norms:
        raise ValueError(f"{attack} is defined for {', '.join(norms)}, not for {threat.norm}")
    return threat

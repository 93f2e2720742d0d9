"""Minimum-norm attacks: FAB, FMN, Carlini and Wagner.

They take a loss that is positive exactly where a sample is broken: `Misclassify` with the score
`margin`, `dlr` or `toward`, or any other, such as the distance of two representations less a
threshold. eps is the budget within which a result counts. With `minimal` they go on below it, so
that one run gives the accuracy at every smaller budget (`measure` the results); without, a sample
is finished once it is broken. Samples that nothing breaks come back as they were.
"""

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from vidrobust.attacks import norm_balls as geometry
from vidrobust.attacks.apgd import likeliest
from vidrobust.attacks.arguments import above_zero, at_least_one, between
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.losses import Loss, Misclassify, dlr, margin
from vidrobust.attacks.outputs import BadSamples, called, numbered
from vidrobust.attacks.search import Search, require_gradients
from vidrobust.attacks.threat import ThreatModel, as_clip, explain, measure, norm_of

FAB_DOMAIN = Domain("FAB", norms=("linf", "l2", "l1"))
CW_DOMAIN = Domain("Carlini and Wagner's attack", norms=("l2",))


class Smallest(Search):
    """A search whose best is a broken clip within the budget; without one the clip itself stays.

    minimal: the smallest one, and no sample finishes. Otherwise the one of highest loss, and a
    sample finishes with it.
    """

    def __init__(
        self,
        loss: Loss,
        x: Tensor,
        threat: ThreatModel,
        generator: torch.Generator | None,
        minimal: bool,
    ) -> None:
        if isinstance(loss, Misclassify) and not loss.crosses_zero:
            raise ValueError(
                "a smallest perturbation needs a score that is positive exactly where a sample is"
                " broken: Misclassify(predict, y, 'margin')"
            )
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
        self.best[rows], self.size[rows], self.level[rows] = (
            x_adv[better],
            size[better],
            level[better],
        )
        self.value[rows] = value[better]
        self._finished = self._done(level, value) & allowed

    @property
    def all_classes(self) -> bool:
        """Return whether each other class has its own boundary: an untargeted margin or DLR."""
        goal = self._goal
        return isinstance(goal, Misclassify) and not goal.targeted and goal.score in (margin, dlr)

    def nearest(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `gradient` does, of the linearised boundary that is nearest to delta.

        There is one per other class: its logit less that of y, (n,), and the gradient of this,
        shaped as delta. The nearest has the smallest ratio of the two, in the dual norm (Croce and
        Hein 2020, FAB, section 3). Costs a forward pass and K - 1 backward passes; two gradients
        are held at a time. Raises as `gradient` does.
        """
        assert isinstance(self._goal, Misclassify)
        goal, x_adv = self._goal, self.ball.apply(delta)
        require_gradients()
        with numbered(self.rows), torch.enable_grad():
            leaf = x_adv.detach().requires_grad_(True)
            logits = goal.logits(leaf) if self._first else called(goal.predict, leaf).float()
            gaps = _gaps(logits, goal.y)
        if not gaps.requires_grad:
            raise ValueError(
                "the loss has no gradient at x: something on its way detaches or runs without one; "
                "square and nes do without gradients"
            )
        value, level = goal.judge_logits(x_adv, logits.detach(), check=self._first)
        best, steepest, shortest = (
            gaps.detach()[:, 0],
            torch.zeros_like(delta),
            torch.full_like(value, torch.inf),
        )
        last = gaps.shape[1] - 1
        for number in range(last + 1):
            (slope,) = torch.autograd.grad(gaps[:, number].sum(), leaf, retain_graph=number < last)
            self._lost[self.rows] |= ~slope.flatten(1).sum(1).isfinite()
            slope = self.ball.pull(slope, delta)
            gap = gaps.detach()[:, number]
            distance = gap.abs() / (1e-12 + _dual(self.threat.norm, slope))
            nearer = distance < shortest
            best, shortest = torch.where(nearer, gap, best), torch.where(nearer, distance, shortest)
            steepest = torch.where(nearer.view(-1, 1, 1, 1, 1), slope, steepest)
        self._lost[self.rows] |= value.isnan()
        if self._first and self._lost[self.rows].any():
            lost = self._lost.nonzero().flatten().tolist()
            raise BadSamples(lost, "the gradient of samples {} is NaN or infinite")
        self._begun(steepest)
        self._keep(x_adv, value, level)
        return best, steepest

    def result(self) -> Tensor:
        self.require_numbers()
        if len(self.x) and (self.size < 1e-6).all() and not isinstance(self._loss, Misclassify):
            warnings.warn(
                "the loss is positive for every sample as it is, so that none was changed: is it"
                " positive only where a sample is broken?",
                stacklevel=3,
            )
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
    """Return the smallest broken clip that FAB finds, or x (Croce and Hein, ICML 2020).

    From the current point each step goes to the nearest of the linearised boundaries, those to all
    K - 1 other classes, a little beyond it and a little back toward x. The published untargeted
    attack; `fab_t` goes toward one class at a time.

    Args:
        loss: `Misclassify` with the score margin or DLR. Any other loss, positive where a sample is
            broken, has one boundary, its own.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of norm linf, l2 or l1; its eps is the budget within which a result counts.
        steps: of each start.
        restarts: starts; the first is x itself, the others are random within half the budget.
        alpha_max: how far a step is pulled toward x at most, 0 to 1.
        eta: how far a step goes beyond the boundary, at least 1.
        beta: what is kept of a perturbation that breaks, before the next step, 0 to 1.
        minimal: see the top of this file.
        generator: of the random starts.

    Costs restarts * 2 steps forward, and restarts * (K - 1) * steps backward passes.
    """
    FAB_DOMAIN.require(threat)
    search = Smallest(loss, x, threat, generator, minimal)
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
    """FAB-T: `fab` toward each of the `targets` likeliest wrong classes in turn.

    The score of `loss` is not used.

    Costs targets * restarts * 2 steps forward, and half as many backward passes.
    """
    at_least_one(targets=targets)
    FAB_DOMAIN.require(threat)
    search = Smallest(replace(loss, score="margin"), x, threat, generator, minimal)
    for score in likeliest(loss, search.x, targets, ratio=False):
        _runs(search, replace(loss, score=score), restarts, steps, alpha_max, eta, beta)
    return search.result()


def _runs(
    search: Smallest,
    loss: Loss | None,
    restarts: int,
    steps: int,
    alpha_max: float,
    eta: float,
    beta: float,
) -> None:
    at_least_one(steps=steps, restarts=restarts)
    between(1, float("inf"), eta=eta)
    between(0, 1, alpha_max=alpha_max, beta=beta)
    for restart in range(restarts):
        if not search.begin(loss):
            return
        delta = search.ball.random(search.generator) / 2 if restart else search.ball.zero()
        for _ in range(steps):
            linearise = search.nearest if search.all_classes else search.gradient
            value, gradient = linearise(delta)
            delta, value, gradient = search.drop(delta, value, gradient)
            if not len(search.rows):
                break
            delta = _to_boundary(search, delta, value, gradient, alpha_max, eta)
            search.look(delta)
            delta = torch.where(search.broken.view(-1, 1, 1, 1, 1), beta * delta, delta)
            (delta,) = search.drop(delta)
            if not len(search.rows):
                break


def _gaps(logits: Tensor, y: Tensor) -> Tensor:
    """Return (B, K - 1): the logits of the other classes, less that of y."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = others + (others >= y.unsqueeze(1))
    return logits.gather(1, others) - logits.gather(1, y.unsqueeze(1))


def _dual(norm: str, slope: Tensor) -> Tensor:
    """Return the dual norm of each slope, (n,): the rise per length of a step in `norm`."""
    flat = slope.flatten(1)
    if norm == "linf":
        return flat.abs().sum(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)


def _to_boundary(
    search: Smallest, delta: Tensor, value: Tensor, gradient: Tensor, alpha_max: float, eta: float
) -> Tensor:
    """From delta, and a little from 0 as well, to where the linearised loss is 0."""
    ball = search.ball
    w, at, low, high = (part.flatten(1) for part in (gradient, delta, ball.low, ball.high))
    norm, value = search.threat.norm, value.float().unsqueeze(1)
    from_delta = geometry.to_hyperplane(norm, w, low - at, high - at, -value)
    from_zero = geometry.to_hyperplane(norm, w, low, high, (w * at).sum(1, keepdim=True) - value)
    a, b = (
        ball.norms(part.view_as(delta)).clamp(min=1e-8).unsqueeze(1)
        for part in (from_delta, from_zero)
    )
    alpha = (a / (a + b)).clamp(max=alpha_max)
    return (
        ((at + eta * from_delta) * (1 - alpha) + eta * from_zero * alpha)
        .clamp(low, high)
        .view_as(delta)
    )


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
    """Fast minimum-norm attack (Pintor et al., NeurIPS 2021) -> the smallest broken clip it finds,
    or x.

    Steps along the gradient, of L2 length `alpha` falling to alpha / 100 along a cosine, are
    projected onto a ball that shrinks by `gamma` (falling to gamma / 50) while the sample is broken
    and grows while it is not; before a sample is first broken, the ball reaches to the linearised
    boundary. loss: positive where broken. Any norm and support. Costs steps + 1 forward, steps
    backward passes.
    """
    at_least_one(steps=steps)
    above_zero(alpha=alpha)
    between(0, 1, gamma=gamma)
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
        slope = (
            (gradient * ball.ascend(gradient, 1.0)).flatten(1).sum(1).clamp(min=1e-12)
        )  # the dual norm
        reach = (size - value.float() / slope) * (
            1 + g
        )  # a little beyond, or rounding keeps it on this side
        outside = torch.where(torch.isinf(best), reach, radius * (1 + g))
        radius = torch.where(
            broken > 0, torch.minimum(torch.minimum(radius, size) * (1 - g), best), outside
        )
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

    Adam on w, where delta = low + (high - low) (tanh w + 1) / 2, minimises |delta|^2 + c
    max(confidence - loss, 0); c is searched per sample over `searches` runs, by bisection, times
    ten while nothing breaks. Norm l2, any support. Costs searches * (steps + 1) forward, searches *
    steps backward passes.
    """
    at_least_one(steps=steps, searches=searches)
    above_zero(c=c, lr=lr)
    between(0, float("inf"), confidence=confidence)
    CW_DOMAIN.require(threat)
    search = Smallest(loss, x, threat, generator, minimal)
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
    w = torch.atanh(
        (-middle / half.clamp(min=1e-12)).clamp(-1 + 1e-6, 1 - 1e-6)
    ).requires_grad_()  # delta = 0
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
    """x_adv with each sample's perturbation grown along itself to the whole budget; what did not
    change stays.

    A smallest perturbation is gone after rounding; this one is not, and most often still wrong.
    """
    delta = explain(threat, x, x_adv)[0]
    growth = (threat.eps / norm_of(threat.norm, delta).clamp(min=1e-12)).view(-1, 1, 1, 1, 1)
    return (as_clip(x) + growth * delta).clamp(0, 1).view_as(x)

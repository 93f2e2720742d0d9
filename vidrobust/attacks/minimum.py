"""Minimum-norm attacks: FAB, FMN, Carlini and Wagner.

They need a loss that is positive exactly where a sample is broken. That is `Misclassify` with the
score `margin`, `dlr` or `toward`, or any other such loss: for example the distance of two
representations minus a threshold.

eps is the budget within which a result counts. With `minimal` they go on to ever smaller
perturbations, so that one run gives the accuracy at every smaller budget (`measure` the results).
Without it, a sample is finished once it is broken. Samples that nothing breaks are returned
unchanged.
"""

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidrobust.attacks import norm_balls
from vidrobust.attacks.apgd import likeliest
from vidrobust.attacks.arguments import above_zero, at_least_one, between
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.losses import Loss, Misclassify, dlr, margin
from vidrobust.attacks.outputs import BadSamples, called, numbered
from vidrobust.attacks.search import NO_GRADIENT, Search, require_gradients
from vidrobust.attacks.threat import ThreatModel, as_clip, explain, measure, norm_of

FAB_DOMAIN = Domain("FAB", norms=("linf", "l2", "l1"))
CW_DOMAIN = Domain("Carlini and Wagner's attack", norms=("l2",))


class Smallest(Search):
    """A search that keeps broken clips within the budget only; otherwise the clip itself stays.

    Attributes:
        minimal: keep the smallest broken clip, and finish no sample. Otherwise keep the one of
            highest loss, and finish the sample with it.
        size: (B,) the norm of each kept perturbation; infinity where nothing is kept yet.
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
                "minimum-norm attacks need a score that is positive exactly where a sample is"
                " broken: give Misclassify(predict, y, 'margin')"
            )
        super().__init__(loss, x, threat, generator)
        self.size = torch.full((len(x),), torch.inf, device=x.device)
        self.minimal = minimal

    def _keep(self, x_adv: Tensor, value: Tensor, level: Tensor) -> None:
        """Keep the clips that are broken, within the budget, and better than the kept ones."""
        self.broken = self._is_broken(value, level)
        size = measure(self.threat, self.ball.x, x_adv)
        allowed = size <= self.threat.eps * (1 + 1e-6)
        kept_level = self.level[self.rows]
        value = value.float()
        ahead = size < self.size[self.rows] if self.minimal else value > self.value[self.rows]
        better = self.broken & allowed & ((level > kept_level) | ((level == kept_level) & ahead))
        rows = self.rows[better]
        self.best[rows] = x_adv[better]
        self.size[rows] = size[better]
        self.level[rows] = level[better]
        self.value[rows] = value[better]
        self._finished = self._done(level, value) & allowed

    @property
    def all_classes(self) -> bool:
        """Return whether each other class has its own boundary: an untargeted margin or DLR."""
        goal = self._goal
        return isinstance(goal, Misclassify) and not goal.targeted and goal.score in (margin, dlr)

    def nearest(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient, as `gradient` does, of the nearest linearised boundary.

        There is one boundary per other class. Its value is the logit of the class minus that of y.
        The nearest boundary has the smallest ratio of |value| to the gradient's dual norm (Croce
        and Hein 2020, FAB, section 3). Costs a forward pass and K - 1 backward passes. Two
        gradients are held at a time.

        Returns:
            The values (n,), and their gradients, shaped as delta.

        Raises:
            ValueError: as `gradient` does.
        """
        assert isinstance(self._goal, Misclassify)
        goal = self._goal
        x_adv = self.ball.apply(delta)

        # one forward pass: the gaps to all other classes, with their graph
        require_gradients()
        with numbered(self.rows), torch.enable_grad():
            leaf = x_adv.detach().requires_grad_(True)
            logits = goal.logits(leaf) if self._first else called(goal.predict, leaf).float()
            gaps = _gaps(logits, goal.y)
        if not gaps.requires_grad:
            raise ValueError(NO_GRADIENT)
        value, level = goal.judge_logits(x_adv, logits.detach(), check=self._first)

        # one backward pass per class; of the gradients, only the nearest boundary's is held
        nearest_gap = gaps.detach()[:, 0]
        nearest_slope = torch.zeros_like(delta)
        shortest = torch.full_like(value, torch.inf)
        last = gaps.shape[1] - 1
        for number in range(last + 1):
            (slope,) = torch.autograd.grad(gaps[:, number].sum(), leaf, retain_graph=number < last)
            self._not_finite[self.rows] |= ~slope.flatten(1).sum(1).isfinite()
            slope = self.ball.pull(slope, delta)
            gap = gaps.detach()[:, number]
            distance = gap.abs() / (1e-12 + _dual_norm(self.threat.norm, slope))
            nearer = distance < shortest
            nearest_gap = torch.where(nearer, gap, nearest_gap)
            shortest = torch.where(nearer, distance, shortest)
            nearest_slope = torch.where(nearer.view(-1, 1, 1, 1, 1), slope, nearest_slope)

        self._not_finite[self.rows] |= value.isnan()
        if self._first and self._not_finite[self.rows].any():
            samples = self._not_finite.nonzero().flatten().tolist()
            raise BadSamples(samples, "the gradient of samples {} is NaN or infinite")
        self._end_first_evaluation(nearest_slope)
        self._keep(x_adv, value, level)
        return nearest_gap, nearest_slope

    def result(self) -> Tensor:
        """Return each sample's best clip.

        Warns if a loss other than a classifier's is positive for every clip as it is.
        """
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


# ------------------------------------------------------------------ FAB


@dataclass(frozen=True)
class _FabOptions:
    """The options of FAB, as in `fab`."""

    restarts: int
    steps: int
    alpha_max: float
    eta: float
    beta: float


def fab(  # noqa: PLR0913  (a public signature)
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

    Each step goes from the current point to the nearest of the linearised boundaries, those to all
    K - 1 other classes. It goes a little beyond the boundary, and a little back toward x. This is
    the published untargeted attack; `fab_t` goes toward one class at a time.

    Costs restarts * 2 steps forward, and restarts * (K - 1) * steps backward passes.

    Args:
        loss: `Misclassify` with the score margin or DLR. Any other loss, positive where a sample is
            broken, has one boundary, its own.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of norm linf, l2 or l1; its eps is the budget within which a result counts.
        steps: of each start.
        restarts: starts; the first is x itself, the others are random within half the budget.
        alpha_max: how far a step is pulled toward x at most, 0 to 1.
        eta: how far a step goes beyond the boundary, at least 1.
        beta: the fraction of a breaking perturbation that is kept before the next step, 0 to 1.
        minimal: go on to ever smaller perturbations; False: finish a sample once it is broken.
        generator: source of the random starts.

    Raises:
        ValueError: as `pgd` does, for norm l2_frame, and for a score that is not positive exactly
            where a sample is broken.
    """
    FAB_DOMAIN.require(threat)
    search = Smallest(loss, x, threat, generator, minimal)
    _run_fab(search, None, _FabOptions(restarts, steps, alpha_max, eta, beta))
    return search.result()


def fab_t(  # noqa: PLR0913  (a public signature)
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
    """Return the smallest broken clip of FAB-T: `fab` toward each likely wrong class in turn.

    Costs targets * restarts * 2 steps forward, and half as many backward passes.

    Args:
        loss: an untargeted classifier's loss. Its score is not used.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: as in `fab`.
        targets: number of wrong classes to go through, the likeliest first.
        steps: of each start.
        restarts: starts per target, as in `fab`.
        alpha_max: as in `fab`.
        eta: as in `fab`.
        beta: as in `fab`.
        minimal: go on to ever smaller perturbations; False: finish a sample once it is broken.
        generator: source of the random starts.

    Raises:
        ValueError: as `fab` does, and for a targeted loss.
    """
    at_least_one(targets=targets)
    FAB_DOMAIN.require(threat)
    search = Smallest(replace(loss, score="margin"), x, threat, generator, minimal)
    options = _FabOptions(restarts, steps, alpha_max, eta, beta)
    for score in likeliest(loss, search.x, targets, ratio=False):
        _run_fab(search, replace(loss, score=score), options)
    return search.result()


def _run_fab(search: Smallest, loss: Loss | None, options: _FabOptions) -> None:
    """Run all starts of FAB; loss: another one than the search has so far, or None."""
    at_least_one(steps=options.steps, restarts=options.restarts)
    between(1, float("inf"), eta=options.eta)
    between(0, 1, alpha_max=options.alpha_max, beta=options.beta)
    for restart in range(options.restarts):
        if not search.begin(loss):
            return
        delta = search.ball.random(search.generator) / 2 if restart else search.ball.zero()
        for _ in range(options.steps):
            # linearise, and step to the boundary
            linearise = search.nearest if search.all_classes else search.gradient
            value, gradient = linearise(delta)
            delta, value, gradient = search.drop(delta, value, gradient)
            if not len(search.rows):
                break
            delta = _to_boundary(search, delta, value, gradient, options.alpha_max, options.eta)

            # the backward step: where the point is broken, go back toward x
            search.look(delta)
            delta = torch.where(search.broken.view(-1, 1, 1, 1, 1), options.beta * delta, delta)
            (delta,) = search.drop(delta)
            if not len(search.rows):
                break


def _gaps(logits: Tensor, y: Tensor) -> Tensor:
    """Return (B, K - 1): the logits of the other classes, minus the logit of y."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = others + (others >= y.unsqueeze(1))  # the numbers from y on move up by one
    return logits.gather(1, others) - logits.gather(1, y.unsqueeze(1))


def _dual_norm(norm: str, slope: Tensor) -> Tensor:
    """Return the dual norm of each slope, (n,): the rise per length of a step in `norm`."""
    flat = slope.flatten(1)
    if norm == "linf":
        return flat.abs().sum(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)


def _to_boundary(
    search: Smallest, delta: Tensor, value: Tensor, gradient: Tensor, alpha_max: float, eta: float
) -> Tensor:
    """Return the step of FAB from delta, biased toward x (Croce and Hein 2020, FAB, section 3).

    Two points are on the linearised boundary: the one nearest to delta, and the one nearest to 0.
    The result is a mean of both, each overshot by eta.

    Args:
        search: the search, with the ball of delta.
        delta: where the step begins.
        value: (n,) the loss at delta.
        gradient: of the loss at delta.
        alpha_max: the largest weight of the point nearest to 0.
        eta: overshoot, at least 1.
    """
    ball = search.ball
    w = gradient.flatten(1)
    start = delta.flatten(1)
    low = ball.low.flatten(1)
    high = ball.high.flatten(1)
    norm = search.threat.norm
    value = value.float().unsqueeze(1)

    # the shortest moves onto the hyperplane where the linearised loss is 0
    from_delta = norm_balls.to_hyperplane(norm, w, low - start, high - start, -value)
    rise_from_zero = (w * start).sum(1, keepdim=True) - value
    from_zero = norm_balls.to_hyperplane(norm, w, low, high, rise_from_zero)

    # the nearer the boundary is to delta, compared with x, the smaller the pull toward x
    to_delta = ball.norms(from_delta.view_as(delta)).clamp(min=1e-8).unsqueeze(1)
    to_zero = ball.norms(from_zero.view_as(delta)).clamp(min=1e-8).unsqueeze(1)
    alpha = (to_delta / (to_delta + to_zero)).clamp(max=alpha_max)
    moved = (start + eta * from_delta) * (1 - alpha) + eta * from_zero * alpha
    return moved.clamp(low, high).view_as(delta)


# ------------------------------------------------------------------ FMN


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
    """Return the smallest broken clip of the fast minimum-norm attack, or x (Pintor et al. 2021).

    Steps along the gradient are projected onto a ball whose radius adapts. The radius shrinks while
    the sample is broken, and grows while it is not. Before a sample is first broken, the ball
    reaches to the linearised boundary. Any norm and support. Costs steps + 1 forward and steps
    backward passes.

    Args:
        loss: positive exactly where a sample is broken.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: its eps is the budget within which a result counts.
        steps: number of steps.
        alpha: L2 length of the first step; it decays to alpha / 100 along a cosine.
        gamma: the first relative change of the radius, 0 to 1; it decays to gamma / 50.
        minimal: go on to ever smaller perturbations; False: finish a sample once it is broken.
        generator: source of a random place, for threats that have one.

    Raises:
        ValueError: as `pgd` does, and for a score that is not positive exactly where a sample is
            broken.
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
        ball = search.ball
        # with the defaults gamma decays from 0.05 to 0.001, and alpha from 1 to 0.01, as published
        decay = (1 + math.cos(math.pi * step / steps)) / 2
        change = gamma * (0.02 + 0.98 * decay)

        # the radius: to the linearised boundary and a little beyond, as rounding would leave the
        # point on this side of it; from the first broken clip on, by a factor
        size = ball.norms(delta)
        smallest = search.size[search.rows]
        steepest = gradient * ball.ascend(gradient, 1.0)
        dual_norm = steepest.flatten(1).sum(1).clamp(min=1e-12)
        to_boundary = (size - value.float() / dual_norm) * (1 + change)
        grown = torch.where(torch.isinf(smallest), to_boundary, radius * (1 + change))
        shrunk = torch.minimum(torch.minimum(radius, size) * (1 - change), smallest)
        radius = torch.where(broken > 0, shrunk, grown)

        # the step, projected onto the ball of that radius
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)
        moved = delta + alpha * (0.01 + 0.99 * decay) * gradient / length
        delta = ball.with_eps(radius.clamp(min=0)).project(moved)
    else:
        # the last iterate has not been evaluated yet
        search.look(delta)
    return search.result()


# ------------------------------------------------------------------ Carlini and Wagner


def cw(  # noqa: PLR0913  (a public signature)
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
    """Return the smallest broken clip of Carlini and Wagner's L2 attack, or x (S&P 2017).

    Adam minimises |delta|^2 + c max(confidence - loss, 0) over w, where delta = low + (high - low)
    (tanh w + 1) / 2. c is found per sample by bisection, and multiplied by ten while nothing
    breaks. Norm l2, any support. Costs searches * (steps + 1) forward and searches * steps backward
    passes.

    Args:
        loss: positive exactly where a sample is broken.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of norm l2; its eps is the budget within which a result counts.
        steps: of each run of Adam.
        searches: runs, each with another c.
        c: weight of the loss in the first run, above 0.
        lr: learning rate of Adam, above 0.
        confidence: the loss above which only |delta| counts, at least 0.
        minimal: go on to ever smaller perturbations; False: finish a sample once it is broken.
        generator: source of a random place, for threats that have one.

    Raises:
        ValueError: as `fmn` does, and for other norms.
    """
    at_least_one(steps=steps, searches=searches)
    above_zero(c=c, lr=lr)
    between(0, float("inf"), confidence=confidence)
    CW_DOMAIN.require(threat)
    search = Smallest(loss, x, threat, generator, minimal)

    # bisection: `least` is the largest weight that did not break the sample, `most` the smallest
    # one that did
    weight = torch.full((len(x),), c, device=x.device)
    least = torch.zeros_like(weight)
    most = torch.full_like(weight, torch.inf)
    for _ in range(searches):
        if not search.begin():
            break
        rows = search.rows
        ever_broken = _descend(search, weight[rows], steps, lr, confidence)
        least[rows] = torch.where(ever_broken, least[rows], weight[rows])
        most[rows] = torch.where(ever_broken, weight[rows], most[rows])
        weight = torch.where(torch.isinf(most), 10 * weight, (least + most) / 2)
    return search.result()


def _descend(search: Smallest, weight: Tensor, steps: int, lr: float, confidence: float) -> Tensor:
    """Run Adam once over the samples of the search.

    Args:
        search: keeps the smallest broken clips.
        weight: (n,) c of each sample.
        steps: of Adam.
        lr: learning rate.
        confidence: as in `cw`.

    Returns:
        (n,) bool: the sample was broken at any step, at any size.
    """
    ball = search.ball
    ever_broken = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    half = (ball.high - ball.low) / 2
    middle = (ball.high + ball.low) / 2
    # begin at delta = 0; the bound keeps atanh finite for black and white pixels
    start = (-middle / half.clamp(min=1e-12)).clamp(-1 + 1e-6, 1 - 1e-6)
    w = torch.atanh(start).requires_grad_()
    adam = torch.optim.Adam([w], lr=lr)
    for _ in range(steps):
        with torch.no_grad():
            tanh = w.tanh()
            delta = middle + half * tanh
        value, gradient = search.gradient(delta)
        ever_broken |= search.broken

        # the gradient of the objective, taken through tanh by hand
        pull = weight * (value.float() < confidence)
        slope = 2 * ball.weight**2 * delta - pull.view(-1, 1, 1, 1, 1) * gradient
        w.grad = slope * half * (1 - tanh * tanh)
        adam.step()
    with torch.no_grad():
        search.look(middle + half * w.tanh())
    return ever_broken | search.broken


def widened(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> Tensor:
    """Return x_adv with each perturbation scaled up to the whole budget.

    A smallest perturbation does not survive rounding to uint8. The scaled one does, and most often
    the prediction is still wrong.

    Args:
        threat: the threat model.
        x: the clips.
        x_adv: perturbed clips, shaped as x; unchanged ones stay unchanged.
    """
    delta = explain(threat, x, x_adv)[0]
    growth = (threat.eps / norm_of(threat.norm, delta).clamp(min=1e-12)).view(-1, 1, 1, 1, 1)
    return (as_clip(x) + growth * delta).clamp(0, 1).view_as(x)

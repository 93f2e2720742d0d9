"""Auto-PGD, which adapts its own step size (Croce and Hein, ICML 2020)."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from vidrobust.attacks.arguments import at_least_one, between
from vidrobust.attacks.losses import Loss, Misclassify, Score, dlr_toward, toward
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel

# L1 runs in three phases (Croce and Hein 2021): the budget of each phase, as a multiple of eps,
# and the fraction of the steps that it takes. Only results of the last one are within the budget.
L1_PHASES = ((3, 0.3), (2, 0.3), (1, 0.4))


def apgd(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best iterate of APGD, shaped as x.

    Steps begin at 2 eps and have momentum. At checkpoints the step size is halved, and the search
    returns to its best point, in two cases (Croce and Hein 2020, section 3). Either at most `rho`
    of the steps since the last checkpoint raised the loss. Or neither the step size nor the best
    loss changed since then. In L1 the steps are sparse, and the search shrinks its budget from
    three times eps to eps (Croce and Hein, ICML 2021).

    Costs at most restarts * (steps + 1) forward and as many backward passes; in L1 restarts *
    (steps + 3), for 3 steps or more.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        steps: of each start.
        restarts: starts, each at a random point.
        rho: the fraction of successful steps at or below which the step size is halved, 0 to 1.
        generator: source of the random starts.

    Raises:
        ValueError: as `pgd` does.
    """
    at_least_one(steps=steps, restarts=restarts)
    between(0, 1, rho=rho)
    search = Search(loss, x, threat, generator)
    for _ in range(restarts):
        if not search.begin():
            break
        _run_from_random_start(search, steps, rho)
    return search.result()


def apgd_t(
    loss: Misclassify,
    x: Tensor,
    threat: ThreatModel,
    *,
    targets: int = 9,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best iterate of APGD-T, shaped as x.

    APGD-T is `apgd` on the targeted DLR loss, toward each of the likeliest wrong classes in turn.
    That loss needs four classes. With fewer the difference of the two logits takes its place.

    Args:
        loss: an untargeted classifier's loss. Its score is not used.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        targets: number of wrong classes to go through, the likeliest first.
        steps: of each start.
        restarts: random starts per target.
        rho: as in `apgd`.
        generator: source of the random starts.

    Raises:
        ValueError: as `pgd` does, and for a targeted loss.
    """
    at_least_one(targets=targets, steps=steps, restarts=restarts)
    between(0, 1, rho=rho)
    search = Search(loss, x, threat, generator)
    for score in likeliest(loss, search.x, targets, ratio=True):
        for _ in range(restarts):
            if not search.begin(replace(loss, score=score)):
                return search.result()
            _run_from_random_start(search, steps, rho)
    return search.result()


@torch.no_grad()
def likeliest(loss: Misclassify, x: Tensor, targets: int, *, ratio: bool) -> list[Score]:
    """Return one targeted score per wrong class, from the class with the largest logit on.

    The classes are chosen per sample: the first score aims each sample at its own runner-up.

    Args:
        loss: an untargeted classifier's loss.
        x: the clips.
        targets: the largest number of scores, less if there are fewer wrong classes.
        ratio: use the targeted DLR if there are four classes, else the difference of two logits.

    Raises:
        ValueError: for a targeted loss.
    """
    if loss.targeted:
        raise ValueError(
            "loss.targeted=True: this attack goes through the likeliest wrong classes itself; give"
            " it an untargeted loss"
        )
    logits = loss.logits(x)
    wrong_classes = logits.scatter(1, loss.y.unsqueeze(1), -torch.inf)
    ranked = wrong_classes.argsort(dim=1, descending=True)
    score = dlr_toward if ratio and logits.shape[1] >= 4 else toward
    return [score(ranked[:, rank]) for rank in range(min(targets, logits.shape[1] - 1))]


def _run_from_random_start(search: Search, steps: int, rho: float) -> None:
    if search.threat.norm != "l1":
        _ascend(search, search.ball.random(search.generator), steps, rho)
        return
    eps = search.ball.eps
    first_factor = L1_PHASES[0][0]
    delta = search.ball.with_eps(first_factor * eps).random(search.generator)
    for factor, fraction in L1_PHASES:
        # No sample leaves before the last phase, as nothing outside the budget is kept. So the
        # rows of eps and of the ball are still the same samples.
        search.ball = search.ball.with_eps(factor * eps)
        delta = search.ball.project(delta)
        phase_steps = max(int(fraction * steps), 1)
        delta = _ascend_l1(
            search, delta, phase_steps, first=factor == first_factor, keep=factor == 1
        )


@dataclass
class _State:
    """The progress of one start: n rows, one per sample that is not finished.

    Attributes:
        delta: the current perturbation.
        gradient: of the loss at delta.
        best: the perturbation of highest loss so far.
        best_gradient: of the loss at best.
        best_value: the loss at best, (n,).
        size: the step size, (n,), in the threat's norm.
    """

    delta: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    size: Tensor


@dataclass
class _MomentumState(_State):
    """The state of a start in Linf, L2 and L2 per frame.

    Attributes:
        before: the perturbation before delta, for the momentum.
        value: the loss at delta, (n,).
        best_at_check: best_value at the last checkpoint, (n,).
        halved: 1 where the last checkpoint halved the step size, else 0, (n,).
        rises: how many steps raised the loss since the last checkpoint, (n,).
    """

    before: Tensor
    value: Tensor
    best_at_check: Tensor
    halved: Tensor
    rises: Tensor


@dataclass
class _SparseState(_State):
    """The state of a phase in L1.

    Attributes:
        entries: how many values of delta may change, (n,).
        used: how many values of best were changed at the last checkpoint, (n,).
        fraction: of the entries, how many a step moves, (n,).
    """

    entries: Tensor
    used: Tensor
    fraction: Tensor


_AnyState = TypeVar("_AnyState", bound=_State)


def _without_finished(state: _AnyState, search: Search) -> _AnyState:
    """Return the state of the samples that the last evaluation did not finish."""
    tensors = [getattr(state, field.name) for field in fields(state)]
    return type(state)(*search.drop(*tensors))


def _ascend(search: Search, delta: Tensor, steps: int, rho: float) -> None:
    """Run one start of APGD in Linf, L2 or L2 per frame (Croce and Hein 2020, algorithm 1)."""
    value, gradient = search.gradient(delta)
    state = _MomentumState(
        delta=delta,
        before=delta,
        gradient=gradient,
        value=value,
        best=delta,
        best_gradient=gradient,
        best_value=value,
        size=2 * search.ball.eps,
        best_at_check=value,
        # as if halved before: the second case of `apgd` needs an earlier checkpoint
        halved=torch.ones_like(value),
        rises=torch.zeros_like(value),
    )
    window = max(int(0.22 * steps), 1)
    steps_to_check = window
    for step in range(steps):
        state = _without_finished(state, search)
        if not len(search.rows):
            return
        ball = search.ball

        # a projected gradient step, then a mean of it and of the last move: 0.75 of the new step
        # and 0.25 of the momentum; the first step has no momentum yet
        momentum_weight = 0.75 if step else 1.0
        ascent = ball.ascend(state.gradient, state.size, state.delta)
        ahead = ball.project(state.delta + ascent)
        mixed = (
            state.delta
            + momentum_weight * (ahead - state.delta)
            + (1 - momentum_weight) * (state.delta - state.before)
        )
        state.before = state.delta
        state.delta = ball.project(mixed)

        # evaluate, and keep each sample's best point
        value, state.gradient = search.gradient(state.delta)
        state.rises = state.rises + (value > state.value)
        state.value = value
        _remember_best(state, value, value > state.best_value)

        # a checkpoint: halve the step size of samples that do not advance, and send them back to
        # their best point; windows between checkpoints shrink from 22 % to 6 % of the steps
        steps_to_check -= 1
        if steps_to_check == 0:
            stuck = (state.halved == 0) & (state.best_at_check >= state.best_value)
            halve = (state.rises <= rho * window) | stuck
            state.size = torch.where(halve, state.size / 2, state.size)
            state.halved = halve.float()
            state.best_at_check = state.best_value
            state.rises = torch.zeros_like(value)
            _return_to_best(state, halve)
            window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            steps_to_check = window


def _ascend_l1(search: Search, delta: Tensor, steps: int, *, first: bool, keep: bool) -> Tensor:
    """Run one phase of APGD in L1 (Croce and Hein 2021).

    The numbers are those of the authors' code: a fifth of the entries, factors of 1.5, checkpoints
    after 4 % of the steps.

    Args:
        search: the search; its ball has the budget of the phase.
        delta: where the phase begins.
        steps: of the phase.
        first: the phase is the first one: it begins at a random point.
        keep: its iterates are within the budget, and may be results.

    Returns:
        The perturbations of highest loss, of the samples that are not finished.
    """
    value, gradient = search.gradient(delta, keep=keep)
    entries = (search.ball.low < search.ball.high).flatten(1).sum(1)
    used = entries if first else (delta != 0).flatten(1).sum(1)
    state = _SparseState(
        delta=delta,
        gradient=gradient,
        best=delta,
        best_gradient=gradient,
        best_value=value,
        size=search.ball.eps,
        entries=entries,
        used=used,
        fraction=torch.full_like(value, 0.2) if first else used / entries / 1.5,
    )
    window = max(int(0.04 * steps), 1)
    for step in range(1, steps + 1):
        state = _without_finished(state, search)
        if not len(search.rows):
            break
        ball = search.ball

        # a step of L1 length `size` along the signs of the largest entries of the gradient
        signs = _keep_largest(state.gradient, state.fraction * state.entries).sign()
        length = signs.abs().flatten(1).sum(1) * ball.weight + 1e-10
        move = signs / length.view(-1, 1, 1, 1, 1)
        state.delta = ball.project(state.delta + state.size.view(-1, 1, 1, 1, 1) * move)

        # evaluate, and keep each sample's best point
        value, state.gradient = search.gradient(state.delta, keep=keep)
        _remember_best(state, value, value > state.best_value)

        # a checkpoint: the next steps move 1 / 1.5 as many entries as the best point uses; if it
        # uses 5 % fewer than before, the full step size is tried again, from there
        if step % window == 0:
            used_by_best = (state.best != 0).flatten(1).sum(1)
            sparser = used_by_best < 0.95 * state.used
            state.fraction = used_by_best / state.entries / 1.5
            state.used = used_by_best
            state.size = torch.where(sparser, ball.eps, state.size / 1.5).clamp(
                min=ball.eps / 10, max=ball.eps
            )
            _return_to_best(state, sparser)
    return state.best


def _remember_best(state: _State, value: Tensor, better: Tensor) -> None:
    """Make delta the best point of the samples that are better, (n,) bool; value: its loss."""
    # On a CPU this saves three copies. A GPU would have to wait for the answer.
    if not better.is_cuda and not better.any():
        return
    wide = better.view(-1, 1, 1, 1, 1)
    state.best = torch.where(wide, state.delta, state.best)
    state.best_gradient = torch.where(wide, state.gradient, state.best_gradient)
    state.best_value = torch.where(better, value, state.best_value)


def _return_to_best(state: _State, to_best: Tensor) -> None:
    """Go on from the best point, for the samples of to_best, (n,) bool."""
    wide = to_best.view(-1, 1, 1, 1, 1)
    state.delta = torch.where(wide, state.best, state.delta)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)


def _keep_largest(gradient: Tensor, count: Tensor) -> Tensor:
    """Return the gradient with all but its `count` (n,) largest entries by size set to 0."""
    size = gradient.abs().flatten(1)
    rank = (size.shape[1] - count).long().clamp(0, size.shape[1] - 1)
    threshold = size.sort(dim=1).values.gather(1, rank.unsqueeze(1))
    return torch.where((size >= threshold).view_as(gradient), gradient, 0)

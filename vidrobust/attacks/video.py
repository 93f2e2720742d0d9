"""Attacks made for video: sparse, flickering, one frame, patches, translation in time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidrobust.attacks.arguments import (
    above_zero,
    at_least_one,
    between,
    drawn_below,
    none_or_more,
)
from vidrobust.attacks.ball import make_ball, patch_scores
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.gradient import climb, pgd
from vidrobust.attacks.losses import Loss
from vidrobust.attacks.search import Search, judged, judged_gradient
from vidrobust.attacks.threat import ThreatModel, as_clip, require_fit

FRAME_SALIENCY_DOMAIN = Domain("the frame saliency attack", supports=("dense",))
ONE_FRAME_DOMAIN = Domain(
    "the one-frame attack, which chooses the frame itself,", supports=("dense",)
)
FLICKER_DOMAIN = Domain("the flickering attack", supports=("flicker",))
ROA_DOMAIN = Domain("the rectangular occlusion attack", norms=("linf",), supports=("patch",))
SALT_AND_PEPPER_DOMAIN = Domain("salt and pepper", norms=("linf",), supports=("pixels",))


# ------------------------------------------------------------------ temporal translation


def temporal_translation(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | None = None,
    shift: int = 7,
    momentum: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the last iterate of TT, an attack that transfers (Wei et al., AAAI 2022).

    TT is `mim` with the gradient averaged over cyclic shifts in time by -shift ... shift frames.
    The weights are Gaussian with standard deviation shift / 3. The paper uses Linf 16/255, 10
    steps and shift 7. The last iterate is returned and not the best: what is best on this model is
    not what transfers. Costs steps * (2 shift + 1) forward and as many backward passes.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        steps: number of steps.
        step_size: in the threat's norm; None is eps / steps.
        shift: the largest shift in frames, at least 0. An image is not shifted.
        momentum: factor by which the sum of gradients decays per step, at least 0.
        generator: source of a random place, for threats that have one.

    Returns:
        Perturbed clips, shaped as x.

    Raises:
        ValueError: as `pgd` does.
    """
    at_least_one(steps=steps)
    none_or_more(shift=shift)
    above_zero(step_size=step_size)
    between(0, float("inf"), momentum=momentum)
    size = threat.eps / steps if step_size is None else step_size

    # the shifts, and their Gaussian weights
    reach = shift if as_clip(x).shape[2] > 1 else 0
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets * 3 / max(reach, 1)) ** 2)
    weights = weights / weights.sum()

    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    ball = search.ball
    delta = ball.zero()
    total = ball.zero()
    for _ in range(steps):
        # the gradients of all shifted clips, rolled back
        x_adv = ball.apply(delta)
        gradient = torch.zeros_like(x_adv)
        for offset, weight in zip(offsets.tolist(), weights.tolist(), strict=True):
            rolled = x_adv.roll(offset, 2) if offset else x_adv
            rolled_gradient = judged_gradient(loss, rolled)[2]
            gradient += weight * (rolled_gradient.roll(-offset, 2) if offset else rolled_gradient)

        # a step of MIM along their mean
        pulled = ball.pull(gradient, delta)
        mean_size = pulled.abs().flatten(1).mean(1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)
        total = momentum * total + pulled / mean_size
        delta = ball.step(delta, total, size)
    return ball.apply(delta)


# ------------------------------------------------------------------ few frames


def frame_saliency(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    mode: str = "iterative",
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturb the most salient frames first until a sample is broken (Inkawhich et al. 2018).

    The saliency of a frame is the mean absolute gradient of its pixels. Each result has as few
    perturbed frames as it took. With a loss that breaks no sample, it has the number of frames that
    raised the loss most.

    Mode one_shot costs at most steps + T + 2 forward passes. Mode iterative costs at most
    T * (steps + 1) + 1, and refresh T more than that.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of support dense.
        mode: one_shot perturbs all frames with `pgd`, and copies them into the clip one after the
            other. iterative attacks one frame more each time, together with those before it.
            refresh is iterative, and computes the saliency anew before each frame.
        steps: of PGD, for each number of frames.
        generator: source of the random start.

    Raises:
        ValueError: as `pgd` does, for other supports, and for an unknown mode.
    """
    at_least_one(steps=steps)
    FRAME_SALIENCY_DOMAIN.require(threat)
    if mode not in ("one_shot", "iterative", "refresh"):
        raise ValueError(f"mode={mode}: must be one_shot, iterative or refresh")
    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    clip = as_clip(search.x)
    delta = torch.zeros_like(clip)
    used = torch.zeros_like(clip[:, :1, :, :1, :1])  # (B, 1, T, 1, 1): 1 for frames that may change
    saliency = frame_gradient(search, delta)
    all_frames: Tensor | None = None
    if mode == "one_shot":
        all_frames = as_clip(pgd(loss, x, threat, steps=steps, generator=generator)) - clip

    for _ in range(clip.shape[2]):
        if not search.begin():
            break

        # add the most salient frame that is not used yet
        rows = search.rows
        next_frame = saliency[rows].masked_fill(used[rows] > 0, -1).argmax(2, keepdim=True)
        used[rows] = used[rows].scatter(2, next_frame, 1)
        search.ball = search.ball.only(used[rows])
        if all_frames is not None:
            search.look(search.ball.project(all_frames[rows]))
            continue

        # attack the used frames, from where the last round ended
        end = climb(search, delta[rows], steps, 2.5 * threat.eps / steps)
        delta[search.rows] = end
        if mode == "refresh" and search.begin():
            saliency[search.rows] = frame_gradient(search, end)
    return search.result()


def frame_gradient(search: Search, delta: Tensor) -> Tensor:
    """Return the mean absolute gradient of each frame at a dense delta, (n, 1, T, 1, 1)."""
    return search.gradient(delta)[1].abs().mean((1, 3, 4), keepdim=True)


def one_frame(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack each single frame in turn with PGD, and return each sample's best (Hwang et al. 2021).

    It searches all T frames, at T times the cost of `pgd`. The threat `frames1-...` uses only the
    most salient frame.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of support dense.
        steps: of PGD, per frame.
        generator: source of the random starts.

    Raises:
        ValueError: as `pgd` does, and for other supports.
    """
    at_least_one(steps=steps)
    ONE_FRAME_DOMAIN.require(threat)
    search = Search(loss, x, threat, generator)
    for frame in range(as_clip(x).shape[2]):
        # each start is in the ball of another frame; the search keeps the best of all
        search.threat = ThreatModel(threat.norm, threat.eps, "frames", 1, (frame,))
        if not search.begin():
            break
        climb(search, search.ball.random(generator), steps, 2.5 * threat.eps / steps)
    return search.result()


# ------------------------------------------------------------------ penalised attacks


def sparse(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    lam: float = 0.01,
    lr: float = 0.001,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best clip of the sparse attack (Wei et al., AAAI 2019).

    Adam minimises lam sum_t |delta_t|_2 - loss, projected onto the budget of the threat. The
    penalty leaves few frames changed. A threat of support frames is the paper's temporal mask. The
    best clip is broken, with the smallest penalty. Without a broken iterate it is the one of the
    highest loss.

    Args:
        loss: (B, ...) -> (B,), to maximise. The published one is log(1 - p_y), `losses.escape`.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed.
        steps: of Adam.
        lam: weight of the penalty, at least 0. The default is this implementation's own.
        lr: learning rate, above 0.
        generator: source of the random start.

    Raises:
        ValueError: as `pgd` does.
    """
    between(0, float("inf"), lam=lam)
    return _penalised(loss, x, threat, _FrameNorms(lam), steps, lr, generator)


def flicker(  # noqa: PLR0913  (a public signature)
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    lam: float = 1.0,
    beta: float = 0.5,
    lr: float = 0.01,
    cyclic: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best clip of the flickering attack (Pony et al., CVPR 2021).

    The perturbation is a colour offset per frame, delta (C, T, 1, 1). Adam minimises lam (beta mean
    delta^2 + beta mean (first difference)^2 + beta mean (second difference)^2) - loss, projected
    onto the budget of the threat. The best clip is chosen as in `sparse`. Without the penalty the
    attack is `pgd` under the same threat.

    Args:
        loss: (B, ...) -> (B,), to maximise. The published one is `losses.flicker_hinge`.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of support flicker.
        steps: of Adam.
        lam: weight of the penalty, at least 0.
        beta: weight of its three parts, at least 0.
        lr: learning rate, above 0.
        cyclic: roll delta by a random number of frames in each step, and let the differences go
            around the end, so that delta works at any offset. Returns the last iterate, at
            offset 0.
        generator: source of the random start and offsets.

    Raises:
        ValueError: as `pgd` does, and for other supports.
    """
    FLICKER_DOMAIN.require(threat)
    between(0, float("inf"), lam=lam, beta=beta)
    penalty = _Roughness(lam, beta, cyclic)
    return _penalised(loss, x, threat, penalty, steps, lr, generator, cyclic)


@dataclass(frozen=True)
class _FrameNorms:
    """The penalty of `sparse`: delta -> (B,), lam times the sum of the L2 norms of its frames."""

    lam: float

    def __call__(self, delta: Tensor) -> Tensor:
        # the small constant keeps the gradient of the root finite at 0
        return self.lam * delta.square().sum((1, 3, 4)).add(1e-12).sqrt().sum(1)


@dataclass(frozen=True)
class _Roughness:
    """The penalty of `flicker`: delta -> (B,), its size and its differences in time."""

    lam: float
    beta: float
    cyclic: bool

    def __call__(self, delta: Tensor) -> Tensor:
        line = delta[:, :, :, 0, 0]
        if self.cyclic:
            first = line - line.roll(1, 2)
            second = line.roll(-1, 2) - 2 * line + line.roll(1, 2)
        else:
            first = line.diff(dim=2)
            second = line.diff(n=2, dim=2)
        # means; clips of one or two frames have no values of a difference
        means = [
            part.square().flatten(1).sum(1) / max(part[0].numel(), 1)
            for part in (line, first, second)
        ]
        return self.lam * self.beta * sum(means[1:], means[0])


def _penalised(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    penalty: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
    generator: torch.Generator | None,
    cyclic: bool = False,
) -> Tensor:
    """Minimise penalty(delta) - loss with Adam, projected; `sparse` says which iterate is best.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: the clips.
        threat: which perturbations are allowed.
        penalty: delta -> (B,).
        steps: of Adam.
        lr: its learning rate.
        generator: source of the random start and offsets.
        cyclic: roll delta by a random number of frames in each step, and return the last iterate.
    """
    at_least_one(steps=steps)
    above_zero(lr=lr)
    search = _LeastPenalty(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    # begin a thousandth away from the clip, with random signs
    start = 1e-3 * torch.sign(search.ball.random(generator))
    delta = start.clamp(search.ball.low, search.ball.high)
    delta.requires_grad_()
    adam = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        offset = drawn_below(delta.shape[2], generator) if cyclic else 0

        # the gradients of the penalty, and of the loss at the rolled delta
        with torch.enable_grad():
            cost = penalty(delta)
            (penalty_gradient,) = torch.autograd.grad(cost.sum(), delta)
        rolled = delta.detach().roll(offset, 2)
        search.penalty = cost.detach()
        _, loss_gradient = search.gradient(rolled, keep=not cyclic)

        # a step of Adam, and back into the ball
        delta.grad = penalty_gradient - loss_gradient.roll(-offset, 2)
        adam.step()
        with torch.no_grad():
            delta.copy_(search.ball.project(delta))
    if cyclic:
        # what is best at one offset is not at the others, so the last iterate is the result
        search.require_numbers()
        return search.ball.apply(delta.detach())
    search.penalty = penalty(delta.detach())
    search.look(delta.detach())
    return search.result()


class _LeastPenalty(Search):
    """A search whose best is the broken clip of least penalty, or else the one of highest loss.

    No sample finishes early.

    Attributes:
        penalty: (n,) of the delta that is evaluated next.
    """

    penalty: Tensor

    def _keep(self, x_adv: Tensor, value: Tensor, level: Tensor) -> None:
        self.broken = self._is_broken(value, level)
        # broken clips are ranked by their penalty, above all others
        level = torch.where(self.broken, level.clamp(min=1), level)
        super()._keep(x_adv, torch.where(self.broken, -self.penalty, value.float()), level)
        self._finished = torch.zeros_like(self.broken)


# ------------------------------------------------------------------ patches and pixels


def roa(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 30,
    step_size: float | None = None,
    stride: int = 5,
    candidates: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best clip of the rectangular occlusion attack (Wu et al., ICLR 2020).

    A grey patch is placed where it does most harm, and PGD then runs inside the patch from grey.
    The places tried have the largest squared gradient on a grid. A place that the threat names, or
    draws, is kept. The GARD evaluation (Lo and Patel 2021) uses patches of 30 pixels in frames of
    112 pixels with eps 1. Costs candidates + steps + 3 forward and steps + 2 backward passes.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of norm linf and support patch.
        steps: of PGD.
        step_size: of PGD; None is 2.5 eps / steps.
        stride: pixels between the places of the grid.
        candidates: places that are tried with grey (0.5).
        generator: source of a random place, for threats that have one.

    Raises:
        ValueError: as `pgd` does, and for other norms and supports.
    """
    at_least_one(steps=steps, stride=stride, candidates=candidates)
    above_zero(step_size=step_size)
    ROA_DOMAIN.require(threat)
    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    if threat.places == "search":
        score = as_clip(judged_gradient(loss, x)[2]).square().mean(1)
        search.place(_most_harmful_places(loss, x, threat, score, stride, candidates))
    grey = 0.5 - search.ball.take(as_clip(search.ball.x))
    delta = search.ball.project(grey)
    climb(search, delta, steps, 2.5 * threat.eps / steps if step_size is None else step_size)
    return search.result()


@torch.no_grad()
def _most_harmful_places(
    loss: Loss, x: Tensor, threat: ThreatModel, score: Tensor, stride: int, candidates: int
) -> Tensor:
    """Return the places (B, 2) where a grey patch raises the loss most.

    Args:
        loss: (B, ...) -> (B,).
        x: the clips.
        threat: of support patch.
        score: (B, T, H, W) how much each pixel matters.
        stride: pixels between the places of the grid.
        candidates: the number of places of largest score that are tried.
    """
    sums = patch_scores(score, threat.k)[:, ::stride, ::stride]
    ranked = sums.flatten(1).topk(min(candidates, sums[0].numel()), dim=1).indices
    best_places = torch.zeros(len(x), 2, dtype=torch.long, device=x.device)
    best_value = x.new_full((len(x),), -torch.inf)
    # one candidate of every sample per forward pass
    for index in ranked.unbind(1):
        places = torch.stack([index // sums.shape[2], index % sums.shape[2]], 1) * stride
        ball = make_ball(threat, x, lambda: score).moved_to(places)
        grey = ball.project(0.5 - ball.take(as_clip(x)))
        value = judged(loss, ball.apply(grey))[0]
        best_places = torch.where((value > best_value).unsqueeze(1), places, best_places)
        best_value = torch.maximum(value.float(), best_value)
    return best_places


def salt_and_pepper(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each sample's best clip with `k` pixels of each frame black or white.

    This is SPA of the GARD evaluation (Lo and Patel 2021), which uses 100 pixels of 112 x 112 with
    eps 1. Each step paints k / steps more pixels, those of the largest gradient summed over
    channels: white where the gradient is positive, black elsewhere.

    Args:
        loss: (B, ...) -> (B,), to maximise.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: of norm linf and support pixels.
        steps: number of steps.
        generator: not used, as nothing is random.

    Raises:
        ValueError: as `pgd` does, and for other norms and supports.
    """
    at_least_one(steps=steps)
    SALT_AND_PEPPER_DOMAIN.require(threat)
    # the search is over all pixels, as this attack chooses them one step at a time
    any_pixel = ThreatModel("linf", threat.eps, "dense")
    require_fit(threat, as_clip(x))
    search = Search(loss, x, any_pixel, generator)
    if not search.begin():
        return search.result()
    delta = search.ball.zero()
    painted = torch.zeros_like(delta[:, :1])  # (n, 1, T, H, W): 1 for pixels that are done
    for step in range(steps):
        _, gradient = search.gradient(delta)
        delta, painted, gradient = search.drop(delta, painted, gradient)
        if not len(search.rows):
            break

        # choose the next pixels; the counts of all steps add up to k
        count = threat.k * (step + 1) // steps - threat.k * step // steps
        direction = gradient.sum(1, keepdim=True)
        size = direction.abs().masked_fill(painted > 0, -1).flatten(3).squeeze(1)
        chosen = torch.zeros_like(size).scatter(2, size.topk(count, dim=2).indices, 1)
        chosen = chosen.view_as(painted)

        # paint them
        white = (direction > 0).to(delta.dtype).expand_as(delta)
        colour = white - as_clip(search.ball.x)
        delta = search.ball.project(torch.where(chosen > 0, colour, delta))
        painted = painted + chosen
    else:
        # the last iterate has not been evaluated yet
        search.look(delta)
    return search.result()

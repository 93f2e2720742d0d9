"""Attacks made for video: sparse, flickering, one frame, patches, translation in time."""

from collections.abc import Callable

import torch
from torch import Tensor

from vidrobust.attacks.arguments import above_zero, at_least_one, between, none_or_more
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
    """TT (Wei et al., AAAI 2022): an attack that transfers to other models -> the last iterate,
    shaped as x.

    `mim` with the gradient averaged over cyclic shifts in time by -shift ... shift frames, with
    Gaussian weights (deviation shift / 3). The paper: Linf 16/255, 10 steps, shift 7. step_size
    None is eps / steps. The last iterate and not the best: what is best on this model is not what
    transfers. Costs steps * (2 shift + 1) passes of each kind.
    """
    at_least_one(steps=steps)
    none_or_more(shift=shift)
    above_zero(step_size=step_size)
    between(0, float("inf"), momentum=momentum)
    size = threat.eps / steps if step_size is None else step_size
    reach = shift if as_clip(x).shape[2] > 1 else 0
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets * 3 / max(reach, 1)) ** 2)
    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    ball = search.ball
    delta, total = ball.zero(), ball.zero()
    for _ in range(steps):
        x_adv = ball.apply(delta)
        gradient = torch.zeros_like(x_adv)
        for offset, weight in zip(
            offsets.tolist(), (weights / weights.sum()).tolist(), strict=True
        ):
            rolled = x_adv.roll(offset, 2) if offset else x_adv
            seen = judged_gradient(loss, rolled)[2]
            gradient += weight * (seen.roll(-offset, 2) if offset else seen)
        pulled = ball.pull(gradient, delta)
        mean = pulled.abs().flatten(1).mean(1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)
        total = momentum * total + pulled / mean
        delta = ball.step(delta, total, size)
    return ball.apply(delta)


def frame_saliency(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    mode: str = "iterative",
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Frame saliency attack (Inkawhich et al. 2018): the most salient frames first, until a sample
    is broken.

    Saliency is the mean absolute gradient of a frame. mode: "one_shot" perturbs all frames with
    `pgd` and lays them over the clip one after the other; "iterative" attacks one frame more each
    time, together with those before it; "refresh" asks for the saliency anew before each frame.
    Returns each sample's best clip, of as few frames as it took; with a loss that breaks nothing,
    of whichever number raised it most. Dense threats. Costs, at most: one_shot steps + T + 2, the
    others T * (steps + 1) + 1 forward passes, "refresh" T more.
    """
    at_least_one(steps=steps)
    FRAME_SALIENCY_DOMAIN.require(threat)
    if mode not in ("one_shot", "iterative", "refresh"):
        raise ValueError(f"mode={mode}: must be one_shot, iterative or refresh")
    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    clip = as_clip(search.x)
    delta, used = torch.zeros_like(clip), torch.zeros_like(clip[:, :1, :, :1, :1])
    saliency = frame_gradient(search, delta)
    whole = (
        as_clip(pgd(loss, x, threat, steps=steps, generator=generator)) - clip
        if mode == "one_shot"
        else None
    )
    for _ in range(clip.shape[2]):
        if not search.begin():
            break
        rows = search.rows
        first = saliency[rows].masked_fill(used[rows] > 0, -1).argmax(2, keepdim=True)
        used[rows] = used[rows].scatter(2, first, 1)
        search.ball = search.ball.only(used[rows])
        if whole is not None:
            search.look(search.ball.project(whole[rows]))
            continue
        left = climb(search, delta[rows], steps, 2.5 * threat.eps / steps)
        delta[search.rows] = left
        if mode == "refresh" and search.begin():
            saliency[search.rows] = frame_gradient(search, left)
    return search.result()


def frame_gradient(search: Search, delta: Tensor) -> Tensor:
    """The mean absolute gradient of each frame, (n, 1, T, 1, 1), for a delta of support dense."""
    return search.gradient(delta)[1].abs().mean((1, 3, 4), keepdim=True)


def one_frame(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One-frame attack (Hwang et al., ICCV 2021): PGD on each single frame in turn, each sample's
    best one.

    Searches all T frames, at T times the cost of `pgd`; the threat `frames1-...` takes the most
    salient one. Dense threats.
    """
    at_least_one(steps=steps)
    ONE_FRAME_DOMAIN.require(threat)
    search = Search(loss, x, threat, generator)
    for frame in range(as_clip(x).shape[2]):
        search.threat = ThreatModel(threat.norm, threat.eps, "frames", 1, (frame,))
        if not search.begin():
            break
        climb(search, search.ball.random(generator), steps, 2.5 * threat.eps / steps)
    return search.result()


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
    """Sparse attack (Wei et al., AAAI 2019): Adam on lam sum_t |delta_t|_2 - loss -> each sample's
    best clip.

    The published loss is log(1 - p_y), `losses.escape`. The penalty leaves few frames changed; a
    threat of support frames is the paper's temporal mask. lam is ours (the paper's is not known to
    METHODS section 7). Best: broken, and of the smallest penalty; without a broken iterate, of the
    highest loss. The budget of the threat holds as well.
    """
    between(0, float("inf"), lam=lam)
    return _penalised(
        loss,
        x,
        threat,
        lambda d: lam * d.square().sum((1, 3, 4)).add(1e-12).sqrt().sum(1),
        steps,
        lr,
        generator,
    )


def flicker(
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
    """Flickering attack with its roughness penalty (Pony et al., CVPR 2021) -> each sample's best
    clip.

    A colour offset a frame, delta (C, T, 1, 1); Adam minimises lam (beta mean delta^2 + beta mean
    (first difference)^2 + beta mean (second difference)^2) - loss, inside the hard budget of the
    threat, whose support is flicker; PGD under that threat is the attack without the penalty. The
    published loss is `losses.flicker_hinge`. cyclic: each step sees delta rolled by a random number
    of frames, and the differences go around, so that it works at any offset; the last iterate is
    returned, at offset 0. Otherwise best as in `sparse`.
    """
    FLICKER_DOMAIN.require(threat)
    between(0, float("inf"), lam=lam, beta=beta)

    def roughness(d: Tensor) -> Tensor:
        line = d[:, :, :, 0, 0]
        if cyclic:
            first = line - line.roll(1, 2)
            second = line.roll(-1, 2) - 2 * line + line.roll(1, 2)
        else:
            first, second = line.diff(dim=2), line.diff(n=2, dim=2)
        parts = [
            part.square().flatten(1).sum(1) / max(part[0].numel(), 1)
            for part in (line, first, second)
        ]
        return lam * beta * sum(parts[1:], parts[0])

    return _penalised(loss, x, threat, roughness, steps, lr, generator, cyclic)


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
    """Adam on penalty(delta) - loss, projected; see `sparse` for which iterate is best."""
    at_least_one(steps=steps)
    above_zero(lr=lr)
    search = _LeastPenalty(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    delta = (1e-3 * torch.sign(search.ball.random(generator))).clamp(
        search.ball.low, search.ball.high
    )
    delta.requires_grad_()
    adam = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        by = int(torch.randint(delta.shape[2], (), generator=generator)) if cyclic else 0
        with torch.enable_grad():
            cost = penalty(delta)
            (of_penalty,) = torch.autograd.grad(cost.sum(), delta)
        rolled = delta.detach().roll(by, 2)
        search.penalty = cost.detach()
        _, gradient = search.gradient(rolled, keep=not cyclic)
        delta.grad = of_penalty - gradient.roll(-by, 2)
        adam.step()
        with torch.no_grad():
            delta.copy_(search.ball.project(delta))
    if cyclic:  # what is best at one offset is not at the others
        search.require_numbers()
        return search.ball.apply(delta.detach())
    search.penalty = penalty(delta.detach())
    search.look(delta.detach())
    return search.result()


class _LeastPenalty(Search):
    """A search whose best is broken with the least penalty, or else of the highest loss; no sample
    finishes early.
    """

    penalty: Tensor

    def _keep(self, x_adv: Tensor, value: Tensor, level: Tensor) -> None:
        self.broken = self._is_broken(value, level)
        level = torch.where(self.broken, level.clamp(min=1), level)
        super()._keep(x_adv, torch.where(self.broken, -self.penalty, value.float()), level)
        self._finished = torch.zeros_like(self.broken)


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
    """Rectangular occlusion attack (Wu et al., ICLR 2020): place a grey patch where it does most
    harm, then PGD in it.

    The `candidates` places of the largest squared gradient, on a grid of `stride` pixels, are tried
    with grey (0.5); PGD starts from the grey. Support patch, Linf (GARD: 30 pixels at 112, eps 1).
    A place that the threat names, or draws, is kept. Costs candidates + steps + 3 forward, steps +
    2 backward passes.
    """
    at_least_one(steps=steps, stride=stride, candidates=candidates)
    above_zero(step_size=step_size)
    ROA_DOMAIN.require(threat)
    search = Search(loss, x, threat, generator)
    if not search.begin():
        return search.result()
    if threat.places == "search":
        score = as_clip(judged_gradient(loss, x)[2]).square().mean(1)
        search.place(_harmful_places(loss, x, threat, score, stride, candidates))
    grey = 0.5 - search.ball.take(as_clip(search.ball.x))
    delta = search.ball.project(grey)
    climb(search, delta, steps, 2.5 * threat.eps / steps if step_size is None else step_size)
    return search.result()


@torch.no_grad()
def _harmful_places(
    loss: Loss, x: Tensor, threat: ThreatModel, score: Tensor, stride: int, candidates: int
) -> Tensor:
    """(B, 2): of the candidates by score, the place where a grey patch raises the loss most."""
    sums = patch_scores(score, threat.k)[:, ::stride, ::stride]
    tried = sums.flatten(1).topk(min(candidates, sums[0].numel()), dim=1).indices
    best, most = (
        torch.zeros(len(x), 2, dtype=torch.long, device=x.device),
        x.new_full((len(x),), -torch.inf),
    )
    for index in tried.unbind(1):
        places = torch.stack([index // sums.shape[2], index % sums.shape[2]], 1) * stride
        ball = make_ball(threat, x, lambda: score).moved_to(places)
        value = judged(loss, ball.apply(ball.project(0.5 - ball.take(as_clip(x)))))[0]
        best = torch.where((value > most).unsqueeze(1), places, best)
        most = torch.maximum(value.float(), most)
    return best


def salt_and_pepper(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """SPA (GARD evaluation): `k` pixels of each frame become black or white -> each sample's best
    clip.

    Each of `steps` steps takes k / steps pixels more, of the largest gradient summed over channels,
    and paints them in its sign. Support pixels with eps 1 (METHODS section 6.1: 100 pixels of 112 x
    112).
    """
    at_least_one(steps=steps)
    SALT_AND_PEPPER_DOMAIN.require(threat)
    free = ThreatModel("linf", threat.eps, "dense")
    require_fit(threat, as_clip(x))
    search = Search(loss, x, free, generator)
    if not search.begin():
        return search.result()
    delta = search.ball.zero()
    painted = torch.zeros_like(delta[:, :1])
    per_step = [threat.k * (i + 1) // steps - threat.k * i // steps for i in range(steps)]
    for count in per_step:
        _, gradient = search.gradient(delta)
        delta, painted, gradient = search.drop(delta, painted, gradient)
        if not len(search.rows):
            break
        toward = gradient.sum(1, keepdim=True)
        flat = toward.abs().masked_fill(painted > 0, -1).flatten(3).squeeze(1)
        new = torch.zeros_like(flat).scatter(2, flat.topk(count, dim=2).indices, 1).view_as(painted)
        white = (toward > 0).to(delta.dtype).expand_as(delta)
        delta = search.ball.project(torch.where(new > 0, white - as_clip(search.ball.x), delta))
        painted = painted + new
    else:
        search.look(delta)
    return search.result()

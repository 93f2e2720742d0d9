"""Black-box attacks that estimate gradients from queries: NES, Geo-TRAP."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.attacks.arguments import above_zero, at_least_one, between, drawn
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.losses import Loss
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel, as_clip

NES_DOMAIN = Domain("NES", least_queries=52)  # the clip, 50 probes and one look
GEO_TRAP_DOMAIN = Domain("Geo-TRAP", least_queries=4)  # the clip, two probes and one look


@torch.no_grad()
def nes(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 5000,
    samples: int = 50,
    sigma: float = 0.001,
    step_size: float | None = None,
    momentum: float = 0.9,
    generator: torch.Generator | None = None,
) -> Tensor:
    """NES (Ilyas et al., ICML 2018) -> each sample's best clip, shaped as x.

    The gradient is the mean of loss(delta + sigma u) u over `samples` normal u in antithetic pairs;
    then as PGD, along a running mean. step_size: in the threat's norm; None is 2.5 eps over the
    steps that the budget of `queries` (forward passes a sample) allows. Raises ValueError when it
    allows none.
    """
    at_least_one(queries=queries, samples=samples)
    steps = (queries - 1) // (samples + 1)
    if steps < 1 or samples < 2 or samples % 2:
        raise ValueError(
            f"queries={queries}, samples={samples}: an even number of samples, and queries for one"
            " step"
        )
    above_zero(sigma=sigma, step_size=step_size)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}: must be at least 0 and less than 1")
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    search = Search(loss, x, threat, generator, blind=True)
    if not search.begin():
        return search.result()
    delta, mean = search.ball.zero(), search.ball.zero()
    search.look(delta)
    for _ in range(steps):
        delta, mean = search.drop(delta, mean)
        if not len(search.rows):
            break
        estimate = torch.zeros_like(delta)
        for _ in range(samples // 2):
            u = drawn(torch.randn, delta.shape, delta, generator)
            # the probes leave the budget by sigma, so that what they find is not kept
            up, down = (search.peek(delta + sign * sigma * u) for sign in (1, -1))
            estimate += ((up - down) / (sigma * samples)).view(-1, 1, 1, 1, 1) * u
        mean = momentum * mean + (1 - momentum) * estimate
        delta = search.ball.step(delta, mean, size)
        search.look(delta)
    return search.result()


@torch.no_grad()
def geo_trap(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 60000,
    step_size: float = 0.025,
    explore: float = 0.1,
    probe: float = 0.1,
    rate: float = 0.1,
    spread: float = 0.1,
    affine: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Geo-TRAP-style query attack (Li et al., NeurIPS 2021) -> each sample's best clip, shaped as
    x.

    A running estimate of the gradient is moved along one random direction a step, by the difference
    of two queries (`explore`, `probe` and `rate` are its delta, epsilon and eta, 0.1 as published).
    The direction is one random frame, warped a little from frame to frame: by translation and
    dilation, or with `affine` by any affine map; `spread` is the deviation of the map's parameters.
    Each step has three queries: two probes and the step itself, of length `step_size` in the
    threat's norm. A reconstruction: the paper's sampling of the maps is not in METHODS section 7.
    Raises ValueError for fewer than four queries.
    """
    GEO_TRAP_DOMAIN.require_queries(queries)
    above_zero(step_size=step_size, explore=explore, probe=probe, rate=rate)
    between(0, float("inf"), spread=spread)
    search = Search(loss, x, threat, generator, blind=True)
    if not search.begin():
        return search.result()
    delta, guess = search.ball.zero(), search.ball.zero()
    search.look(delta)
    for _ in range((queries - 1) // 3):
        delta, guess = search.drop(delta, guess)
        if not len(search.rows):
            break
        u = search.ball.take(warped_frames(as_clip(search.ball.x), spread, affine, generator))
        up, down = (
            search.peek(delta + probe * _unit(guess + sign * explore * u)) for sign in (1, -1)
        )
        guess = guess + rate * ((up - down) / (explore * probe)).view(-1, 1, 1, 1, 1) * u
        delta = search.ball.step(delta, guess, min(step_size, threat.eps))
        search.look(delta)
    return search.result()


def warped_frames(
    clip: Tensor, spread: float, affine: bool, generator: torch.Generator | None
) -> Tensor:
    """A normal frame a sample, seen through a random map a frame -> shaped as clip (B, C, T, H,
    W).
    """
    b, c, t, h, w = clip.shape
    noise = drawn(torch.randn, (b, c, h, w), clip, generator)
    change = spread * drawn(torch.randn, (b * t, 2, 3), clip, generator)
    maps = torch.eye(2, 3, device=clip.device) + change
    if not affine:  # x and y are scaled alike, and nothing is turned
        maps[:, 0, 1] = maps[:, 1, 0] = 0
        maps[:, 1, 1] = maps[:, 0, 0]
    grid = F.affine_grid(maps, [b * t, c, h, w], align_corners=False)
    seen = F.grid_sample(
        noise.repeat_interleave(t, 0), grid, padding_mode="reflection", align_corners=False
    )
    return seen.view(b, t, c, h, w).transpose(1, 2)


def _unit(direction: Tensor) -> Tensor:
    return direction / direction.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)

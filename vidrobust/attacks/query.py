"""Black-box attacks that estimate gradients from queries: NES, Geo-TRAP."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.attacks.arguments import above_zero, at_least_one, between, drawn
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.losses import Loss
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel, as_clip

NES_DOMAIN = Domain("NES", least_queries=52)  # the clip, 50 probes, and the step's result
GEO_TRAP_DOMAIN = Domain("Geo-TRAP", least_queries=4)  # the clip, 2 probes, and the step's result


@torch.no_grad()
def nes(  # noqa: PLR0913  (a public signature)
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
    """Return each sample's best clip of NES (Ilyas et al., ICML 2018), shaped as x.

    The gradient is estimated as the mean of loss(delta + sigma u) u / sigma over normal u in
    antithetic pairs. Steps are those of PGD, along a running mean of the estimates.

    Args:
        loss: (B, ...) -> (B,), to maximise; it needs no gradient.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed; a free place is drawn.
        queries: forward passes per sample.
        samples: probes u per step, an even number.
        sigma: size of a probe, above 0.
        step_size: in the threat's norm; None is 2.5 eps over the steps that `queries` allows.
        momentum: decay of the running mean, at least 0 and below 1.
        generator: source of places and probes.

    Raises:
        ValueError: the queries do not allow one step, or an option is out of its range.
    """
    at_least_one(queries=queries, samples=samples)
    steps = (queries - 1) // (samples + 1)
    if steps < 1 or samples < 2 or samples % 2:
        raise ValueError(
            f"queries={queries}, samples={samples}: samples must be even, and queries at least"
            " samples + 2, enough for one step"
        )
    above_zero(sigma=sigma, step_size=step_size)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}: must be at least 0 and less than 1")
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    search = Search(loss, x, threat, generator, blind=True)
    if not search.begin():
        return search.result()
    delta = search.ball.zero()
    mean = search.ball.zero()
    search.look(delta)
    for _ in range(steps):
        delta, mean = search.drop(delta, mean)
        if not len(search.rows):
            break

        # step along the running mean of the estimates
        estimate = _estimate_gradient(search, delta, samples, sigma)
        mean = momentum * mean + (1 - momentum) * estimate
        delta = search.ball.step(delta, mean, size)
        search.look(delta)
    return search.result()


def _estimate_gradient(search: Search, delta: Tensor, samples: int, sigma: float) -> Tensor:
    """Return an estimate of the gradient from antithetic pairs of probes, shaped as delta.

    Args:
        search: the search, with the ball of delta.
        delta: where the gradient is estimated.
        samples: probes, an even number.
        sigma: their size.
    """
    estimate = torch.zeros_like(delta)
    for _ in range(samples // 2):
        u = drawn(torch.randn, delta.shape, delta, search.generator)
        # probes leave the budget by sigma, so the clips are not kept
        up = search.peek(delta + sigma * u)
        down = search.peek(delta - sigma * u)
        estimate += ((up - down) / (sigma * samples)).view(-1, 1, 1, 1, 1) * u
    return estimate


@torch.no_grad()
def geo_trap(  # noqa: PLR0913  (a public signature)
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
    """Return each sample's best clip of a Geo-TRAP-style attack (Li et al., NeurIPS 2021).

    A running guess of the gradient moves along one random direction per step, by the difference of
    two queries. The direction is one random frame, warped a little from frame to frame. Each step
    has three queries: two probes, and the step itself. This is a reconstruction: the sampling of
    the maps need not be that of the paper.

    Args:
        loss: (B, ...) -> (B,), to maximise; it needs no gradient.
        x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
        threat: which perturbations are allowed; a free place is drawn.
        queries: forward passes per sample, at least 4.
        step_size: length of a step in the threat's norm; at most eps is used.
        explore: how far the two probes differ from the guess (delta of the paper).
        probe: L2 length of a probe (epsilon of the paper).
        rate: how far a difference moves the guess (eta of the paper).
        spread: standard deviation of the parameters of the maps, at least 0.
        affine: warp by any affine map; False: by translation and dilation.
        generator: source of places, frames and maps.

    Returns:
        Perturbed clips, shaped as x.

    Raises:
        ValueError: for fewer than four queries, and options out of their range.
    """
    GEO_TRAP_DOMAIN.require_queries(queries)
    above_zero(step_size=step_size, explore=explore, probe=probe, rate=rate)
    between(0, float("inf"), spread=spread)
    search = Search(loss, x, threat, generator, blind=True)
    if not search.begin():
        return search.result()
    delta = search.ball.zero()
    guess = search.ball.zero()
    search.look(delta)
    for _ in range((queries - 1) // 3):
        delta, guess = search.drop(delta, guess)
        if not len(search.rows):
            break

        # two probes, along the guess turned to both sides of a warped random frame
        u = search.ball.take(warped_frames(as_clip(search.ball.x), spread, affine, generator))
        up = search.peek(delta + probe * _unit(guess + explore * u))
        down = search.peek(delta + probe * _unit(guess - explore * u))

        # their difference moves the guess, and the guess moves delta
        guess = guess + rate * ((up - down) / (explore * probe)).view(-1, 1, 1, 1, 1) * u
        delta = search.ball.step(delta, guess, min(step_size, threat.eps))
        search.look(delta)
    return search.result()


def warped_frames(
    clip: Tensor, spread: float, affine: bool, generator: torch.Generator | None
) -> Tensor:
    """Return one frame of normal noise per sample, seen through a random map per frame.

    Args:
        clip: (B, C, T, H, W), gives the shape of the result.
        spread: standard deviation of the parameters of the maps.
        affine: any affine map; False: translation and dilation.
        generator: source of the noise and the maps.
    """
    b, c, t, h, w = clip.shape
    noise = drawn(torch.randn, (b, c, h, w), clip, generator)
    change = spread * drawn(torch.randn, (b * t, 2, 3), clip, generator)
    maps = torch.eye(2, 3, device=clip.device) + change
    if not affine:
        # x and y are scaled alike, and nothing is turned
        maps[:, 0, 1] = 0
        maps[:, 1, 0] = 0
        maps[:, 1, 1] = maps[:, 0, 0]
    grid = F.affine_grid(maps, [b * t, c, h, w], align_corners=False)
    warped = F.grid_sample(
        noise.repeat_interleave(t, 0), grid, padding_mode="reflection", align_corners=False
    )
    return warped.view(b, t, c, h, w).transpose(1, 2)


def _unit(direction: Tensor) -> Tensor:
    """Return the direction at L2 length 1 per sample."""
    return direction / direction.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)

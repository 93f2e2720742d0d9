"""The perturbations that a threat model allows for each sample of a batch.

An attack never sees a support. It moves `delta`, the smallest tensor that says all there is to say:
(B, C, T, H, W) for dense, border and pixels, (B, C, 1, H, W) for tube, (B, C, T, 1, 1) for flicker,
(B, C, k, H, W) for frames and (B, C, T, k, k) for patch. `Ball` puts it into clips, and takes
gradients of clips back to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.attacks import norm_balls as geometry
from vidrobust.attacks.arguments import drawn
from vidrobust.attacks.threat import (
    ThreatModel,
    as_clip,
    chosen_frames,
    explain,
    norm_of,
    require_fit,
    shared_dims,
)

Score = Callable[[], Tensor]  # how much each pixel matters, (B, T, H, W)


@dataclass(frozen=True)
class Ball:
    """All `delta` of a batch: within `eps` (B,) in `norm`, and low <= delta <= high, which holds 0.

    x: the clips, 4-D or 5-D. where: (B, k) frames or (B, 2) corners, for the supports that have a
    place. Beyond low and high no pixel changes any more; `masked` ones are 0 somewhere.
    """

    threat: ThreatModel
    x: Tensor
    eps: Tensor
    low: Tensor
    high: Tensor
    where: Tensor | None = None
    masked: bool = False

    def at(self, rows: Tensor) -> "Ball":
        """The same for some of the samples."""
        x, eps, low, high = (part[rows] for part in (self.x, self.eps, self.low, self.high))
        where = None if self.where is None else self.where[rows]
        return replace(self, x=x, eps=eps, low=low, high=high, where=where)

    def with_eps(self, eps: Tensor) -> "Ball":
        """Other budgets, (B,)."""
        return replace(self, eps=eps)

    def only(self, mask: Tensor) -> "Ball":
        """The same with delta 0 where the mask, broadcast to delta, is 0."""
        return replace(self, low=self.low * mask, high=self.high * mask, masked=True)

    def moved_to(self, where: Tensor) -> "Ball":
        """Other places, (B, k) frames or (B, 2) corners."""
        moved = replace(self, where=where)
        part = moved.take(as_clip(self.x))
        return replace(moved, low=-part, high=1 - part)

    def zero(self) -> Tensor:
        """The delta that changes nothing."""
        return torch.zeros_like(self.low)

    def apply(self, delta: Tensor) -> Tensor:
        """clip(x + delta, 0, 1), shaped as x."""
        x = as_clip(self.x)
        if self.threat.support == "frames":
            moved = x.scatter_add(2, self._frames().expand_as(delta), delta)
        elif self.threat.support == "patch":
            rows, columns = self._corners()
            band = torch.take_along_dim(x, rows, 3)
            band = band.scatter_add(4, columns.expand_as(delta), delta)
            moved = x.scatter(3, rows.expand_as(band), band)
        else:
            moved = x + delta
        return moved.clamp_(0, 1).view_as(self.x)

    def take(self, clip: Tensor) -> Tensor:
        """What a tensor shaped as x holds at the places of delta; summed where delta is shared."""
        clip = as_clip(clip)
        if self.threat.support == "frames":
            return torch.take_along_dim(clip, self._frames(), 2)
        if self.threat.support == "patch":
            rows, columns = self._corners()
            return torch.take_along_dim(torch.take_along_dim(clip, rows, 3), columns, 4)
        dims = shared_dims(self.threat.support)
        return clip.sum(dims, keepdim=True) if dims else clip

    def pull(self, gradient: Tensor, delta: Tensor) -> Tensor:
        """The gradient at apply(delta), shaped as x, as that of delta. Pixels that are clipped do
        not count.

        A dense delta clips nothing; its gradient passes at the bounds themselves, so that it can
        come back from there.
        """
        if shared_dims(self.threat.support):
            moved = as_clip(self.x) + delta
            gradient = as_clip(gradient) * ((moved > -1e-6) & (moved < 1 + 1e-6))
        taken = self.take(gradient)
        return taken * (self.low < self.high) if self.masked else taken

    def norms(self, delta: Tensor) -> Tensor:
        """The norm of each delta, as the change of a clip -> (B,)."""
        return norm_of(self.threat.norm, delta) * self.weight

    def project(self, delta: Tensor) -> Tensor:
        """The nearest allowed delta (in L2)."""
        if self.threat.norm == "linf":
            return delta.clamp(*self._box)
        nearest = geometry.project_l1 if self.threat.norm == "l1" else geometry.project_l2
        u, low, high, radius = self._rows(delta, self.low, self.high, self.eps)
        return self._delta(nearest(u, low, high, radius))

    def ascend(self, gradient: Tensor, size: float | Tensor, start: Tensor | None = None) -> Tensor:
        """The best move from `start` (0) of length `size` in the threat's norm: steepest ascent.
        Project afterwards.

        From 0 and with size = eps it is, projected, the maximum of the linear loss `gradient .
        delta` over the ball. Moves of L2 and L1 keep within low and high, so that no length is
        spent where a pixel cannot go on.
        """
        if self.threat.norm == "linf":
            return gradient.sign() * (
                size.view(-1, *[1] * (gradient.ndim - 1)) if isinstance(size, Tensor) else size
            )
        low, high = (
            (self.low, self.high) if start is None else (self.low - start, self.high - start)
        )
        size = torch.as_tensor(size, device=gradient.device, dtype=torch.float32).expand(
            len(gradient)
        )
        g, low, high, radius = self._rows(gradient, low, high, size)
        return self._delta(geometry.ascend(self._flat_norm(), g, low, high, radius))

    def step(self, delta: Tensor, gradient: Tensor, size: float) -> Tensor:
        """project(delta + ascend(gradient, size, delta)), and in Linf without tensors in
        between.
        """
        if self.threat.norm == "linf":
            return torch.add(delta, gradient.sign(), alpha=size).clamp_(*self._box)
        return self.project(delta + self.ascend(gradient, size, delta))

    def random(self, generator: torch.Generator | None = None) -> Tensor:
        """A random delta: uniform in Linf; in L2 a uniform direction at full length, in L1 the
        sparse point that normal noise is projected onto (as in AutoAttack).
        """
        draw = torch.rand if self.threat.norm == "linf" else torch.randn
        noise = drawn(draw, self.low.shape, self.low, generator)
        if self.threat.norm == "linf":
            return self.project((2 * noise - 1) * self.eps.view(-1, *[1] * (noise.ndim - 1)))
        if self.threat.norm == "l1":
            return self.project(noise)
        u, _, _, radius = self._rows(noise * (self.low < self.high), self.low, self.high, self.eps)
        return self.project(self._delta(u * radius / u.norm(dim=1, keepdim=True).clamp(min=1e-12)))

    def explain(self, x_adv: Tensor) -> Tensor:
        """The delta of a perturbed clip; the nearest one where it is none."""
        dims = shared_dims(self.threat.support)
        if not dims:
            return self.take(as_clip(x_adv) - as_clip(self.x))
        delta, crossed = explain(self.threat, self.x, x_adv)
        mean = (as_clip(x_adv) - as_clip(self.x)).mean(dims, keepdim=True)
        kept = (crossed <= 1e-6).view(-1, 1, 1, 1, 1)
        return torch.where(kept, delta.amax(dims, keepdim=True), mean)

    @cached_property
    def _box(self) -> tuple[Tensor, Tensor]:
        """An Linf ball is a box as well."""
        eps = self.eps.view(-1, *[1] * (self.low.ndim - 1))
        return torch.maximum(self.low, -eps), torch.minimum(self.high, eps)

    def _frames(self) -> Tensor:
        assert self.where is not None
        return self.where.view(len(self.where), 1, -1, 1, 1)

    def _corners(self) -> tuple[Tensor, Tensor]:
        assert self.where is not None
        run = torch.arange(self.threat.k, device=self.where.device)
        top, left = self.where[:, :1] + run, self.where[:, 1:] + run
        return top.view(len(top), 1, 1, -1, 1), left.view(len(left), 1, 1, 1, -1)

    def _flat_norm(self) -> str:
        return "l2" if self.threat.norm == "l2_frame" else self.threat.norm

    @property
    def weight(self) -> float:
        """What a norm of delta is multiplied with to be that of the change: delta stands in so many
        pixels.
        """
        copies = {(2,): as_clip(self.x).shape[2], (3, 4): as_clip(self.x)[0, 0, 0].numel()}
        dims = shared_dims(self.threat.support)
        if (
            not dims
            or self.threat.norm == "linf"
            or (self.threat.norm == "l2_frame" and dims == (2,))
        ):
            return 1.0
        return float(copies[dims]) if self.threat.norm == "l1" else float(copies[dims]) ** 0.5

    def _rows(self, u: Tensor, low: Tensor, high: Tensor, size: Tensor) -> list[Tensor]:
        """What `geometry` works on: a row a sample, or a frame of it where the budget is a
        frame's.
        """
        radius = (size.float() / self.weight).unsqueeze(1)
        if self.threat.norm != "l2_frame":
            return [*(part.flatten(1) for part in (u, low, high)), radius]
        frames = [part.transpose(1, 2).flatten(0, 1).flatten(1) for part in (u, low, high)]
        return [*frames, radius.expand(-1, u.shape[2]).reshape(-1, 1)]

    def _delta(self, rows: Tensor) -> Tensor:
        if self.threat.norm != "l2_frame":
            return rows.view(self.low.shape)
        b, c, t, h, w = self.low.shape
        return rows.view(b, t, c, h, w).transpose(1, 2)


def make_ball(
    threat: ThreatModel, x: Tensor, score: Score, generator: torch.Generator | None = None
) -> Ball:
    """The ball around x, its place chosen. score: is asked where the place is "saliency" or
    "search".

    Raises ValueError where the clips have not the frames or pixels of the support.
    """
    clip = as_clip(x)
    require_fit(threat, clip)
    where = None
    if threat.support in ("frames", "patch"):
        where = (_place_frames if threat.support == "frames" else _place_patch)(
            threat, clip, score, generator
        )
    eps = x.new_full((len(x),), threat.eps, dtype=torch.float32)
    ball = Ball(threat, x, eps, clip, clip, where)
    dims = shared_dims(threat.support)
    if dims:
        low, high = -clip.amax(dims, keepdim=True), 1 - clip.amin(dims, keepdim=True)
    else:
        part = ball.take(clip)
        low, high = -part, 1 - part
    if threat.support in ("border", "pixels"):
        free = (
            _border(threat, clip)
            if threat.support == "border"
            else _place_pixels(threat, clip, score, generator)
        )
        low, high, ball = low * free, high * free, replace(ball, masked=True)
    return replace(ball, low=low, high=high)


def _place_frames(
    threat: ThreatModel, clip: Tensor, score: Score, generator: torch.Generator | None
) -> Tensor:
    fixed = chosen_frames(threat, clip.shape[2])
    if fixed is not None:
        return torch.tensor([sorted(fixed)], device=clip.device).expand(len(clip), -1)
    if threat.places == "random":
        each = drawn(torch.rand, (clip.shape[0], clip.shape[2]), clip, generator)
    else:
        each = score().mean((2, 3))
    return each.to(clip.device).topk(threat.k, dim=1).indices.sort(dim=1).values


def _place_patch(
    threat: ThreatModel, clip: Tensor, score: Score, generator: torch.Generator | None
) -> Tensor:
    if not isinstance(threat.places, str):
        return torch.tensor([threat.places], device=clip.device).expand(len(clip), -1)
    rows, columns = clip.shape[3] - threat.k + 1, clip.shape[4] - threat.k + 1
    if threat.places == "random":
        spot = drawn(torch.rand, (len(clip), 2), clip, generator)
        return (spot * torch.tensor([rows, columns], device=clip.device)).long()
    best = patch_scores(score(), threat.k).flatten(1).argmax(1)
    return torch.stack([best // columns, best % columns], 1)


def _border(threat: ThreatModel, clip: Tensor) -> Tensor:
    free = torch.ones_like(clip[:1, :1, :1])
    free[..., threat.k : -threat.k, threat.k : -threat.k] = 0
    return free


def _place_pixels(
    threat: ThreatModel, clip: Tensor, score: Score, generator: torch.Generator | None
) -> Tensor:
    """(B, 1, T, H, W), 1 at the k pixels of each frame."""
    each = (
        drawn(torch.rand, clip[:, 0].shape, clip, generator)
        if threat.places == "random"
        else score()
    )
    flat = each.float().flatten(2)
    return (
        torch.zeros_like(flat)
        .scatter(2, flat.topk(threat.k, dim=2).indices, 1)
        .view_as(each)
        .unsqueeze(1)
    )


def patch_scores(score: Tensor, k: int) -> Tensor:
    """(B, T, H, W) -> (B, H - k + 1, W - k + 1): the sum of the score over all frames and each
    square of k pixels.
    """
    return F.avg_pool2d(score.float().sum(1, keepdim=True), k, stride=1).squeeze(1) * k * k


def project(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> Tensor:
    """The allowed clip nearest (in L2) to x_adv; shapes alike, batch first.

    Frames, patches and pixels that an attack may choose are those that come nearest (exact in Linf,
    and in L2 where nothing is clipped). A shared delta (tube, flicker) is the nearest among deltas,
    before clipping to [0, 1].
    """
    change = as_clip(x_adv) - as_clip(x)
    reach = threat.eps if threat.norm == "linf" else 1.0
    left = (change - (as_clip(x) + change.clamp(-reach, reach)).clamp(0, 1) + as_clip(x)).square()
    free = threat.places in ("saliency", "search", "random")
    seen = ThreatModel(threat.norm, threat.eps, threat.support, threat.k) if free else threat
    ball = make_ball(seen, x, lambda: (change.square() - left).sum(1))
    return ball.apply(ball.project(ball.explain(x_adv)))

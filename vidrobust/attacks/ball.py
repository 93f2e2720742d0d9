"""The perturbations that a threat model allows for each sample of a batch.

An attack never handles a support itself. It moves `delta`, the smallest tensor that describes the
perturbation:

    dense, border, pixels   (B, C, T, H, W)
    tube                    (B, C, 1, H, W)
    flicker                 (B, C, T, 1, 1)
    frames                  (B, C, k, H, W)
    patch                   (B, C, T, k, k)

`Ball` applies delta to clips, and maps gradients of clips back to gradients of delta.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.attacks import norm_balls
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

Score = Callable[[], Tensor]  # returns how much each pixel matters, (B, T, H, W)


@dataclass(frozen=True)
class Ball:
    """All allowed `delta` of a batch: norm at most eps, and low <= delta <= high.

    Attributes:
        threat: the threat model.
        x: the clips, 4-D or 5-D.
        eps: (B,) budgets in the threat's norm. They may differ from the threat's eps.
        low: the lower bound of delta, at most 0. Below it no pixel changes any more.
        high: the upper bound of delta, at least 0. Above it no pixel changes any more.
        where: the chosen place: (B, k) frame numbers, or (B, 2) corners (top, left) of patches.
            None for supports without a place.
        masked: low and high are both 0 for some entries of delta, which may not change.
    """

    threat: ThreatModel
    x: Tensor
    eps: Tensor
    low: Tensor
    high: Tensor
    where: Tensor | None = None
    masked: bool = False

    # ------------------------------------------------------------------ other balls

    def at(self, rows: Tensor) -> "Ball":
        """Return the ball of some of the samples."""
        return replace(
            self,
            x=self.x[rows],
            eps=self.eps[rows],
            low=self.low[rows],
            high=self.high[rows],
            where=None if self.where is None else self.where[rows],
        )

    def with_eps(self, eps: Tensor) -> "Ball":
        """Return the ball with other budgets, (B,)."""
        return replace(self, eps=eps)

    def only(self, mask: Tensor) -> "Ball":
        """Return the ball whose delta is 0 where the mask, broadcast to delta, is 0."""
        return replace(self, low=self.low * mask, high=self.high * mask, masked=True)

    def moved_to(self, where: Tensor) -> "Ball":
        """Return the ball at other places, (B, k) frames or (B, 2) corners."""
        moved = replace(self, where=where)
        part = moved.take(as_clip(self.x))
        return replace(moved, low=-part, high=1 - part)

    # ------------------------------------------------------------------ delta and clips

    def zero(self) -> Tensor:
        """Return the delta that changes nothing."""
        return torch.zeros_like(self.low)

    def apply(self, delta: Tensor) -> Tensor:
        """Return clip(x + delta, 0, 1), shaped as x."""
        x = as_clip(self.x)
        if self.threat.support == "frames":
            moved = x.scatter_add(2, self._frames().expand_as(delta), delta)
        elif self.threat.support == "patch":
            # cut out the rows of each patch, add delta to its columns, and put the rows back
            rows, columns = self._corners()
            band = torch.take_along_dim(x, rows, 3)
            band = band.scatter_add(4, columns.expand_as(delta), delta)
            moved = x.scatter(3, rows.expand_as(band), band)
        else:
            moved = x + delta
        return moved.clamp_(0, 1).view_as(self.x)

    def take(self, clip: Tensor) -> Tensor:
        """Return the values of a clip-shaped tensor at the places of delta.

        Where pixels share an entry of delta, their values are summed.
        """
        clip = as_clip(clip)
        if self.threat.support == "frames":
            return torch.take_along_dim(clip, self._frames(), 2)
        if self.threat.support == "patch":
            rows, columns = self._corners()
            return torch.take_along_dim(torch.take_along_dim(clip, rows, 3), columns, 4)
        dims = shared_dims(self.threat.support)
        return clip.sum(dims, keepdim=True) if dims else clip

    def pull(self, gradient: Tensor, delta: Tensor) -> Tensor:
        """Return the gradient with respect to delta, from the one with respect to the clip.

        Pixels that clipping to [0, 1] holds at 0 or 1 do not count. Without a shared delta, the
        bounds low and high already exclude clipping. Gradients at the bounds pass, so that delta
        can leave a bound again.

        Args:
            gradient: of the loss at apply(delta), shaped as x.
            delta: where the gradient was taken.
        """
        if shared_dims(self.threat.support):
            moved = as_clip(self.x) + delta
            # the margin of 1e-6 keeps pixels that are at a bound up to rounding
            gradient = as_clip(gradient) * ((moved > -1e-6) & (moved < 1 + 1e-6))
        taken = self.take(gradient)
        return taken * (self.low < self.high) if self.masked else taken

    def explain(self, x_adv: Tensor) -> Tensor:
        """Return the delta of a perturbed clip, or a near one where no delta gives that clip."""
        dims = shared_dims(self.threat.support)
        if not dims:
            return self.take(as_clip(x_adv) - as_clip(self.x))
        delta, crossed = explain(self.threat, self.x, x_adv)
        mean = (as_clip(x_adv) - as_clip(self.x)).mean(dims, keepdim=True)
        consistent = (crossed <= 1e-6).view(-1, 1, 1, 1, 1)
        return torch.where(consistent, delta.amax(dims, keepdim=True), mean)

    # ------------------------------------------------------------------ geometry of the ball

    def norms(self, delta: Tensor) -> Tensor:
        """Return (B,) norms of the changes that each delta makes to its clip."""
        return norm_of(self.threat.norm, delta) * self.weight

    def project(self, delta: Tensor) -> Tensor:
        """Return the nearest allowed delta, in L2."""
        if self.threat.norm == "linf":
            return delta.clamp(*self._box)
        nearest = norm_balls.project_l1 if self.threat.norm == "l1" else norm_balls.project_l2
        u, low, high, radius = self._as_rows(delta, self.low, self.high, self.eps)
        return self._from_rows(nearest(u, low, high, radius))

    def ascend(self, gradient: Tensor, size: float | Tensor, start: Tensor | None = None) -> Tensor:
        """Return the step of steepest ascent, to be projected afterwards.

        From start 0 with size = eps, the projected step maximises the linear loss `gradient .
        delta` over the ball. In L2 and L1 the step keeps within low and high, so that none of its
        length is spent on pixels that cannot move further.

        Args:
            gradient: of the loss, shaped as delta.
            size: length of the step in the threat's norm; a number, or (B,).
            start: the delta that the step begins at; None is 0.
        """
        if self.threat.norm == "linf":
            if isinstance(size, Tensor):
                size = size.view(-1, *[1] * (gradient.ndim - 1))
            return gradient.sign() * size
        low = self.low if start is None else self.low - start
        high = self.high if start is None else self.high - start
        sizes = torch.as_tensor(size, device=gradient.device, dtype=torch.float32)
        g, low, high, radius = self._as_rows(gradient, low, high, sizes.expand(len(gradient)))
        # a row is already one frame where the budget is per frame
        norm = "l2" if self.threat.norm == "l2_frame" else self.threat.norm
        return self._from_rows(norm_balls.ascend(norm, g, low, high, radius))

    def step(self, delta: Tensor, gradient: Tensor, size: float) -> Tensor:
        """Return project(delta + ascend(gradient, size, delta)).

        Args:
            delta: where the step begins.
            gradient: of the loss at delta.
            size: length of the step in the threat's norm.
        """
        if self.threat.norm == "linf":
            # the same numbers without intermediate tensors, as this is the hottest line of PGD
            return torch.add(delta, gradient.sign(), alpha=size).clamp_(*self._box)
        return self.project(delta + self.ascend(gradient, size, delta))

    def random(self, generator: torch.Generator | None = None) -> Tensor:
        """Return a random delta.

        In Linf it is uniform. In L2 it has a uniform direction and the full length. In L1 it is the
        sparse projection of normal noise, as in AutoAttack (Croce and Hein 2021).
        """
        draw = torch.rand if self.threat.norm == "linf" else torch.randn
        noise = drawn(draw, self.low.shape, self.low, generator)
        if self.threat.norm == "linf":
            return self.project((2 * noise - 1) * self.eps.view(-1, *[1] * (noise.ndim - 1)))
        if self.threat.norm == "l1":
            return self.project(noise)
        # entries that may not change get no part of the length
        free_noise = noise * (self.low < self.high)
        u, _, _, radius = self._as_rows(free_noise, self.low, self.high, self.eps)
        full_length = u * radius / u.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return self.project(self._from_rows(full_length))

    @property
    def weight(self) -> float:
        """Return the norm of a change divided by the norm of its delta.

        An entry of a tube or a flicker changes many pixels, so that the change is longer than
        delta: `copies` times in L1, and the root of that in L2.
        """
        dims = shared_dims(self.threat.support)
        if not dims or self.threat.norm == "linf":
            return 1.0
        if self.threat.norm == "l2_frame" and dims == (2,):
            return 1.0  # a tube stands once in each frame
        clip = as_clip(self.x)
        copies = clip.shape[2] if dims == (2,) else clip[0, 0, 0].numel()
        return float(copies) if self.threat.norm == "l1" else float(copies) ** 0.5

    @cached_property
    def _box(self) -> tuple[Tensor, Tensor]:
        """Return the bounds of an Linf ball, which is a box too."""
        eps = self.eps.view(-1, *[1] * (self.low.ndim - 1))
        return torch.maximum(self.low, -eps), torch.minimum(self.high, eps)

    # ------------------------------------------------------------------ shapes

    def _frames(self) -> Tensor:
        """Return frame numbers that broadcast to delta."""
        assert self.where is not None
        return self.where.view(len(self.where), 1, -1, 1, 1)

    def _corners(self) -> tuple[Tensor, Tensor]:
        """Return row and column numbers of the patches, which broadcast to delta."""
        assert self.where is not None
        offsets = torch.arange(self.threat.k, device=self.where.device)
        rows = self.where[:, :1] + offsets
        columns = self.where[:, 1:] + offsets
        return rows.view(len(rows), 1, 1, -1, 1), columns.view(len(columns), 1, 1, 1, -1)

    def _as_rows(self, u: Tensor, low: Tensor, high: Tensor, size: Tensor) -> list[Tensor]:
        """Flatten to what `norm_balls` works on: one row per budget.

        Args:
            u: shaped as delta.
            low: the lower bounds, shaped as delta.
            high: the upper bounds, shaped as delta.
            size: (B,) lengths as norms of the change.

        Returns:
            u, low and high as rows of a sample, or of a frame where the budget is per frame; and
            the lengths of these rows, (rows, 1).
        """
        radius = (size.float() / self.weight).unsqueeze(1)
        if self.threat.norm != "l2_frame":
            return [*(part.flatten(1) for part in (u, low, high)), radius]
        frames = [part.transpose(1, 2).flatten(0, 1).flatten(1) for part in (u, low, high)]
        return [*frames, radius.expand(-1, u.shape[2]).reshape(-1, 1)]

    def _from_rows(self, rows: Tensor) -> Tensor:
        """Undo `_as_rows`: return rows as a delta."""
        if self.threat.norm != "l2_frame":
            return rows.view(self.low.shape)
        b, c, t, h, w = self.low.shape
        return rows.view(b, t, c, h, w).transpose(1, 2)


def make_ball(
    threat: ThreatModel, x: Tensor, score: Score, generator: torch.Generator | None = None
) -> Ball:
    """Return the ball around x, with its place chosen.

    Args:
        threat: the threat model.
        x: the clips, 4-D or 5-D.
        score: called only where the place is "saliency" or "search"; returns how much each pixel
            matters, (B, T, H, W).
        generator: source of random places.

    Raises:
        ValueError: the clips have too few frames or pixels for the support.
    """
    clip = as_clip(x)
    require_fit(threat, clip)

    # the place, for supports that have one
    where = None
    if threat.support == "frames":
        where = _place_frames(threat, clip, score, generator)
    elif threat.support == "patch":
        where = _place_patch(threat, clip, score, generator)

    # bounds: a shared delta may go on until the last of its pixels is at 0 or 1
    eps = x.new_full((len(x),), threat.eps, dtype=torch.float32)
    ball = Ball(threat, x, eps, clip, clip, where)
    dims = shared_dims(threat.support)
    if dims:
        low = -clip.amax(dims, keepdim=True)
        high = 1 - clip.amin(dims, keepdim=True)
    else:
        part = ball.take(clip)
        low = -part
        high = 1 - part

    # supports that are a subset of the pixels: delta is 0 elsewhere
    if threat.support in ("border", "pixels"):
        if threat.support == "border":
            free = _border(threat, clip)
        else:
            free = _place_pixels(threat, clip, score, generator)
        low = low * free
        high = high * free
        ball = replace(ball, masked=True)
    return replace(ball, low=low, high=high)


def _place_frames(
    threat: ThreatModel, clip: Tensor, score: Score, generator: torch.Generator | None
) -> Tensor:
    """Return (B, k) frame numbers, increasing."""
    fixed = chosen_frames(threat, clip.shape[2])
    if fixed is not None:
        return torch.tensor([sorted(fixed)], device=clip.device).expand(len(clip), -1)
    if threat.places == "random":
        frame_scores = drawn(torch.rand, (clip.shape[0], clip.shape[2]), clip, generator)
    else:
        frame_scores = score().mean((2, 3))
    return frame_scores.to(clip.device).topk(threat.k, dim=1).indices.sort(dim=1).values


def _place_patch(
    threat: ThreatModel, clip: Tensor, score: Score, generator: torch.Generator | None
) -> Tensor:
    """Return (B, 2) corners (top, left)."""
    if not isinstance(threat.places, str):
        return torch.tensor([threat.places], device=clip.device).expand(len(clip), -1)
    rows = clip.shape[3] - threat.k + 1
    columns = clip.shape[4] - threat.k + 1
    if threat.places == "random":
        uniform = drawn(torch.rand, (len(clip), 2), clip, generator)
        return (uniform * torch.tensor([rows, columns], device=clip.device)).long()
    best = patch_scores(score(), threat.k).flatten(1).argmax(1)
    return torch.stack([best // columns, best % columns], 1)


def _border(threat: ThreatModel, clip: Tensor) -> Tensor:
    """Return (1, 1, 1, H, W): 1 on the border of k pixels, 0 inside."""
    free = torch.ones_like(clip[:1, :1, :1])
    free[..., threat.k : -threat.k, threat.k : -threat.k] = 0
    return free


def _place_pixels(
    threat: ThreatModel, clip: Tensor, score: Score, generator: torch.Generator | None
) -> Tensor:
    """Return (B, 1, T, H, W): 1 at the k chosen pixels of each frame, 0 elsewhere."""
    if threat.places == "random":
        pixel_scores = drawn(torch.rand, clip[:, 0].shape, clip, generator)
    else:
        pixel_scores = score()
    flat = pixel_scores.float().flatten(2)
    chosen = torch.zeros_like(flat).scatter(2, flat.topk(threat.k, dim=2).indices, 1)
    return chosen.view_as(pixel_scores).unsqueeze(1)


def patch_scores(score: Tensor, k: int) -> Tensor:
    """Return the sum of a score over all frames and each square of k x k pixels.

    (B, T, H, W) becomes (B, H - k + 1, W - k + 1), one number per corner (top, left).
    """
    return F.avg_pool2d(score.float().sum(1, keepdim=True), k, stride=1).squeeze(1) * k * k


def project(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> Tensor:
    """Return the allowed clips nearest to x_adv, in L2.

    Frames, patches and pixels that an attack may choose are those that come nearest. This is exact
    in Linf, and in L2 where nothing is clipped. A shared delta (tube, flicker) is the nearest among
    deltas, before clipping to [0, 1].

    Args:
        threat: the threat model.
        x: the clips, batch first.
        x_adv: perturbed clips, shaped as x.
    """
    change = as_clip(x_adv) - as_clip(x)
    # The score of a pixel is what the squared distance to x_adv decreases by if the pixel may
    # change: the square of its change, less the square of what budget and clipping leave of it.
    reach = threat.eps if threat.norm == "linf" else 1.0
    reached = (as_clip(x) + change.clamp(-reach, reach)).clamp(0, 1)
    remaining = (change - reached + as_clip(x)).square()
    if threat.places in ("saliency", "search", "random"):
        # the default place asks for the score
        threat = ThreatModel(threat.norm, threat.eps, threat.support, threat.k)
    ball = make_ball(threat, x, lambda: (change.square() - remaining).sum(1))
    return ball.apply(ball.project(ball.explain(x_adv)))

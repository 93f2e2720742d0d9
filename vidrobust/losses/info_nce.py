"""The one contrastive loss, over masks.

N anchors, M candidates, E extra negatives, D feature dimension.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vidrobust.losses.cosine import full_precision
from vidrobust.losses.hard_negatives import hard_denominator
from vidrobust.utils import distributed

_BACKWARD_ELEMENTS = 2**20  # elements of a logit matrix that the backward pass treats at a time


def info_nce(
    logits: Tensor,
    positives: Tensor,
    ignore: Tensor | None = None,
    extra: Tensor | None = None,
    weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
) -> Tensor:
    """Return -log softmax averaged over each anchor's positives (SupCon's L_out).

    This is eq. 2 of Khosla et al. 2020; with one positive per anchor it is InfoNCE. The denominator
    contains the positives, all other pairs that are not ignored, and the extra negatives.

    Args:
        logits: (N, M), similarity / temperature.
        positives: (N, M) bool.
        ignore: (N, M) bool: pairs left out of the denominator, unless they are positives.
        extra: (N, E), logits of more negatives.
        weights: (N, M) in [0, 1]: how much a negative counts in the denominator. The gradient with
            respect to the weights is not computed.
        positive_weights: (N, M), factors of the terms in the mean over positives.

    Returns:
        (N,), one loss per anchor. It is NaN for an anchor without positives, and for NaN
        embeddings.
    """
    if weights is not None:
        zero_weight = weights <= 0
        ignore = zero_weight if ignore is None else ignore | zero_weight
    return _InfoNCE.apply(logits, positives, ignore, extra, weights, positive_weights)


@dataclass(frozen=True)
class Asymmetry:
    """Configure A-InfoNCE's inferior positives: pairs of a clean and an adversarial row.

    See Yu et al., ECCV 2022. No gradient reaches the candidate of such a pair.

    Attributes:
        adversarial: (N,) bool, which rows are adversarial.
        clean_weight: factor of the term of such a pair whose anchor is clean.
        adversarial_weight: factor of the term of such a pair whose anchor is adversarial.
    """

    adversarial: Tensor
    clean_weight: float
    adversarial_weight: float


@dataclass(frozen=True)
class Hardness:
    """Configure A-InfoNCE's hard negatives.

    Attributes:
        beta: how strongly hard negatives are preferred, 0 or more.
        tau: expected fraction of false negatives, at least 0 and below 1.
        floor: lower bound of the mean over negatives; see `hard_denominator`.
    """

    beta: float
    tau: float
    floor: float


@dataclass(frozen=True)
class _Batch:
    """Hold the masks and settings of a batch, apart from its embeddings.

    Attributes:
        ids: (N,), of the anchors of this rank.
        candidate_ids: (M,), of the candidates.
        position: (N,), index of each anchor among the candidates.
        temperature: divides the similarities.
        ignore, attract, weights: (N, M), see `nt_xent`.
        extra: (N, E), see `nt_xent`.
        asymmetric, hard: see `nt_xent`.
        adversarial: (M,) bool, which candidates are adversarial, if `asymmetric` is given.
    """

    ids: Tensor
    candidate_ids: Tensor
    position: Tensor
    temperature: float
    ignore: Tensor | None
    extra: Tensor | None
    attract: Tensor | None
    weights: Tensor | None
    asymmetric: Asymmetry | None
    hard: Hardness | None
    adversarial: Tensor | None


def nt_xent(  # noqa: PLR0913  (one loss, whose masks are all optional; the signature is public)
    z: Tensor,
    ids: Tensor,
    temperature: float,
    ignore: Tensor | None = None,
    extra: Tensor | None = None,
    *,
    attract: Tensor | None = None,
    weights: Tensor | None = None,
    chunk: int = 0,
    stop: bool = False,
    asymmetric: Asymmetry | None = None,
    hard: Hardness | None = None,
) -> Tensor:
    """Return the NT-Xent loss (SimCLR, Chen et al. 2020, eq. 1) with positives by id.

    Rows of equal id are positives of each other, and all other rows are negatives. A row is neither
    its own positive nor its own negative. The loss is computed in float32, or in float64 if z is
    float64. Over several ranks, the candidates are the M = world * N rows of all ranks, in the
    order of ranks. Masks are then (N, M), and equal ids on different ranks are positives too.

    Args:
        z: (N, D) embeddings of any norm.
        ids: (N,), one per row.
        temperature: above 0.
        ignore: (N, M) bool, pairs that are not negatives, see `info_nce`.
        extra: (N, E), logits of more negatives, already divided by the temperature.
        attract: (N, M) bool, more positives.
        weights: (N, M) in [0, 1], weights of negatives, see `info_nce`.
        chunk: anchors at a time, 0 for all. Memory is then (chunk, M) instead of 2 (N, M), and
            similarities are computed twice; values and gradients are the same.
        stop: stop the gradient to candidates, the second factor of a similarity.
        asymmetric: treatment of pairs of a clean and an adversarial row.
        hard: weights of hard negatives in the denominator, in place of `weights`.

    Returns:
        (N,), one loss per row.

    Raises:
        ValueError: both chunk and hard are given.

    Example:
        loss = nt_xent(torch.cat([z1, z2]), torch.arange(len(z1)).repeat(2), 0.5).mean()
    """
    if hard is not None and chunk:
        raise ValueError(
            f"chunk={chunk}: hard negatives are weighted by the rows of all anchors; set 0"
        )
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(full_precision(z), dim=1)
        candidates = distributed.gather(z.detach() if stop else z)
        candidate_ids = distributed.gather(ids)
        index = torch.arange(len(candidates), device=z.device)
        batch = _Batch(
            ids=ids,
            candidate_ids=candidate_ids,
            position=index[distributed.here(len(z))],
            temperature=temperature,
            ignore=ignore,
            extra=extra,
            attract=attract,
            weights=weights,
            asymmetric=asymmetric,
            hard=hard,
            adversarial=None if asymmetric is None else distributed.gather(asymmetric.adversarial),
        )
        if not chunk:
            return _anchor_losses(z, candidates, batch, slice(len(z)))
        # Checkpointing recomputes the similarities of a chunk in the backward pass, so that only
        # one chunk of them is in memory.
        parts = [
            checkpoint(
                _anchor_losses,
                z,
                candidates,
                batch,
                slice(start, start + chunk),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, len(z), chunk)
        ]
        return torch.cat(parts)


def _anchor_losses(z: Tensor, candidates: Tensor, batch: _Batch, rows: slice) -> Tensor:
    """Return the losses of some anchors.

    Args:
        z: (N, D), normalised embeddings of this rank.
        candidates: (M, D), normalised.
        batch: masks and settings.
        rows: the anchors.
    """
    # Masks of these anchors: positives by id and on request, never the row itself.
    positives = batch.ids[rows, None] == batch.candidate_ids
    if batch.attract is not None:
        positives |= batch.attract[rows]
    itself = batch.position[rows, None] == torch.arange(len(candidates), device=z.device)
    positives &= ~itself
    ignore = itself if batch.ignore is None else itself | batch.ignore[rows]
    if batch.asymmetric is None or batch.adversarial is None:
        return _loss(z[rows], candidates, batch, rows, positives, ignore)

    # A-InfoNCE's inferior positives (Yu et al. 2022). Split the mean over positives: pairs of one
    # kind, and pairs of a clean and an adversarial row, whose candidates get no gradient. The
    # gradient of the other pairs reaches both rows, unless it is stopped for all of them.
    is_adversarial = batch.adversarial[batch.position[rows]]
    mixed = positives & (is_adversarial[:, None] != batch.adversarial)
    weight = torch.where(
        is_adversarial, batch.asymmetric.adversarial_weight, batch.asymmetric.clean_weight
    ).to(z.dtype)
    alike = _loss(z[rows], candidates, batch, rows, positives, ignore, (~mixed).to(z.dtype))
    return alike + _loss(
        z[rows], candidates.detach(), batch, rows, positives, ignore, mixed * weight[:, None]
    )


def _loss(
    anchors: Tensor,
    candidates: Tensor,
    batch: _Batch,
    rows: slice,
    positives: Tensor,
    ignore: Tensor,
    factors: Tensor | None = None,
) -> Tensor:
    """Return the mean over positives of -log softmax, in the chosen form of the denominator.

    Args:
        anchors: (n, D), normalised.
        candidates: (M, D), normalised.
        batch: masks and settings.
        rows: which anchors of the batch these are.
        positives: (n, M) bool.
        ignore: (n, M) bool.
        factors: (n, M), of the terms in the mean; None: 1.
    """
    # s_ij / T. The anchors are divided, because they are a smaller matrix than the logits.
    logits = anchors / batch.temperature @ candidates.T
    extra = None if batch.extra is None else batch.extra[rows]
    if batch.hard is None:
        weights = None if batch.weights is None else batch.weights[rows]
        return info_nce(logits, positives, ignore, extra, weights, factors)

    # The denominator of hard negatives: the mean positive, the weighted negatives, and the extra
    # negatives. Each positive has its own numerator.
    hard = batch.hard
    terms = hard_denominator(
        logits, positives, ignore, beta=hard.beta, tau=hard.tau, floor=hard.floor
    )
    terms = terms if extra is None else torch.cat([terms, extra], 1)
    losses = terms.logsumexp(1, keepdim=True) - logits
    losses = losses if factors is None else losses * factors
    return losses.masked_fill(~positives, 0).sum(1) / positives.sum(1)


class _InfoNCE(torch.autograd.Function):
    """Compute `info_nce` with a backward pass written by hand.

    Autograd would keep and create twice as many (N, M) matrices. This function has two of them: the
    softmax and its gradient.

    With positives P of an anchor, factors f_p (1 without `positive_weights`) and their mean f, the
    loss is

        1/|P| sum_p f_p (log total - s_p) = f log total - 1/|P| sum_p f_p s_p.

    Its derivative with respect to s_j is f softmax_j - f_j / |P|, with f_j = 0 outside of P.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        positives: Tensor,
        ignore: Tensor | None,
        extra: Tensor | None,
        weights: Tensor | None,
        positive_weights: Tensor | None,
    ) -> Tensor:
        """Return the losses (N,).

        Args:
            ctx: keeps tensors for `backward`.
            logits: (N, M).
            positives: (N, M) bool.
            ignore: (N, M) bool or None.
            extra: (N, E) or None.
            weights: (N, M) or None.
            positive_weights: (N, M) or None.
        """
        # The second term: the mean of the positive logits, times their factors.
        wide = torch.promote_types(logits.dtype, torch.float32)
        count = positives.sum(1, dtype=wide)  # an integer sum would need eight bytes per pair
        factors = None if positive_weights is None else positive_weights.masked_fill(~positives, 0)
        weighted = logits if factors is None else logits * factors
        numerator = weighted.masked_fill(~positives, 0).sum(1) / count
        mean_factor = None if factors is None else factors.sum(1) / count

        # The first term. Exponentials are relative to the largest logit, so that none overflows,
        # and are computed in place in one matrix.
        exponentials = logits.clone()
        if ignore is not None:
            exponentials.masked_fill_((~positives).logical_and_(ignore), -torch.inf)
        top = exponentials.amax(1, keepdim=True)
        if extra is None or not extra.shape[1]:
            extra = top.new_empty(len(top), 0)
        else:
            top = torch.maximum(top, extra.amax(1, keepdim=True))
        exponentials.sub_(top).exp_()
        if weights is not None:
            exponentials.mul_(weights.masked_fill(positives, 1))  # positives always count fully
        extra_exponentials = (extra - top).exp()
        total = exponentials.sum(1, keepdim=True) + extra_exponentials.sum(1, keepdim=True)

        ctx.save_for_backward(
            exponentials, positives, count, extra_exponentials, total, factors, mean_factor
        )
        log_total = (top + total.log()).squeeze(1)
        return (log_total if mean_factor is None else mean_factor * log_total) - numerator

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of logits and extra: softmax minus the mean of the positives."""
        saved = ctx.saved_tensors
        exponentials, positives, count, extra_exponentials, total, factors, mean_factor = saved
        scaled = gradient if mean_factor is None else gradient * mean_factor
        slope = scaled[:, None] / total
        logits_gradient = exponentials * slope

        # Subtract the numerator's part some rows at a time, to avoid a third (N, M) matrix.
        per_positive = (gradient / count)[:, None]
        positive_factors = positives if factors is None else factors
        rows = max(1, _BACKWARD_ELEMENTS // max(1, exponentials.shape[1]))
        for start in range(0, len(exponentials), rows):
            part = slice(start, start + rows)
            logits_gradient[part] -= positive_factors[part] * per_positive[part]

        extra_gradient = extra_exponentials * slope if extra_exponentials.shape[1] else None
        return logits_gradient, None, None, extra_gradient, None, None

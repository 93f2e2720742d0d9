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


def info_nce(
    logits: Tensor,
    positives: Tensor,
    ignore: Tensor | None = None,
    extra: Tensor | None = None,
    weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
) -> Tensor:
    """Mean over an anchor's positives of -log softmax (SupCon's L_out, Khosla et al. 2020, eq. 2)
    -> (N,).

    logits (N, M): similarity / temperature. positives, ignore (N, M) bool. extra (N, E): more
    negative logits. weights (N, M) in [0, 1]: how much a negative counts in the denominator; no
    gradient reaches them. positive_weights (N, M): a factor of each positive's term of the mean.
    The denominator holds positives, all other pairs that are not ignored, and extra. With one
    positive an anchor this is InfoNCE. An anchor without any positive has no loss: it gives NaN; so
    do NaN embeddings.
    """
    if weights is not None:
        none_left = weights <= 0
        ignore = none_left if ignore is None else ignore | none_left
    return _InfoNCE.apply(logits, positives, ignore, extra, weights, positive_weights)


@dataclass(frozen=True)
class Asymmetry:
    """A-InfoNCE's inferior positives (Yu et al., ECCV 2022): pairs of a clean and an adversarial
    row.

    adversarial: which rows are, (N,) bool. clean_weight, adversarial_weight: a factor of the term
    of such a pair whose anchor is clean, or adversarial. No gradient reaches the candidate of
    either.
    """

    adversarial: Tensor
    clean_weight: float
    adversarial_weight: float


@dataclass(frozen=True)
class Hardness:
    """A-InfoNCE's hard negatives: arguments of `hard_denominator`."""

    beta: float
    tau: float
    floor: float


def nt_xent(
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
    """NT-Xent (SimCLR, Chen et al. 2020, eq. 1) with positives by id -> (N,).

    z (N, D) of any norm, ids (N,): rows of equal id are positives of each other, all others
    negatives; a row is neither its own positive nor its own negative. Computed in float32, or in
    float64 where z is. Over several ranks, candidates are the M = world * N rows of all of them, in
    order of rank; masks are then (N, M) and ids are unique over ranks. attract (N, M) bool: more
    positives. extra: (N, E) logits, already divided by the temperature. ignore, weights: as
    `info_nce` has them. chunk: anchors at a time, 0 for all. Memory is then (chunk, M) instead of 2
    (N, M), and similarities are computed twice; values and gradients are the same. stop: no
    gradient reaches candidates, the second factor of a similarity. asymmetric: of pairs of a clean
    and an adversarial row. hard: what the denominator then is; takes no chunk.
    """
    if hard is not None and chunk:
        raise ValueError(f"chunk={chunk}: hard negatives are weighed by the rows of all anchors")
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(full_precision(z), dim=1)
        everyone, all_ids = distributed.gather(z.detach() if stop else z), distributed.gather(ids)
        number = torch.arange(len(everyone), device=z.device)
        own = number[distributed.here(len(z))]
        kinds = None if asymmetric is None else distributed.gather(asymmetric.adversarial)

        def losses(z: Tensor, everyone: Tensor, rows: slice) -> Tensor:
            positives = ids[rows, None] == all_ids
            if attract is not None:
                positives |= attract[rows]
            itself = own[rows, None] == number
            positives &= ~itself
            ignored = itself if ignore is None else itself | ignore[rows]

            def term(everyone: Tensor, factors: Tensor | None = None) -> Tensor:
                logits = z[rows] / temperature @ everyone.T
                more, gone = None if extra is None else extra[rows], ignored
                counted = None if weights is None else weights[rows]
                if hard is None:
                    return info_nce(logits, positives, gone, more, counted, factors)
                columns = hard_denominator(
                    logits, positives, ignored, beta=hard.beta, tau=hard.tau, floor=hard.floor
                )
                columns = columns if more is None else torch.cat([columns, more], 1)
                each = columns.logsumexp(1, keepdim=True) - logits
                each = each if factors is None else each * factors
                return each.masked_fill(~positives, 0).sum(1) / positives.sum(1)

            if asymmetric is None or kinds is None:
                return term(everyone)
            kind = kinds[own[rows]]
            mixed = positives & (kind[:, None] != kinds)
            share = torch.where(kind, asymmetric.adversarial_weight, asymmetric.clean_weight).to(
                z.dtype
            )
            # the other positives' gradient reaches both rows, unless it is stopped for all
            alike = term(everyone, (~mixed).to(z.dtype))
            return alike + term(everyone.detach(), mixed * share[:, None])

        if not chunk:
            return losses(z, everyone, slice(len(z)))
        parts = [
            checkpoint(
                losses,
                z,
                everyone,
                slice(at, at + chunk),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for at in range(0, len(z), chunk)
        ]
        return torch.cat(parts)


class _InfoNCE(torch.autograd.Function):
    """By hand: autograd would keep and make twice as many (N, M) matrices as the softmax and its
    gradient.
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
        wide = torch.promote_types(logits.dtype, torch.float32)
        count = positives.sum(1, dtype=wide)  # of whole numbers it would make eight bytes a pair
        factors = None if positive_weights is None else positive_weights.masked_fill(~positives, 0)
        wanted = (logits if factors is None else logits * factors).masked_fill(~positives, 0).sum(
            1
        ) / count
        mean_factor = None if factors is None else factors.sum(1) / count
        share = logits.clone()
        if ignore is not None:
            share.masked_fill_((~positives).logical_and_(ignore), -torch.inf)
        top = share.amax(1, keepdim=True)
        if extra is None or not extra.shape[1]:
            extra = top.new_empty(len(top), 0)
        else:
            top = torch.maximum(top, extra.amax(1, keepdim=True))
        share.sub_(top).exp_()
        if weights is not None:
            share.mul_(weights.masked_fill(positives, 1))
        more = (extra - top).exp()
        total = share.sum(1, keepdim=True) + more.sum(1, keepdim=True)
        ctx.save_for_backward(share, positives, count, more, total, factors, mean_factor)
        log_total = (top + total.log()).squeeze(1)
        return (log_total if mean_factor is None else mean_factor * log_total) - wanted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        share, positives, count, more, total, factors, mean_factor = ctx.saved_tensors
        each = (gradient / count)[:, None]
        slope = (gradient if mean_factor is None else gradient * mean_factor)[:, None] / total
        pulled = positives if factors is None else factors
        found = share * slope
        rows = max(1, 2**20 // max(1, share.shape[1]))
        for at in range(0, len(share), rows):  # some rows at a time: no third matrix
            part = slice(at, at + rows)
            found[part] -= pulled[part] * each[part]
        return found, None, None, more * slope if more.shape[1] else None, None, None

"""Weights of hard negatives: HCL (Robinson et al. 2021) and A-InfoNCE."""

import math

import torch
from torch import Tensor

from vidrobust.utils import distributed

_SMALL = 1e-9  # lower bound of the mean weight of negatives, as in the released code


def hard_denominator(
    logits: Tensor, positives: Tensor, ignore: Tensor, *, beta: float, tau: float, floor: float
) -> Tensor:
    """Return the logs of the two terms whose sum is the denominator of A-InfoNCE.

    The first term, exp(s+), is the mean of exp(s) over an anchor's positives. The second term is
    that of its n negatives,

        max( (sum_j w_ij exp(s_ij) - tau n exp(s+)) / (1 - tau), n floor ),

    which corrects for a fraction tau of false negatives. The weight w_ij = exp(beta s_ij) / m_j
    prefers hard negatives. m_j is the sum of exp(beta s_jk) over the negatives k of row j, divided
    by the number of all columns. HCL (Robinson et al. 2021) divides by the mean of the anchor's
    row, m_i. The mean of the candidate's row is that of the released code of A-InfoNCE (Yu et al.,
    ECCV 2022, github.com/yqy2001/A-InfoNCE).

    Args:
        logits: (N, M), similarity / temperature, of all anchors of this rank and all candidates;
            the candidates are the anchors of all ranks.
        positives: (N, M) bool.
        ignore: (N, M) bool: pairs that are not negatives; a positive pair stays positive.
        beta: how strongly hard negatives are preferred, 0 (not at all) or more.
        tau: expected fraction of false negatives, at least 0 and below 1.
        floor: lower bound of the mean over negatives.

    Returns:
        (N, 2): the log of both terms; the second is -inf for an anchor without negatives.
    """
    negatives = ~(positives | ignore)
    count = negatives.sum(1, keepdim=True, dtype=logits.dtype)
    # An anchor without negatives is not masked: the gradient of logsumexp over -inf alone is NaN.
    masked = ~negatives & (count > 0)

    # Sums are computed as logs: exp((1 + beta) s) may overflow before it is divided by m_j.
    # log m_j: each rank computes the rows of its own anchors, and gathers the others.
    mean = (logits * beta).masked_fill(masked, -torch.inf).logsumexp(1) - math.log(logits.shape[1])
    mean = distributed.gather(mean.clamp(min=math.log(_SMALL))[:, None])[:, 0]

    # log of sum_j w_ij exp(s_ij), as w_ij exp(s_ij) = exp((1 + beta) s_ij) / m_j; then log exp(s+)
    weighted = (logits * (1 + beta) - mean).masked_fill(masked, -torch.inf)
    weighted_sum = weighted.logsumexp(1, keepdim=True)
    positive = logits.masked_fill(~positives, -torch.inf).logsumexp(1, keepdim=True)
    positive = positive - positives.sum(1, keepdim=True, dtype=logits.dtype).log()

    # Subtract the expected false negatives, and bound the result from below: the difference of two
    # estimates may be negative. The bound of 1e-30 keeps the log finite where the floor is 0.
    total = (weighted_sum.exp() - tau * count * positive.exp()) / (1 - tau)
    total = torch.maximum(total, count * floor).clamp(min=1e-30).log()
    return torch.cat([positive, torch.where(count > 0, total, -torch.inf)], 1)

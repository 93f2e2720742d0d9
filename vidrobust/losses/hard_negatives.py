"""Weights of hard negatives: HCL (Robinson et al. 2021) and A-InfoNCE."""

import math

import torch
from torch import Tensor

from vidrobust.utils import distributed

_SMALL = 1e-9  # no negative weighs less in the released code


def hard_denominator(
    logits: Tensor, positives: Tensor, ignore: Tensor, *, beta: float, tau: float, floor: float
) -> Tensor:
    """Return (N, 2): log of the mean positive and of the hard negatives, whose sum is the
    denominator.

    exp of the first is exp(s+), the mean of exp(s) over an anchor's positives. exp of the second is
    max( (sum over negatives of w_ij exp(s_ij) - tau n exp(s+)) / (1 - tau), n floor ), n negatives
    of which the share tau is taken to be false. w_ij = exp(beta s_ij) / m_j prefers hard ones; m_j
    is the mean of exp(beta s_jk) over all columns k of row j, those that are no negatives counting
    nothing: as the released code has it, which divides by the candidate's mean, not the anchor's
    (Yu et al., ECCV 2022, github.com/yqy2001/A-InfoNCE).

    Args:
        logits: (N, M), similarity / temperature, of all anchors of this rank and all candidates;
            candidates are the anchors of all ranks.
        positives: (N, M) bool.
        ignore: (N, M) bool, neither negatives nor, where they are no positives, anything else.
        beta: how much hard ones are preferred; 0: not at all.
        tau: 0 to 1.
        floor: of the mean negative.
    """
    negatives = ~(positives | ignore)
    count = negatives.sum(1, keepdim=True, dtype=logits.dtype)
    others = ~negatives & (count > 0)  # of an anchor without negatives the gradient would be NaN
    mean = (logits * beta).masked_fill(others, -torch.inf).logsumexp(1) - math.log(logits.shape[1])
    mean = distributed.gather(mean.clamp(min=math.log(_SMALL))[:, None])[:, 0]
    harder = (logits * (1 + beta) - mean).masked_fill(others, -torch.inf).logsumexp(1, keepdim=True)
    own = logits.masked_fill(~positives, -torch.inf).logsumexp(1, keepdim=True)
    own = own - positives.sum(1, keepdim=True, dtype=logits.dtype).log()
    total = (harder.exp() - tau * count * own.exp()) / (1 - tau)
    total = torch.maximum(total, count * floor).clamp(min=1e-30).log()
    return torch.cat([own, torch.where(count > 0, total, -torch.inf)], 1)

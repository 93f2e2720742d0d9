"""Negatives that count as they are hard (HCL, Robinson et al. 2021), as A-InfoNCE weighs adversarial ones."""

import torch
from torch import Tensor


def hard_negatives(
    logits: Tensor, positives: Tensor, ignore: Tensor, temperature: float, *, beta: float = 1.0, tau: float = 0.12
) -> Tensor:
    """log N_g (N, 1), which stands in the denominator in place of all negatives: an `extra` column of `info_nce`.

    N_g = max( (sum of w exp(s) over the n negatives - tau n exp(s+)) / (1 - tau), n exp(-1 / temperature) ), where the
    weights w = exp(beta s) / mean of exp(beta s) prefer hard ones, and tau, the share of negatives that are false,
    takes so many positives away (Yu et al., ECCV 2022; METHODS section 4.6). exp(s+): the mean over an anchor's
    positives. logits (N, M): similarity / temperature; positives, ignore (N, M) bool. An anchor without negatives has
    -inf.
    """
    negatives = ~(positives | ignore)
    count = negatives.sum(1, keepdim=True, dtype=logits.dtype)
    others = ~negatives & (count > 0)  # of an anchor without negatives the gradient would be NaN
    harder = (logits * (1 + beta)).masked_fill(others, -torch.inf).logsumexp(1, keepdim=True)
    mean = (logits * beta).masked_fill(others, -torch.inf).logsumexp(1, keepdim=True) - count.clamp(min=1).log()
    own = logits.masked_fill(~positives, -torch.inf).logsumexp(1, keepdim=True) - positives.sum(1, keepdim=True).log()
    total = ((harder - mean).exp() - tau * count * own.exp()) / (1 - tau)
    least = count * torch.exp(torch.tensor(-1 / temperature, device=logits.device))
    return torch.where(count > 0, torch.maximum(total, least).clamp(min=1e-30).log(), -torch.inf)

"""AIR (Xu et al., NeurIPS 2023; METHODS section 4.8): two views see the same neighbours, attacked or not.

METHODS gives the idea, not the formula: what follows is our reading of it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.engine import distributed


def neighbours(z: Tensor, temperature: float) -> Tensor:
    """(B, M): log of the softmax of a row's similarities with the view's other rows, -inf for itself.

    z (B, D) of any norm; M rows over all ranks.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float(), dim=1)
        everyone = distributed.gather(z)
        logits = z @ everyone.T / temperature
        number = torch.arange(len(everyone), device=z.device)
        itself = number[distributed.here(len(z)), None] == number
        return logits.masked_fill(itself, -torch.inf).log_softmax(1)


def recognised(z_adv: Tensor, z: Tensor, temperature: float) -> Tensor:
    """(B,): log of the share that a row's own clean embedding has in the softmax over those of the batch."""
    with torch.autocast(z.device.type, enabled=False):
        z_adv, everyone = F.normalize(z_adv.float(), dim=1), distributed.gather(F.normalize(z.float(), dim=1))
        log_p = (z_adv @ everyone.T / temperature).log_softmax(1)
        own = torch.arange(len(everyone), device=z.device)[distributed.here(len(z))]
        return log_p.gather(1, own[:, None])[:, 0]


def sir(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """(B,): KL(P1 || P2) of the neighbours that a video's two clean views see (standard invariant regulariser)."""
    return _divergence(neighbours(z1, temperature), neighbours(z2, temperature))


def air(a1: Tensor, a2: Tensor, z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """(B,): the same of two adversarial views a1, a2, each distribution times the share that its clean view has.

    sum over j of Q1 log(Q1 / Q2), Q_v = P(a_v) * recognised(a_v, z_v): it may be negative.
    """
    q1, q2 = (neighbours(a, temperature) + recognised(a, z, temperature)[:, None] for a, z in ((a1, z1), (a2, z2)))
    return _divergence(q1, q2)


def regularizer(
    z1: Tensor, z2: Tensor, a1: Tensor, a2: Tensor, *, temperature: float, clean: float, adversarial: float
) -> Tensor:
    """(B,): clean * `sir` + adversarial * `air`; 0.5 each in the paper."""
    found = z1.new_zeros(len(z1), dtype=torch.float32)
    if clean:
        found = found + clean * sir(z1, z2, temperature)
    return found + adversarial * air(a1, a2, z1, z2, temperature) if adversarial else found


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum of p log(p / q) over what is possible."""
    possible = log_p > -torch.inf
    apart = torch.where(possible, log_p, 0) - torch.where(possible, log_q, 0)
    return (log_p.exp() * apart).sum(1)

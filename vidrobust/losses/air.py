"""AIR: adversarial invariance of a video's views (Xu et al., NeurIPS 2023).

A view's distribution is that over the batch of how like its own original it is. The released code
(GodXuxilie/Enhancing_ACL_via_AIR) gives torch's kl_div probabilities q where that takes their
logarithms: what it adds up is p (log p - q), by default here too. The paper's divergence is
p (log p - log q).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidrobust.losses.cosine import similarity
from vidrobust.utils import distributed

# embeddings (B, D) of two clean views, two adversarial ones and the original clip -> (B,)
Invariance = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def likeness(z: Tensor, other: Tensor, temperature: float) -> Tensor:
    """(M,): log of the softmax, over the videos of all ranks, of the cosine of each row with its
    own row of `other`.

    z, other (B, D) of any norm.
    """
    with torch.autocast(z.device.type, enabled=False):
        cosine = similarity(z, other)
        return distributed.gather(cosine[:, None] / temperature)[:, 0].log_softmax(0)


def sir(
    z1: Tensor, z2: Tensor, original: Tensor, temperature: float, released: bool = True
) -> Tensor:
    """(B,), whose mean is KL(P2 || P1), P_v the likeness of clean views and the original (standard
    regulariser).
    """
    return _divergence(
        likeness(z2, original, temperature), likeness(z1, original, temperature), len(z1), released
    )


def air(
    a1: Tensor,
    a2: Tensor,
    z1: Tensor,
    z2: Tensor,
    original: Tensor,
    temperature: float,
    released: bool = True,
) -> Tensor:
    """(B,), whose mean is the same of adversarial views a1, a2, each P times the likeness of view
    and clean self.

    These products do not sum to 1: it may be negative.
    """
    q1, q2 = (
        likeness(a, original, temperature) + likeness(a, z, temperature)
        for a, z in ((a1, z1), (a2, z2))
    )
    return _divergence(q2, q1, len(z1), released)


def regularizer(
    z1: Tensor,
    z2: Tensor,
    a1: Tensor,
    a2: Tensor,
    original: Tensor,
    *,
    temperature: float,
    clean: float,
    adversarial: float,
    released: bool = True,
) -> Tensor:
    """(B,): clean * `sir` + adversarial * `air`, of embeddings (B, D); 0.5 each in the paper.

    released: the sums of the released code, not divergences.
    """
    found = torch.zeros_like(similarity(z1, z1))
    if clean:
        found = found + clean * sir(z1, z2, original, temperature, released)
    if adversarial:
        found = found + adversarial * air(a1, a2, z1, z2, original, temperature, released)
    return found


def _divergence(log_p: Tensor, log_q: Tensor, mine: int, released: bool) -> Tensor:
    """M p log(p / q) of this rank's videos: the mean over all M is the sum of p log(p / q).

    released: q in place of log q.
    """
    terms = len(log_p) * log_p.exp() * (log_p - (log_q.exp() if released else log_q))
    return terms[distributed.here(mine)]

"""AIR: adversarial invariance of a video's views (Xu et al., NeurIPS 2023).

The distribution of a view is a softmax over the videos of the batch. Its logits are the
similarities of each video's view to its own original clip. The regularisers are divergences between
such distributions.

The released code (GodXuxilie/Enhancing_ACL_via_AIR) passes probabilities q to torch's kl_div, which
expects their logarithms. It therefore sums p (log p - q), which is also the default here. The
divergence in the paper sums p (log p - log q).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidrobust.losses.cosine import full_precision, similarity
from vidrobust.utils import distributed

# embeddings (B, D) of two clean views, two adversarial ones and the original clip -> (B,)
Invariance = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def likeness(z: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the log-softmax, over the videos of all ranks, of each row's cosine with `other`.

    Args:
        z: (B, D), of any norm.
        other: (B, D), of any norm; row i is compared with row i of z.
        temperature: divides the cosines.

    Returns:
        (M,), for the M = world * B videos of all ranks.
    """
    with torch.autocast(z.device.type, enabled=False):
        cosine = similarity(z, other)
        return distributed.gather(cosine[:, None] / temperature)[:, 0].log_softmax(0)


def sir(
    z1: Tensor, z2: Tensor, original: Tensor, temperature: float, released: bool = True
) -> Tensor:
    """Return the standard invariant regulariser, whose mean is KL(P2 || P1) if not `released`.

    P_v is the softmax, over the videos, of the similarities of clean view v and the original clip.

    Args:
        z1: (B, D) embeddings of the first clean view.
        z2: (B, D) of the second clean view.
        original: (B, D) of the original clip.
        temperature: of the softmax.
        released: use the sum of the released code instead of the divergence.

    Returns:
        (B,), one value per video of this rank.
    """
    log_p2 = likeness(z2, original, temperature)
    log_p1 = likeness(z1, original, temperature)
    return _divergence(log_p2, log_p1, len(z1), released)


def air(
    a1: Tensor,
    a2: Tensor,
    z1: Tensor,
    z2: Tensor,
    original: Tensor,
    temperature: float,
    released: bool = True,
) -> Tensor:
    """Return the adversarial invariant regulariser: `sir` of adversarial views.

    Each distribution is multiplied by the softmax of the similarities of the adversarial view and
    its own clean view. These products do not sum to 1, so the result may be negative. As in the
    released code, they are not normalised again.

    Args:
        a1: (B, D) embeddings of the first adversarial view.
        a2: (B, D) of the second adversarial view.
        z1: (B, D) of the first clean view.
        z2: (B, D) of the second clean view.
        original: (B, D) of the original clip.
        temperature: of the softmax.
        released: use the sum of the released code instead of the divergence.

    Returns:
        (B,), one value per video of this rank.
    """
    log_q1 = likeness(a1, original, temperature) + likeness(a1, z1, temperature)
    log_q2 = likeness(a2, original, temperature) + likeness(a2, z2, temperature)
    return _divergence(log_q2, log_q1, len(z1), released)


def regularizer(  # noqa: PLR0913  (five embeddings and their weights; the signature is public)
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
    """Return clean * `sir` + adversarial * `air`.

    Args:
        z1: (B, D) embeddings of the first clean view.
        z2: (B, D) of the second clean view.
        a1: (B, D) of the first adversarial view.
        a2: (B, D) of the second adversarial view.
        original: (B, D) of the original clip.
        temperature: of the softmax.
        clean: weight of `sir`; paper: 0.5.
        adversarial: weight of `air`; paper: 0.5.
        released: use the sums of the released code instead of the divergences.

    Returns:
        (B,), one value per video of this rank.
    """
    loss = full_precision(z1).new_zeros(len(z1))
    # Skip a term of weight 0, which would cost a gather between ranks.
    if clean:
        loss = loss + clean * sir(z1, z2, original, temperature, released)
    if adversarial:
        loss = loss + adversarial * air(a1, a2, z1, z2, original, temperature, released)
    return loss


def _divergence(log_p: Tensor, log_q: Tensor, rows: int, released: bool) -> Tensor:
    """Return M p log(p / q) for the videos of this rank.

    The caller averages losses over the M videos, which gives the sum of p log(p / q).

    Args:
        log_p: (M,), of the videos of all ranks.
        log_q: (M,).
        rows: number of videos of this rank.
        released: put q in place of log q.

    Returns:
        (rows,).
    """
    second = log_q.exp() if released else log_q
    terms = len(log_p) * log_p.exp() * (log_p - second)
    return terms[distributed.here(rows)]

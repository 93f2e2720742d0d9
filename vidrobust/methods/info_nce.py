"""The one contrastive loss, over masks. N anchors, M candidates, E extra negatives, D feature."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.engine import distributed


def info_nce(logits: Tensor, positives: Tensor, ignore: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
    """Mean over an anchor's positives of -log softmax (SupCon's L_out, Khosla et al. 2020, eq. 2) -> (N,).

    logits (N, M): similarity / temperature. positives, ignore (N, M) bool. extra (N, E): more negative logits.
    The denominator holds positives, all other pairs that are not ignored, and extra. With one positive an
    anchor this is InfoNCE. An anchor without any positive has no loss: it gives NaN.
    """
    candidates = logits if ignore is None else logits.masked_fill(ignore & ~positives, -torch.inf)
    if extra is not None:
        candidates = torch.cat([candidates, extra], 1)
    log_prob = logits - candidates.logsumexp(1, keepdim=True)
    return -log_prob.masked_fill(~positives, 0).sum(1) / positives.sum(1)


def nt_xent(
    z: Tensor, ids: Tensor, temperature: float, ignore: Tensor | None = None, extra: Tensor | None = None
) -> Tensor:
    """NT-Xent (SimCLR, Chen et al. 2020, eq. 1) with positives by id -> (N,).

    z (N, D) of any norm, ids (N,): rows of equal id are positives of each other, all others negatives; a row is
    neither its own positive nor its own negative. Computed in float32, whatever z is.
    Over several ranks, candidates are the M = world * N rows of all of them, in order of rank; `ignore` is then
    (N, M) and ids are unique over ranks. extra: (N, E) logits, already divided by the temperature.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float(), dim=1)
        everyone, all_ids = distributed.gather(z), distributed.gather(ids)
        first = distributed.rank() * len(z)
        itself = torch.zeros(len(z), len(everyone), dtype=torch.bool, device=z.device)
        itself[torch.arange(len(z)), first + torch.arange(len(z))] = True
        positives = (ids[:, None] == all_ids[None, :]) & ~itself
        ignore = itself if ignore is None else ignore | itself
        return info_nce(z @ everyone.T / temperature, positives, ignore, extra)

"""Cosine similarities, and the precision in which losses are computed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def full_precision(x: Tensor) -> Tensor:
    """Convert x to float32, unless it is float64 already.

    Losses are computed in this precision. bf16 has only three significant digits, and double
    precision is needed to check gradients (`torch.autograd.gradcheck`).
    """
    return x if x.dtype == torch.float64 else x.float()


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine (B,) of each row of a (B, D) and the same row of b, in full precision."""
    return F.cosine_similarity(full_precision(a), full_precision(b), dim=1)


def cosines(z: Sequence[Tensor], negatives: Tensor) -> Tensor:
    """Return the cosines of embeddings and the negatives of their own video (Ge et al. 2021).

    Args:
        z: (B, D) for each view, of any norm.
        negatives: (B, M, D), of any norm; all views of a video share its M negatives.

    Returns:
        (len(z) * B, M) in full precision, view by view.
    """
    # autocast would run the matrix product in bf16
    with torch.autocast(negatives.device.type, enabled=False):
        unit = F.normalize(full_precision(torch.stack(list(z))), dim=2)
        unit_negatives = F.normalize(full_precision(negatives), dim=2)
        return torch.einsum("vbd,bmd->vbm", unit, unit_negatives).flatten(0, 1)

"""Cosine similarities, and the precision in which losses are computed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def full_precision(x: Tensor) -> Tensor:
    """Return x in float32, or as it is where it is float64.

    Losses are computed so: bf16 has three digits, and double precision is what gradients are
    checked with (`torch.autograd.gradcheck`).
    """
    return x if x.dtype == torch.float64 else x.float()


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosines (B,) of rows (B, D), (B, D), in full precision."""
    return F.cosine_similarity(full_precision(a), full_precision(b), dim=1)


def cosines(z: Sequence[Tensor], negatives: Tensor) -> Tensor:
    """Return the cosines of embeddings with their own video's negatives (Ge et al. 2021).

    The result is (len(z) * B, M), in full precision.

    z: (B, D) each, negatives: (B, M, D), of any norm.
    """
    with torch.autocast(negatives.device.type, enabled=False):
        unit = F.normalize(full_precision(torch.stack(list(z))), dim=2)
        return torch.einsum(
            "vbd,bmd->vbm", unit, F.normalize(full_precision(negatives), dim=2)
        ).flatten(0, 1)

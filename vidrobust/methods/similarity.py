"""Cosine similarity of pairs of rows, and the precision in which losses are computed."""

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

"""Cosine similarity of pairs of rows."""

from torch import Tensor
from torch.nn import functional as F


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """(B, D), (B, D) -> (B,), in float32 whatever the rows are."""
    return F.cosine_similarity(a.float(), b.float(), dim=1)

"""Negatives of diminished semantics in a loss (paper C; METHODS section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def cosines(z: Sequence[Tensor], negatives: Tensor) -> Tensor:
    """Each embedding of a video against the video's own negatives -> (len(z) * B, M), float32.

    z: (B, D) each, negatives: (B, M, D), of any norm.
    """
    with torch.autocast(negatives.device.type, enabled=False):
        unit = F.normalize(torch.stack(list(z)).float(), dim=2)
        return torch.einsum("vbd,bmd->vbm", unit, F.normalize(negatives.float(), dim=2)).flatten(0, 1)

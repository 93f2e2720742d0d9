"""Negatives of diminished semantics in a loss (paper C; METHODS section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.methods.similarity import full_precision


def cosines(z: Sequence[Tensor], negatives: Tensor) -> Tensor:
    """Each embedding of a video against the video's own negatives -> (len(z) * B, M), in full precision.

    z: (B, D) each, negatives: (B, M, D), of any norm.
    """
    with torch.autocast(negatives.device.type, enabled=False):
        unit = F.normalize(full_precision(torch.stack(list(z))), dim=2)
        return torch.einsum("vbd,bmd->vbm", unit, F.normalize(full_precision(negatives), dim=2)).flatten(0, 1)

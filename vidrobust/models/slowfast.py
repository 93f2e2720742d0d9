"""SlowFast R50 (Feichtenhofer et al., ICCV 2019) from pytorchvideo."""

import warnings

import torch
from torch import Tensor, nn

from vidrobust.models.backbone import Trunk


def slowfast_r50() -> Trunk:
    """2304 features: 2048 of the slow pathway, 256 of the fast one. T may be anything, 1 included.

    The fast pathway sees every frame, the slow one every fourth. The state dict is that of
    pytorchvideo's `slowfast_r50` without its head (blocks 0 to 4).
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # importing it warns about torch.jit, which no user can mend
        from pytorchvideo.models.slowfast import create_slowfast

        # blocks 5 and 6 pool with a fixed kernel and classify: they fail at T = 1 and at 112 pixels
        blocks = create_slowfast(slowfast_channel_reduction_ratio=(8,)).blocks[:5]
    return Trunk(_SlowFast(blocks), 2048 + 256, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


class _SlowFast(nn.Module):
    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        pathways = [x[:, :, ::4], x]  # slow, fast
        for block in self.blocks:
            pathways = block(pathways)
        return torch.cat([p.mean((2, 3, 4)) for p in pathways], 1)

"""SlowFast R50 (Feichtenhofer et al., ICCV 2019) from pytorchvideo."""

import warnings

import torch
from torch import Tensor, nn

from vidrobust.models.backbone import BackboneParts
from vidrobust.models.input_spec import slow_pathway


def slowfast_r50(slow_frames: str = "stride") -> BackboneParts:
    """Build SlowFast R50 with 2304 features, for clips of any number of frames.

    The slow pathway has 2048 features and uses every fourth frame; the fast pathway has 256 and
    uses every frame. The state dict is that of pytorchvideo's `slowfast_r50` without its head
    (blocks 0 to 4).

    Args:
        slow_frames: which frames the slow pathway takes: "stride", every fourth from the first
            (pytorchvideo), or "linspace", as many from the first to the last (PySlowFast).
    """
    with warnings.catch_warnings():
        # Importing pytorchvideo warns about torch.jit, which users can do nothing about.
        warnings.simplefilter("ignore")
        from pytorchvideo.models.slowfast import create_slowfast

        # The fast pathway has an eighth of the slow one's channels (beta = 1/8 in the paper).
        # Blocks 5 and 6 classify. They pool with a fixed kernel, so they fail at T = 1 and at 112
        # pixels.
        blocks = create_slowfast(slowfast_channel_reduction_ratio=(8,)).blocks[:5]
    return BackboneParts(
        _SlowFast(blocks, slow_frames), 2048 + 256, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
    )


class _SlowFast(nn.Module):
    """Run both pathways, and concatenate their features averaged over time and space."""

    def __init__(self, blocks: nn.ModuleList, slow_frames: str) -> None:
        super().__init__()
        self.blocks = blocks
        self.slow_frames = slow_frames

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, 2304) of normalised clips (B, C, T, H, W)."""
        # Slow, fast. The connections between them have a stride of 4 frames (alpha in the paper).
        pathways = [slow_pathway(x, 4, self.slow_frames), x]
        for block in self.blocks:
            pathways = block(pathways)
        return torch.cat([p.mean((2, 3, 4)) for p in pathways], 1)

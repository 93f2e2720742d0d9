"""Set the rate of stochastic depth of networks of other packages (Huang et al. 2016).

A residual branch is left out at random, for each clip of a batch by itself, while a network is
trained. The rate increases linearly from 0 at the first block to its full value at the last.
"""

import re

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class DropPath(nn.Module):
    """Multiply each sample (of dimension 0) by 0 or 1 / (1 - rate) in train mode.

    Args:
        rate: probability of 0.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x with some samples set to 0."""
        if not self.training or not self.rate:
            return x
        keep = 1 - self.rate
        mask = torch.empty((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x * mask.bernoulli_(keep).div_(keep)


def set_drop_path(network: nn.Module, rate: float) -> int:
    """Set the rate of stochastic depth in every block of a network, in place.

    Keys of state dicts stay as they are.

    Args:
        network: of torchvision (Swin, MViT, ConvNeXt, ...), timm or transformers.
        rate: probability of leaving out a residual branch of the last block, 0 to 1.

    Returns:
        The number of blocks; 0 for a network without stochastic depth.
    """
    blocks = [places for module in network.modules() if (places := _places(module))]
    rates = torch.linspace(0, rate, len(blocks)).tolist()
    for places, block_rate in zip(blocks, rates, strict=True):
        for parent, name in places:
            module = getattr(parent, name)
            if isinstance(module, StochasticDepth):
                module.p = block_rate
                continue
            part: nn.Module = DropPath(block_rate)
            if isinstance(module, nn.Dropout) and module.p:
                part = nn.Sequential(module, part)
            setattr(parent, name, part.train(module.training))
    return len(blocks)


def _places(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return (parent, name) of the modules that end the residual branches of a block."""
    # VideoMAE of transformers has no stochastic depth, unlike the authors' code. A dropout ends
    # each of its residual branches.
    if type(block).__name__ == "VideoMAELayer":
        attention = block.get_submodule("attention.output")
        return [(attention, "dropout"), (block.get_submodule("output"), "dropout")]
    return [
        (block, name)
        for name, child in block.named_children()
        if isinstance(child, StochasticDepth) or re.fullmatch(r"drop_path\d*", name)
    ]

"""LowRankBranch: matrices of low rank that are added to the convolutions of a backbone."""

from typing import cast

import torch
from torch import Tensor, nn

from vidrobust.models.backbone import Backbone
from vidrobust.models.stages import stage_names
from vidrobust.utils.errors import UserError


class LowRankBranch(nn.Module):
    """Adds B A / rank to the weights of a backbone's convolutions (AutoLoRa, Xu et al. 2024).

    The backbone itself, its keys and its weights stay as they are. A is normal and B is 0 at the
    beginning, so that the branch first changes nothing.

    A weight (O, I / groups, t, h, w) has an A of rank * w rows and I * w columns, and a B of
    O / groups * t * h rows and rank * w columns. The product has as many entries as the weight and
    takes its shape. For t = 1 and h = w this is the released code for images.

    Attributes:
        keys: of the weights that change, as in `backbone.named_parameters()`.
        a: A of each weight.
        b: B of each weight.
    """

    def __init__(self, backbone: Backbone, rank: int) -> None:
        """Begin with random A, from torch's global generator, and B = 0.

        Args:
            backbone: the convolutions of its stages change, its stem does not.
            rank: rows of A per column of a kernel, at least 1.

        Raises:
            UserError: for a backbone without stages, or without convolutions in them.
        """
        super().__init__()
        self.rank = rank
        self.keys: list[str] = []
        self.a = nn.ParameterList()
        self.b = nn.ParameterList()
        for key, conv in _convolutions(backbone).items():
            inner = rank * conv.kernel_size[-1]
            columns = conv.in_channels * conv.kernel_size[-1]
            self.keys.append(key)
            self.a.append(nn.Parameter(torch.randn(inner, columns)))
            self.b.append(nn.Parameter(torch.zeros(conv.weight.numel() // columns, inner)))

    def forward(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return all weights of the backbone, detached, with the branch added to convolutions.

        Gradient reaches the branch alone.
        """
        weights = {key: p.detach() for key, p in backbone.named_parameters()}
        # autocast would round the product to bf16 before it is added
        with torch.autocast(self.a[0].device.type, enabled=False):
            for key, a, b in zip(self.keys, self.a, self.b, strict=True):
                weights[key] = weights[key] + (b @ a).view(weights[key].shape) / self.rank
        return weights


def _convolutions(backbone: Backbone) -> dict[str, nn.Conv3d]:
    """Return the convolutions that a branch changes, by the keys of their weights.

    They are those of the stages. Where the list of stages begins with the stem, as in networks that
    are one list of blocks, the stage that holds the first convolution is left out.

    Raises:
        UserError: if there are none, or if their weights are computed from other parameters.
    """
    by_name = {
        name: cast(nn.Conv3d, module)  # or Conv2d, with the same attributes
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d)
    }
    network = next(name for name, module in backbone.named_modules() if module is backbone.stored)
    try:
        stages = [f"{network}.{stage}." for stage in stage_names(backbone)]
    except UserError:
        stages = []
    first = next(iter(by_name), "")
    staged = tuple(stage for stage in stages if not first.startswith(stage))
    found = {f"{name}.weight": conv for name, conv in by_name.items() if name.startswith(staged)}
    # a weight with a parametrization, and those of TorchScript, cannot be replaced by name
    if not found or not found.keys() <= dict(backbone.named_parameters()).keys():
        raise UserError(
            "method.adversary.name=autolora: this backbone has no stages with convolutions whose"
            " weights a branch could change; set method.adversary.name=trades or pgd"
        )
    return found

"""Backbone: clips to features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidrobust.models.branch_norm import branch_names, use_branch
from vidrobust.models.recompute import in_micro_batches


@dataclass(frozen=True)
class BackboneParts:
    """Hold a network and the statistics that its inputs are normalised with.

    Attributes:
        module: normalised clips (B, C, T, H, W) -> features (B, dim).
        dim: number of features.
        mean: of each RGB channel, for clips in [0, 1].
        std: standard deviation of each RGB channel.
    """

    module: nn.Module
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def init_kaiming(module: nn.Module) -> nn.Module:
    """Initialise convolutions as torchvision initialises its residual networks (He et al. 2015).

    Batch norms keep their initial weights of 1 and biases of 0.
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return module


class Backbone(nn.Module):
    """Map clips (B, C, T, H, W) in [0, 1] to features (B, dim), after normalising them.

    An image is a clip with T = 1.

    Within `use_branch` "average", the features are the mean over norm branches. Within "select",
    they are a weighted mean. The weights are the softmax of `selector`, a linear map of the clean
    branch's features. The model itself chooses the branch. The gradient of an attack therefore
    contains all branches and the choice among them.

    Attributes:
        micro_batch: clips that are computed at a time (`recompute.in_micro_batches`); 0: all.
        bf16: compute the features in bf16 by autocast, and return them in float32. Training leaves
            it off, because its autocast covers the loss too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, parts: BackboneParts) -> None:
        super().__init__()
        # "average" or "select"; empty if all norms use the same branch
        self.mixed = ""
        self.micro_batch = 0
        self.bf16 = False
        self.selector: nn.Linear | None = None
        self.dim = parts.dim
        # This attribute's name is part of the keys of checkpoints, so it stays.
        self.trunk = parts.module
        # Constants of the network rather than weights: checkpoints do not contain them.
        self.register_buffer(
            "mean", torch.tensor(parts.mean).view(1, -1, 1, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(parts.std).view(1, -1, 1, 1, 1), persistent=False)

    @property
    def stored(self) -> nn.Module:
        """The module whose state dict has the keys that files of weights have."""
        return getattr(self.trunk, "network", self.trunk)

    @property
    def head_key(self) -> str:
        """Name of the classifier in files of weights; "" for backbones of this package."""
        return getattr(self.trunk, "head_key", "")

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, dim) of clips (B, C, T, H, W) in [0, 1]."""
        if x.ndim != 5:
            raise ValueError(
                f"expected clips (B, C, T, H, W), got shape {tuple(x.shape)}; an image is T = 1"
            )
        if self.bf16:
            with torch.autocast(x.device.type, torch.bfloat16):
                return self._in_parts(x).float()
        return self._in_parts(x)

    def _in_parts(self, x: Tensor) -> Tensor:
        """Return the features of clips, in micro-batches if these are set."""
        if 0 < self.micro_batch < len(x):
            return in_micro_batches(self, self._features, x, self.micro_batch)
        return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        """Return the features of clips in one pass, or in one for each norm branch."""
        x = (x - self.mean) / self.std
        return self._mixture(x) if self.mixed else self.trunk(x)

    def _mixture(self, x: Tensor) -> Tensor:
        """Return the features of normalised clips, averaged over all norm branches."""
        features_by_branch = []
        for name in branch_names(self):
            with use_branch(self.trunk, name):
                features_by_branch.append(self.trunk(x))
        features = torch.stack(features_by_branch)  # (branches, B, dim)
        if self.mixed == "average" or self.selector is None:
            return features.mean(0)
        # The selector reads the features of the clean branch, which is the first one.
        return torch.einsum("bn,nbd->bd", self.selector(features[0]).softmax(1), features)

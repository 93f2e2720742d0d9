"""Backbone: clips to features. Model: a backbone and a head."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidrobust.models.branch_norm import branch_names, use_branch


@dataclass(frozen=True)
class Trunk:
    """module: normalised clips (B, C, T, H, W) -> (B, dim); mean, std: the RGB statistics it was
    made for.
    """

    module: nn.Module
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def init_kaiming(module: nn.Module) -> nn.Module:
    """He initialisation of convolutions, unit norms: what torchvision gives its own residual
    networks.
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return module


class Backbone(nn.Module):
    """(B, C, T, H, W) float in [0, 1], T = 1 included -> (B, dim) features. Normalisation comes
    first.

    Inside `use_branch` "average" or "select", features are the mean over norm branches, or their
    mean weighted by the softmax of `selector`, a linear map of the clean branch's features: the
    model itself decides, and an attack on it has all branches and the decision in its gradient
    (METHODS section 6.1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.mixed = ""  # "average" or "select", or the one branch that its norms are set to
        self.selector: nn.Linear | None = None
        self.dim = trunk.dim
        self.trunk = trunk.module
        # constants of the trunk, not weights: no checkpoint holds them
        self.register_buffer(
            "mean", torch.tensor(trunk.mean).view(1, -1, 1, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(trunk.std).view(1, -1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5:
            raise ValueError(
                f"expected clips (B, C, T, H, W), got shape {tuple(x.shape)}; an image is T = 1"
            )
        x = (x - self.mean) / self.std
        return self._mixture(x) if self.mixed else self.trunk(x)

    def _mixture(self, x: Tensor) -> Tensor:
        """The trunk on normalised clips, through all branches."""
        found = []
        for name in branch_names(self):
            with use_branch(self.trunk, name):
                found.append(self.trunk(x))
        features = torch.stack(found)  # (branches, B, dim)
        if self.mixed == "average" or self.selector is None:
            return features.mean(0)
        return torch.einsum("bn,nbd->bd", self.selector(features[0]).softmax(1), features)


class Model(nn.Module):
    """A backbone and a head: clips -> embeddings (projector) or logits (linear)."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def use_branch(self, branch: str) -> AbstractContextManager[None]:
        """`with model.use_branch("adv"):` the norm statistics that forward passes use, see
        `branch_norm`.
        """
        return use_branch(self, branch)

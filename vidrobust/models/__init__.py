"""Trunks that turn clips into features, heads on top, and branch norm.

`build_backbone(name)` gives a Backbone: (B, C, T, H, W) in [0, 1] -> (B, dim), normalising first.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.errors import UserError, lookup
from vidrobust.models.branch_norm import add_branches, branch_names, single_branch_state, use_branch
from vidrobust.models.heads import linear, normed_mlp, projector
from vidrobust.models.r2plus1d import r2plus1d_10, r2plus1d_18
from vidrobust.models.resnet import resnet18, resnet50
from vidrobust.models.slowfast import slowfast_r50
from vidrobust.models.trunk import Trunk

__all__ = [
    "BACKBONES", "Backbone", "Model", "add_branches", "branch_names", "build_backbone", "build_model",
    "configured_backbone", "linear", "normed_mlp", "projector", "single_branch_state", "use_branch",
]  # fmt: skip

# name -> function of the backbone's own options that returns its Trunk
BACKBONES: dict[str, Callable[..., Trunk]] = {
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_10": r2plus1d_10,
    "slowfast_r50": slowfast_r50,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


class Backbone(nn.Module):
    """(B, C, T, H, W) float in [0, 1], T = 1 included -> (B, dim) features. Normalisation comes first.

    Inside `use_branch` "average" or "select", features are the mean over norm branches, or their mean weighted by the
    softmax of `selector`, a linear map of the clean branch's features: the model itself decides, and an attack on it
    has all branches and the decision in its gradient (METHODS section 6.1).
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
        self.register_buffer("mean", torch.tensor(trunk.mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(trunk.std).view(1, -1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5:
            raise ValueError(f"expected clips (B, C, T, H, W), got shape {tuple(x.shape)}; an image is T = 1")
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
        """`with model.use_branch("adv"):` the norm statistics that forward passes use, see `branch_norm`."""
        return use_branch(self, branch)


def build_backbone(name: str, **options: Any) -> Backbone:
    """A backbone by name, with its own options (`r2plus1d_10(width)`, `resnet18(width, stem)`).

    Raises UserError for an unknown name, or an option that this backbone does not have.
    """
    build = lookup(BACKBONES, name, "model.backbone")
    for option in options:
        if option not in inspect.signature(build).parameters:
            raise UserError(f"model.{option}: backbone {name} has no such option; leave it at its default")
    return Backbone(build(**options))


def configured_backbone(cfg: config.Model) -> Backbone:
    """The backbone that the options name, with fresh weights."""
    return build_backbone(cfg.backbone, **{k: v for k, v in {"width": cfg.width, "stem": cfg.stem}.items() if v})


def build_model(
    cfg: config.Model,
    head: str,
    classes: int = 0,
    *,
    branches: Sequence[str] = (),
    momentum: float = 0.01,
    branched_head: bool = True,
    selector: bool = False,
) -> Model:
    """Backbone and head with fresh weights from torch's global generator.

    selector: whether the backbone learns to choose among its branches.

    head: "projector", "normed_projector" (BYOL's), "simsiam_projector", "linear" or "none".

    branches: names of adversarial norm branches, with this momentum; none: plain norms. branched_head: norms of the
    head have them too.
    """
    backbone = configured_backbone(cfg)

    def normed(norm_out: str, layers: int = 2) -> nn.Module:
        layers = cfg.head_layers or layers
        return normed_mlp(backbone.dim, cfg.hidden, cfg.dim, layers=layers, norm_out=norm_out)

    heads: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "linear": lambda: linear(backbone.dim, classes),
        "projector": lambda: normed("affine" if cfg.head_norm_out else "")
        if cfg.head_norm
        else projector(backbone.dim, cfg.hidden, cfg.dim),
        "normed_projector": lambda: normed(""),
        "simsiam_projector": lambda: normed("plain", layers=3),
    }
    model = Model(backbone, heads[head]())
    if branches:
        add_branches(model if branched_head else backbone, branches, momentum=momentum)
    if selector:
        backbone.selector = nn.Linear(backbone.dim, len(branch_names(backbone)))
    return model

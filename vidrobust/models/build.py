"""Build the configured backbone and model."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vidrobust import config
from vidrobust.models.backbone import Backbone, BackboneParts, Model
from vidrobust.models.branch_norm import add_branches, branch_names
from vidrobust.models.heads import linear, normed_mlp, projector
from vidrobust.models.r2plus1d import r2plus1d_10, r2plus1d_18
from vidrobust.models.resnet import resnet18, resnet50
from vidrobust.models.slowfast import slowfast_r50
from vidrobust.utils.errors import UserError, lookup

# name -> function from the options of this backbone (of width and stem) to its parts
BACKBONES: dict[str, Callable[..., BackboneParts]] = {
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_10": r2plus1d_10,
    "slowfast_r50": slowfast_r50,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def build_backbone(name: str, **options: Any) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        name: of BACKBONES.
        options: of this backbone, such as width and stem of resnet18.

    Raises:
        UserError: unknown name, or an option that this backbone does not have.

    Example:
        backbone = build_backbone("resnet18", width=32, stem="cifar")
    """
    build = lookup(BACKBONES, name, "model.backbone")
    for option in options:
        if option not in inspect.signature(build).parameters:
            raise UserError(
                f"model.{option}: backbone {name} has no such option; leave it at its default"
            )
    return Backbone(build(**options))


def configured_backbone(cfg: config.ModelConfig) -> Backbone:
    """Build the backbone that the configuration names, with fresh weights."""
    options = {"width": cfg.width, "stem": cfg.stem}
    # 0 and "" stand for the default of the backbone.
    return build_backbone(cfg.backbone, **{name: value for name, value in options.items() if value})


def build_model(
    cfg: config.ModelConfig,
    head: str,
    classes: int = 0,
    *,
    branches: Sequence[str] = (),
    momentum: float = 0.01,
    branched_head: bool = True,
    selector: bool = False,
) -> Model:
    """Build a backbone and a head with fresh weights from torch's global generator.

    Args:
        cfg: the options `model.*`.
        head: "projector", "normed_projector" (BYOL's), "simsiam_projector", "linear" or "none".
        classes: outputs of the head "linear".
        branches: names of the adversarial norm branches; empty: plain norms.
        momentum: of the adversarial norm branches.
        branched_head: give the norms of the head branches too.
        selector: let the backbone learn to choose among its branches.

    Returns:
        The model.
    """
    backbone = configured_backbone(cfg)
    model = Model(backbone, _build_head(cfg, head, backbone.dim, classes))
    if branches:
        add_branches(model if branched_head else backbone, branches, momentum=momentum)
    # Built last, because it has one output per branch.
    if selector:
        backbone.selector = nn.Linear(backbone.dim, len(branch_names(backbone)))
    return model


def _build_head(cfg: config.ModelConfig, head: str, dim: int, classes: int) -> nn.Module:
    """Build a head by name; dim: the number of features of the backbone."""

    def normed(norm_out: str, layers: int = 2) -> nn.Module:
        layers = cfg.head_layers or layers
        return normed_mlp(dim, cfg.hidden, cfg.dim, layers=layers, norm_out=norm_out)

    def configured_projector() -> nn.Module:
        if cfg.head_norm:
            return normed("affine" if cfg.head_norm_out else "")
        return projector(dim, cfg.hidden, cfg.dim)

    # Functions, because building a head that is not used would advance the generator.
    heads: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "linear": lambda: linear(dim, classes),
        "projector": configured_projector,
        "normed_projector": lambda: normed(""),
        "simsiam_projector": lambda: normed("plain", layers=3),
    }
    return heads[head]()

"""Build the configured backbone and model."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vidrobust import config
from vidrobust.models.backbone import Backbone, Model, Trunk
from vidrobust.models.branch_norm import add_branches, branch_names
from vidrobust.models.heads import linear, normed_mlp, projector
from vidrobust.models.r2plus1d import r2plus1d_10, r2plus1d_18
from vidrobust.models.resnet import resnet18, resnet50
from vidrobust.models.slowfast import slowfast_r50
from vidrobust.utils.errors import UserError, lookup

# name -> function of the backbone's own options that returns its Trunk
BACKBONES: dict[str, Callable[..., Trunk]] = {
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_10": r2plus1d_10,
    "slowfast_r50": slowfast_r50,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def build_backbone(name: str, **options: Any) -> Backbone:
    """A backbone by name, with its own options (`r2plus1d_10(width)`, `resnet18(width, stem)`).

    Raises UserError for an unknown name, or an option that this backbone does not have.
    """
    build = lookup(BACKBONES, name, "model.backbone")
    for option in options:
        if option not in inspect.signature(build).parameters:
            raise UserError(
                f"model.{option}: backbone {name} has no such option; leave it at its default"
            )
    return Backbone(build(**options))


def configured_backbone(cfg: config.ModelConfig) -> Backbone:
    """The backbone that the options name, with fresh weights."""
    return build_backbone(
        cfg.backbone, **{k: v for k, v in {"width": cfg.width, "stem": cfg.stem}.items() if v}
    )


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
    """Backbone and head with fresh weights from torch's global generator.

    selector: whether the backbone learns to choose among its branches.

    head: "projector", "normed_projector" (BYOL's), "simsiam_projector", "linear" or "none".

    branches: names of adversarial norm branches, with this momentum; none: plain norms.
    branched_head: norms of the head have them too.
    """
    backbone = configured_backbone(cfg)

    def normed(norm_out: str, layers: int = 2) -> nn.Module:
        layers = cfg.head_layers or layers
        return normed_mlp(backbone.dim, cfg.hidden, cfg.dim, layers=layers, norm_out=norm_out)

    heads: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "linear": lambda: linear(backbone.dim, classes),
        "projector": lambda: (
            normed("affine" if cfg.head_norm_out else "")
            if cfg.head_norm
            else projector(backbone.dim, cfg.hidden, cfg.dim)
        ),
        "normed_projector": lambda: normed(""),
        "simsiam_projector": lambda: normed("plain", layers=3),
    }
    model = Model(backbone, heads[head]())
    if branches:
        add_branches(model if branched_head else backbone, branches, momentum=momentum)
    if selector:
        backbone.selector = nn.Linear(backbone.dim, len(branch_names(backbone)))
    return model

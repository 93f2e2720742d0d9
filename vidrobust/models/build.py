"""Build the configured backbone and model."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from vidrobust import config
from vidrobust.models.backbone import Backbone, BackboneParts, Model
from vidrobust.models.branch_norm import add_branches, branch_names
from vidrobust.models.heads import linear, normed_mlp, projector
from vidrobust.models.input_spec import InputSpec, overridden
from vidrobust.models.r2plus1d import r2plus1d_10, r2plus1d_18
from vidrobust.models.resnet import resnet18, resnet50
from vidrobust.models.resnet3d import resnet3d_18, resnet3d_34, resnet3d_50, resnext3d_101
from vidrobust.models.slowfast import slowfast_r50
from vidrobust.models.sources import Adjust, SourceModel, build_source, is_spec
from vidrobust.utils.errors import UserError, lookup

# name -> function from the options of this backbone (of width and stem) to its parts
BACKBONES: dict[str, Callable[..., BackboneParts]] = {
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_10": r2plus1d_10,
    "slowfast_r50": slowfast_r50,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet3d_18": resnet3d_18,
    "resnet3d_34": resnet3d_34,
    "resnet3d_50": resnet3d_50,
    "resnext3d_101": resnext3d_101,
}


def build_backbone(
    name: str,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    adjust: Adjust | None = None,
    **options: Any,
) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        name: of BACKBONES, or a spec of `sources.SOURCES`, such as "torchvision:r3d_18".
        mean: of each RGB channel, subtracted from clips in [0, 1]; empty: the backbone's default.
        std: by which each channel is divided then; empty: the backbone's default.
        adjust: changes the input card of a model of another package; None: it stays.
        options: of this backbone, such as width and stem of resnet18.

    Raises:
        UserError: unknown name, or an option that this backbone does not have.

    Example:
        backbone = build_backbone("resnet18", width=32, stem="cifar")
    """
    if is_spec(name):
        if options:
            option = next(iter(options))
            raise UserError(f"model.{option}: {name} has no such option; leave it at its default")
        return source_backbone(build_source(name, adjust or (lambda card: card)), mean, std)
    if adjust:
        raise UserError(
            f"model.input.*: backbone {name} has no input card; set data.* and model.mean"
        )
    build = lookup(BACKBONES, name, "model.backbone")
    for option in options:
        if option not in inspect.signature(build).parameters:
            raise UserError(
                f"model.{option}: backbone {name} has no such option; leave it at its default"
            )
    parts = build(**options)
    return Backbone(replace(parts, mean=mean or parts.mean, std=std or parts.std))


def source_backbone(
    model: SourceModel, mean: tuple[float, ...], std: tuple[float, ...]
) -> Backbone:
    """Return a model of another package as a backbone.

    Args:
        model: the model.
        mean: of each RGB channel, for clips in [0, 1]; empty: that of the input card.
        std: standard deviations for the same clips; empty: those of the input card.
    """
    mean, std = mean or model.input.unit_mean, std or model.input.unit_std
    return Backbone(BackboneParts(model.network, model.dim, mean, std))


def configured_backbone(cfg: config.ModelConfig) -> Backbone:
    """Build the backbone that the configuration names, with fresh weights."""
    names = ("width", "stem", "stem_padding", "slow_frames", "dilated")
    # 0, "" and false stand for the default of the backbone.
    options = {name: getattr(cfg, name) for name in names if getattr(cfg, name)}
    return build_backbone(
        cfg.backbone,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        adjust=card_adjustment(cfg),
        **options,
    )


def card_adjustment(cfg: config.ModelConfig) -> Adjust | None:
    """Return the change that the options `model.input.*` make to an input card; None: none.

    Raises:
        UserError: when it is called with a card, for options that contradict each other.
    """
    unset = vars(config.InputConfig())
    given = {key: value for key, value in vars(cfg.input).items() if value != unset[key]}
    if not given:
        return None
    if (cfg.mean and "mean" in given) or (cfg.std and "std" in given):
        raise UserError("model.input.mean and std: model.mean or std is set too; remove one")

    def adjust(card: InputSpec) -> InputSpec:
        try:
            return overridden(card, **given)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
            raise UserError(f"model.input.classes: {reason}") from None
        except ValueError as error:
            raise UserError(f"model.input: {error}") from None

    return adjust


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

    Raises:
        UserError: for branches of a backbone without batch norms.
    """
    backbone = configured_backbone(cfg)
    model = Model(backbone, _build_head(cfg, head, backbone.dim, classes))
    if branches:
        add_branches(model if branched_head else backbone, branches, momentum=momentum)
        if branch_names(backbone) == ("clean",):
            raise UserError(
                f"model.backbone={cfg.backbone}: has no batch norms, and so none of the norm"
                f" branches {', '.join(branches)} of method.adversary; use an adversary without"
                " branches, such as rocl"
            )
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

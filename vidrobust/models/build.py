"""Build the configured backbone and model."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.models.attentive_head import AttentiveHead
from vidrobust.models.backbone import Backbone, BackboneParts
from vidrobust.models.branch_norm import add_branches, branch_names
from vidrobust.models.heads import linear, normed_mlp, projector
from vidrobust.models.input_spec import InputSpec, overridden
from vidrobust.models.model import Model
from vidrobust.models.r2plus1d import r2plus1d_10, r2plus1d_18
from vidrobust.models.resnet import resnet18, resnet50
from vidrobust.models.resnet3d import resnet3d_18, resnet3d_34, resnet3d_50, resnext3d_101
from vidrobust.models.slowfast import slowfast_r50
from vidrobust.models.sources import Adjust, SourceModel, build_source, is_spec
from vidrobust.models.stages import stage_tokens
from vidrobust.models.stochastic_depth import set_drop_path
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
    """Build the backbone that the configuration names, with fresh weights.

    Raises:
        UserError: as `build_backbone`, and for model.drop_path of a network without it.
    """
    names = ("width", "stem", "stem_padding", "slow_frames", "dilated")
    # 0, "" and false stand for the default of the backbone.
    options = {name: getattr(cfg, name) for name in names if getattr(cfg, name)}
    backbone = build_backbone(
        cfg.backbone,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        adjust=card_adjustment(cfg),
        **options,
    )
    if cfg.drop_path >= 0 and not set_drop_path(backbone.stored, cfg.drop_path):
        raise UserError(
            f"model.drop_path={cfg.drop_path:g}: {cfg.backbone} has no stochastic depth; set"
            " model.drop_path=-1"
        )
    return backbone


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
    clip: Sequence[int] = (3, 16, 112, 112),
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
        clip: (C, T, H, W) of the clips, for a head that takes tokens.

    Returns:
        The model.

    Raises:
        UserError: for branches of a backbone without batch norms, and for a head of tokens that the
            backbone does not have.
    """
    backbone = configured_backbone(cfg)
    if head == "linear":
        model = Model(backbone, _build_classifier(cfg, backbone, classes, clip))
    else:
        model = Model(backbone, _build_head(cfg, head, backbone.dim))
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


def _build_classifier(
    cfg: config.ModelConfig, backbone: Backbone, classes: int, clip: Sequence[int]
) -> nn.Module:
    """Build the head that `model.head` names.

    Args:
        cfg: the options `model.*`.
        backbone: gives the features or tokens.
        classes: number of logits.
        clip: see `build_model`.
    """
    head: nn.Linear | AttentiveHead
    if cfg.head == "attentive":
        head = _build_attentive(cfg, backbone, classes, clip)
        last = head.linear
    else:
        head = linear(backbone.dim, classes, dropout=cfg.head_dropout)
        last = head
    if cfg.head_scale != 1:
        with torch.no_grad():
            last.weight.mul_(cfg.head_scale)
            last.bias.mul_(cfg.head_scale)
    return head


def _build_attentive(
    cfg: config.ModelConfig, backbone: Backbone, classes: int, clip: Sequence[int]
) -> AttentiveHead:
    """Build an attentive head; its arguments are those of `_build_classifier`.

    Raises:
        UserError: for a stage without tokens, and heads that do not divide their channels.
    """
    dim = _count_channels(backbone, cfg.head_stage, clip)
    # V-JEPA's heads have 64 channels (12 of 768, 16 of 1024)
    heads = cfg.head_heads or max(1, dim // 64)
    if dim % heads:
        raise UserError(
            f"model.head_heads={heads}: the tokens have {dim} channels, which it does not divide;"
            " set a divisor"
        )
    return AttentiveHead(
        dim,
        classes,
        blocks=cfg.head_blocks,
        heads=heads,
        mlp_ratio=cfg.head_mlp_ratio,
        stage=cfg.head_stage,
    )


@torch.no_grad()
def _count_channels(backbone: Backbone, stage: str, clip: Sequence[int]) -> int:
    """Return the channels of a stage's tokens, by a pass of one black clip in eval mode."""
    training = [module.training for module in backbone.modules()]
    backbone.eval()
    tokens: Tensor = stage_tokens(backbone, torch.zeros(1, *clip), [stage])[0]
    for module, mode in zip(backbone.modules(), training, strict=True):
        module.training = mode
    return tokens.shape[-1]


def _build_head(cfg: config.ModelConfig, head: str, dim: int) -> nn.Module:
    """Build a projector by name, or none; dim: the number of features of the backbone."""

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
        "projector": configured_projector,
        "normed_projector": lambda: normed(""),
        "simsiam_projector": lambda: normed("plain", layers=3),
    }
    return heads[head]()

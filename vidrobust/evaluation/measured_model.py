"""MeasuredModel: what an evaluation measures, of a run or of another package."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import yaml
from torch import nn

from vidrobust import checkpoint, config
from vidrobust.evaluation.loading import load_method
from vidrobust.methods import build_method
from vidrobust.models import Backbone, Model, add_branches, branch_names, configured_backbone
from vidrobust.models.branch_norm import branch_of
from vidrobust.models.build import card_adjustment, source_backbone
from vidrobust.models.checkpoints import (
    Contents,
    Recognised,
    file_adjustment,
    recognise_contents,
    source_options,
)
from vidrobust.models.input_spec import InputSpec
from vidrobust.models.sources import Adjust, SourceModel, build_source, fresh
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.seeds import seed_everything
from vidrobust.utils.text import class_key

OWN = "vidrobust:"  # before the name of a backbone of this package, for files of other code


@dataclass(frozen=True)
class MeasuredModel:
    """A model that is measured, and what it is recognised by.

    Attributes:
        model: a backbone and a head.
        random: the same with fresh weights, which shows what training adds; None: not available.
        name: identifies the weights; kept with results.
        weights_sha: hash of the weights.
        input: what the model expects; None for a run of this package, whose options say it.
    """

    model: Model
    random: Model | None
    name: str
    weights_sha: str
    input: InputSpec | None = None


def load_run(cfg: config.Config, state: dict[str, Any], classes: int) -> MeasuredModel:
    """Return the model of a training checkpoint, and the random weights with which its run began.

    Args:
        cfg: the configuration.
        state: the checkpoint.
        classes: K of the data set.
    """
    seed_everything(cfg.seed, cfg.deterministic)
    random = build_method(cfg, classes).model
    model = load_method(cfg, state, classes).model
    sha = checkpoint.state_sha(checkpoint.weights(state, average=cfg.eval.average))
    return MeasuredModel(model, random, checkpoint_name(cfg, state), sha)


def checkpoint_name(cfg: config.Config, state: dict[str, Any]) -> str:
    """Return the name of the weights of a checkpoint that a configuration evaluates."""
    average = cfg.eval.average
    sha = checkpoint.state_sha(checkpoint.weights(state, average=average))
    return f"step {state['step']}, {'average' if average else 'weights'} {sha}"


def load_source(cfg: config.Config, spec: str, weights: str) -> MeasuredModel:
    """Return a model of another package, with the weights of a file.

    Args:
        cfg: its model.input.*, model.mean and model.std replace the input card, where they are set.
        spec: such as `torchvision:r3d_18`, or `vidrobust:resnet18` for a backbone of this package.
        weights: the file; "": those that the spec names, or random ones.

    Raises:
        UserError: for an unknown model, and weights that cannot be read or do not fit.
    """
    seed_everything(cfg.seed, cfg.deterministic)
    if spec.startswith(OWN):
        return _load_own(cfg, spec, weights)
    adjust = card_adjustment(cfg.model) or (lambda card: card)
    if weights:
        return _load_file(cfg, spec, weights, adjust)
    random = fresh(spec, adjust)
    source = build_source(spec, adjust)
    if not source.trained:
        log.warning(f"{spec} has random weights; give a file with --weights")
        source = replace(source, head=None)
    return measured_source(cfg, source, random, spec)


def _load_file(cfg: config.Config, spec: str, weights: str, adjust: Adjust) -> MeasuredModel:
    """Return a model of another package with the weights of a file, see `load_source`.

    Args:
        cfg: the configuration.
        spec: of the model.
        weights: the file.
        adjust: change that options make to the input card, after the file has changed it.
    """
    change = stated_card(weights)

    def changed(card: InputSpec) -> InputSpec:
        return adjust(change(card))

    random = fresh(spec, changed)
    source = build_source(spec, changed)
    found = _recognise(weights, source.network.head_key)
    _contents.cache_clear()  # it is as large as the file
    log.info(f"{weights}: {found.text()}")
    source_options(found.options, spec)  # warns of others
    checkpoint.load_state(source.network.network, found.backbone, weights)
    return measured_source(cfg, replace(source, head=_linear(found.head)), random, spec)


def stated_card(weights: str) -> Adjust:
    """Return the change that a file of weights makes to the input card of a source.

    Args:
        weights: the file; "": no change.

    Raises:
        UserError: for a file that cannot be read, or whose network none here computes.
    """
    if not weights:
        return lambda card: card
    # the card does not depend on the classifier's name
    return file_adjustment(_recognise(weights, ""))


def measured_source(
    cfg: config.Config, source: SourceModel, random: SourceModel | None, name: str
) -> MeasuredModel:
    """Return a model of another package as it is measured.

    Args:
        cfg: its model.mean and model.std replace those of the input card, where they are set.
        source: the model.
        random: the same with random weights, or None.
        name: of the model; a hash of the weights is added.
    """
    mean, std = tuple(cfg.model.mean), tuple(cfg.model.std)
    twin = source_backbone(random, mean, std) if random else None
    backbone = source_backbone(source, mean, std)
    return _measured(cfg, backbone, twin, source.head, name, source.input)


def card_options(card: InputSpec, given: Collection[str] = (), backbone: str = "") -> str:
    """Return the options that an input card asks for, as YAML: frames, size and views.

    Args:
        card: the card.
        given: keys of the options that are set already. A stride in place of frames per second, or
            a shorter side in place of an exact resize, leaves the other one out.
        backbone: value of model.backbone; "": its default.

    Raises:
        UserError: for a crop that is not square.
    """
    height, width = card.size
    if height != width:
        raise UserError(
            f"the model takes crops of {height} x {width} pixels, and data.size has one number; set"
            " model.input.size to a square, or resize in a function of python:"
        )
    data: dict[str, Any] = {
        "frames": card.frames,
        "size": height,
        "short_side": max(card.short_side or height, height),
        "interpolation": card.interpolation,
    }
    if card.resize and "data.short_side" not in given:
        data["resize"] = list(card.resize)
    if card.fps and "data.stride" not in given:
        data |= {"fps": card.fps, "stride": 1}
    elif card.stride and "data.fps" not in given:
        data["stride"] = card.stride
    options: dict[str, Any] = {
        "data": data,
        "method": {"name": "supervised"},
        "eval": {"view_average": card.view_average},
    }
    if backbone:
        options["model"] = {"backbone": backbone}
    return yaml.safe_dump(options)


def _load_own(cfg: config.Config, spec: str, weights: str) -> MeasuredModel:
    """Return a backbone of this package with the weights of a file of other code.

    The file's layout sets the options that the network needs, and its norm branches are kept.
    """
    if not weights:
        raise UserError(f"--model {spec}: give a file with --weights")
    name = spec.removeprefix(OWN)
    found = _recognise(weights, "")
    _contents.cache_clear()
    log.info(f"{weights}: {found.text()}")
    unset = config.ModelConfig()
    kept = {
        key: v for key, v in found.options.items() if getattr(cfg.model, key) == getattr(unset, key)
    }
    options = replace(cfg.model, backbone=name, **kept)
    branches = dict.fromkeys(branch_of(key) for key in found.backbone)
    networks = []
    for _ in range(2):
        network = configured_backbone(options)
        if adversarial := [branch for branch in branches if branch not in (None, "clean")]:
            add_branches(network, adversarial)
        networks.append(network)
    backbone, random = networks
    checkpoint.load_state(backbone.stored, found.backbone, weights)
    card = InputSpec(
        frames=cfg.data.frames,
        stride=cfg.data.stride,
        short_side=cfg.data.short_side,
        size=(cfg.data.size, cfg.data.size),
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()),
    )
    return _measured(cfg, backbone, random, _linear(found.head), spec, card)


@lru_cache(maxsize=1)
def _contents(weights: str) -> Contents:
    """Read a file of weights, once for its input card and for its tensors."""
    return checkpoint.read_foreign(weights)


def _recognise(weights: str, head_key: str) -> Recognised:
    """Return what a file of weights holds."""
    try:
        return recognise_contents(_contents(weights), weights, head_key)
    except UserError as error:
        _contents.cache_clear()
        raise UserError(f"--weights: {error}") from None


def _measured(
    cfg: config.Config,
    backbone: Backbone,
    random: Backbone | None,
    head: nn.Linear | None,
    spec: str,
    card: InputSpec,
) -> MeasuredModel:
    """Return a model with its name, made of the spec and a hash of the weights.

    Raises:
        UserError: for an eval.branch that it does not have.
    """
    names = branch_names(backbone)
    if cfg.eval.branch not in names and (cfg.eval.branch != "average" or len(names) == 1):
        raise UserError(
            f"eval.branch={cfg.eval.branch}: {spec} with these weights has {', '.join(names)}"
        )
    model = Model(backbone, head or nn.Identity())
    sha = checkpoint.state_sha(model.state_dict())
    twin = Model(random, nn.Identity()) if random else None
    return MeasuredModel(model, twin, f"{spec}, weights {sha}", sha, card)


def _linear(head: dict[str, torch.Tensor]) -> nn.Linear | None:
    """Return the classifier of a file; None for a file without one."""
    if "weight" not in head:
        return None
    # that of S3D is a convolution of one pixel
    weight = head["weight"].flatten(1)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in head)
    layer.load_state_dict({"weight": weight} | {k: v for k, v in head.items() if k == "bias"})
    return layer


def own_head(measured: MeasuredModel, classes: Sequence[str]) -> nn.Linear | None:
    """Return the model's own classifier, with a logit per class of the data set in its order.

    None without a linear head, and for a head of other classes, which is logged.

    Args:
        measured: the model.
        classes: names of the data set's classes.
    """
    head = measured.model.head
    if not isinstance(head, nn.Linear):
        return None
    names = measured.input.classes if measured.input else None
    if names is not None and len(names) == head.out_features:
        places = {class_key(name): place for place, name in enumerate(names)}
        order = [places.get(class_key(name)) for name in classes]
        rows = [place for place in order if place is not None]
        if len(rows) == len(classes) == len(names):
            return _reordered(head, rows)
        log.info(
            f"the model's classifier of {len(names)} classes is not used: {len(rows)} of the data"
            f" set's {len(classes)} are among them"
        )
        return None
    if head.out_features != len(classes):
        return None
    if measured.input is not None:
        log.warning(
            f"the model's {len(classes)} classes have no names: they are taken to be in the order"
            f" {', '.join(classes[:3])}, ..."
        )
    return head


def _reordered(head: nn.Linear, rows: list[int]) -> nn.Linear:
    """Return a linear layer with other rows, or the same in another order."""
    layer = nn.Linear(head.in_features, len(rows), bias=head.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(head.weight[rows])
        if head.bias is not None:
            layer.bias.copy_(head.bias[rows])
    return layer.to(head.weight.device)

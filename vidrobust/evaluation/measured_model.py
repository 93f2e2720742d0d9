"""MeasuredModel: what an evaluation measures, of a run or of another package."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from vidrobust import checkpoint, config
from vidrobust.data import build_records
from vidrobust.evaluation.loading import load_method
from vidrobust.methods import build_method, options_with_labels
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
from vidrobust.models.inference import evaluation_mode
from vidrobust.models.input_spec import InputSpec
from vidrobust.models.sources import Adjust, SourceModel, build_source, fresh
from vidrobust.models.sources.own_code import NO_HEAD
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.seeds import seed_everything

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
        classes: of a run that was trained on another data set than the one it is measured on, the
            classes of its own; empty if they are unknown; None: they are those of the data set.
        trained: configuration of the run; None for a model of another package.
    """

    model: Model
    random: Model | None
    name: str
    weights_sha: str
    input: InputSpec | None = None
    classes: tuple[str, ...] | None = None
    trained: config.Config | None = None


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
    trained = checkpoint.configuration(state, "checkpoint")
    names = None if trained.data.name == cfg.data.name else _classes_of(trained.data)
    name = checkpoint_name(cfg, state)
    return MeasuredModel(model, random, name, sha, classes=names, trained=trained)


def _classes_of(data: config.DataConfig) -> tuple[str, ...]:
    """Return the classes of a data set, or none if it is not there any more."""
    try:
        return tuple(build_records(replace(data, labels="", manifest=""), "train")[1])
    except UserError:
        return ()


def used_card(cfg: config.Config, measured: MeasuredModel) -> InputSpec | None:
    """Return the input card of a model with the values that an evaluation uses.

    None for a run with a backbone of this package, whose options say it all.
    """
    card = measured.input
    trained = getattr(measured.model.backbone.trunk, "input", None)
    if card is None and isinstance(trained, InputSpec):
        # classes and accuracy are those of weights that the run has changed
        card = replace(trained, classes=None, published=None)
    if card is None:
        return None
    return _with_options(cfg, card)


def _with_options(cfg: config.Config, card: InputSpec) -> InputSpec:
    """Return a card with the frames, size and views that a configuration says."""
    data = cfg.data
    return replace(
        card,
        frames=data.frames,
        stride=None if data.fps else data.stride,
        fps=data.fps or None,
        short_side=None if data.resize else data.short_side,
        resize=(data.resize[0], data.resize[1]) if data.resize else None,
        size=(data.size, data.size),
        interpolation=data.interpolation,
        view_average=cfg.eval.view_average,
    )


def unlike_card(cfg: config.Config, measured: MeasuredModel) -> list[str]:
    """Return a warning, or none, of clips of another shape than the model's input card says."""
    card, data = measured.input, cfg.data
    if card is None or (card.frames, card.size) == (data.frames, (data.size, data.size)):
        return []
    return [
        f"the model's input card says {card.frames} frames of {card.size[0]} x {card.size[1]}"
        f" pixels; it is measured on {data.frames} of {data.size} x {data.size}"
    ]


def known_labels(cfg: config.Config, measured: MeasuredModel) -> list[str]:
    """Return a warning, or none, of few labels for a model that was trained with more of them."""
    trained = measured.trained
    if not cfg.data.labels or trained is None or trained.data.name != cfg.data.name:
        return []
    options = options_with_labels(trained.method)
    learned, few = ((d.labels, d.labels_seed, d.fold) for d in (trained.data, cfg.data))
    if not options or learned == few:
        return []
    part = f"data.labels={trained.data.labels}" if trained.data.labels else "all labels"
    return [
        f"data.labels={cfg.data.labels}: the model was trained with {part} ({', '.join(options)});"
        " its accuracy is not that of a model that has few labels"
    ]


def checkpoint_name(cfg: config.Config, state: dict[str, Any]) -> str:
    """Return the name of the weights of a checkpoint that a configuration evaluates."""
    average = cfg.eval.average
    sha = checkpoint.state_sha(checkpoint.weights(state, average=average))
    return f"step {state['step']}, {'average' if average else 'weights'} {sha}"


def load_source(
    cfg: config.Config, spec: str, weights: str, change: Adjust | None = None
) -> MeasuredModel:
    """Return a model of another package, with the weights of a file.

    Args:
        cfg: its model.input.*, model.mean and model.std replace the input card, where they are set.
        spec: such as `torchvision:r3d_18`, or `vidrobust:resnet18` for a backbone of this package.
        weights: the file; "": those that the spec names, or random ones.
        change: of the input card, in place of that of the options; None: that of the options.

    Raises:
        UserError: for an unknown model, and weights that cannot be read or do not fit.
    """
    seed_everything(cfg.seed, cfg.deterministic)
    if spec.startswith(OWN):
        return _load_own(cfg, spec, weights)
    adjust = change or card_adjustment(cfg.model) or (lambda card: card)
    if weights:
        try:
            return _load_file(cfg, spec, weights, adjust)
        finally:
            _contents.cache_clear()  # it is as large as the file
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
    network, head_key = source.network.network, source.network.head_key
    found = _recognise(weights, head_key, network.state_dict().keys())
    log.info(f"{weights}: {found.text()}")
    source_options(found.options, spec)  # warns of others
    checkpoint.load_state(network, found.backbone, weights)
    # without a head that could be cut off, the head changes nothing
    head = source.head if head_key == NO_HEAD else _linear(found.head)
    card = _of_weights(source.input, head, adjust)
    return measured_source(cfg, replace(source, head=head, input=card), random, spec)


def _of_weights(card: InputSpec, head: nn.Linear | None, adjust: Adjust) -> InputSpec:
    """Return a card without classes and published accuracy that are not those of a file's weights.

    A source's own weights may have other classes than a file for the same network.

    Args:
        card: of the source.
        head: the file's classifier, or None.
        adjust: what the user changes in the card stays.
    """
    if head is not None and len(card.classes or ()) in (0, head.out_features):
        return card
    given = adjust(InputSpec())
    return replace(
        card,
        classes=card.classes if given.classes else None,
        published=card.published if given.published else None,
    )


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
    card, head = source.input, source.head
    if head is not None and card.classes and len(card.classes) != head.out_features:
        raise UserError(
            f"{name}: {len(card.classes)} names for a classifier of {head.out_features} classes;"
            " correct model.input.classes"
        )
    mean, std = tuple(cfg.model.mean), tuple(cfg.model.std)
    twin = source_backbone(random, mean, std) if random else None
    backbone = source_backbone(source, mean, std)
    return _measured(cfg, backbone, twin, head, name, card)


def card_options(card: InputSpec, given: Collection[str] = (), backbone: str = "") -> str:
    """Return the options that an input card asks for, as YAML: frames, size and views.

    Args:
        card: the card.
        given: keys of the options that are set already. A stride in place of frames per second, or
            a shorter side in place of an exact resize, leaves the other one out.
        backbone: value of model.backbone; "": its default.

    Raises:
        UserError: for a crop that is not square, and one larger than the shorter side.
    """
    height, width = card.size
    if height != width:
        raise UserError(
            f"the model takes crops of {height} x {width} pixels, and data.size has one number; set"
            " model.input.size to a square, or resize in a function of python:"
        )
    if (card.short_side or height) < height and {"data.size", "data.short_side"}.isdisjoint(given):
        raise UserError(
            f"the model's frames have a shorter side of {card.short_side} pixels, less than the"
            f" crop of {height}; set model.input.short_side or size"
        )
    data: dict[str, Any] = {
        "frames": card.frames,
        "size": height,
        "short_side": card.short_side or height,
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
    if found.card.get("channels") == "bgr":
        raise UserError(
            f"--model {spec}: {weights} was trained on frames in the order BGR, and backbones of"
            " this package take RGB; use the network of pytorchvideo or torchvision"
        )
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
    card = configured_card(cfg, backbone)
    return _measured(cfg, backbone, random, _linear(found.head), spec, card)


def configured_card(cfg: config.Config, backbone: Backbone) -> InputSpec:
    """Return the options of a configuration as an input card, for a backbone of this package."""
    card = InputSpec(
        mean=tuple(backbone.mean.flatten().tolist()), std=tuple(backbone.std.flatten().tolist())
    )
    return _with_options(cfg, card)


def own_options(spec: str, weights: str, given: Collection[str]) -> str:
    """Return the options of a backbone of this package and of a file of other code, as YAML.

    Args:
        spec: such as `vidrobust:resnet18`.
        weights: the file, whose input card is taken; "": no card.
        given: see `card_options`.
    """
    name = spec.removeprefix(OWN)
    stated = _recognise(weights, "").card if weights else {}
    if not stated:
        return yaml.safe_dump({"model": {"backbone": name}})
    data = config.DataConfig()
    card = InputSpec(
        frames=data.frames,
        stride=data.stride,
        short_side=data.short_side,
        size=(data.size, data.size),
    )
    return card_options(replace(card, **{**stated, "channels": "rgb"}), given, name)


@lru_cache(maxsize=1)
def _contents(weights: str, changed_ns: int) -> Contents:
    """Read a file of weights, once for its input card and for its tensors.

    Args:
        weights: the file.
        changed_ns: when it was changed.
    """
    return checkpoint.read_foreign(weights)


def _recognise(weights: str, head_key: str, keys: Collection[str] = ()) -> Recognised:
    """Return what a file of weights holds; see `recognise_contents`."""
    path = Path(weights)
    try:
        contents = _contents(weights, path.stat().st_mtime_ns if path.is_file() else 0)
        return recognise_contents(contents, weights, head_key, keys)
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
    name = f"{spec}, weights {sha}, input {_short_sha(replace(card, published=None))}"
    if spec.partition(":")[0] not in _PACKAGES:
        name += f", outputs {_outputs_sha(model, card)}"
    return MeasuredModel(model, twin, name, sha, card)


# sources whose code is that of a package; weights do not identify a model of the user's own code
_PACKAGES = ("vidrobust", "torchvision", "pytorchvideo", "hf", "timm")


def _short_sha(value: object) -> str:
    """Return a hash of the text of a value."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


@torch.no_grad()
def _outputs_sha(model: Model, card: InputSpec) -> str:
    """Return a hash of some outputs on a fixed clip; "random" if they differ from pass to pass."""
    clip = torch.rand(1, 3, card.frames, *card.size, generator=torch.Generator().manual_seed(0))
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        first, again = (model(clip).flatten()[:8].tolist() for _ in range(2))
    if first != again:
        return "random"
    # two digits, as other devices and batch sizes change the last ones
    return _short_sha([f"{value:.1e}" for value in first])


def _linear(head: dict[str, torch.Tensor]) -> nn.Linear | None:
    """Return the classifier of a file; None for a file without one."""
    if "weight" not in head:
        return None
    # that of S3D is a convolution of one pixel
    weight = head["weight"].flatten(1)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in head)
    layer.load_state_dict({"weight": weight} | {k: v for k, v in head.items() if k == "bias"})
    return layer

"""Recognise how a file of weights is laid out, and return the backbone's weights in it."""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vidrobust.models.checkpoints import (
    caffe2_layouts,
    image_layouts,
    mmaction2_layouts,
    r2plus1d_layouts,
    resnet3d_layouts,
    s3d_layouts,
    slowfast_layouts,
    transformer_layouts,
)
from vidrobust.models.checkpoints.file_card import (
    pyslowfast_card,
    pyslowfast_config,
    pyslowfast_options,
    require_fitting,
)
from vidrobust.models.checkpoints.inert_pickle import StandIn
from vidrobust.models.checkpoints.layout import Layout, Recognised, Weights
from vidrobust.models.checkpoints.read_file import Contents, read_weights
from vidrobust.utils.errors import UserError

# The first one that fits is taken, so that special layouts stand before general ones.
LAYOUTS: tuple[Layout, ...] = (
    *image_layouts.LAYOUTS,
    *r2plus1d_layouts.LAYOUTS,
    *resnet3d_layouts.LAYOUTS,
    *s3d_layouts.LAYOUTS,
    *slowfast_layouts.LAYOUTS,
    *caffe2_layouts.LAYOUTS,
    # before the transformers' authors, whose files may have `backbone.` in front too
    *mmaction2_layouts.LAYOUTS,
    *transformer_layouts.LAYOUTS,
)
# A backbone.pt, torchvision's files, and others that only put a name before the backbone's keys.
PLAIN = Layout(
    name="a state dict of the backbone itself",
    origin="torchvision, and this package",
    needs=(),
    prefix=r"((encoder|backbone|trunk|network)\.)*",
    drops=(r"(fc|head|selector)\.",),
    head=r"((encoder|backbone|trunk|network)\.)*fc\.",
)
# Names under which training code keeps the state dict of a model, in the order in which they are
# asked; a teacher or average stands before what it averages.
_CONTAINERS = (
    "state_dict",
    "model_state",
    "model_state_dict",
    "model",
    "module",
    "network",
    "net",
    "target_encoder",
    "encoder",
    "weights",
    "blobs",
)
# what data-parallel training and torch.compile put before each key
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def recognise(path: str | Path, head_key: str = "") -> Recognised:
    """Read a file of weights, and return what it holds in the names of this package.

    Args:
        path: the file.
        head_key: name of the classifier in state dicts of the network that gets the weights; "":
            fc and head.

    Raises:
        UserError: for a file that cannot be read, and for one without a state dict.
    """
    return recognise_contents(read_weights(path), str(path), head_key)


def recognise_contents(
    contents: Contents, source: str, head_key: str = "", keys: Collection[str] = ()
) -> Recognised:
    """Return what a file holds in the names of this package.

    Args:
        contents: of the file.
        source: its path, for messages.
        head_key: see `recognise`.
        keys: of the state dict of the network that gets the weights. A file that has them all is
            taken as it is, whatever layout its keys resemble.

    Raises:
        UserError: for contents without a state dict, and for weights that no network here takes.
    """
    weights = _state_dict(contents.value)
    if weights is None:
        raise UserError(f"{source}: holds no state dict of a model, but {_described(contents)}")
    weights = {_WRAPPERS.sub("", key): value for key, value in weights.items()}
    plain = PLAIN
    if head_key:
        # not `encoder`, which is a part of networks such as torchvision's vision transformers
        prefix = r"((backbone|trunk|network)\.)*"
        plain = replace(PLAIN, prefix=prefix, drops=(), head=rf"{prefix}{re.escape(head_key)}\.")
    layout = next((layout for layout in LAYOUTS if layout.fits(weights)), plain)
    if head_key and keys and weights.keys() >= set(keys):
        layout = replace(PLAIN, prefix="", drops=(), head=rf"{re.escape(head_key)}\.")
    elif layout is plain and (prefix := _common_prefix(weights, keys)):
        # as Lightning writes `model.`, and a module of the user's own the name of the network
        head = rf"{re.escape(prefix)}{re.escape(head_key or 'fc')}\."
        layout = replace(plain, prefix=re.escape(prefix), head=head)
    settings = pyslowfast_config(contents.value)
    try:
        require_fitting(settings)
        found = layout.apply(weights)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return replace(
        found,
        options={**pyslowfast_options(settings), **found.options},
        card={**found.card, **pyslowfast_card(settings)},
    )


def _common_prefix(weights: Weights, keys: Collection[str]) -> str:
    """Return what stands before all keys of a network in a file; "" for nothing, and for no file.

    Args:
        weights: of the file.
        keys: of the network's state dict.
    """
    first = next(iter(keys), "")
    prefixes = {key.removesuffix(first) for key in weights if first and key.endswith(f".{first}")}
    fitting = [each for each in prefixes if weights.keys() >= {each + key for key in keys}]
    return fitting[0] if len(fitting) == 1 else ""


def _state_dict(value: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """Return the state dict in the contents of a file, or None."""
    if isinstance(value, StandIn):
        return _of_module(value) or None
    if not isinstance(value, dict):
        return None
    tensors = {
        key: each
        for key, each in value.items()
        if isinstance(key, str) and isinstance(each, Tensor)
    }
    # Beside its tensors a state dict may hold extra states, which are not tensors.
    if len(tensors) > len(value) / 2:
        return tensors
    for name in _CONTAINERS:
        if name in value and depth < 3:
            found = _state_dict(value[name], depth + 1)
            if found is not None:
                return found
    return None


def _of_module(module: StandIn, prefix: str = "") -> dict[str, Tensor]:
    """Return the state dict of a module that was pickled whole, from its stand-in."""
    weights: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in getattr(module, kind, {}).items():
            if isinstance(value, Tensor):
                weights[prefix + name] = value.detach()
    for name, child in getattr(module, "_modules", {}).items():
        if isinstance(child, StandIn):
            weights |= _of_module(child, f"{prefix}{name}.")
    return weights


def _described(contents: Contents) -> str:
    """Return what a file holds instead of a state dict, in a few words."""
    value = contents.value
    if isinstance(value, dict):
        return "the entries " + ", ".join(map(str, list(value)[:5]))
    kind = value.foreign_class if isinstance(value, StandIn) else type(value).__name__
    return f"an object of {kind}"

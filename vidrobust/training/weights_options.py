"""Set the options of `model.*` that the file of `model.weights` needs."""

from dataclasses import replace
from typing import Any

from vidrobust import checkpoint, config
from vidrobust.models.checkpoints import recognise_contents, source_options
from vidrobust.models.sources import is_spec
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log


def with_weights_options(cfg: config.Config) -> config.Config:
    """Return the configuration with the options of `model.*` that its weights need.

    The run's config file then holds them, so that every later command builds the same network. An
    option that is set already is kept, with a warning if the weights need another value.

    Raises:
        UserError: for weights that cannot be read.
    """
    if not cfg.model.weights:
        return cfg
    try:
        contents = checkpoint.read_foreign(cfg.model.weights)
        if isinstance(contents.value, dict) and contents.value.keys() >= checkpoint.KEYS:
            return cfg
        found = recognise_contents(contents, cfg.model.weights)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None
    needed = found.options
    if is_spec(cfg.model.backbone):
        channels = {key: found.card[key] for key in ("channels",) if key in found.card}
        cfg, needed = _for_source(cfg, {**needed, **channels})
    elif found.card.get("channels") == "bgr":
        raise UserError(
            f"model.weights: {cfg.model.weights} was trained on frames in the order BGR, and"
            f" {cfg.model.backbone} takes RGB; use the network of pytorchvideo or torchvision"
        )
    unset = config.ModelConfig()
    changes = {}
    for name, value in needed.items():
        held = getattr(cfg.model, name)
        if held == getattr(unset, name):
            changes[name] = value
        elif held != value:
            log.warning(
                f"model.{name}={held}, but {cfg.model.weights} was trained with {value}: features"
                f" will differ; leave model.{name} out"
            )
    return replace(cfg, model=replace(cfg.model, **changes)) if changes else cfg


def _for_source(cfg: config.Config, needed: dict[str, Any]) -> tuple[config.Config, dict[str, Any]]:
    """Return the configuration and options for a model of another package.

    The frames of a slow pathway and the order of the channels become options of its input card.
    Statistics that `model.input.*` sets come before those of the file.

    Args:
        cfg: the configuration.
        needed: options of `model.*` that the weights need.
    """
    card = cfg.model.input
    options = source_options(needed, cfg.model.backbone)
    options = {key: value for key, value in options.items() if not getattr(card, key)}
    stated = {key: needed[key] for key in ("slow_frames", "channels") if key in needed}
    changes = {key: value for key, value in stated.items() if not getattr(card, key)}
    if changes:
        cfg = replace(cfg, model=replace(cfg.model, input=replace(card, **changes)))
    return cfg, options

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
        needed = recognise_contents(contents, cfg.model.weights).options
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None
    if is_spec(cfg.model.backbone):
        cfg, needed = _for_source(cfg, needed)
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

    The frames of a slow pathway become an option of its input card. Statistics that `model.input.*`
    sets come before those of the file.

    Args:
        cfg: the configuration.
        needed: options of `model.*` that the weights need.
    """
    card = cfg.model.input
    options = source_options(needed, cfg.model.backbone)
    if card.mean or card.std or card.range:
        options = {}
    if "slow_frames" in needed and not card.slow_frames:
        card = replace(card, slow_frames=needed["slow_frames"])
        cfg = replace(cfg, model=replace(cfg.model, input=card))
    return cfg, options

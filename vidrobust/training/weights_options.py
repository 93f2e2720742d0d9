"""Set the options of `model.*` that the file of `model.weights` needs."""

from dataclasses import replace

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
        needed = source_options(needed, cfg.model.backbone)
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

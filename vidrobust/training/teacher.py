"""Load the trained backbone that another method learns from."""

from vidrobust import checkpoint, config
from vidrobust.models import Backbone, configured_backbone
from vidrobust.utils.errors import UserError


def read_teacher(path: str, cfg: config.Config) -> Backbone:
    """The trunk of a training checkpoint, as its own configuration builds it, or of a backbone.pt,
    as `cfg.model` does.

    Raises UserError where its weights do not fit, and for a checkpoint that was trained on clips of
    another shape.
    """
    try:
        state, model = checkpoint.read(path), cfg.model
    except UserError as error:
        raise UserError(
            f"method.teacher: {error}; give the folder of a trained run, or its backbone.pt"
        ) from None
    if isinstance(state, dict) and "config" in state:
        own = checkpoint.configuration(state, path)
        model = own.model
        shapes = [(c.data.frames, c.data.size) for c in (own, cfg)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"method.teacher={path}: trained on clips of {shapes[0][0]} frames of"
                f" {shapes[0][1]} pixels, and these are of {shapes[1][0]} frames of {shapes[1][1]};"
                " set data.frames and data.size as its"
            )
    backbone = configured_backbone(model)
    try:
        checkpoint.load_state(backbone.trunk, checkpoint.trunk_state(path), path)
    except UserError as error:
        if model is not cfg.model:
            raise
        reason = str(error).split("; check model.*")[0]
        raise UserError(
            f"method.teacher: {reason}; a backbone.pt is built as model.* says: give the folder of"
            " its run, which knows its own"
        ) from None
    return backbone

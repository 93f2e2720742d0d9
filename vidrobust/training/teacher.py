"""Load the trained backbone that another method learns from."""

from vidrobust import checkpoint, config
from vidrobust.models import Backbone, configured_backbone
from vidrobust.utils.errors import UserError


def read_teacher(path: str, cfg: config.Config) -> Backbone:
    """Return a trained backbone.

    Args:
        path: a training checkpoint, which has its own configuration, or a backbone.pt, which is
            built as `cfg.model` says.
        cfg: the configuration of the method that learns from it.

    Raises:
        UserError: for weights that do not fit, and for a checkpoint that was trained on clips of
            another shape.
    """
    try:
        state = checkpoint.read(path)
    except UserError as error:
        raise UserError(
            f"method.teacher: {error}; give the folder of a trained run, or its backbone.pt"
        ) from None
    has_config = isinstance(state, dict) and "config" in state
    model = cfg.model
    if has_config:
        teacher_cfg = checkpoint.configuration(state, path)
        _require_same_clips(path, teacher_cfg.data, cfg.data)
        model = teacher_cfg.model
    backbone = configured_backbone(model)
    try:
        state = checkpoint.backbone_state(path, head_key=backbone.head_key)
        checkpoint.load_state(backbone.stored, state, path)
    except UserError as error:
        if has_config:
            raise
        # the remedy of `load_state` is replaced: model.* also decides the student's architecture
        reason = str(error).split("; check model.*")[0]
        raise UserError(
            f"method.teacher: {reason}; a backbone.pt is built with the model.* of this run: give"
            " the folder of its own run, which holds its configuration"
        ) from None
    return backbone


def _require_same_clips(path: str, teacher: config.DataConfig, student: config.DataConfig) -> None:
    """Raise UserError for a teacher that was trained on clips of another shape."""
    if (teacher.frames, teacher.size) != (student.frames, student.size):
        raise UserError(
            f"method.teacher={path}: trained on clips of {teacher.frames} frames of"
            f" {teacher.size} pixels, but these have {student.frames} frames of {student.size};"
            f" set data.frames={teacher.frames} and data.size={teacher.size}"
        )

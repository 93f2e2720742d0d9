"""Clips become views."""

from vidrobust.views.augment import DRAW_COLUMNS, AugmentSpec, ViewDraw, apply_draws, draw_view, faded, to_float

__all__ = ["DRAW_COLUMNS", "AugmentSpec", "ViewDraw", "apply_draws", "draw_view", "faded", "to_float"]

"""Clips become views."""

from vidrobust.views.augment import AugmentSpec, apply_color, draw_view, take_view

__all__ = ["AugmentSpec", "apply_color", "draw_view", "take_view"]

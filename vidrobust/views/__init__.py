"""Augmented views and non-semantic negatives of clips."""

from vidrobust.views.augment import (
    DRAW_COLUMNS,
    AugmentSpec,
    ViewDraw,
    apply_draws,
    crops_along,
    draw_view,
    faded,
    make_views,
    to_float,
)
from vidrobust.views.negatives import (
    NEGATIVES,
    NegativeSpec,
    count_numbers,
    draw_numbers,
    negatives,
    require_room,
)

__all__ = [
    "DRAW_COLUMNS",
    "NEGATIVES",
    "AugmentSpec",
    "NegativeSpec",
    "ViewDraw",
    "apply_draws",
    "count_numbers",
    "crops_along",
    "draw_numbers",
    "draw_view",
    "faded",
    "make_views",
    "negatives",
    "require_room",
    "to_float",
]

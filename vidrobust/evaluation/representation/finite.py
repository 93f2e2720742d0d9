"""Refuse features that are NaN or infinite."""

from collections.abc import Sequence

from torch import Tensor

from vidrobust.utils.errors import UserError

_SHOWN = 5  # rows that a message names


def require_finite(features: Tensor, what: str, names: Sequence[str] | None = None) -> None:
    """Refuse features that are NaN or infinite.

    Args:
        features: (N, ...), one row per clip or video.
        what: subject of the message, in the plural.
        names: names of the rows, or names of videos with N / len(names) consecutive rows each.
            None: rows are named by their number.

    Raises:
        UserError: with the first rows and the remedy.
    """
    bad_rows = (~features.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if not bad_rows:
        return
    rows_per_name = max(len(features) // len(names), 1) if names else 1
    bad_names = [names[row // rows_per_name] if names else f"row {row}" for row in bad_rows]
    bad_names = list(dict.fromkeys(bad_names))
    more = f" and {len(bad_names) - _SHOWN} more" if len(bad_names) > _SHOWN else ""
    remedy = "find what overflows in the model, or leave these videos out"
    if len(bad_rows) == len(features):
        # Single bad rows point at single videos; only bad rows point at the weights.
        remedy = "no row is finite: the weights may be NaN, use a checkpoint before the divergence"
    raise UserError(f"{what}: NaN or infinite for {', '.join(bad_names[:_SHOWN])}{more}; {remedy}")

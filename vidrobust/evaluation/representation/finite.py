"""Refuse features that are NaN or infinite."""

from collections.abc import Sequence

from torch import Tensor

from vidrobust.utils.errors import UserError

_SHOWN = 5


def require_finite(features: Tensor, what: str, names: Sequence[str] | None = None) -> None:
    """Raise UserError for NaN and infinity.

    Args:
        features: (N, ...), a row per clip or video.
        what: the message's subject, in the plural.
        names: of the rows, or of the videos of which each has several rows one after the other;
            None: their numbers.
    """
    bad = (~features.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if not bad:
        return
    each = max(len(features) // len(names), 1) if names else 1
    lost = list(dict.fromkeys(names[row // each] if names else f"row {row}" for row in bad))
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    remedy = "look for what overflows in the model, or leave these videos out"
    if len(bad) == len(features):
        remedy = "these are all; the weights may be NaN, take a checkpoint before the run diverged"
    raise UserError(f"{what}: NaN or infinite for {', '.join(lost[:_SHOWN])}{more}; {remedy}")

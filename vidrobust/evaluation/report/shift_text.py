"""Text about accuracy on another data set."""

from vidrobust.evaluation.natural.shift import Shift
from vidrobust.utils.readable import between, percent


def shift_lines(shift: Shift | None) -> list[str]:
    """Return the section of report.md, or no lines for None."""
    if shift is None:
        return []
    own = "-"
    if shift.own_acc is not None:
        own = f"{percent(shift.own_acc)} (n = {shift.own_n})"
    by_class = [f"{name} {percent(acc, 0, unit='')}" for name, acc in shift.per_class.items()]
    return [
        f"## Shift: accuracy on {shift.dataset}",
        "",
        (
            f"{shift.n} videos of the {len(shift.concepts)} shared classes, classified among these"
            f" (chance {percent(shift.chance)}): {percent(shift.acc)} (95 % interval"
            f" {between(shift.ci95)}). Own test videos of these classes: {own}."
        ),
        "",
        f"By class, %: {'; '.join(by_class)}.",
        "",
    ]

"""Text about accuracy on another data set."""

from vidrobust.evaluation.natural.shift import Shift


def shift_lines(shift: Shift | None) -> list[str]:
    """Return the section of report.md, or no lines for None."""
    if shift is None:
        return []
    low, high = shift.ci95
    own = "-"
    if shift.own_acc is not None:
        own = f"{100 * shift.own_acc:.1f} % (n = {shift.own_n})"
    classes = "; ".join(f"{name} {100 * acc:.0f}" for name, acc in shift.per_class.items())
    return [
        f"## Shift: accuracy on {shift.dataset}",
        "",
        (
            f"{shift.n} videos of the {len(shift.concepts)} shared classes, classified among these"
            f" (chance {100 * shift.chance:.1f} %): {100 * shift.acc:.1f} % (95 % interval"
            f" {100 * low:.1f} to {100 * high:.1f}). Own test videos of these classes: {own}."
        ),
        "",
        f"By class, %: {classes}.",
        "",
    ]

"""Text about unknown classes."""

from vidrobust.evaluation.natural.open_set import OpenSet
from vidrobust.evaluation.report.tables import escape


def open_set_lines(open_set: OpenSet | None) -> list[str]:
    """Return the section of report.md, or no lines for None."""
    if open_set is None:
        return []
    low, high = open_set.ci95
    return [
        f"## Unknown classes: {escape(open_set.dataset)}",
        "",
        (
            f"Largest probability on {open_set.known} test videos and on {open_set.unknown} videos"
            f" of classes that are not in the data set: AUROC {100 * open_set.auroc:.1f} % (95 %"
            f" bootstrap interval {100 * low:.1f} to {100 * high:.1f}; chance 50), FPR@95"
            f" {100 * open_set.fpr95:.1f} %{_between(open_set.fpr95_ci95)}. Mean confidence"
            f" {_percent(open_set.known_confidence)} on known and"
            f" {_percent(open_set.unknown_confidence)} on unknown videos."
        ),
        "",
    ]


def _between(interval: list[float]) -> str:
    """Format an interval, which files of earlier revisions do not have."""
    return "" if not interval else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _percent(fraction: float | None) -> str:
    """Format a fraction in per cent."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"

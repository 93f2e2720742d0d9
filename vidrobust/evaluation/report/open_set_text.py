"""Text about unknown classes."""

from vidrobust.evaluation.natural.open_set import OpenSet
from vidrobust.evaluation.report.tables import escape
from vidrobust.utils.readable import between, percent, with_interval


def open_set_lines(open_set: OpenSet | None) -> list[str]:
    """Return the section of report.md, or no lines for None."""
    if open_set is None:
        return []
    return [
        f"## Unknown classes: {escape(open_set.dataset)}",
        "",
        (
            f"Largest probability on {open_set.known} test videos and on {open_set.unknown} videos"
            f" of classes that are not in the data set: AUROC {percent(open_set.auroc)} (95 %"
            f" bootstrap interval {between(open_set.ci95)}; chance 50), FPR@95"
            f" {with_interval(open_set.fpr95, open_set.fpr95_ci95)}. Mean confidence"
            f" {percent(open_set.known_confidence)} on known and"
            f" {percent(open_set.unknown_confidence)} on unknown videos."
        ),
        "",
    ]

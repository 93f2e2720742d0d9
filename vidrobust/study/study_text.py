"""Texts that study.md and study.html share."""

from collections.abc import Sequence

from vidrobust.evaluation.report import tables as markdown
from vidrobust.study.arm_table import FinishedRun, Measures, Spread, Table, robust_mean, threats_of
from vidrobust.study.plan import Study

Runs = Sequence[FinishedRun]


def without_overridden(options: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the options that the command line does not replace."""
    overridden = {option.split("=", 1)[0] for option in overrides}
    return [option for option in options if option.split("=", 1)[0] not in overridden]


def accuracies(runs: Runs) -> dict[str, str]:
    """Return measure -> title of its column, for the accuracies of one data set.

    Robust accuracies are those of the threats of any run. A budget of 0 is clean accuracy. Videos
    with several labels each have a mean average precision in place of them all.
    """
    if any(run.summary.average_precision for run in runs):
        return {"mAP": "mAP"}
    points = [point for run in runs for point in run.summary.curve if point.eps > 0]
    robust = {f"robust {point.threat}": point.threat for point in points}
    return {"probe": "probe", "clean": "clean", **robust, "mpc": "mpc"}


def classifiers(runs: Runs) -> str:
    """Return which classifier was attacked, of which arms."""
    arms: dict[str, list[str]] = {}
    for run in runs:
        arms.setdefault(run.summary.classifier, []).append(run.arm.name)
    if len(arms) == 1:
        return f"the {next(iter(arms))} of all arms"
    return "; ".join(
        f"the {classifier} of {', '.join(dict.fromkeys(names))}"
        for classifier, names in arms.items()
    )


def warnings_of(runs: Runs) -> list[str]:
    """Return each warning of the evaluations once, with the runs that have it."""
    runs_by_warning: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.summary.warnings:
            runs_by_warning.setdefault(warning, []).append(f"{run.arm.name} {run.arm.seed}")
    return [
        f"{warning}: {'all runs' if len(names) == len(runs) else ', '.join(names)}"
        for warning, names in runs_by_warning.items()
    ]


def gap_lines(study: Study, table: Table) -> list[str]:
    """Return the table of the gaps that arms close.

    It has a row per arm that is neither baseline nor comparator. A sentence names each comparator
    that is not above the baseline.
    """
    lines: list[str] = []
    rows: list[list[str]] = []
    for comparator in study.comparators:
        closed = {
            name: result.gap_closed[comparator]
            for name, result in table.items()
            if comparator in result.gap_closed
        }
        if any(_has_value(gaps) for gaps in closed.values()):
            # The gap itself, which shows whether it is certain.
            gap = table[comparator].difference
            for name, gaps in closed.items():
                if name not in study.comparators:
                    cells = [_gap(value, gap.get(f"robust {key}")) for key, value in gaps.items()]
                    rows.append([name, comparator, *cells])
        # No gap at any budget; without a baseline `closed` is empty, and nothing is said.
        elif closed and not _is_above(table, comparator, study.baseline):
            comparator_name = markdown.escape(comparator)
            lines += [
                (
                    f"The mean robust accuracy of {comparator_name} is above that of"
                    f" {markdown.escape(study.baseline)} at no budget that both have: there is no"
                    " gap to close."
                ),
                "",
            ]
    if not rows:
        return lines
    return [
        *lines,
        (
            "Gap between the robust accuracies of baseline and comparator that the arm closes, per"
            " cent. -: the comparator is not above the baseline, or one of the three was not"
            " attacked under this threat. In brackets: the gap is in doubt, as baseline and"
            " comparator share fewer than two seeds, or its interval includes 0."
        ),
        "",
        *markdown.table(["arm", "comparator", *threats_of(table)], *rows),
        "",
    ]


def _has_value(gaps: Measures) -> bool:
    """Return whether some gap has a value."""
    return any(value is not None for value in gaps.values())


def _is_above(table: Table, comparator: str, baseline: str) -> bool:
    """Return whether the comparator is above the baseline at some budget, whatever arms do."""
    pairs = [
        (robust_mean(table, baseline, threat), robust_mean(table, comparator, threat))
        for threat in threats_of(table)
    ]
    return any(low is not None and high is not None and high > low for low, high in pairs)


def _gap(closed: float | None, gap: Spread | None) -> str:
    """Format how much of a gap is closed.

    Args:
        closed: per cent of the gap; None if there is no gap.
        gap: comparator minus baseline, seed by seed; None if they have no seed in common.
    """
    if closed is None:
        return "-"
    # Certain if the interval of the comparator's difference from the baseline is above 0.
    certain = gap is not None and gap.half is not None and gap.mean > gap.half
    return f"{closed:.0f}" if certain else f"({closed:.0f})"


def number(value: float, digits: int) -> str:
    """Format a number; one that rounds to 0 has no sign."""
    return f"{round(value, digits) + 0:.{digits}f}"


def signed(value: float) -> str:
    """Format a difference in percentage points, with its sign."""
    return f"{round(value, 1) + 0:+.1f}"

"""Table and reliability diagrams of calibration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidrobust.evaluation.calibration import Calibration
from vidrobust.evaluation.report import drawing
from vidrobust.evaluation.report.tables import table
from vidrobust.utils.readable import percent, with_interval

_PANELS = 4  # largest number of diagrams


def calibration_lines(out: Path, calibration: Sequence[Calibration]) -> list[str]:
    """Draw calibration.png, and return the section of report.md; no lines without calibration.

    Args:
        out: folder of the evaluation.
        calibration: clean clips first, then the threats.
    """
    path = out / "calibration.png"
    if not calibration:
        # A report that is written again may have had a figure before.
        path.unlink(missing_ok=True)
        return []
    _draw(path, calibration)
    rows = [
        [
            each.threat or "clean",
            str(each.n),
            percent(each.accuracy, unit=""),
            percent(each.confidence, unit=""),
            with_interval(each.ece, each.ece_ci95, unit=""),
            _brier(each),
        ]
        for each in calibration
    ]
    titles = ["clips", "n", "accuracy, %", "mean confidence, %", "ECE, %", "Brier score"]
    return [
        "### Calibration",
        "",
        (
            f"Expected calibration error with {len(calibration[0].bins)} bins of equal width. An"
            " attack stops at the first misclassification, and does not search for a confident one."
            " Clips that are misclassified without an attack are not attacked. In brackets: 95 %"
            " bootstrap intervals."
        ),
        "",
        *table(titles, *rows),
        "",
        "![reliability](calibration.png)",
        "",
    ]


def _brier(calibration: Calibration) -> str:
    """Format the Brier score and its interval, which files of earlier revisions do not have."""
    if not calibration.brier_ci95:
        return f"{calibration.brier:.3f}"
    low, high = calibration.brier_ci95
    return f"{calibration.brier:.3f} ({low:.3f} to {high:.3f})"


def _draw(path: Path, calibration: Sequence[Calibration]) -> None:
    """Draw a reliability diagram for clean clips, and for the last threats of the table."""
    shown = [calibration[0], *calibration[1:][-(_PANELS - 1) :]]
    figure = drawing.new_figure(3.4 * len(shown), 3.4, dpi=120)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, each in zip(panels, shown, strict=True):
        _draw_one(axes, each)
    drawing.save(figure, path)


def _draw_one(axes: Any, calibration: Calibration) -> None:
    """Draw accuracy by confidence, with the number of predictions behind it."""
    full = [each for each in calibration.bins if each.count]
    width = calibration.bins[0].high - calibration.bins[0].low
    centres = [(each.low + each.high) / 2 for each in full]
    counts = [each.count / calibration.n for each in full]
    axes.bar(centres, counts, width, color="lightgray", label="fraction of predictions")
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    axes.plot(
        [each.confidence for each in full],
        [each.accuracy for each in full],
        marker="o",
        label="accuracy",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence")
    axes.set_title(drawing.label(calibration.threat or "clean"), fontsize=10)
    axes.legend(fontsize=7, loc="upper left")

"""Tables and figures of accuracy under corruptions."""

from pathlib import Path

import numpy as np

from vidrobust.evaluation.natural.corruption_summary import CorruptionTable
from vidrobust.evaluation.report import drawing
from vidrobust.evaluation.report import tables as markdown
from vidrobust.utils.readable import between, percent

# Value of eval.corruption.place -> where corruptions were applied.
_PLACES = {
    "source": "on the frames of the file, before crop and resize",
    "view": "on the crop that the model receives",
}


# --- Text ---


def corruption_lines(out: Path, table: CorruptionTable | None) -> list[str]:
    """Return the section of report.md about corruptions, or no lines for None.

    It also draws out/corruptions.png and out/corruption_curves.png.
    """
    if table is None:
        return []
    _draw_heat_map(out / "corruptions.png", table)
    _draw_curves(out / "corruption_curves.png", table)
    return [
        "## Corruptions",
        "",
        (
            f"Accuracy in per cent at each severity, {_PLACES[table.place]}; {table.views}"
            " views (clips x crops) of each video."
        ),
        "",
        (
            f"Clean: {percent(table.clean_acc, unit='')} (95 % interval"
            f" {between(table.ci95)}), n = {table.n}."
        ),
        "",
        _means(table),
        "",
        *_by_corruption(table),
        "",
        "![accuracy by corruption and severity](corruptions.png)",
        "",
        "![accuracy by severity](corruption_curves.png)",
        "",
        *markdown.table(
            ["class", "clean", "mean over corruptions"],
            *(
                [name, percent(entry.clean_acc, unit=""), percent(entry.mpc, unit="")]
                for name, entry in table.per_class.items()
            ),
        ),
        "",
    ]


def _means(table: CorruptionTable) -> str:
    """Return the sentence of means over corruptions."""
    means = (
        f"mPC {percent(table.mpc, unit='')}, rPC {_fraction(table.rpc)}, gamma_a"
        f" {_fraction(table.gamma_a)}, gamma_r {_fraction(table.gamma_r)}"
    )
    if table.mce is not None:
        means += (
            f", mCE {_number(table.mce)}, relative mCE {_number(table.relative_mce)},"
            f" relative to {markdown.escape(table.baseline)}"
        )
    return f"{means}."


def _by_corruption(table: CorruptionTable) -> list[str]:
    """Return the table with a row per corruption; the column CE only with a baseline."""
    has_baseline = table.mce is not None
    titles = [
        "corruption",
        *(f"{severity}" for severity in table.severities),
        "mean",
        "gamma_a",
        "gamma_r",
        *(["CE"] if has_baseline else []),
    ]
    rows = [
        [
            name,
            *(percent(acc, unit="") for acc in entry.acc),
            percent(entry.mean_acc, unit=""),
            _fraction(entry.gamma_a),
            _fraction(entry.gamma_r),
            *([_number(entry.ce)] if has_baseline else []),
        ]
        for name, entry in table.corruptions.items()
    ]
    return markdown.table(titles, *rows)


def _fraction(value: float | None) -> str:
    """Format a fraction with three digits."""
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    """Format a number that is in per cent already."""
    return "-" if value is None else f"{value:.1f}"


# --- Figures ---


def _draw_heat_map(path: Path, table: CorruptionTable) -> None:
    """Draw a cell per corruption and severity, with the accuracy in it."""
    names = list(table.corruptions)
    severities = table.severities
    acc = 100 * np.array([table.corruptions[name].acc for name in names])
    # Figures grow with the number of cells, so that text keeps its size.
    figure = drawing.new_figure(1.1 * len(severities) + 2.6, 0.26 * len(names) + 1.1, dpi=150)
    axes = figure.subplots()
    image = axes.imshow(acc, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(severities)), [str(s) for s in severities])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("severity")
    axes.set_title(f"accuracy, %; clean {100 * table.clean_acc:.1f}", fontsize=10)
    for (row, column), value in np.ndenumerate(acc):
        axes.text(
            column,
            row,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value < 60 else "black",  # readable on dark and on light cells
        )
    figure.colorbar(image, ax=axes, fraction=0.05)
    drawing.save(figure, path)


def _draw_curves(path: Path, table: CorruptionTable) -> None:
    """Draw accuracy by severity, a small panel per corruption; severity 0 is clean."""
    names = list(table.corruptions)
    across = 5
    down = -(-len(names) // across)
    figure = drawing.new_figure(2.1 * across, 1.6 * down + 0.3, dpi=120)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        acc = [100 * value for value in (table.clean_acc, *table.corruptions[name].acc)]
        axes.plot([0, *table.severities], acc, marker="o", markersize=3)
        axes.axhline(acc[0], color="gray", linestyle="--", linewidth=0.8)
        axes.set_title(name, fontsize=8)
        axes.set(ylim=(0, 102), xticks=[0, *table.severities])
        axes.grid(alpha=0.3)
    # The last row of panels may not be full.
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("severity", fontsize=8)
    figure.supylabel("accuracy, %", fontsize=8)
    drawing.save(figure, path)

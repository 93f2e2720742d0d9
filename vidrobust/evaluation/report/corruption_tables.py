"""Tables and figures of accuracy under corruptions."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidrobust.evaluation.report import drawing
from vidrobust.evaluation.report import tables as markdown

_PLACES = {
    "source": "on the frames of the file, before crop and resize",
    "view": "on the crop that the model sees",
}


def corruption_lines(out: Path, table: dict[str, Any] | None) -> list[str]:
    """A section of report.md, none for None; writes out/corruptions.png and
    out/corruption_curves.png.
    """
    if not table:
        return []
    _draw_heat_map(out / "corruptions.png", table)
    _draw_curves(out / "corruption_curves.png", table)
    severities = table["severities"]
    relative = table["mce"] is not None
    titles = [
        "corruption",
        *(f"{s}" for s in severities),
        "mean",
        "gamma_a",
        "gamma_r",
        *(["CE"] if relative else []),
    ]
    rows = [
        [
            name,
            *map(_percent, entry["acc"]),
            _percent(entry["mean_acc"]),
            _share(entry["gamma_a"]),
            _share(entry["gamma_r"]),
            *([_number(entry["ce"])] if relative else []),
        ]
        for name, entry in table["corruptions"].items()
    ]
    low, high = table["ci95"]
    return [
        "## Under corruptions",
        "",
        (
            f"Accuracy in per cent at each severity, {_PLACES[table['place']]}; {table['views']}"
            " views (clips x crops) of each video."
        ),
        "",
        (
            f"Clean: {_percent(table['clean_acc'])} ({_percent(low)} to {_percent(high)}), n ="
            f" {table['n']}."
        ),
        "",
        f"mPC {_percent(table['mpc'])}, rPC {_share(table['rpc'])}, gamma_a"
        f" {_share(table['gamma_a'])}, gamma_r {_share(table['gamma_r'])}"
        + (
            f", mCE {_number(table['mce'])}, relative mCE {_number(table['relative_mce'])},"
            f" relative to {markdown.escape(table.get('baseline'))}"
            if relative
            else ""
        )
        + ".",
        "",
        *markdown.table(titles, *rows),
        "",
        "![accuracy by corruption and severity](corruptions.png)",
        "",
        "![accuracy by severity](corruption_curves.png)",
        "",
        *markdown.table(
            ["class", "clean", "mean over corruptions"],
            *(
                [name, _percent(entry["clean_acc"]), _percent(entry["mpc"])]
                for name, entry in table["per_class"].items()
            ),
        ),
        "",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _draw_heat_map(path: Path, table: dict[str, Any]) -> None:
    names, severities = list(table["corruptions"]), table["severities"]
    acc = 100 * np.array([table["corruptions"][name]["acc"] for name in names])
    figure = Figure(
        figsize=(1.1 * len(severities) + 2.6, 0.26 * len(names) + 1.1),
        dpi=150,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(acc, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(severities)), [str(s) for s in severities])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("severity")
    axes.set_title(f"accuracy, %; clean {100 * table['clean_acc']:.1f}", fontsize=10)
    for (row, column), value in np.ndenumerate(acc):
        axes.text(
            column,
            row,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value < 60 else "black",
        )
    figure.colorbar(image, ax=axes, fraction=0.05)
    drawing.save(figure, path)


def _draw_curves(path: Path, table: dict[str, Any]) -> None:
    """A small panel a corruption, from the clean accuracy on."""
    names, across = list(table["corruptions"]), 5
    down = -(-len(names) // across)
    figure = Figure(figsize=(2.1 * across, 1.6 * down + 0.3), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        acc = [100 * value for value in (table["clean_acc"], *table["corruptions"][name]["acc"])]
        axes.plot([0, *table["severities"]], acc, marker="o", markersize=3)
        axes.axhline(acc[0], color="gray", linestyle="--", linewidth=0.8)
        axes.set_title(name, fontsize=8)
        axes.set(ylim=(0, 102), xticks=[0, *table["severities"]])
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("severity", fontsize=8)
    figure.supylabel("accuracy, %", fontsize=8)
    drawing.save(figure, path)

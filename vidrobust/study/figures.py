"""Draw the figures of a study."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidrobust.evaluation.report import drawing
from vidrobust.study.arm_table import Runs


def draw_robust(path: Path, runs: Runs, table: dict[str, Any]) -> bool:
    """Robust accuracy against eps, a line an arm, its interval as a band: of the first family of
    threats.
    """
    curve = runs[0][1]["curve"]
    first = [c for c in curve if (c["kind"], c["norm"]) == (curve[0]["kind"], curve[0]["norm"])]
    if not any(c["eps"] > 0 for c in first):
        return False
    linf = first[0]["norm"] == "linf"
    figure, axes = _figure()
    for number, (name, row) in enumerate(table.items()):
        spreads = [row[f"robust {c['threat']}"] for c in first]
        eps = [255 * c["eps"] if linf else c["eps"] for c in first]
        means = np.array([100 * s["mean"] for s in spreads])
        half = np.array([100 * (s["half"] or 0) for s in spreads])
        axes.plot(eps, means, markersize=4, label=drawing.label(name), **_style(number))
        low, high = (means - half).clip(0, 100), (means + half).clip(0, 100)
        axes.fill_between(eps, low, high, color=_style(number)["color"], alpha=0.1, linewidth=0)
    axes.axhline(
        100 * runs[0][1]["chance"], color="gray", linestyle=":", linewidth=1, label="chance"
    )
    what = f"{first[0]['kind']} budget"
    axes.set(
        xlabel=f"{what}, /255" if linf else what,
        ylabel="robust accuracy, %",
        ylim=(0, None),
        xlim=(0, None),
    )
    return _save(figure, axes, path)


def draw_space(path: Path, runs: Runs, table: dict[str, Any]) -> bool:
    """Alignment against uniformity, a point a run, coloured by robust accuracy at the middle budget
    above 0, or, where there is none, by clean accuracy.
    """
    figure, axes = _figure()
    threats = [c["threat"] for c in runs[0][1]["curve"] if c["eps"] > 0]
    middle = f"robust {threats[len(threats) // 2]}" if threats else "clean"
    of_arm = {
        name: [
            row[key]["values"] if key in row else [] for key in ("uniformity", "alignment", middle)
        ]
        for name, row in table.items()
    }
    top = max((100 * value for _, _, color in of_arm.values() for value in color), default=0) or 1
    dots = None
    for number, (name, (uniform, align, color)) in enumerate(of_arm.items()):
        if uniform and len(uniform) == len(align) == len(color):
            dots = axes.scatter(
                uniform,
                align,
                c=[100 * value for value in color],
                cmap="viridis",
                vmin=0,
                vmax=top,
                marker=_style(number)["marker"],
                label=drawing.label(name),
            )
    if dots is None:
        return False
    figure.colorbar(dots, ax=axes, label=drawing.label(f"{middle}, %"))
    axes.set(xlabel="uniformity (lower: more uniform)", ylabel="alignment (lower: closer)")
    axes.locator_params(nbins=5)  # of small differences each label is long
    return _save(figure, axes, path)


def draw_margins(path: Path, runs: Runs, table: dict[str, Any]) -> bool:
    """Histograms of samples' margins, an outline an arm, over all seeds."""
    figure, axes = _figure()
    edges, seen = np.linspace(-1, 1, 41), np.zeros(40)
    for number, name in enumerate(table):
        counts = [
            summary["geometry"]["trained"]["margin_histogram"]
            for arm, summary in runs
            if arm.name == name
        ]
        known = [np.array(c) for c in counts if c is not None]
        if known:
            total = np.sum(known, axis=0)
            seen += total
            style = _style(number)
            axes.stairs(
                total / total.sum(),
                edges,
                label=drawing.label(name),
                color=style["color"],
                linestyle=style["linestyle"],
            )
    axes.axvline(0, color="gray", linewidth=0.8)
    filled = np.flatnonzero(seen)
    if not len(filled):
        return False
    axes.set_xlim(edges[filled[0]] - 0.05, edges[filled[-1] + 1] + 0.05)
    axes.set(
        xlabel="margin of a sample (above 0: nearer to its own class)",
        ylabel="share of test samples",
    )
    return _save(figure, axes, path)


def _style(number: int) -> dict[str, Any]:
    """Colour, line and marker of the arm with that number, so that twenty differ, also in grey."""
    line, marker = ("-", "--")[number // 10 % 2], "osD^vP*Xd<>hpH8"[number % 15]
    return {"color": f"C{number % 10}", "linestyle": line, "marker": marker}


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.5, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Figure, axes: Any, path: Path) -> bool:
    if axes.get_legend_handles_labels()[0]:
        figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    drawing.save(figure, path)
    return True

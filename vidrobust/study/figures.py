"""Draw the figures of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidrobust.evaluation.report import drawing
from vidrobust.study.arm_table import FinishedRun, Table
from vidrobust.study.claims import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_MAPS = 4  # arms whose distances between classes are drawn


def draw_robust(path: Path, runs: Sequence[FinishedRun], table: Table) -> bool:
    """Draw robust accuracy by budget: a line per arm, with its interval as a band.

    Only the first family of threats is drawn.

    Args:
        path: the picture.
        runs: runs of one data set.
        table: what `summarise` returns for this data set.

    Returns:
        Whether there was anything to draw.
    """
    # arms may be attacked under different threats
    by_threat = {c.threat: c for run in runs for c in run.summary.curve}
    curve = sorted(by_threat.values(), key=lambda point: point.eps)
    # Threats of one family differ only in their budget, so that they form one curve.
    first = next(iter(by_threat.values()), None)
    family = [c for c in curve if first and (c.kind, c.norm) == (first.kind, first.norm)]
    if not any(c.eps > 0 for c in family):
        return False
    is_linf = family[0].norm == "linf"
    figure, axes = _figure()
    for number, (name, result) in enumerate(table.items()):
        measured = [c for c in family if f"robust {c.threat}" in result.measures]
        if not measured:
            continue
        eps = [255 * c.eps if is_linf else c.eps for c in measured]
        spreads = [result.measures[f"robust {c.threat}"] for c in measured]
        means = np.array([100 * s.mean for s in spreads])
        half = np.array([100 * (s.half or 0) for s in spreads])
        style = _style(number)
        axes.plot(eps, means, markersize=4, label=drawing.label(name), **style)
        low = (means - half).clip(0, 100)
        high = (means + half).clip(0, 100)
        axes.fill_between(eps, low, high, color=style["color"], alpha=0.1, linewidth=0)
    axes.axhline(
        100 * runs[0].summary.chance, color="gray", linestyle=":", linewidth=1, label="chance"
    )
    budget = f"{family[0].kind} budget"
    axes.set(
        xlabel=f"{budget}, /255" if is_linf else budget,
        ylabel="robust accuracy, %",
        ylim=(0, None),
        xlim=(0, None),
    )
    return _save(figure, axes, path)


def draw_space(path: Path, runs: Sequence[FinishedRun], table: Table) -> bool:
    """Draw alignment against uniformity, a point per run.

    The colour is the robust accuracy at the middle budget above 0, or the clean accuracy if there
    is no such budget.

    Args:
        path: the picture.
        runs: runs of one data set.
        table: what `summarise` returns for this data set.

    Returns:
        Whether there was anything to draw.
    """
    figure, axes = _figure()
    threats = [c.threat for c in runs[0].summary.curve if c.eps > 0]
    accuracy = f"robust {threats[len(threats) // 2]}" if threats else "clean"
    keys = ("uniformity", "alignment", accuracy)
    by_arm = {}
    for name, result in table.items():
        spreads = [result.measures.get(key) for key in keys]
        by_arm[name] = [spread.values if spread else [] for spread in spreads]
    # All arms share one colour scale, which ends at the largest accuracy.
    top = 100 * max((max(accs, default=0) for _, _, accs in by_arm.values()), default=0) or 1
    dots = None
    for number, (name, (uniform, align, accs)) in enumerate(by_arm.items()):
        # An arm is left out if some of its runs have no value for one of the three.
        if uniform and len(uniform) == len(align) == len(accs):
            dots = axes.scatter(
                uniform,
                align,
                c=[100 * value for value in accs],
                cmap="viridis",
                vmin=0,
                vmax=top,
                marker=_style(number)["marker"],
                label=drawing.label(name),
            )
    if dots is None:
        return False
    figure.colorbar(dots, ax=axes, label=drawing.label(f"{accuracy}, %"))
    axes.set(xlabel="uniformity (lower: more uniform)", ylabel="alignment (lower: closer)")
    axes.locator_params(nbins=5)  # labels of small differences are long, and would overlap
    return _save(figure, axes, path)


def draw_margins(path: Path, runs: Sequence[FinishedRun], table: Table) -> bool:
    """Draw histograms of the margins of samples, an outline per arm, over all seeds.

    Args:
        path: the picture.
        runs: runs of one data set.
        table: what `summarise` returns for this data set.

    Returns:
        Whether there was anything to draw.
    """
    figure, axes = _figure()
    # The bins of margin_histogram.
    edges = np.linspace(-1, 1, 41)
    all_arms = np.zeros(40)
    for number, name in enumerate(table):
        if counts := _of_geometry(runs, name, "margin_histogram"):
            total = np.sum(counts, axis=0)
            all_arms += total
            style = _style(number)
            axes.stairs(
                total / total.sum(),
                edges,
                label=drawing.label(name),
                color=style["color"],
                linestyle=style["linestyle"],
            )
    axes.axvline(0, color="gray", linewidth=0.8)
    filled = np.flatnonzero(all_arms)
    if not len(filled):
        return False
    axes.set_xlim(edges[filled[0]] - 0.05, edges[filled[-1] + 1] + 0.05)
    axes.set(
        xlabel="margin of a sample (above 0: nearer to its own class)",
        ylabel="fraction of test samples",
    )
    return _save(figure, axes, path)


def draw_distances(path: Path, runs: Sequence[FinishedRun], table: Table) -> bool:
    """Draw the cosine distances between classes, means over seeds: a map for each of four arms.

    Args:
        path: the picture.
        runs: runs of one data set.
        table: what `summarise` returns for this data set.

    Returns:
        Whether there was anything to draw.
    """
    maps: dict[str, Any] = {}
    for name in table:
        found = _of_geometry(runs, name, "class_distances")
        if found and len(maps) < _MAPS:
            maps[name] = np.mean(found, 0)
    if not maps:
        return False
    figure = drawing.new_figure(3.0 * len(maps) + 0.8, 3, dpi=150)
    all_axes = figure.subplots(1, len(maps), squeeze=False)[0]
    top = max(float(np.nanmax(distances)) for distances in maps.values())
    for axes, (name, distances) in zip(all_axes, maps.items(), strict=True):
        image = axes.imshow(distances, vmin=0, vmax=top, cmap="viridis")
        axes.set(title=drawing.label(name), xlabel="class")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    all_axes[0].set_ylabel("class")
    figure.colorbar(image, ax=list(all_axes), label="mean cosine distance")
    drawing.save(figure, path)
    return True


def _of_geometry(runs: Sequence[FinishedRun], arm: str, key: str) -> list[np.ndarray]:
    """Return a measure of the trained features of each run of an arm that has it.

    Args:
        runs: runs of one data set.
        arm: name of the arm.
        key: name of the measure.
    """
    spaces = [run.summary.geometry for run in runs if run.arm.name == arm]
    found = [getattr(space["trained"], key) for space in spaces if space]
    return [np.array(value, float) for value in found if value is not None]


def draw_dial(path: Path, claim: Claim, measure: str, tables: Mapping[str, Table]) -> bool:
    """Draw a measure of a claim's two arms over its dial, with intervals over seeds.

    Args:
        path: the picture.
        claim: a claim with a dial.
        measure: name of the measure.
        tables: data set -> what `summarise` returns for it.

    Returns:
        Whether there was anything to draw.
    """
    figure, axes = _figure()
    is_empty = True
    for number, name in enumerate((claim.arm, claim.against)):
        spreads = {
            x: tables[dataset][name].measures[measure]
            for dataset, x in sorted(claim.dial.items(), key=lambda item: item[1])
            if dataset in tables and name in tables[dataset]
            if measure in tables[dataset][name].measures
        }
        if spreads:
            is_empty = False
            means = [spread.mean for spread in spreads.values()]
            halves = [spread.half or 0 for spread in spreads.values()]
            style = _style(number)
            axes.errorbar(
                list(spreads), means, halves, label=drawing.label(name), capsize=3, **style
            )
    if is_empty:
        return False
    axes.set(xlabel=drawing.label(claim.dial_name or "dial"), ylabel=drawing.label(measure))
    return _save(figure, axes, path)


def _style(number: int) -> dict[str, Any]:
    """Return colour, line and marker of an arm; twenty arms differ, also in grey."""
    # Lines are dashed from the eleventh arm on, as there are ten colours.
    line = ("-", "--")[number // 10 % 2]
    marker = "osD^vP*Xd<>hpH8"[number % 15]
    return {"color": f"C{number % 10}", "linestyle": line, "marker": marker}


def _figure() -> tuple[Figure, Any]:
    """Return a figure and its axes."""
    figure = drawing.new_figure(7.5, 4, dpi=150)
    return figure, figure.subplots()


def _save(figure: Figure, axes: Any, path: Path) -> bool:
    """Add a legend beside the axes, write the figure, and return True."""
    if axes.get_legend_handles_labels()[0]:
        figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    drawing.save(figure, path)
    return True

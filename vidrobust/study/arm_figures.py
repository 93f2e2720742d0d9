"""Make the figures of study.html by arm: robust accuracy, alignment and uniformity, margins."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from vidrobust.evaluation.adversarial.curve import CurvePoint
from vidrobust.evaluation.report.svg_charts import Line, Point, legend, line_chart
from vidrobust.study.arm_table import BySeed, Table, of_measure
from vidrobust.study.plan import Study
from vidrobust.study.study_charts import Dot, Group, Outline, outlines, scatter
from vidrobust.study.study_text import Runs

_COLOURED = 12  # arms with a colour of their own: six colours, whole and dashed

# Arm -> number of its colour; None: grey.
Palette = Mapping[str, int | None]


@dataclass(frozen=True)
class Figure:
    """A figure with its legend and its caption."""

    drawing: Markup
    legend: Markup
    caption: str


def palette(study: Study, table: Table, measure: str) -> Palette:
    """Return the colours of the arms: of the baseline, of the comparators, and of the best others.

    Args:
        study: the study.
        table: arm -> its result.
        measure: the one that says which others are best.
    """
    means = {
        name: result.measures[measure].mean if measure in result.measures else -1.0
        for name, result in table.items()
    }
    by_mean = sorted(table, key=lambda name: -means[name])
    first = [name for name in (study.baseline, *study.comparators) if name in table]
    coloured = list(dict.fromkeys([*first, *by_mean]))[:_COLOURED]
    colours: dict[str, int | None] = dict.fromkeys(table)
    # in the order of the table, as the lines of a chart are
    for place, name in enumerate(name for name in table if name in coloured):
        colours[name] = place
    return colours


def arm_legend(colours: Palette) -> Markup:
    """Return the legend of all figures of a data set."""
    lines = [Line(name, []) for name, colour in colours.items() if colour is not None]
    greys = len(colours) - len(lines)
    if greys:
        lines.append(Line("the other arm" if greys == 1 else f"{greys} other arms", [], grey=True))
    return legend(lines)


def robust_figures(runs: Runs, table: Table, colours: Palette) -> list[Figure]:
    """Return robust accuracy by budget: a chart per kind of threat, a line per arm.

    Args:
        runs: runs of one data set.
        table: arm -> its result.
        colours: of the arms.
    """
    kinds: dict[tuple[str, str], dict[str, CurvePoint]] = {}
    for run in runs:
        for point in run.summary.curve:
            if point.eps > 0:
                kinds.setdefault((point.kind, point.norm), {})[point.threat] = point
    figures = []
    for (kind, norm), points in kinds.items():
        ordered = sorted(points.values(), key=lambda point: point.eps)
        lines = [_line(name, table, ordered, colours[name] is None) for name in table]
        label = f"{kind} budget{', /255' if norm == 'linf' else ''}"
        title = f"Robust accuracy by {label}, by arm"
        drawing = line_chart(lines, label, "robust accuracy, %", title)
        caption = f"{kind}; bands are 95 % intervals over seeds"
        figures.append(Figure(drawing, arm_legend(colours), caption))
    return figures


def _line(name: str, table: Table, curve: list[CurvePoint], is_grey: bool) -> Line:
    """Return the line of an arm, which begins at its accuracy without an attack.

    Args:
        name: of the arm.
        table: arm -> its result.
        curve: threats of one kind, by size.
        is_grey: whether the arm has no colour of its own.
    """
    measures = table[name].measures
    places = {f"robust {point.threat}": _budget(point) for point in curve}
    if any(key in measures for key in places):
        places = {"clean": 0.0, **places}
    points = []
    for key, budget in places.items():
        if key in measures:
            spread = measures[key]
            # bands of many grey lines would hide the others
            half = 0.0 if is_grey else spread.half or 0.0
            interval = "" if spread.half is None else f" ± {100 * spread.half:.1f}"
            note = f"{name}, {key.removeprefix('robust ')}: {100 * spread.mean:.1f}{interval} %"
            points.append(Point(budget, spread.mean, spread.mean - half, spread.mean + half, note))
    return Line(name, points, is_grey)


def _budget(point: CurvePoint) -> float:
    """Return the budget of a threat in the unit of its axis."""
    return 255 * point.eps if point.norm == "linf" else point.eps


def space_figure(by_seed: BySeed, colours: Palette, measure: str) -> Figure | None:
    """Return alignment against uniformity, a point per run; None if no run has both.

    Args:
        by_seed: arm -> seed -> measures.
        colours: of the arms.
        measure: accuracy that the size of a point shows.
    """
    groups = []
    for name, seeds in by_seed.items():
        across, up, accuracy = (
            of_measure(seeds, key) for key in ("uniformity", "alignment", measure)
        )
        dots = [
            Dot(
                across[seed],
                up[seed],
                accuracy[seed],
                f"{name}, seed {seed}: uniformity {across[seed]:.3f}, alignment {up[seed]:.3f},"
                f" {measure} {100 * accuracy[seed]:.1f} %",
            )
            for seed in seeds
            if seed in accuracy and _are_finite(across.get(seed), up.get(seed))
        ]
        groups.append(Group(colours[name], dots))
    if not any(group.dots for group in groups):
        return None
    drawing = scatter(
        groups,
        "uniformity (lower: more uniform)",
        "alignment (lower: closer)",
        "Alignment against uniformity, a point per run",
    )
    caption = f"alignment against uniformity, a point per run; a larger one has a higher {measure}"
    return Figure(drawing, arm_legend(colours), caption)


def _are_finite(*values: float | None) -> bool:
    """Return whether all values exist and are finite."""
    return all(value is not None and math.isfinite(value) for value in values)


def margin_figure(runs: Runs, table: Table, colours: Palette) -> Figure | None:
    """Return histograms of the margins of samples, an outline per arm over all seeds.

    Args:
        runs: runs of one data set.
        table: arm -> its result.
        colours: of the arms.
    """
    histograms = []
    for name in table:
        counts = [
            run.summary.geometry["trained"].margin_histogram
            for run in runs
            if run.arm.name == name and run.summary.geometry
        ]
        bins = [sum(values) for values in zip(*filter(None, counts), strict=True)]
        if total := sum(bins):
            heights = [count / total for count in bins]
            right = sum(heights[len(heights) // 2 :])
            note = f"{name}: {100 * right:.1f} % of the samples are nearer to their own class"
            histograms.append(Outline(colours[name], heights, note))
    if not histograms:
        return None
    count = len(histograms[0].heights)
    drawing = outlines(
        histograms,
        [-1 + 2 * place / count for place in range(count + 1)],
        "margin of a sample (above 0: nearer to its own class)",
        "fraction of test samples",
        "Histogram of margins by arm",
    )
    return Figure(drawing, arm_legend(colours), "margins of test samples, over all seeds")

"""Draw the figures of study.html: differences by seed, alignment and uniformity, margins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vidrobust.evaluation.report.svg_charts import COLOURS, colour_class
from vidrobust.evaluation.report.svg_frame import BOTTOM, TOP, Frame, around, element
from vidrobust.utils.text import visible

_LEFT_NAMES = 150  # the left margin of a plot with names of arms
_ROW = 24  # height of a row of the dot plot
_NAME = 19  # characters of a name that fit into its margin


# --- Differences by seed ---


@dataclass(frozen=True)
class DotRow:
    """An arm in a plot of dots.

    Attributes:
        name: of the arm.
        values: seed -> value.
        mean: of the values.
        half: half of the interval of the mean; None without one.
        note: says the mean and its interval.
    """

    name: str
    values: Mapping[int, float]
    mean: float
    half: float | None
    note: str


def dot_plot(rows: Sequence[DotRow], label: str, title: str) -> Markup:
    """Return a row per arm: a dot per seed, a bar for the interval, a line for the mean.

    Args:
        rows: at least one; all values are between -100 and 100.
        label: of the axis.
        title: says what the chart shows to those who do not see it.
    """
    ends = [row.mean + sign * (row.half or 0) for row in rows for sign in (-1, 1)]
    dots = [value for row in rows for value in row.values.values()]
    low, high = around([0.0, *dots, *ends])
    # an interval over two seeds may be wider than what is possible
    frame = Frame(
        left=_LEFT_NAMES,
        height=TOP + _ROW * len(rows) + BOTTOM,
        x_low=max(low, -105.0),
        x_high=min(high, 105.0),
    )
    zero = frame.across(0.0)
    parts = [
        frame.x_axis(label),
        element("line", class_="axis", x1=zero, x2=zero, y1=TOP, y2=frame.bottom),
    ]
    parts += [_dot_row(row, frame, TOP + _ROW * (place + 0.5)) for place, row in enumerate(rows)]
    return frame.drawing(parts, title)


def _dot_row(row: DotRow, frame: Frame, y: float) -> Markup:
    """Return one row of `dot_plot`, at a height."""
    name = visible(row.name)
    parts = [
        element("title", visible(row.note)),
        element("text", _shortened_name(name), x=frame.left - 8.0, y=y + 4, text_anchor="end"),
    ]
    if row.half is not None:
        left = frame.across(max(row.mean - row.half, frame.x_low))
        right = frame.across(min(row.mean + row.half, frame.x_high))
        parts.append(element("rect", class_="span", x=left, width=right - left, y=y - 6, height=12))
    for seed, value in row.values.items():
        note = element("title", visible(f"{row.name}, seed {seed}: {value:+.1f}"))
        parts.append(element("circle", note, class_="dot", cx=frame.across(value), cy=y, r=4))
    mean = frame.across(row.mean)
    parts.append(element("line", class_="mean", x1=mean, x2=mean, y1=y - 9, y2=y + 9))
    return element(
        "g",
        Markup().join(parts),
        class_="point c0",
        tabindex=0,
        role="img",
        aria_label=visible(row.note),
    )


def _shortened_name(name: str) -> str:
    """Return a name that fits beside its row."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 6]}…{name[-5:]}"


# --- Points and outlines by arm ---


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot; size from 0 to 1, and what hovering shows."""

    x: float
    y: float
    size: float
    note: str


@dataclass(frozen=True)
class Group:
    """The points of an arm; number of its colour, None: grey."""

    colour: int | None
    dots: Sequence[Dot]


def kind_of(colour: int | None) -> str:
    """Return the CSS class of a colour."""
    return "cgrey" if colour is None else colour_class(colour)


def scatter(groups: Sequence[Group], x_label: str, y_label: str, title: str) -> Markup:
    """Return points by arm.

    Args:
        groups: at least one point in all.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        title: says what the chart shows to those who do not see it.
    """
    dots = [dot for group in groups for dot in group.dots]
    x_low, x_high = around([dot.x for dot in dots])
    y_low, y_high = around([dot.y for dot in dots])
    frame = Frame(x_low, x_high, y_low, y_high)
    parts = [frame.y_axis(y_label), frame.x_axis(x_label)]
    # grey points lie below the others
    for group in sorted(groups, key=lambda group: group.colour is not None):
        # the second round of colours has squares
        is_square = group.colour is not None and group.colour >= COLOURS
        marks = [_mark(dot, frame, is_square) for dot in group.dots]
        parts.append(element("g", Markup().join(marks), class_=kind_of(group.colour)))
    return frame.drawing(parts, title)


def _mark(dot: Dot, frame: Frame, is_square: bool) -> Markup:
    """Return a point of a scatter plot, whose area grows with its size."""
    x, y = frame.across(dot.x), frame.up(dot.y)
    radius = 3 + 8 * math.sqrt(min(max(dot.size, 0.0), 1.0))
    if is_square:
        side = 1.8 * radius
        shape = element(
            "rect", class_="dot", x=x - side / 2, y=y - side / 2, width=side, height=side
        )
    else:
        shape = element("circle", class_="dot", cx=x, cy=y, r=radius)
    return element(
        "g",
        element("title", visible(dot.note)) + shape,
        class_="point",
        tabindex=0,
        role="img",
        aria_label=visible(dot.note),
    )


@dataclass(frozen=True)
class Outline:
    """The histogram of an arm.

    Attributes:
        colour: number of its colour; None: grey.
        heights: a fraction per bin.
        note: what hovering shows.
    """

    colour: int | None
    heights: Sequence[float]
    note: str


def outlines(
    histograms: Sequence[Outline], edges: Sequence[float], x_label: str, y_label: str, title: str
) -> Markup:
    """Return histograms as steps, an outline per arm.

    Args:
        histograms: at least one with a height above 0.
        edges: of the bins, one more than bins.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        title: says what the chart shows to those who do not see it.
    """
    used = [
        place
        for place in range(len(edges) - 1)
        if any(outline.heights[place] > 0 for outline in histograms)
    ]
    first, last = max(used[0] - 1, 0), min(used[-1] + 1, len(edges) - 2)
    top = 1.05 * max(max(outline.heights) for outline in histograms)
    frame = Frame(edges[first], edges[last + 1], 0.0, top)
    parts = [frame.y_axis(y_label), frame.x_axis(x_label)]
    # grey outlines lie below the others
    for outline in sorted(histograms, key=lambda outline: outline.colour is not None):
        points = []
        for place in range(first, last + 1):
            y = frame.up(outline.heights[place])
            points += [f"{frame.across(edge):.1f},{y:.1f}" for edge in edges[place : place + 2]]
        is_dashed = outline.colour is None or outline.colour >= COLOURS
        line = element(
            "polyline",
            element("title", visible(outline.note)),
            class_="curve dashed" if is_dashed else "curve",
            points=" ".join(points),
        )
        parts.append(element("g", line, class_=kind_of(outline.colour)))
    if edges[first] < 0 < edges[last + 1]:
        zero = frame.across(0.0)
        parts.append(element("line", class_="axis", x1=zero, x2=zero, y1=TOP, y2=frame.bottom))
    return frame.drawing(parts, title)

"""Draw charts as inline SVG, whose colours follow the page and whose points say their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from vidrobust.evaluation.report.svg_frame import Frame, drawing, element
from vidrobust.utils.text import visible

COLOURS = 6  # classes c0 to c5 of page.css; more lines begin anew, dashed


@dataclass(frozen=True)
class Point:
    """A point of a line: place, height, interval of the height, and what hovering shows."""

    x: float
    y: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: for the legend.
        points: from left to right.
        grey: drawn in grey and dashed, as something to compare with.
    """

    name: str
    points: Sequence[Point]
    grey: bool = False


def colour_class(number: int) -> str:
    """Return the CSS class of the line with a number."""
    return f"c{number % COLOURS}"


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> Markup:
    """Return accuracies by budget, with intervals; each point shows its note.

    Args:
        lines: heights are fractions, drawn as per cent.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        title: says what the chart shows to those who do not see it.
    """
    largest = max((point.x for line in lines for point in line.points), default=0) or 1.0
    frame = Frame(0.0, largest, 0.0, 100.0, left=46.0, height=300.0)
    parts = [frame.y_axis(y_label), frame.x_axis(x_label)]
    # lines to compare with lie below the others
    drawn = sorted(zip(lines, _styles(lines), strict=True), key=lambda each: not each[0].grey)
    parts += [_drawn(line, frame, style) for line, style in drawn]
    return frame.drawing(parts, title)


def _styles(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return the classes of colour and dashes of each line; no two lines have the same."""
    styles = []
    coloured, grey = 0, 0
    for line in lines:
        if line.grey:
            styles.append(("cgrey", f"dashed d{grey % 4}"))
            grey += 1
        else:
            styles.append((colour_class(coloured), "dashed" if coloured >= COLOURS else ""))
            coloured += 1
    return styles


def _drawn(line: Line, frame: Frame, style: tuple[str, str]) -> Markup:
    """Return a line with its band and points."""
    kind, dashes = style

    def up(fraction: float) -> float:
        return frame.up(100 * min(max(fraction, 0.0), 1.0))

    upper = [f"{frame.across(p.x):.1f},{up(p.high):.1f}" for p in line.points]
    lower = [f"{frame.across(p.x):.1f},{up(p.low):.1f}" for p in reversed(line.points)]
    middle = " ".join(f"{frame.across(p.x):.1f},{up(p.y):.1f}" for p in line.points)
    dots = [
        element(
            "g",
            element("title", visible(p.note))
            + element("circle", cx=frame.across(p.x), cy=up(p.y), r=12, fill="transparent")
            + element("circle", class_="dot", cx=frame.across(p.x), cy=up(p.y), r=4.5),
            class_="point",
            tabindex=0,
            role="img",
            aria_label=visible(p.note),
        )
        for p in line.points
    ]
    return element(
        "g",
        element("polygon", class_="band", points=" ".join(upper + lower))
        + element("polyline", class_=f"curve {dashes}".strip(), points=middle)
        + Markup().join(dots),
        class_=kind,
    )


@dataclass(frozen=True)
class Bar:
    """A bar: its label, its height, and what hovering shows. Class of page.css for its colour."""

    label: str
    height: float
    note: str
    kind: str = "c0"


def bar_chart(bars: Sequence[Bar], title: str, x_label: str = "", every: int = 1) -> Markup:
    """Return bars from left to right, with the largest as the height of the chart.

    Args:
        bars: heights are at least 0.
        title: says what the chart shows to those who do not see it.
        x_label: of the horizontal axis.
        every: which bars have a label: each, each second, ...
    """
    width, height, bottom, top = 300, 170, 130, 18
    largest = max((bar.height for bar in bars), default=0) or 1.0
    room = (width - 10) / max(len(bars), 1)
    parts = [element("line", class_="axis", x1=5, x2=width - 5, y1=bottom, y2=bottom)]
    for number, bar in enumerate(bars):
        x = 5 + number * room
        tall = (bottom - top) * bar.height / largest
        drawn = element("title", visible(bar.note)) + element(
            "rect", class_="bar", x=x + 0.1 * room, width=0.8 * room, y=bottom - tall, height=tall
        )
        parts.append(
            element(
                "g",
                drawn,
                class_=f"point {bar.kind}",
                tabindex=0,
                role="img",
                aria_label=visible(bar.note),
            )
        )
        if number % every == 0:
            text = visible(bar.label)
            parts.append(element("text", text, x=x + room / 2, y=bottom + 15, text_anchor="middle"))
    if x_label:
        parts.append(
            element("text", visible(x_label), x=width / 2, y=height - 6, text_anchor="middle")
        )
    return drawing(parts, width, height, title)


def legend(lines: Sequence[Line]) -> Markup:
    """Return the legend of a line chart."""
    items = [
        element("li", escape(visible(line.name)), class_=" ".join(style).strip())
        for line, style in zip(lines, _styles(lines), strict=True)
    ]
    return element("ul", Markup().join(items), class_="legend")

"""Draw charts as inline SVG, whose colours follow the page and whose points say their numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from vidrobust.utils.text import visible

Scale = Callable[[float], float]  # number -> place in the drawing

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 44  # margins around the plot
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


def element(name: str, content: str = "", **attributes: object) -> Markup:
    """Return an element; underscores at the end of names of attributes are dropped.

    Args:
        name: of the element.
        content: `Markup`, or text that is escaped.
        attributes: names, in which underscores stand for hyphens, and values.
    """
    written = Markup().join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, content)


def _attribute(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + (right - _LEFT) * x / largest

    def up(y: float) -> float:
        return bottom - (bottom - _TOP) * min(max(y, 0.0), 1.0)

    parts = [_y_axis(up, right, y_label), _x_axis(across, bottom, largest, x_label)]
    # lines to compare with lie below the others
    drawn = sorted(zip(lines, _styles(lines), strict=True), key=lambda each: not each[0].grey)
    parts += [_drawn(line, across, up, style) for line, style in drawn]
    return element(
        "svg",
        Markup().join(parts),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=visible(title),
    )


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


def _drawn(line: Line, across: Scale, up: Scale, style: tuple[str, str]) -> Markup:
    """Return a line with its band and points."""
    kind, dashes = style
    upper = [f"{across(p.x):.1f},{up(p.high):.1f}" for p in line.points]
    lower = [f"{across(p.x):.1f},{up(p.low):.1f}" for p in reversed(line.points)]
    middle = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in line.points)
    dots = [
        element(
            "g",
            element("title", visible(p.note))
            + element("circle", cx=across(p.x), cy=up(p.y), r=12, fill="transparent")
            + element("circle", class_="dot", cx=across(p.x), cy=up(p.y), r=4.5),
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


def _y_axis(up: Scale, right: float, label: str) -> Markup:
    """Return grid lines and labels at 0, 25, ... 100 %."""
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = up(percent / 100)
        parts.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=y, y2=y))
        parts.append(element("text", str(percent), x=_LEFT - 6, y=y + 4, text_anchor="end"))
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    turn = f"rotate(-90 12 {middle:.0f})"
    parts.append(element("text", label, x=12, y=middle, text_anchor="middle", transform=turn))
    return Markup().join(parts)


def _x_axis(across: Scale, bottom: float, largest: float, label: str) -> Markup:
    """Return the axis with about five labels, and its title."""
    step = round_step(largest / 5)
    parts = [element("line", class_="axis", x1=_LEFT, x2=across(largest), y1=bottom, y2=bottom)]
    for number in range(int(largest / step + 1e-9) + 1):
        x = across(number * step)
        parts.append(
            element("text", f"{number * step:.6g}", x=x, y=bottom + 16, text_anchor="middle")
        )
    parts.append(
        element(
            "text",
            visible(label),
            x=(_LEFT + across(largest)) / 2,
            y=_HEIGHT - 8,
            text_anchor="middle",
        )
    )
    return Markup().join(parts)


def round_step(rough: float) -> float:
    """Return the number among 1, 2 and 5 times a power of ten that is next to `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return min((1 * power, 2 * power, 5 * power, 10 * power), key=lambda step: abs(step - rough))


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
    return element(
        "svg",
        Markup().join(parts),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=visible(title),
    )


def legend(lines: Sequence[Line]) -> Markup:
    """Return the legend of a line chart."""
    items = [
        element("li", escape(visible(line.name)), class_=" ".join(style).strip())
        for line, style in zip(lines, _styles(lines), strict=True)
    ]
    return element("ul", Markup().join(items), class_="legend")

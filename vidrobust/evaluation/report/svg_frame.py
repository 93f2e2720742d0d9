"""Write the parts of charts as inline SVG: elements, and the frame of a plot with its axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vidrobust.utils.text import visible

WIDTH = 520  # of a drawing with a frame
RIGHT, TOP, BOTTOM = 14, 14, 44  # margins around the plot


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


@dataclass(frozen=True)
class Frame:
    """The place of a plot in its drawing, and the numbers at its sides."""

    x_low: float
    x_high: float
    y_low: float = 0.0
    y_high: float = 1.0
    left: float = 58.0
    height: float = 320.0

    @property
    def bottom(self) -> float:
        """Return the place of the horizontal axis."""
        return self.height - BOTTOM

    def across(self, x: float) -> float:
        """Return the place of a number on the horizontal axis."""
        width = WIDTH - RIGHT - self.left
        return self.left + width * (x - self.x_low) / (self.x_high - self.x_low)

    def up(self, y: float) -> float:
        """Return the place of a number on the vertical axis."""
        return self.bottom - (self.bottom - TOP) * (y - self.y_low) / (self.y_high - self.y_low)

    def x_axis(self, label: str) -> Markup:
        """Return grid lines with their numbers, and the title of the axis."""
        parts = []
        for tick in ticks(self.x_low, self.x_high):
            x = self.across(tick)
            line = element("line", class_="grid", x1=x, x2=x, y1=TOP, y2=self.bottom)
            text = element("text", f"{tick:.6g}", x=x, y=self.bottom + 16, text_anchor="middle")
            parts += [line, text]
        middle = (self.left + WIDTH - RIGHT) / 2
        title = element("text", visible(label), x=middle, y=self.height - 8, text_anchor="middle")
        return Markup().join([*parts, title])

    def y_axis(self, label: str) -> Markup:
        """Return grid lines with their numbers, and the title of the axis."""
        parts = []
        for tick in ticks(self.y_low, self.y_high):
            y = self.up(tick)
            line = element("line", class_="grid", x1=self.left, x2=WIDTH - RIGHT, y1=y, y2=y)
            text = element("text", f"{tick:.6g}", x=self.left - 6, y=y + 4, text_anchor="end")
            parts += [line, text]
        middle = (TOP + self.bottom) / 2
        turn = f"rotate(-90 12 {middle:.0f})"
        title = element(
            "text", visible(label), x=12, y=middle, text_anchor="middle", transform=turn
        )
        return Markup().join([*parts, title])

    def drawing(self, parts: Sequence[Markup], title: str) -> Markup:
        """Return the whole drawing.

        Args:
            parts: from back to front.
            title: says what the chart shows to those who do not see it.
        """
        return drawing(parts, WIDTH, self.height, title)


def drawing(parts: Sequence[Markup], width: float, height: float, title: str) -> Markup:
    """Return a whole drawing.

    Args:
        parts: from back to front.
        width: of the drawing.
        height: of the drawing.
        title: says what it shows to those who do not see it.
    """
    return element(
        "svg",
        Markup().join(parts),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=visible(title),
    )


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two different numbers."""
    step = _round_step((high - low) / 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # + 0.0: no tick is named -0
    return [number * step + 0.0 for number in range(first, last + 1)]


def _round_step(rough: float) -> float:
    """Return the number among 1, 2 and 5 times a power of ten that is next to `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return min((1 * power, 2 * power, 5 * power, 10 * power), key=lambda step: abs(step - rough))


def around(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of an axis that shows all values, with some room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room

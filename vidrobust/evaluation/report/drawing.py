"""Draw figures safely: text is never markup, files are written whole."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label(text: object) -> str:
    """Return text that matplotlib draws unchanged: it takes text between dollars for a formula."""
    return visible(text).replace("$", r"\$")


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """Return an empty figure that needs no screen.

    Args:
        width: in inches.
        height: in inches.
        dpi: pixels per inch.
    """
    # imported here, because most commands draw nothing, and importing it takes a third of a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all.

    Characters that the font does not have are drawn as boxes, without a warning.
    """
    # Drawn into memory first: an error while drawing leaves no file.
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(picture, format=path.suffix.removeprefix("."))
    with replacing(path) as file:
        file.write(picture.getvalue())

"""Draw figures safely: text is never markup, files are written whole."""

import io
import warnings
from pathlib import Path

from matplotlib.figure import Figure

from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.text import visible


def label(text: object) -> str:
    """Return text that matplotlib draws as it is: two dollar signs would make a formula of it."""
    return visible(text).replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all.

    Letters that the font has not are drawn as boxes, without a warning.
    """
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(drawn, format=path.suffix.removeprefix("."))
    with replacing(path) as file:
        file.write(drawn.getvalue())

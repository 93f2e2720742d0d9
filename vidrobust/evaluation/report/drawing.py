"""Draw figures safely: text is never markup, files are written whole."""

import io
import warnings
from pathlib import Path

from matplotlib.figure import Figure

from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.text import visible


def label(text: object) -> str:
    """Return text that matplotlib draws unchanged: it takes text between dollars for a formula."""
    return visible(text).replace("$", r"\$")


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

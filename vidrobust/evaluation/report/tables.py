"""Format Markdown tables.

Names of videos and classes come from strangers' files: they are shown, never markup.
"""

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import visible

_MARKUP = re.compile(r"[\\`*|~]|\](?=[(\[:])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markup(str):
    """Text that is Markdown already, and that `table` leaves as it is."""

    __slots__ = ()


def escape(text: object) -> str:
    """Return text that a renderer shows as it is.

    No markup, no HTML, no control characters, one line.
    """
    if isinstance(text, Markup):
        return text
    plain = _MARKUP.sub(lambda match: f"\\{match[0]}", visible(text))
    for character, entity in _HTML.items():
        plain = plain.replace(character, entity)
    # underscores mean emphasis only where a word begins or ends with them
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", plain)


def code(text: object) -> Markup:
    """Return text as a code span, also inside of a table."""
    plain = visible(text).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return Markup(f"{fence}{pad}{plain}{pad}{fence}")


def image(title: object, path: str) -> str:
    """Return a picture beside the report; path: relative to it."""
    return f"![{escape(title)}]({quote(path, errors='surrogateescape')})"


def table(titles: Sequence[str], *rows: Sequence[str]) -> list[str]:
    """Lines of a table: titles, a rule, rows of as many cells.

    Cells are escaped, but for Markup.
    """
    shown = [[escape(cell) for cell in cells] for cells in (titles, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (shown[0], ["---"] * len(titles), *shown[1:])]


@contextmanager
def repeatable(path: Path, command: str) -> Iterator[None]:
    """Turn any error inside into a UserError that names the command which repeats the report.

    The numbers are on the disk by then, and what reads them again is cheap.
    """
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise UserError(
            f"{path}: the numbers are safe, but the report failed ({error!r} in {place}); write it "
            "again "
            f"with {command}"
        ) from error


def write(path: Path, lines: Sequence[str]) -> None:
    """Write a report whole or not at all, as UTF-8 whatever the locale is."""
    text = "\n".join(lines).rstrip() + "\n"
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))

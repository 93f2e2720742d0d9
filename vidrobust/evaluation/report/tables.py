"""Format Markdown tables.

Names of videos and classes come from users' files. They are shown, and never read as markup.
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

# Characters that Markdown may read; a closing bracket only where a link could follow.
_MARKUP = re.compile(r"[\\`*|~]|\](?=[(\[:])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markup(str):
    """Mark text that is already Markdown, and that `table` must not escape."""

    __slots__ = ()


def escape(text: object) -> str:
    """Return text that a renderer shows unchanged, as one line.

    Markup, HTML and control characters are escaped.
    """
    if isinstance(text, Markup):
        return text
    plain = _MARKUP.sub(lambda match: f"\\{match[0]}", visible(text))
    for character, entity in _HTML.items():
        plain = plain.replace(character, entity)
    # Underscores mean emphasis only where a word begins or ends with them.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", plain)


def code(text: object) -> Markup:
    """Return text as a code span that can also be used in a table."""
    plain = visible(text).replace("|", "\\|")
    # A fence must be longer than any run of backticks inside.
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return Markup(f"{fence}{pad}{plain}{pad}{fence}")


def image(title: object, path: str) -> str:
    """Return a picture; its path is relative to the report."""
    return f"![{escape(title)}]({quote(path, errors='surrogateescape')})"


def table(titles: Sequence[str], *rows: Sequence[str]) -> list[str]:
    """Return the lines of a table: titles, a rule, and rows with as many cells.

    Cells are escaped unless they are Markup.
    """
    escaped = [[escape(cell) for cell in cells] for cells in (titles, *rows)]
    lines = [escaped[0], ["---"] * len(titles), *escaped[1:]]
    return [f"| {' | '.join(cells)} |" for cells in lines]


@contextmanager
def repeatable(path: Path, command: str) -> Iterator[None]:
    """Turn any error in the block into a UserError that names the command to repeat the report.

    The numbers are already on the disk at that point, and reading them again is cheap.

    Args:
        path: the report.
        command: the command that writes it again.

    Raises:
        UserError: for any error that is neither a UserError nor an OSError.
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
            f"again with {command}"
        ) from error


def write(path: Path, lines: Sequence[str]) -> None:
    """Write a report whole or not at all, as UTF-8 in any locale."""
    text = "\n".join(lines).rstrip() + "\n"
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))

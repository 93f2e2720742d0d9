"""Markdown that reports share. Names of videos and classes come from strangers' files: they are shown, never markup."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from vidrobust.files import replacing
from vidrobust.plain_text import visible

_MARKUP = re.compile(r"[\\`*|~]|\](?=[(\[:])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markup(str):
    """Text that is Markdown already, and that `table` leaves as it is."""

    __slots__ = ()


def escape(text: object) -> str:
    """Return text that a renderer shows as it is: no markup, no HTML, no control characters, one line."""
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
    """Lines of a table: titles, a rule, rows of as many cells. Cells are escaped, but for Markup."""
    shown = [[escape(cell) for cell in cells] for cells in (titles, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (shown[0], ["---"] * len(titles), *shown[1:])]


def write(path: Path, lines: Sequence[str]) -> None:
    """Write a report whole or not at all, as UTF-8 whatever the locale is."""
    text = "\n".join(lines).rstrip() + "\n"
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))

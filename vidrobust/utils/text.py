"""Show user input and file names as safe one-line text.

File names and option values may hold any character, and bytes that are not text.
"""

import re
from collections.abc import Sequence
from typing import Any

# surrogates by which Python represents bytes that are not UTF-8 (PEP 383)
_BYTES = range(0xDC80, 0xDD00)


def visible(text: object) -> str:
    """Return text as one line that any terminal and file accepts.

    Characters without a visible shape are escaped, such as \\x1b: control characters (ESC among
    them), line separators, marks that change the direction of text, and lone surrogates.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(char if char.isprintable() else _escaped(char) for char in plain)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code - 0xDC00:02x}" if code in _BYTES else char.encode("unicode_escape").decode()


def shortened(text: str, limit: int) -> str:
    """Return the text, or its start and end if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    middle = f" ... ({len(text)} characters) ... "
    kept = limit - len(middle)
    # two thirds of the start, one third of the end
    return text[: kept - kept // 3] + middle + text[len(text) - kept // 3 :]


def shown(value: Any, limit: int = 80) -> str:
    """Return a value for a message: one line of at most `limit` characters."""
    return shortened(visible(value), limit)


def class_key(name: str) -> str:
    """Return the name of a class without case and punctuation, which lists write differently."""
    return re.sub(r"[\W_]+", "", name.casefold())


def places_of(names: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Return the position in `names` of each wanted name; None where it is not there.

    A name that is not there as it is written is found without case and punctuation, unless several
    names are alike then.

    Args:
        names: names of classes.
        wanted: the names to find.
    """
    exact = {name: place for place, name in enumerate(names)}
    keys = [class_key(name) for name in names]
    alike = {key: place for place, key in enumerate(keys) if key and keys.count(key) == 1}
    return [exact.get(name, alike.get(class_key(name))) for name in wanted]

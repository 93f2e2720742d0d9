"""Show user input and file names as safe one-line text.

Anything may stand in a name, and not all of it is text.
"""

from typing import Any

_BYTES = range(0xDC80, 0xDD00)  # how Python writes bytes that are no UTF-8 (PEP 383)


def visible(text: object) -> str:
    """Return text in one line that any terminal and file takes.

    Characters without a shape become escapes, as \\x1b: controls (ESC among them), separators that
    break lines, marks that turn the direction of text, and lone surrogates.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(char if char.isprintable() else _escaped(char) for char in found)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code - 0xDC00:02x}" if code in _BYTES else char.encode("unicode_escape").decode()


def shortened(text: str, limit: int) -> str:
    """Return the text, or its beginning and end where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    middle = f" ... ({len(text)} characters) ... "
    kept = limit - len(middle)
    return text[: kept - kept // 3] + middle + text[len(text) - kept // 3 :]


def shown(value: Any, limit: int = 80) -> str:
    """Return a value for a message: one line, shortened."""
    return shortened(visible(value), limit)

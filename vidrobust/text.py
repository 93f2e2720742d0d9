"""Show what users wrote, whatever it holds, in one short line."""

from typing import Any


def printable(text: str) -> str:
    """Return the text with invisible characters escaped: line ends, ESC, half surrogates."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shortened(text: str, limit: int) -> str:
    """Return the text, or its beginning and end where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    middle = f" ... ({len(text)} characters) ... "
    kept = limit - len(middle)
    return text[: kept - kept // 3] + middle + text[len(text) - kept // 3 :]


def shown(value: Any, limit: int = 80) -> str:
    """Return a value for a message: one line, shortened."""
    return shortened(printable(value if isinstance(value, str) else str(value)), limit)

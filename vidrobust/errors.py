"""Errors that a user can cause, and look-up by name in the package's dictionaries."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from vidrobust.text import printable, shortened

Value = TypeVar("Value")


class UserError(Exception):
    """A mistake the user can mend. The message is one line: it names the thing and says what to do.

    The tools print it without a traceback and exit with status 1. Line ends and control characters
    of names and values in the message are escaped; beyond 1,500 characters it is shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message), 1500))


def nearest(name: str, known: list[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or the whole list when nothing is near and it is short."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if len(known) <= 20 else "; --help lists all"


def lookup(registry: Mapping[str, Value], name: str, key: str) -> Value:
    """The entry `name` of a family's dictionary; `key` is the option that named it.

    Raises UserError with the nearest known name.
    """
    if name not in registry:
        raise UserError(f"{key}: unknown name {name!r}{nearest(name, list(registry))}")
    return registry[name]

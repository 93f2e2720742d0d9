"""Resolve `${data.root}/x`, `${oc.env:VAR}` and `${oc.env:VAR,DEFAULT}` in option values.

They are written as OmegaConf's interpolations. OmegaConf resolves them without bounds: a chain of
references that doubles, or that leads back to itself through a list, never ends there.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from vidrobust.config.yaml_text import parse_yaml
from vidrobust.utils.text import shown

MAX_TEXT = 4096
MAX_CHAIN = 10

_READ = "${section.option}, ${oc.env:VAR} and ${oc.env:VAR,DEFAULT} are read"
_RESOLVER = re.compile(r"\s*([A-Za-z_][\w.]*)\s*:(.*)", re.DOTALL)
_OPTION = re.compile(r"(\.*)([\w-]+(?:\.[\w-]+|\[[\w-]+\])*)")


class References:
    """Resolves the references in the values of one configuration.

    References lead to options that the configuration sets, not to defaults. All methods raise
    ValueError, with the reason and the remedy, for a reference that leads nowhere or to itself.
    """

    def __init__(self, page: Mapping[str, Any]) -> None:
        self.page = page
        self.resolved: dict[str, Any] = {}
        self.open: list[str] = []  # options that are being resolved, outermost first

    def option(self, key: str) -> Any:
        """Return the value of an option that the configuration sets, its references resolved."""
        if key in self.resolved:
            return self.resolved[key]
        if key in self.open:
            chain = " -> ".join([*self.open[self.open.index(key) :], key])
            raise ValueError(f"it refers to itself ({chain}); write a value")
        if len(self.open) >= MAX_CHAIN:
            raise ValueError(f"more than {MAX_CHAIN} references in a row; write the value")
        written: Any = self.page
        for part in key.split("."):
            written = written[part]
        self.open.append(key)
        try:
            value = self.value(written, key)
        finally:
            self.open.pop()
        self.resolved[key] = value
        return value

    def value(self, written: Any, key: str, depth: int = 0) -> Any:
        """Return a written value with its references resolved.

        Args:
            written: text, a list, or another value, which stays as it is.
            key: the option that it belongs to; relative references start there.
            depth: how many references it stands inside of.
        """
        if isinstance(written, list):
            return [self.value(item, key, depth) for item in written]
        if not isinstance(written, str) or "${" not in written:
            return written
        return self._text(written, key, depth)

    def _text(self, text: str, key: str, depth: int) -> Any:
        if len(text) > MAX_TEXT:
            raise ValueError(f"longer than {MAX_TEXT} characters; shorten it")
        if depth > MAX_CHAIN:
            raise ValueError(f"references nested more than {MAX_CHAIN} deep; write the value")
        if "\\${" in text:
            raise ValueError("an option cannot hold the two characters ${; rename what it names")
        pieces: list[Any] = []
        end = 0
        while (start := text.find("${", end)) >= 0:
            pieces.append(text[end:start])
            end = _closing(text, start) + 1
            pieces.append(self._reference(text[start + 2 : end - 1], key, depth))
        pieces.append(text[end:])
        if len(pieces) == 3 and not pieces[0] and not pieces[2]:
            return pieces[1]  # a reference alone keeps the type of what it refers to
        if any(isinstance(piece, list | dict) for piece in pieces):
            raise ValueError(
                "a list or a section cannot stand inside a text; refer to one option of it"
            )
        joined = "".join(str(piece) for piece in pieces)
        if len(joined) > MAX_TEXT:
            raise ValueError(
                f"its references make it longer than {MAX_TEXT} characters; shorten it"
            )
        return joined

    def _reference(self, inner: str, key: str, depth: int) -> Any:
        call = _RESOLVER.fullmatch(inner)
        if call is None:
            return self._lookup(str(self.value(inner, key, depth + 1)).strip(), key)
        name = call[1]
        arguments = [self.value(argument, key, depth + 1) for argument in _arguments(call[2])]
        if name == "oc.env":
            return _environment(arguments)
        if name == "oc.select":
            return self._select(arguments, key)
        if name == "oc.decode" and _is_text(arguments, call[2]):
            return parse_yaml(arguments[0])
        raise ValueError(f"${{{shown(name, 40)}:...}} is not read; {_READ}")

    def _select(self, arguments: list[Any], key: str) -> Any:
        if not arguments or len(arguments) > 2 or not isinstance(arguments[0], str):
            raise ValueError("${oc.select:...} takes an option, and a value where it is not set")
        try:
            return self._lookup(arguments[0], key)
        except _NotSet:
            if len(arguments) == 2:
                return arguments[1]
            raise ValueError(f"{shown(arguments[0])} is not set; write its value") from None

    def _lookup(self, name: str, key: str) -> Any:
        """Return what an absolute name, or one with leading dots, refers to."""
        match = _OPTION.fullmatch(name)
        if match is None:
            raise ValueError(f"'{shown(name)}' names no option; {_READ}")
        dots, path = match[1], re.sub(r"\[([\w-]+)\]", r".\1", match[2]).split(".")
        if dots:  # one dot: of the same section; each further one: a section further out
            section = key.split(".")[:-1]
            if len(dots) > len(section) + 1:
                raise ValueError(f"{shown(name)}: there are not so many sections around {key}")
            path = section[: len(section) + 1 - len(dots)] + path
        node: Any = self.page
        for number, part in enumerate(path):
            if not isinstance(node, Mapping):  # an option: what is left are numbers of its list
                node = self.option(".".join(path[:number]))
                return _items(node, path[number:], name)
            if part not in node:
                raise _NotSet(
                    f"{shown(name)} is not set in this configuration; set it, or write its value"
                )
            node = node[part]
        return node if isinstance(node, Mapping) else self.option(".".join(path))


def _is_text(arguments: list[Any], written: str) -> bool:
    """Return whether this is one argument that is text, or a reference to one."""
    return (
        len(arguments) == 1
        and isinstance(arguments[0], str)
        and isinstance(parse_yaml(written), str)
    )


class _NotSet(ValueError):
    """A reference to an option that is not set."""


def _items(node: Any, numbers: list[str], name: str) -> Any:
    for number in numbers:
        if not isinstance(node, list) or not number.isdecimal() or int(number[:9]) >= len(node):
            raise _NotSet(f"{shown(name)} names no item of a list; write its value")
        node = node[int(number)]
    return node


def _environment(arguments: list[Any]) -> str | None:
    if not arguments or len(arguments) > 2 or not isinstance(arguments[0], str) or not arguments[0]:
        raise ValueError(
            "${oc.env:...} takes the name of a variable; "
            "write ${oc.env:VAR} or ${oc.env:VAR,DEFAULT}"
        )
    name = arguments[0]
    found = os.environ.get(name)
    if found is not None:
        return found
    if len(arguments) == 1:
        raise ValueError(
            f"the environment variable {shown(name)} is not set; "
            f"set it, or write ${{oc.env:{shown(name)},DEFAULT}}"
        )
    return None if arguments[1] is None else str(arguments[1])


def _closing(text: str, start: int) -> int:
    """Return where the `}` of the `${` at `start` stands."""
    level, quote = 0, ""
    for position in range(start + 2, len(text)):
        char = text[position]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "{":
            level += 1
        elif char == "}" and level:
            level -= 1
        elif char == "}":
            return position
    raise ValueError("a ${ is not closed; write } behind the reference")


def _arguments(text: str) -> list[str | None]:
    """Return the arguments of a resolver: split at commas outside of quotes and references."""
    parts, level, quote = [""], 0, ""
    for char in text:
        if char == "," and not level and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        level += (char in "{[") - (char in "}]") if not quote else 0
        parts[-1] += char
    arguments: list[str | None] = []
    for part in map(str.strip, parts):
        quoted = len(part) > 1 and part[0] == part[-1] and part[0] in "'\""
        plain = part[1:-1] if quoted else part
        arguments.append(None if plain == "null" and not quoted else plain)
    return arguments

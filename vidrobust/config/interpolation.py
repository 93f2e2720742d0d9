"""Resolve `${data.root}/x`, `${oc.env:VAR}` and `${oc.env:VAR,DEFAULT}` in option values.

The syntax is that of OmegaConf's interpolations. OmegaConf itself sets no bounds: it never returns
for references that double at each step, or that refer to themselves through a list.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from vidrobust.config.yaml_text import parse_yaml
from vidrobust.utils.text import shown

MAX_TEXT = 4096  # characters of a value, before and after its references are resolved
MAX_CHAIN = 10  # references that follow one another, or are nested

_SUPPORTED = "write ${section.option}, ${oc.env:VAR} or ${oc.env:VAR,DEFAULT}"
_RESOLVER = re.compile(r"\s*([A-Za-z_][\w.]*)\s*:(.*)", re.DOTALL)
_OPTION = re.compile(r"(\.*)([\w-]+(?:\.[\w-]+|\[[\w-]+\])*)")


class References:
    """Resolves the references in the values of one configuration.

    A reference can name only an option that the configuration sets, not one at its default. All
    methods raise ValueError, with reason and remedy, for a reference to itself or to nothing.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.resolved: dict[str, Any] = {}
        self.in_progress: list[str] = []  # options that are being resolved, outermost first

    def option(self, key: str) -> Any:
        """Return the value of an option that the configuration sets, with references resolved."""
        if key in self.resolved:
            return self.resolved[key]
        if key in self.in_progress:
            chain = " -> ".join([*self.in_progress[self.in_progress.index(key) :], key])
            raise ValueError(f"it refers to itself ({chain}); write a value")
        if len(self.in_progress) >= MAX_CHAIN:
            raise ValueError(f"more than {MAX_CHAIN} references in a row; write the value")
        written: Any = self.values
        for part in key.split("."):
            written = written[part]
        self.in_progress.append(key)
        try:
            value = self.value(written, key)
        finally:
            self.in_progress.pop()
        self.resolved[key] = value
        return value

    def value(self, written: Any, key: str, depth: int = 0) -> Any:
        """Return a value with its references resolved.

        Args:
            written: text, list or other value; values that are neither are returned unchanged.
            key: option that the value belongs to; relative references start from it.
            depth: number of references that the value is nested in.
        """
        if isinstance(written, list):
            return [self.value(item, key, depth) for item in written]
        if not isinstance(written, str) or "${" not in written:
            return written
        return self._text(written, key, depth)

    def _text(self, text: str, key: str, depth: int) -> Any:
        """Return the value of a text with references; arguments as in `value`."""
        if len(text) > MAX_TEXT:
            raise ValueError(f"longer than {MAX_TEXT} characters; shorten it")
        if depth > MAX_CHAIN:
            raise ValueError(f"references nested more than {MAX_CHAIN} deep; write the value")
        # OmegaConf escapes a literal ${ as \${; no option needs one
        if "\\${" in text:
            raise ValueError("an option cannot hold the two characters ${; rename what it names")
        # literal text and resolved references, in turn
        pieces: list[Any] = []
        end = 0
        while (start := text.find("${", end)) >= 0:
            pieces.append(text[end:start])
            end = _closing(text, start) + 1
            pieces.append(self._reference(text[start + 2 : end - 1], key, depth))
        pieces.append(text[end:])
        if len(pieces) == 3 and not pieces[0] and not pieces[2]:
            return pieces[1]  # a reference without other text keeps the type of its option
        if any(isinstance(piece, list | dict) for piece in pieces):
            raise ValueError(
                "a list or a section cannot be part of a text; refer to one option of it"
            )
        joined = "".join(str(piece) for piece in pieces)
        if len(joined) > MAX_TEXT:
            raise ValueError(
                f"longer than {MAX_TEXT} characters after its references are resolved; shorten it"
            )
        return joined

    def _reference(self, inner: str, key: str, depth: int) -> Any:
        """Return the value of a reference.

        Args:
            inner: the text between `${` and `}`.
            key: option that holds the reference.
            depth: number of references that this one is nested in.
        """
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
        raise ValueError(f"${{{shown(name, 40)}:...}} is not supported; {_SUPPORTED}")

    def _select(self, arguments: list[Any], key: str) -> Any:
        if not arguments or len(arguments) > 2 or not isinstance(arguments[0], str):
            raise ValueError(
                "${oc.select:...} takes an option and, optionally, a value to use if it is not set"
            )
        try:
            return self._lookup(arguments[0], key)
        except _NotSet:
            if len(arguments) == 2:
                return arguments[1]
            raise ValueError(f"{shown(arguments[0])} is not set; write its value") from None

    def _lookup(self, name: str, key: str) -> Any:
        """Return the value of an option or section.

        Args:
            name: absolute name, or relative name with leading dots.
            key: option that holds the reference.
        """
        match = _OPTION.fullmatch(name)
        if match is None:
            raise ValueError(f"'{shown(name)}' names no option; {_SUPPORTED}")
        dots = match[1]
        path = re.sub(r"\[([\w-]+)\]", r".\1", match[2]).split(".")
        # One dot: the section of `key`. Each further dot: one section further out.
        if dots:
            section = key.split(".")[:-1]
            if len(dots) > len(section) + 1:
                raise ValueError(f"{shown(name)}: more leading dots than sections around {key}")
            path = section[: len(section) + 1 - len(dots)] + path
        node: Any = self.values
        for position, part in enumerate(path):
            # below an option, the rest of the path are indices of its list
            if not isinstance(node, Mapping):
                node = self.option(".".join(path[:position]))
                return _items(node, path[position:], name)
            if part not in node:
                raise _NotSet(
                    f"{shown(name)} is not set in this configuration; set it, or write its value"
                )
            node = node[part]
        return node if isinstance(node, Mapping) else self.option(".".join(path))


def _is_text(arguments: list[Any], written: str) -> bool:
    """Return whether there is exactly one argument, which is text or a reference to text."""
    return (
        len(arguments) == 1
        and isinstance(arguments[0], str)
        and isinstance(parse_yaml(written), str)
    )


class _NotSet(ValueError):
    """A reference to an option that is not set."""


def _items(node: Any, indices: list[str], name: str) -> Any:
    """Return an item of a list, or of lists in lists.

    Args:
        node: the list.
        indices: an index for each level of lists.
        name: the reference, for messages.
    """
    for index in indices:
        # nine digits: int() of a longer text could be slow, and no list is as long
        if not isinstance(node, list) or not index.isdecimal() or int(index[:9]) >= len(node):
            raise _NotSet(f"{shown(name)} names no item of a list; write its value")
        node = node[int(index)]
    return node


def _environment(arguments: list[Any]) -> str | None:
    """Return the value of an environment variable, or the given default if it is not set."""
    if not arguments or len(arguments) > 2 or not isinstance(arguments[0], str) or not arguments[0]:
        raise ValueError(
            "${oc.env:...} takes the name of a variable; "
            "write ${oc.env:VAR} or ${oc.env:VAR,DEFAULT}"
        )
    name = arguments[0]
    value = os.environ.get(name)
    if value is not None:
        return value
    if len(arguments) == 1:
        raise ValueError(
            f"the environment variable {shown(name)} is not set; "
            f"set it, or write ${{oc.env:{shown(name)},DEFAULT}}"
        )
    return None if arguments[1] is None else str(arguments[1])


def _closing(text: str, start: int) -> int:
    """Return the position of the `}` that closes the `${` at `start`."""
    level = 0  # open braces inside the reference
    quote = ""  # the quotation mark that is open
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
    raise ValueError("a ${ is not closed; write } after the reference")


def _arguments(text: str) -> list[str | None]:
    """Split the arguments of a resolver at commas outside of quotes, lists and references.

    Quotes around an argument are removed. An unquoted `null` becomes None.
    """
    parts = [""]
    level = 0  # open brackets and braces
    quote = ""  # the quotation mark that is open
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

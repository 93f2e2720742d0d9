"""Parse YAML text into plain values, within bounds on size and depth, and write such text.

`yaml.safe_load` runs no code. A short text can still hang it, fill the memory or raise almost any
exception: aliases that multiply or refer to themselves, brackets nested a thousand deep, files that
never end. This module refuses such texts by a ValueError of one line, and such files by a
UserError.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

# Bounds far above any config file: the largest of ours has 60 lines.
MAX_BYTES = 128 * 1024
MAX_VALUES = 5_000  # an alias counts as often as it is used
MAX_DEPTH = 20

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {f"{_PREFIX}{kind}" for kind in ("null", "bool", "int", "float")}
# YAML 1.1 gives "=" and "<<" special tags; as values they are text
_TEXTS = {f"{_PREFIX}{kind}" for kind in ("str", "value", "merge")}
_MERGE = f"{_PREFIX}merge"


class _Refusal(Exception):
    """Reason why a text is refused, with key, value and line if they are known."""


class _Loader(yaml.SafeLoader):
    """Loads YAML 1.1, but reads `1e-6` as a number and dates as text, as OmegaConf does."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.keys: list[str] = []  # keys of the mappings around the current node, outermost first
        self.depth = 0  # of the current node
        self.composed = 0  # nodes so far

    def refusal(self, reason: str, mark: yaml.Mark, end: yaml.Mark | None = None) -> _Refusal:
        """Return the error for a value, or for a position in the text.

        Args:
            reason: what is wrong, and the remedy.
            mark: start of the value, or the position.
            end: end of the value; None for a position.
        """
        key = ".".join(self.keys)
        if end is not None and key:
            key += f"={shown(self.text[mark.index : end.index].strip(), 40)}"
        line = f", line {mark.line + 1}" if "\n" in self.text else ""
        return _Refusal((f"{shown(key)}: " if key else "") + reason + line)

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Refuse brackets nested too deep.

        The scanner looks ahead at them in quadratic time, before nodes are composed.
        """
        if self.flow_level >= MAX_DEPTH:
            raise self.refusal(f"nested more than {MAX_DEPTH} deep; write it flat", self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse one nested too deep before the parser recurses further."""
        self.depth += 1
        self.composed += 1
        key = index.value if isinstance(index, yaml.ScalarNode) else None
        if key is not None:
            self.keys.append(key)
        # the next event's mark is the current position in the text
        if self.depth > MAX_DEPTH:
            raise self.refusal(
                f"nested more than {MAX_DEPTH} deep; write it flat", self.peek_event().start_mark
            )
        if self.composed > MAX_VALUES:
            raise self.refusal(
                f"more than {MAX_VALUES} values; shorten it", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        if key is not None:
            self.keys.pop()
        return node


# Dates are text: no option has a type for them.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_PREFIX}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Floats as OmegaConf reads them: PyYAML's own pattern requires a dot, so 1e-6 would be text.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)


class _Dumper(yaml.SafeDumper):
    """Writes texts in quotes where `_Loader` would read anything else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: a value that occurs twice is written twice."""
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+0123456789."))


def dump_yaml(values: Any) -> str:
    """Return plain values as YAML text that `parse_yaml` reads back.

    Options begin on lines of their own. Lists have one line per item, and long texts are folded.
    """
    return yaml.dump(
        values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )


class _Reader:
    """Converts composed nodes to dicts, lists, text, numbers, booleans and None."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.values = 0
        self.in_progress: set[int] = set()  # ids of the collections around the current node

    def read(self, node: yaml.Node, depth: int = 1) -> Any:
        """Return the value of a node. An alias is read, and counted, each time it is used."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise self._refusal(f"more than {MAX_VALUES} values through aliases; use fewer", node)
        if depth > MAX_DEPTH:
            raise self._refusal(f"nested more than {MAX_DEPTH} deep; write it flat", node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        # an alias to a collection inside itself would never end
        if id(node) in self.in_progress:
            raise self._refusal(
                "an alias refers to a collection that contains it; write the value out", node
            )
        self.in_progress.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
                return [self.read(item, depth + 1) for item in node.value]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
                return self._mapping(node, depth)
        finally:
            self.in_progress.discard(id(node))
        raise self._refusal("this tag is not supported; write a plain value", node)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in _TEXTS:
            return node.value
        if node.tag not in _SCALARS:
            raise self._refusal("this tag is not supported; write a plain value", node)
        try:
            value = self.loader.construct_object(node)
            if isinstance(value, int) and value.bit_length() > 1024:
                raise OverflowError  # too large for any option, and Python refuses to print it
            return value
        # `!!int x` and numbers with thousands of digits raise various exceptions
        except Exception:
            kind = node.tag.removeprefix(_PREFIX)
            raise self._refusal(
                f"not a value of type {kind}; write another, or quote it", node
            ) from None

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        inherited: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                inherited |= self._merged(value_node, depth)
                continue
            key = self.read(key_node, depth + 1)
            if not isinstance(key, str):
                raise self._refusal("a key is not text; put it in quotes", key_node)
            if key in values:
                raise self._refusal(f"duplicate key {shown(key)}; keep one", key_node)
            self.loader.keys.append(key)
            values[key] = self.read(value_node, depth + 1)
            self.loader.keys.pop()
        return inherited | values

    def _merged(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        """Return the values that `<<` adds; the first of several mappings has priority."""
        merged = self.read(node, depth + 1)
        mappings = merged if isinstance(merged, list) else [merged]
        result: dict[str, Any] = {}
        for mapping in reversed(mappings):
            if not isinstance(mapping, dict):
                raise self._refusal("<< takes a mapping, or a list of mappings; name one", node)
            result |= mapping
        return result

    def _refusal(self, reason: str, node: yaml.Node) -> _Refusal:
        return self.loader.refusal(reason, node.start_mark, node.end_mark)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: dicts with text keys, lists, text, numbers, booleans, None.

    Raises:
        ValueError: in one line, for anything else, for duplicate keys, and for a text that is
            larger or deeper than MAX_BYTES, MAX_VALUES and MAX_DEPTH allow.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} characters; shorten it")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader).read(node)
    except _Refusal as refusal:
        raise ValueError(str(refusal)) from None
    except Exception as error:  # PyYAML also raises ValueError, TypeError and RecursionError
        raise ValueError(
            f"not YAML ({_yaml_reason(error)}); correct it, or put text in quotes"
        ) from None


def _yaml_reason(error: Exception) -> str:
    """Return the problem that a YAML error describes, in one line."""
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    lines = str(getattr(error, "problem", None) or error).splitlines() or [type(error).__name__]
    return lines[0] + line


def read_text(path: Path) -> str:
    """Return the text of a regular file.

    Other files are refused: a pipe, a device or a file in /proc may never end.

    Raises:
        ValueError: with reason and remedy, for a file that cannot be read, is not UTF-8, or is
            longer than MAX_BYTES.
    """
    try:
        # without O_NONBLOCK, opening a named pipe waits for a writer
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError("not a regular file; name a YAML file")
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); name a YAML file") from None
    except UnicodeEncodeError:
        raise ValueError("not a valid file name on this system; name a YAML file") from None
    if content is None:  # a non-blocking read without data
        raise ValueError("holds nothing to read; name a YAML file")
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 1024} KiB; name a config file, which is short")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not a text file in UTF-8; save it as UTF-8") from None


def read_page(path: Path, name: str, what: str = "a configuration") -> dict[str, Any]:
    """Return the mapping that a YAML file holds; {} for an empty file.

    Args:
        path: path of the file.
        name: name for messages if it cannot be read: its path, or the option that names it.
        what: kind of config file, for messages.

    Raises:
        UserError: for a file that `read_text` or `parse_yaml` refuses, and for one that does not
            hold a mapping.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: {what} is a mapping of keys to values; write key: value")
    return values

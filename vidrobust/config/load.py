"""Read a YAML file and `key=value` overrides into typed options.

`--help` prints them, a YAML page or `key=value` fills them, and anything else (an unknown or
duplicate key, a wrong type, a value out of range) is refused by name.
"""

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf

from vidrobust.config.find import find_config
from vidrobust.config.interpolation import MAX_TEXT, References
from vidrobust.config.options import Config
from vidrobust.config.validate import check_together
from vidrobust.config.yaml_text import parse_yaml, read_page
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown

_PATHS = (
    "data.root",
    "data.manifest",
    "data.twins",
    "model.weights",
    "method.teacher",
    "eval.shift.root",
    "eval.corruption.baseline",
)

MAX_WHOLE = 2**31 - 1  # of options that have no upper bound of their own


def options(section: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, dataclass field) in the order of options.py."""
    for item in fields(section):
        if is_dataclass(item.type):
            yield from options(item.type, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file, over its `_BASE_` files and below `overrides`.

    path: of the file, or its name among those of `configs/` (`find_config`).

    overrides: `key=value` words, or `KEY VALUE` pairs as in fvcore. A float may be a fraction
    (`8/255`). Raises UserError for anything that is not an option, has a wrong type or is out of
    range, and for options that do not go together.
    """
    cfg = read(path, overrides)
    check_together(cfg)
    return cfg


def read(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return what `load` returns, without the checks of options together, which import torch."""
    return _typed(_Pages().read(find_config(path)), _read_overrides(overrides), str(path))


def loads(
    text: str,
    overrides: Sequence[str] = (),
    source: str = "configuration",
    page: str | Path | None = None,
) -> Config:
    """Return the configuration of a YAML text, such as the one that a checkpoint holds.

    Args:
        text: the options.
        overrides: as in `load`; they lie over all else.
        source: where the text is from, for messages.
        page: a YAML file that lies over the text.

    Raises:
        UserError: as `load` does.
    """
    above = _Pages().read(find_config(page)) if page else {}
    if not isinstance(text, str):  # of a checkpoint that was damaged or not written by us
        raise UserError(f"{source}: holds no configuration; name another")
    try:
        below = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    below = {} if below is None else below
    if not isinstance(below, dict):
        raise UserError(f"{source}: a configuration is a mapping of keys to values")
    _read_old_adversary(below)
    _check_keys(below, source)
    cfg = _typed(_merged(below, above), _read_overrides(overrides), source)
    check_together(cfg)
    return cfg


def _read_old_adversary(page: dict[str, Any]) -> None:
    """Replace options of checkpoints that earlier versions wrote."""
    method = page.get("method")
    adversary = method.get("adversary") if isinstance(method, dict) else None
    if not isinstance(adversary, dict):
        return
    eps = adversary.pop("eps", None)
    if eps is not None:  # from before there were other threats than Linf
        adversary["threats"] = [f"linf-{eps}"]
    adversary.setdefault("key_encoder", False)  # from before DynACL had a momentum encoder
    if adversary.get("steps") == 0:  # from before 0 was refused
        adversary["steps"] = -1


def to_yaml(cfg: Config) -> str:
    """The resolved configuration, every option, as YAML that `loads` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


# Options that came after results were written; at these values they change nothing, and no hash.
_LATER = {"data.series": ""}


def config_sha(cfg: Config, ignore: Sequence[str] = ()) -> str:
    """First 16 hex digits of the SHA-256 of the resolved configuration, without the keys in
    `ignore`.
    """
    known = [key for key, _ in options() if key not in ignore]
    lines = "".join(
        f"{key}={get(cfg, key)}\n"
        for key in known
        if key not in _LATER or get(cfg, key) != _LATER[key]
    )
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def get(cfg: Any, key: str) -> Any:
    """The value of a dotted key of a configuration, or of one of its sections."""
    value: Any = cfg
    for part in key.split("."):
        value = getattr(value, part)
    return value


def paths_read(cfg: Config) -> dict[str, str]:
    """Return option -> path of the files and folders that a run reads, "" where it reads none."""
    return {key: get(cfg, key) for key in _PATHS}


def differences(a: Config, b: Config) -> list[str]:
    """`optim.lr=0.1 (0.2)` for each option that differs: b's value, then a's."""
    return [
        f"{key}={get(b, key)} ({get(a, key)})" for key, _ in options() if get(a, key) != get(b, key)
    ]


def help_text(names: Mapping[str, str] | None = None) -> str:
    """Return a line per option: key, default, meaning.

    names: key -> the names that the option may have, where a dictionary of the package has them.
    """
    rows = []
    default = OmegaConf.structured(Config)
    for key, item in options():
        value = OmegaConf.select(default, key)
        if isinstance(value, ListConfig):
            text = "[" + ",".join(v if isinstance(v, str) else f"{v:g}" for v in value) + "]"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        choices = item.metadata["choices"]
        help = item.metadata["help"] + (
            f" ({' | '.join(c or 'empty' for c in choices)})" if choices else ""
        )
        if key in (names or {}):
            help += f": {(names or {})[key]}"
        rows.append(f"  {key + '=' + text:<44} {help}")
    return "options (key=value):\n" + "\n".join(rows)


class _Pages:
    """Reads config files and the `_BASE_` files below them, each file once.

    Bases of bases may meet again: read anew each time, ten levels of two would be a thousand files.
    """

    MAX_DEPTH = 16
    MAX_PAGES = 64

    def __init__(self) -> None:
        self.pages: dict[str, dict[str, Any]] = {}

    def read(self, path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Return a file's options over those of its bases.

        below: the files that led to this one, outermost first.
        """
        place = os.path.realpath(path)
        if place in map(os.path.realpath, below):
            raise UserError(f"{path}: _BASE_ leads back to the page itself; remove it there")
        if place in self.pages:
            return self.pages[place]
        if len(below) >= self.MAX_DEPTH or len(self.pages) >= self.MAX_PAGES:
            raise UserError(
                f"{below[0]}: its _BASE_ files are more than {self.MAX_PAGES}, or more than "
                f"{self.MAX_DEPTH} below each other, at {path}; merge some"
            )
        if not os.path.exists(path):
            base = f" (a _BASE_ of {below[-1]})" if below else ""
            raise UserError(f"no configuration file {shown(path, 300)}{base}; correct the path")
        page = read_page(path, f"{below[-1]}: _BASE_={path}" if below else str(path))
        bases = self._bases(page, path)
        _check_keys(page, str(path))
        merged: dict[str, Any] = {}
        for base in bases:
            merged = _merged(merged, self.read(path.parent / base, (*below, path)))
        self.pages[place] = _merged(merged, page)
        return self.pages[place]

    def _bases(self, page: dict[str, Any], path: Path) -> list[str]:
        """Take the names of its bases out of a file's options, and return them."""
        written = page.pop("_BASE_", [])
        try:
            named = References(page).value(written, "_BASE_")
            bases = [named] if isinstance(named, str) else named
            if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
                raise UserError(
                    f"{path}: _BASE_ is a page or a list of pages, each a path beside this one"
                )
            for base in bases:
                _check_text(base)
        except ValueError as error:
            raise UserError(f"{path}: _BASE_={shown(written)}: {error}") from None
        if len(bases) > self.MAX_PAGES:
            raise UserError(
                f"{path}: _BASE_ lists {len(bases)} files; list at most {self.MAX_PAGES}"
            )
        return bases


def _read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return what a command line sets, as the options of a file."""
    pairs, rest = [], list(reversed(words))
    while rest:
        word = rest.pop()
        if "=" not in word:
            if not rest:
                raise UserError(f"override '{shown(word)}' has no value: write {shown(word)}=VALUE")
            word = f"{word}={rest.pop()}"
        pairs.append(word.split("=", 1))
    overrides: dict[str, Any] = {}
    seen: set[str] = set()
    for key, text in pairs:
        if not re.fullmatch(r"\w+(\.\w+)*", key):
            raise UserError(f"option '{shown(key)}': write section.name=VALUE")
        if key in seen:
            raise UserError(f"option '{shown(key)}' is given twice on the command line; remove one")
        seen.add(key)
        try:
            _check_characters(text)
            value = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"command line: {shown(key)}={shown(text)}: {error}") from None
        *sections, name = key.split(".", 20)
        page = {name: value}
        for section in reversed(sections):
            page = {section: page}
        _check_keys(page, "command line")
        overrides = _merged(overrides, page)
    return overrides


def _check_keys(page: dict[str, Any], source: str) -> None:
    """Refuse a key that is no option, naming the nearest one that is."""
    known = [key for key, _ in options()]
    sections = {
        key.rsplit(".", depth)[0] for key in known for depth in (1, 2) if key.count(".") >= depth
    }

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in sections:
                if not isinstance(value, dict):
                    raise UserError(
                        f"{source}: {key!r} is a section, not '{shown(value)}'; "
                        f"set one of its options, {key}.NAME"
                    )
                walk(value, f"{key}.")
            elif key not in known:
                # of a section that is none, as TRAIN, its option says more
                inner = _first_leaf(key, value)
                raise UserError(f"{source}: unknown option '{shown(inner)}'{nearest(inner, known)}")

    walk(page, "")


def _first_leaf(key: str, value: Any) -> str:
    """Return the key of the first option in a section that is none, or `key` itself."""
    for _ in range(3):  # sections are no deeper
        if not isinstance(value, dict) or not value:
            break
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return the options of two files as one; values of `above` replace those of `below`."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        both = isinstance(under, dict) and isinstance(value, dict)
        merged[name] = _merged(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _typed(page: dict[str, Any], overrides: dict[str, Any], source: str) -> Config:
    """Return the configuration of options that `_check_keys` has passed.

    Args:
        page: the options of files.
        overrides: the options of the command line, which lie over them.
        source: where `page` is from, for messages.
    """
    merged = _merged(page, overrides)
    references = References(merged)
    cfg = Config()
    for key, item in options():
        written = _written(merged, key)
        if written is _UNSET:
            continue
        where = source if _written(overrides, key) is _UNSET else "command line"
        if written == "???":
            raise UserError(f"{where}: {key} has no value (???)")
        try:
            value = _converted(references.option(key), item.type)
        except ValueError as error:
            raise UserError(f"{where}: {key}={shown(written)}: {error}") from None
        section, _, name = key.rpartition(".")
        setattr(get(cfg, section) if section else cfg, name, value)
    _check_ranges(cfg)
    return cfg


_UNSET = object()


def _written(page: dict[str, Any], key: str) -> Any:
    """Return what a file sets an option to; _UNSET where it does not."""
    node: Any = page
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return _UNSET
        node = node[part]
    return node


# type of an option -> what it needs, and an example
_NEEDS = {
    int: "a whole number, such as 2",
    float: "a number, such as 0.1 or 8/255",
    bool: "true or false",
    str: "text",
    list[int]: "[1,2]",
    list[float]: "[0.1,8/255]",
    list[str]: "[a,b]",
}


def _converted(value: Any, kind: Any) -> Any:
    """Return a value as an option's type; raises ValueError for what is not of that type.

    Text that looks like a number is one, as in `data.frames="4"`; 0 and 1 are truth values.
    """
    if kind in (list[int], list[float], list[str]):
        if not isinstance(value, list):
            raise ValueError(f"needs a list; write one, such as {_NEEDS[kind]}")
        return [_converted(item, kind.__args__[0]) for item in value]
    if isinstance(value, list | dict):
        given = "a list" if isinstance(value, list) else "a mapping"
        raise ValueError(f"needs one value, not {given}; write {_NEEDS[kind]}")
    if value is None:
        if kind is str:
            return ""  # YAML reads nothing as null
        raise ValueError(f"has no value; write {_NEEDS[kind]}")
    if kind is str:
        _check_text(str(value))
        return str(value)
    if type(value) in _TAKES[kind]:
        try:
            return _READERS[kind](value)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"'{shown(value, 40)}' is no such value; write {_NEEDS[kind]}")


_TRUTHS = {"yes": 1, "y": 1, "on": 1, "true": 1, "no": 0, "n": 0, "off": 0, "false": 0}


def _truth(value: Any) -> bool:
    if isinstance(value, str):
        return int(_TRUTHS.get(value.lower(), value)) != 0
    return bool(value)


def _number(value: Any) -> float:
    return float(_fraction(value))


_READERS: dict[Any, Callable[[Any], Any]] = {bool: _truth, int: int, float: _number}
# YAML's types of values that an option takes: a float is no whole number, even where it is whole
_TAKES = {bool: (bool, int, str), int: (int, str), float: (int, float, str)}


def _check_text(text: str) -> None:
    """Raise ValueError for text that no option can hold.

    It has to be written to config.yaml, read back, and told in one line.
    """
    _check_characters(text)
    if len(text) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} characters; shorten it")
    if "${" in text or text.lstrip("\\") == "???":
        raise ValueError("an option cannot hold ${ or ??? as text; rename what it names")


def _check_characters(text: str) -> None:
    """Raise ValueError for control characters, line ends, and what is no UTF-8."""
    kinds = ("Cc", "Cs", "Zl", "Zp")
    bad = next((char for char in text if unicodedata.category(char) in kinds), "")
    if "\udc80" <= bad <= "\udcff":  # how Python holds a byte that is no UTF-8
        raise ValueError("an option holds text in UTF-8 alone; rename what it names, or link to it")
    if bad:
        raise ValueError(f"an option cannot hold the character U+{ord(bad):04X}; remove it")


def _fraction(value: Any) -> Any:
    """Return the value of `8/255`; other values as they are."""
    match = (
        re.fullmatch(r"\s*([-+.\deE]+)\s*/\s*([-+.\deE]+)\s*", value)
        if isinstance(value, str)
        else None
    )
    if match is None:
        return value
    try:
        return float(match[1]) / float(match[2])
    except (ValueError, ZeroDivisionError):
        return value


def _check_ranges(cfg: Config) -> None:
    for key, item in options():
        value, rule = get(cfg, key), item.metadata
        written = f"{key}={shown(value)}"
        if rule["choices"] and value not in rule["choices"]:
            choices = ", ".join(c for c in rule["choices"] if c)
            raise UserError(f"{written}: choose one of {choices}")
        high = rule["high"]
        if high is None and item.type in (int, list[int]):
            high = MAX_WHOLE
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{written}: must be a finite number")
            if rule["low"] is not None and not number >= rule["low"]:
                raise UserError(f"{written}: must be at least {rule['low']:g}")
            if rule["above"] is not None and not number > rule["above"]:
                raise UserError(f"{written}: must be greater than {rule['above']:g}")
            if high is not None and not number <= high:
                raise UserError(f"{written}: must be at most {high:g}")

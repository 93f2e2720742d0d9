"""Read a YAML file and `key=value` overrides into typed options.

A config file or `key=value` sets an option. Anything else raises UserError with the name of the
option: an unknown or duplicate key, a wrong type, a value out of range.
"""

import functools
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from vidrobust.config.find import find_config, protocol_file
from vidrobust.config.interpolation import MAX_TEXT, References
from vidrobust.config.options import (
    CardConfig,
    Config,
    InputConfig,
    OpenSetConfig,
    ProtocolConfig,
)
from vidrobust.config.validate import check_together
from vidrobust.config.yaml_text import dump_yaml, parse_yaml, read_page
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown

# options that name files or folders which a run reads
_PATHS = (
    "data.root",
    "data.manifest",
    "data.twins",
    "data.archive",
    "model.weights",
    "model.input.classes",
    "method.teacher",
    "eval.shift.root",
    "eval.open_set.root",
    "eval.corruption.baseline",
)

MAX_WHOLE = 2**31 - 1  # upper bound of integer options that set none themselves


@functools.cache
def options(section: Any = Config, prefix: str = "") -> tuple[tuple[str, Any], ...]:
    """Return (dotted key, dataclass field) of every option, in the order of options.py."""
    found: list[tuple[str, Any]] = []
    for item in fields(section):
        if is_dataclass(item.type):
            section_type: Any = item.type  # is hashable, which its own annotation does not say
            found += options(section_type, f"{prefix}{item.name}.")
        else:
            found.append((f"{prefix}{item.name}", item))
    return tuple(found)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration: a YAML file on top of its `_BASE_` files, and overrides on top of both.

    Args:
        path: path of the file, or its name in `configs/` (`find_config`).
        overrides: `key=value` texts, or `KEY VALUE` pairs as in fvcore. A float may be a fraction
            (`8/255`).

    Raises:
        UserError: for anything that is not an option, has a wrong type or is out of range, and for
            options that cannot be combined.
    """
    cfg = read(path, overrides)
    check_together(cfg)
    return cfg


def read(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration as `load` does, without checking combinations of options.

    Those checks import torch, which takes seconds.
    """
    return _typed(_ConfigFiles().read(find_config(path)), _read_overrides(overrides), str(path))


def loads(
    text: str,
    overrides: Sequence[str] = (),
    source: str = "configuration",
    config_file: str | Path | None = None,
) -> Config:
    """Load a configuration from a YAML text, such as the one stored in a checkpoint.

    Args:
        text: YAML text with the options.
        overrides: as in `load`; they take precedence over everything else.
        source: where the text comes from, for messages.
        config_file: path or name of a config file that takes precedence over the text.

    The file of the protocol that either names, `configs/protocols/NAME.yaml`, takes precedence over
    the text too.

    Raises:
        UserError: as `load` does.
    """
    above = _above(overrides, config_file)
    # a damaged checkpoint, or one of another program, may hold any type
    if not isinstance(text, str):
        raise UserError(f"{source}: holds no configuration; name another")
    try:
        below = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    below = {} if below is None else below
    if not isinstance(below, dict):
        raise UserError(f"{source}: a configuration is a mapping of keys to values")
    _convert_old_adversary(below)
    _check_keys(below, source)
    cfg = _typed(_merged(below, above), _read_overrides(overrides), source)
    check_together(cfg)
    return cfg


def keys_given(overrides: Sequence[str], config_file: str | Path | None = None) -> set[str]:
    """Return the keys of the options that a command line or a config file sets.

    Args:
        overrides: as in `load`.
        config_file: path or name of a config file.

    Raises:
        UserError: as `load` does.
    """
    values = _merged(_above(overrides, config_file), _read_overrides(overrides))
    return {key for key, _ in options() if _written(values, key) is not _UNSET}


def value_given(key: str, overrides: Sequence[str], config_file: str | Path | None = None) -> Any:
    """Return the value that a command line or a config file gives an option, or None.

    Args:
        key: of the option.
        overrides: as in `load`.
        config_file: path or name of a config file.

    Raises:
        UserError: as `load` does.
    """
    values = _merged(_above(overrides, config_file), _read_overrides(overrides))
    if _written(values, key) is _UNSET:
        return None
    section, _, name = key.rpartition(".")
    alone: dict[str, Any] = {name: _written(values, key)}
    for part in reversed(section.split(".")):
        alone = {part: alone}
    return get(_typed(alone, {}, "command line"), key)


def _above(overrides: Sequence[str], config_file: str | Path | None) -> dict[str, Any]:
    """Return the options of the protocol's file, and of a config file on top of it.

    Args:
        overrides: `key=value` texts, which may name a protocol.
        config_file: path or name of a config file; None: none.
    """
    file = _ConfigFiles().read(find_config(config_file)) if config_file else {}
    name = _written(_merged(file, _read_overrides(overrides)), "protocol.name")
    protocol = protocol_file(name) if isinstance(name, str) else None
    return _merged(_ConfigFiles().read(protocol), file) if protocol else file


def _convert_old_adversary(values: dict[str, Any]) -> None:
    """Replace options in checkpoints of earlier versions by today's, in place."""
    method = values.get("method")
    adversary = method.get("adversary") if isinstance(method, dict) else None
    if not isinstance(adversary, dict):
        return
    # Before other threat models than Linf existed, eps was an option.
    eps = adversary.pop("eps", None)
    if eps is not None:
        adversary["threats"] = [f"linf-{eps}"]
    # Before DynACL had a momentum encoder, both views went through the model.
    adversary.setdefault("key_encoder", False)
    # Before 0 was refused, it meant the method's default.
    if adversary.get("steps") == 0:
        adversary["steps"] = -1


def to_yaml(cfg: Config) -> str:
    """Return every option of a resolved configuration, as YAML text that `loads` reads back."""
    return dump_yaml(asdict(cfg))


# Options added after results had been written. At these values they have no effect, so they must
# not change the hash of old configurations.
_ADDED_LATER: dict[str, object] = {
    "data.series": "",
    "eval.classifier": "auto",
    "eval.eot": 1,
    "eval.step": 0.0,
    "eval.precise_bn": 0,
    "eval.view_average": "logits",
    "data.fps": 0.0,
    "data.resize": [],
    "data.labels": "",
    "data.labels_seed": 0,
    "data.interpolation": "bilinear",
    **{f"model.input.{key}": value for key, value in vars(InputConfig()).items()},
    "model.weights_sha": "",
    "model.mean": [],
    "model.std": [],
    "model.stem_padding": 0,
    "model.slow_frames": "",
    "model.dilated": False,
    "model.head": "linear",
    "model.head_blocks": 1,
    "model.head_stage": "",
    "model.head_heads": 0,
    "model.head_mlp_ratio": 4.0,
    "model.head_scale": 1.0,
    "model.head_dropout": 0.0,
    "model.drop_path": -1.0,
    "method.freeze": False,
    "method.in_batch": False,
    "method.label_smoothing": 0.0,
    "method.mixup": 0.0,
    "method.cutmix": 0.0,
    "optim.layer_decay": 1.0,
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.final_lr": 0.0,
    "method.adversary.rank": 8,
    "method.adversary.scale": 6.0,
    "optim.patience": 0.75,
    "optim.auto_threats": [],
    "train.measured": 0,
    "train.shown_clips": 3,
    "train.micro_batch": 0,
    "train.checkpoint_activations": False,
    "data.archive": "",
    "data.in_memory": "auto",
    "data.classes": [],
    "eval.embeddings": 500,
    "eval.channels_last": "auto",
    "eval.amp": "fp32",
    "eval.save": "none",
    "eval.transfer": [],
    **{f"eval.open_set.{key}": value for key, value in vars(OpenSetConfig()).items()},
    **{f"protocol.{key}": value for key, value in vars(ProtocolConfig()).items()},
    **{f"eval.card.{key}": value for key, value in vars(CardConfig()).items()},
}


# Options without effect on a number, whose default has changed: (default, the earlier one).
# At the default they count as at the earlier one, so that old results are continued.
_CHANGED_DEFAULTS: dict[str, tuple[object, object]] = {
    "eval.pictures": (6, 2),
    # an option of training counts in the hash of an evaluation by its default alone
    "train.channels_last": ("auto", False),
}


def config_sha(cfg: Config, ignore: Sequence[str] = ()) -> str:
    """Return a hash of a configuration: the first 16 hex digits of its SHA-256.

    Args:
        cfg: resolved configuration.
        ignore: keys of options that do not count.
    """
    keys = [key for key, _ in options() if key not in ignore]
    values = {key: _counted(cfg, key) for key in keys}
    lines = "".join(
        f"{key}={value}\n"
        for key, value in values.items()
        if key not in _ADDED_LATER or value != _ADDED_LATER[key]
    )
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _counted(cfg: Config, key: str) -> Any:
    """Return the value of an option, a changed default as the one of earlier revisions."""
    value = get(cfg, key)
    default, earlier = _CHANGED_DEFAULTS.get(key, (None, None))
    return earlier if key in _CHANGED_DEFAULTS and value == default else value


def get(cfg: Any, key: str) -> Any:
    """Return the value of a dotted key of a configuration, or of one of its sections."""
    value: Any = cfg
    for part in key.split("."):
        value = getattr(value, part)
    return value


def paths_read(cfg: Config) -> dict[str, str]:
    """Return option -> path of the files and folders that a run reads; "" if it reads none."""
    return {key: get(cfg, key) for key in _PATHS}


def differences(a: Config, b: Config) -> list[str]:
    """Return `optim.lr=0.1 (0.2)` for each option that differs: b's value, then a's."""
    return [
        f"{key}={get(b, key)} ({get(a, key)})"
        for key, _ in options()
        if _counted(a, key) != _counted(b, key)
    ]


def help_text(names: Mapping[str, str] | None = None) -> str:
    """Return the options as lines of text: key, default, meaning.

    Args:
        names: key -> allowed names of an option, for options that take them from a dictionary of
            the package.
    """
    rows = []
    default = Config()
    for key, item in options():
        text = _default_text(get(default, key))
        help = item.metadata["help"]
        if choices := item.metadata["choices"]:
            help += f" ({' | '.join(choice or 'empty' for choice in choices)})"
        if key in (names or {}):
            help += f": {(names or {})[key]}"
        rows.append(f"  {key + '=' + text:<44} {help}")
    return "options (key=value):\n" + "\n".join(rows)


def _default_text(value: Any) -> str:
    """Return a default value as a command line would write it."""
    if isinstance(value, list):
        return "[" + ",".join(v if isinstance(v, str) else f"{v:g}" for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


class _ConfigFiles:
    """Reads config files and their `_BASE_` files, each file once.

    Several files may share a base. Without the cache, ten levels with two bases each would be a
    thousand reads.
    """

    MAX_DEPTH = 16
    MAX_FILES = 64

    def __init__(self) -> None:
        self.options_by_file: dict[str, dict[str, Any]] = {}

    def read(self, path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Return a file's options on top of those of its bases.

        Args:
            path: the config file.
            below: the files that led to this one, outermost first.
        """
        # Bounds first: a file that is its own base, directly or not, and too many files.
        real_path = os.path.realpath(path)
        if real_path in map(os.path.realpath, below):
            raise UserError(f"{path}: _BASE_ leads back to the config file itself; remove it there")
        if real_path in self.options_by_file:
            return self.options_by_file[real_path]
        if len(below) >= self.MAX_DEPTH or len(self.options_by_file) >= self.MAX_FILES:
            raise UserError(
                f"{below[0]}: has more than {self.MAX_FILES} _BASE_ files, or more than "
                f"{self.MAX_DEPTH} levels of them, at {path}; merge some"
            )
        if not os.path.exists(path):
            base = f" (a _BASE_ of {below[-1]})" if below else ""
            raise UserError(f"no configuration file {shown(path, 300)}{base}; correct the path")
        # Then the file, and its bases in the order in which they are listed: later ones win.
        values = read_page(path, f"{below[-1]}: _BASE_={path}" if below else str(path))
        bases = self._pop_bases(values, path)
        _check_keys(values, str(path))
        merged: dict[str, Any] = {}
        for base in bases:
            merged = _merged(merged, self.read(path.parent / base, (*below, path)))
        self.options_by_file[real_path] = _merged(merged, values)
        return self.options_by_file[real_path]

    def _pop_bases(self, values: dict[str, Any], path: Path) -> list[str]:
        """Remove `_BASE_` from a file's options, and return the names of its bases."""
        written = values.pop("_BASE_", [])
        try:
            resolved = References(values).value(written, "_BASE_")
            bases = [resolved] if isinstance(resolved, str) else resolved
            if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
                raise UserError(
                    f"{path}: _BASE_ must be a config file or a list of them, as paths relative to"
                    " this file"
                )
            for base in bases:
                _check_text(base)
        except ValueError as error:
            raise UserError(f"{path}: _BASE_={shown(written)}: {error}") from None
        if len(bases) > self.MAX_FILES:
            raise UserError(
                f"{path}: _BASE_ lists {len(bases)} files; list at most {self.MAX_FILES}"
            )
        return bases


def _read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return the options that a command line sets, nested as in a file."""
    overrides: dict[str, Any] = {}
    keys: set[str] = set()
    for key, text in _split_pairs(words):
        if not re.fullmatch(r"\w+(\.\w+)*", key):
            raise UserError(f"option '{shown(key)}': write section.name=VALUE")
        if key in keys:
            raise UserError(f"option '{shown(key)}' is given twice on the command line; remove one")
        keys.add(key)
        try:
            _check_characters(text)
            value = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"command line: {shown(key)}={shown(text)}: {error}") from None
        *sections, name = key.split(".", 20)  # a bound: no option is nested as deep
        nested = {name: value}
        for section in reversed(sections):
            nested = {section: nested}
        _check_keys(nested, "command line")
        overrides = _merged(overrides, nested)
    return overrides


def _split_pairs(words: Sequence[str]) -> list[list[str]]:
    """Return [key, value text] of each override, written `key=value` or `KEY VALUE`."""
    pairs = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if "=" not in word:
            if not rest:
                raise UserError(f"override '{shown(word)}' has no value: write {shown(word)}=VALUE")
            word = f"{word}={rest.pop()}"
        pairs.append(word.split("=", 1))
    return pairs


def _check_keys(values: dict[str, Any], source: str) -> None:
    """Raise UserError for a key that is not an option; it names the nearest option."""
    keys = [key for key, _ in options()]
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    sections |= {section.rpartition(".")[0] for section in sections} - {""}

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
            elif key not in keys:
                # for an unknown section such as TRAIN, its first option gives a better suggestion
                inner = _first_leaf(key, value)
                raise UserError(f"{source}: unknown option '{shown(inner)}'{nearest(inner, keys)}")

    walk(values, "")


def _first_leaf(key: str, value: Any) -> str:
    """Return the key of the first option in an unknown section, or `key` itself."""
    for _ in range(3):  # no section is nested deeper
        if not isinstance(value, dict) or not value:
            break
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return the options of two files as one; values in `above` replace those in `below`."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        both = isinstance(under, dict) and isinstance(value, dict)
        merged[name] = _merged(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _typed(values: dict[str, Any], overrides: dict[str, Any], source: str) -> Config:
    """Convert options to their types, and check their ranges.

    Args:
        values: options from files, with keys that `_check_keys` has accepted.
        overrides: options from the command line, which take precedence.
        source: where `values` comes from, for messages.
    """
    merged = _merged(values, overrides)
    references = References(merged)
    cfg = Config()
    for key, item in options():
        written = _written(merged, key)
        if written is _UNSET:
            continue
        origin = source if _written(overrides, key) is _UNSET else "command line"
        if written == "???":
            raise UserError(f"{origin}: {key} has no value (???)")
        try:
            value = _converted(references.option(key), item.type)
        except ValueError as error:
            raise UserError(f"{origin}: {key}={shown(written)}: {error}") from None
        section, _, name = key.rpartition(".")
        setattr(get(cfg, section) if section else cfg, name, value)
    try:
        _check_ranges(cfg)
    except OutOfRange as error:
        from_file = _written(values, error.key) is not _UNSET
        if from_file and _written(overrides, error.key) is _UNSET:
            raise UserError(f"{source}: {error}") from None
        raise
    return cfg


_UNSET = object()


def _written(values: dict[str, Any], key: str) -> Any:
    """Return the value that a file sets for an option; _UNSET if it sets none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return _UNSET
        node = node[part]
    return node


# type of an option -> the value it needs, with an example
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
    """Convert a value to an option's type; raise ValueError if it is not of that type.

    Text that looks like a number is accepted as one, as in `data.frames="4"`. 0 and 1 are accepted
    as booleans.
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
            return ""  # YAML reads an empty value as null
        raise ValueError(f"has no value; write {_NEEDS[kind]}")
    if isinstance(value, bool) and kind is str:
        return str(value).lower()  # YAML's word for it
    if kind is str:
        _check_text(str(value))
        return str(value)
    if type(value) in _ACCEPTED[kind]:
        try:
            return _CONVERTERS[kind](value)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"'{shown(value, 40)}' is no such value; write {_NEEDS[kind]}")


# YAML 1.1's words for booleans
_BOOLEANS = {"yes": 1, "y": 1, "on": 1, "true": 1, "no": 0, "n": 0, "off": 0, "false": 0}


def _to_bool(value: Any) -> bool:
    if isinstance(value, str):
        return int(_BOOLEANS.get(value.lower(), value)) != 0
    return bool(value)


def _to_float(value: Any) -> float:
    return float(_fraction(value))


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {bool: _to_bool, int: int, float: _to_float}
# type of an option -> types of YAML values that it accepts; an int option refuses 2.0
_ACCEPTED = {bool: (bool, int, str), int: (int, str), float: (int, float, str)}


def _check_text(text: str) -> None:
    """Raise ValueError for text that an option cannot hold.

    Option values are written to config.yaml, read back, and shown in messages of one line.
    """
    _check_characters(text)
    if len(text) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} characters; shorten it")
    if "${" in text or text.lstrip("\\") == "???":
        raise ValueError("an option cannot hold ${ or ??? as text; rename what it names")


def _check_characters(text: str) -> None:
    """Raise ValueError for control characters, line ends, and bytes that are not UTF-8."""
    kinds = ("Cc", "Cs", "Zl", "Zp")  # control, surrogate, line and paragraph separator
    bad = next((char for char in text if unicodedata.category(char) in kinds), "")
    # Python represents a byte that is not UTF-8 by a lone surrogate (PEP 383)
    if "\udc80" <= bad <= "\udcff":
        raise ValueError("an option holds only UTF-8 text; rename the file it names, or link to it")
    if bad:
        raise ValueError(f"an option cannot hold the character U+{ord(bad):04X}; remove it")


def _fraction(value: Any) -> Any:
    """Return the value of a fraction such as `8/255`; return other values unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([-+.\deE]+)\s*/\s*([-+.\deE]+)\s*", value)
    if match is None:
        return value
    try:
        return float(match[1]) / float(match[2])
    except (ValueError, ZeroDivisionError):
        return value


class OutOfRange(UserError):
    """Report a value that an option does not allow by itself.

    Args:
        key: key of the option.
        message: the option, its value and the remedy.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _check_ranges(cfg: Config) -> None:
    """Raise OutOfRange for the first option whose value is not allowed by itself."""
    for key, item in options():
        value = get(cfg, key)
        written = f"{key}={shown(value)}"
        choices = item.metadata["choices"]
        if choices and value not in choices:
            named = ", ".join(choice for choice in choices if choice)
            raise OutOfRange(key, f"{written}: choose one of {named}")
        for number in value if isinstance(value, list) else [value]:
            if problem := _range_problem(number, item):
                raise OutOfRange(key, f"{written}: must be {problem}")


def _range_problem(value: Any, item: Any) -> str:
    """Return the limit that a value violates, such as "at least 1"; "" if there is none.

    Args:
        value: value of the option, or an item of its list.
        item: dataclass field of the option.
    """
    low = item.metadata["low"]
    above = item.metadata["above"]
    high = item.metadata["high"]
    if high is None and item.type in (int, list[int]):
        high = MAX_WHOLE
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if low is not None and not value >= low:
        return f"at least {low:g}"
    if above is not None and not value > above:
        return f"greater than {above:g}"
    if high is not None and not value <= high:
        return f"at most {high:g}"
    return ""

"""The configuration: `load(path, overrides)` fills the dataclasses of `vidrobust.options`.

`--help` prints them, a YAML page or `key=value` fills them, and anything else (an unknown or duplicate key, a wrong
type, a value out of range) is refused by name.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vidrobust.checks import check_together, require_used
from vidrobust.errors import UserError, nearest
from vidrobust.options import (
    Adversary,
    Augment,
    Config,
    Corruption,
    Data,
    Eval,
    FalseNegatives,
    Method,
    Model,
    MotionShapes,
    Negatives,
    Optim,
    Shift,
    Train,
)

__all__ = [
    "Adversary", "Augment", "Config", "Corruption", "Data", "Eval", "FalseNegatives", "Method", "Model",
    "MotionShapes", "Negatives", "Optim", "Shift", "Train", "config_sha", "differences", "get", "help_text", "load",
    "loads", "options", "require_used", "to_yaml",
]  # fmt: skip


def options(section: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, dataclass field) in the order of options.py."""
    for item in fields(section):
        if is_dataclass(item.type):
            yield from options(item.type, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML page with its `_BASE_` pages below it and `overrides` above it.

    overrides: `key=value` words, or `KEY VALUE` pairs as in fvcore. A float may be a fraction (`8/255`).
    Raises UserError for anything that is not an option, has a wrong type or is out of range.
    """
    return _typed([_read_page(Path(path), ()), _read_overrides(overrides)], str(path))


def loads(
    text: str, overrides: Sequence[str] = (), source: str = "configuration", page: str | Path | None = None
) -> Config:
    """As `load`, from YAML text, such as the configuration that a checkpoint holds; a `page` lies over it."""
    above = [_read_page(Path(page), ())] if page else []
    below = OmegaConf.create(text)
    eps = OmegaConf.select(below, "method.adversary.eps")
    if eps is not None:  # checkpoints from before there were other threats than Linf
        del below.method.adversary["eps"]
        below.method.adversary.threats = [f"linf-{eps}"]
    if OmegaConf.select(below, "method.adversary.steps") == 0:  # and from before 0 was refused
        below.method.adversary.steps = -1
    return _typed([below, *above, _read_overrides(overrides)], source)


def to_yaml(cfg: Config) -> str:
    """The resolved configuration, every option, as YAML that `loads` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def config_sha(cfg: Config, ignore: Sequence[str] = ()) -> str:
    """First 16 hex digits of the SHA-256 of the resolved configuration, without the keys in `ignore`."""
    lines = "".join(f"{key}={get(cfg, key)}\n" for key, _ in options() if key not in ignore)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def get(cfg: Any, key: str) -> Any:
    """The value of a dotted key of a configuration, or of one of its sections."""
    value: Any = cfg
    for part in key.split("."):
        value = getattr(value, part)
    return value


def differences(a: Config, b: Config) -> list[str]:
    """`optim.lr=0.1 (0.2)` for each option that differs: b's value, then a's."""
    return [f"{key}={get(b, key)} ({get(a, key)})" for key, _ in options() if get(a, key) != get(b, key)]


def help_text() -> str:
    """A line an option: key, default, meaning."""
    rows = []
    default = OmegaConf.structured(Config)
    for key, item in options():
        value = OmegaConf.select(default, key)
        if isinstance(value, ListConfig):
            text = "[" + ",".join(v if isinstance(v, str) else f"{v:g}" for v in value) + "]"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        choices = item.metadata["choices"]
        help = item.metadata["help"] + (f" ({' | '.join(c or 'empty' for c in choices)})" if choices else "")
        rows.append(f"  {key + '=' + text:<44} {help}")
    return "options (key=value):\n" + "\n".join(rows)


def _read_page(path: Path, below: tuple[Path, ...]) -> DictConfig:
    if not path.is_file():
        raise UserError(f"no configuration file {path}" + (f" (a _BASE_ of {below[-1]})" if below else ""))
    if path.resolve() in below:
        raise UserError(f"{path}: _BASE_ leads back to the page itself")
    try:
        page = OmegaConf.load(path)
        bases = page.pop("_BASE_", []) if isinstance(page, DictConfig) else []
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {_yaml_reason(error)}") from None
    if not isinstance(page, DictConfig):
        raise UserError(f"{path}: a configuration is a mapping of keys to values")
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list | ListConfig) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: _BASE_ is a page or a list of pages, each a path beside this one")
    pages = [_read_page(path.parent / base, (*below, path.resolve())) for base in bases]
    _check_keys(page, str(path))
    return _merge([*pages, page], str(path))


def _yaml_reason(error: Exception) -> str:
    """What a YAML error says, in one line."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or str(error).splitlines()[0]}{where}"


def _read_overrides(words: Sequence[str]) -> DictConfig:
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if "=" not in word:
            if not rest:
                raise UserError(f"override {word!r} has no value: write {word}=VALUE")
            word = f"{word}={rest.pop(0)}"
        pairs.append(word)
    for pair in pairs:
        if any("\ud800" <= character <= "\udfff" for character in pair):
            raise UserError(
                f"option {pair.split('=', 1)[0]!r}: its value is not text in UTF-8, as "
                "options are; give a "
                "file or folder another name, or a link with one"
            )
    seen: set[str] = set()
    for key in (pair.split("=", 1)[0] for pair in pairs):
        if not re.fullmatch(r"[\w.]+", key):
            raise UserError(f"option {key!r}: write section.name=VALUE")
        if key in seen:
            raise UserError(f"option {key!r} is given twice on the command line")
        seen.add(key)
    try:
        overrides = OmegaConf.from_dotlist(pairs)
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"command line: {_yaml_reason(error)}") from None
    _check_keys(overrides, "command line")
    return overrides


def _check_keys(page: DictConfig, source: str) -> None:
    """Refuse a key that is no option, naming the nearest one that is."""
    known = [key for key, _ in options()]
    sections = {key.rsplit(".", depth)[0] for key in known for depth in (1, 2) if key.count(".") >= depth}

    def walk(node: DictConfig, prefix: str) -> None:
        for name in map(str, node):
            key = f"{prefix}{name}"
            value = node._get_node(name)
            if key in sections:
                if not isinstance(value, DictConfig):
                    raise UserError(f"{source}: {key!r} is a section; set one of its options, {key}.NAME")
                walk(value, f"{key}.")
            elif key not in known:
                # of a section that is none, as TRAIN, its option says more
                inner = _first_leaf(key, value)
                raise UserError(f"{source}: unknown option {inner!r}{nearest(inner, known)}")

    walk(page, "")


def _first_leaf(key: str, value: Any) -> str:
    """Return the key of the first option in a section that only looks like one, or `key` itself."""
    while key != key.lower() and isinstance(value, DictConfig) and len(value):
        name = str(next(iter(value)))
        key = f"{key}.{name}"
        value = value._get_node(name)
    return key


def _merge(pages: list[Any], source: str) -> Any:
    try:
        return OmegaConf.merge(*pages)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_option_reason(error)}") from None


def _option_reason(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    reason = (str(error).splitlines() or ["?"])[0]
    if "is not a ListConfig" in reason:
        reason = "needs a list, such as [a,b]"
    return (f"{key}: " if key else "") + reason


def _origin(overrides: DictConfig, error: OmegaConfBaseException, source: str) -> str:
    """Where the value that an error is about was written."""
    key = str(getattr(error, "full_key", None) or "").split("[")[0]
    return "command line" if key and OmegaConf.select(overrides, key) is not None else source


def _typed(pages: list[Any], source: str) -> Config:
    merged = _merge(pages, source)
    missing = OmegaConf.missing_keys(merged)
    if missing:
        raise UserError(f"{source}: {sorted(missing)[0]} has no value (???)")
    try:
        for key, item in options():
            if item.type is str and OmegaConf.select(merged, key, default="") is None:
                OmegaConf.update(merged, key, "")  # YAML reads nothing as null
            if item.type in (float, list[float]):
                _read_fractions(merged, key)
        cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), merged))
    except OmegaConfBaseException as error:
        raise UserError(f"{_origin(pages[-1], error, source)}: {_option_reason(error)}") from None
    assert isinstance(cfg, Config)
    _check_ranges(cfg)
    return cfg


def _read_fractions(page: DictConfig, key: str) -> None:
    """Replace `8/255` by its value, alone or in a list."""
    section, _, name = key.rpartition(".")
    node = OmegaConf.select(page, section) if section else page
    if node is None or name not in node or OmegaConf.is_interpolation(node, name):
        return
    value = node[name]
    node[name] = [_fraction(v) for v in value] if isinstance(value, ListConfig) else _fraction(value)


def _fraction(value: Any) -> Any:
    match = re.fullmatch(r"\s*([-+.\deE]+)\s*/\s*([-+.\deE]+)\s*", value) if isinstance(value, str) else None
    if match is None:
        return value
    try:
        return float(match[1]) / float(match[2])
    except (ValueError, ZeroDivisionError):
        return value


def _check_ranges(cfg: Config) -> None:
    for key, item in options():
        value, rule = get(cfg, key), item.metadata
        if rule["choices"] and value not in rule["choices"]:
            choices = ", ".join(c for c in rule["choices"] if c)
            raise UserError(f"{key}={value}: choose one of {choices}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key}={value}: must be a finite number")
            if rule["low"] is not None and not number >= rule["low"]:
                raise UserError(f"{key}={value}: must be at least {rule['low']:g}")
            if rule["above"] is not None and not number > rule["above"]:
                raise UserError(f"{key}={value}: must be greater than {rule['above']:g}")
            if rule["high"] is not None and not number <= rule["high"]:
                raise UserError(f"{key}={value}: must be at most {rule['high']:g}")
    check_together(cfg)

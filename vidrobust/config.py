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

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vidrobust.attacks import parse_threat
from vidrobust.attacks.threat import require_fit
from vidrobust.corruptions import expand
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
    Optim,
    Train,
)

__all__ = [
    "Adversary", "Augment", "Config", "Corruption", "Data", "Eval", "FalseNegatives", "Method", "Model",
    "MotionShapes", "Optim", "Train", "config_sha", "differences", "get", "help_text", "load", "loads", "options",
    "require_used", "to_yaml",
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
    return _typed([OmegaConf.create(text), *above, _read_overrides(overrides)], source)


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
                raise UserError(f"{source}: unknown option {key!r}{nearest(key, known)}")

    walk(page, "")


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
        cfg = OmegaConf.to_object(_merge([OmegaConf.structured(Config), merged], source))
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_option_reason(error)}") from None
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
    _check_together(cfg)


def _check_together(cfg: Config) -> None:
    """What one option cannot say alone."""
    if cfg.data.size > cfg.data.short_side:
        raise UserError(f"data.size={cfg.data.size} is larger than data.short_side={cfg.data.short_side}")
    if len(cfg.augment.scale) != 2 or cfg.augment.scale[0] > cfg.augment.scale[1]:
        raise UserError(f"augment.scale={cfg.augment.scale}: two areas, from and to")
    if len(cfg.augment.jitter) != 4 or cfg.augment.jitter[3] > 0.5:
        raise UserError(f"augment.jitter={cfg.augment.jitter}: four strengths, the last (hue) at most 0.5")
    require_used(cfg.method)
    if cfg.model.hidden == 0 and cfg.method.name in ("byol", "simsiam"):
        raise UserError(f"model.hidden=0: the projector of {cfg.method.name} has a hidden layer; set its width")
    _check_threats(cfg)
    _check_corruptions(cfg)
    if cfg.eval.sensitivity == 1:
        raise UserError("eval.sensitivity=1: distances between clips need two of them; 0 for none")
    if cfg.eval.crops == 2:
        raise UserError("eval.crops=2: 1 (centre) or 3 (along the longer side)")
    if cfg.eval.unit == "clip" and cfg.eval.crops > 1:
        raise UserError(f"eval.crops={cfg.eval.crops}: crops are of eval.unit=video; a clip is its centre")
    if not re.fullmatch(r"[\w.+-]*\w", cfg.eval.name) or cfg.eval.name.startswith("."):
        raise UserError(f"eval.name={cfg.eval.name}: one folder's name, of letters, digits and . _ + -")
    if cfg.eval.branch == "adv" and cfg.method.adversary.name == "none":
        raise UserError("eval.branch=adv: only a model trained with an adversary has an adversarial branch")


# methods without adversarial views, and without negatives to look through
_NO_ADVERSARY = ("supervised", "moco", "byol", "simsiam")
_NO_REMOVAL = {"supervised": "has no negatives", "byol": "has no negatives", "simsiam": "has no negatives",
               "supcon": "has positives by label", "plain": "has no masks", "uel": "has no masks"}  # fmt: skip


def require_used(method: Method) -> None:
    """Raises UserError for an adversary or a removal that the method would not look at."""
    adversary, rule = method.adversary.name, method.false_negatives.rule
    if method.name in _NO_ADVERSARY and adversary != "none":
        raise UserError(f"method.adversary.name={adversary}: {method.name} has no adversarial views; set none")
    if method.name in _NO_REMOVAL and rule != "none":
        raise UserError(f"method.false_negatives.rule={rule}: {method.name} {_NO_REMOVAL[method.name]}; set none")
    if rule == "adaptive_threshold" and method.false_negatives.start < method.false_negatives.threshold:
        raise UserError("method.false_negatives.start: the threshold falls from it to threshold; set one above that")


def _check_threats(cfg: Config) -> None:
    names, clip = cfg.eval.threats, torch.empty(1, 3, cfg.data.frames, cfg.data.size, cfg.data.size, device="meta")
    try:
        threats = [parse_threat(name) for name in names]
        for threat in threats if cfg.eval.unit == "clip" else ():  # source frames are as many as the video has
            require_fit(threat, clip)
    except ValueError as error:
        raise UserError(f"eval.threats: {error}") from None
    if len(set(threats)) != len(threats):
        raise UserError(f"eval.threats=[{','.join(names)}]: list different budgets")


def _check_corruptions(cfg: Config) -> None:
    c = cfg.eval.corruption
    for key, words in (("eval.corruption.names", c.names), ("augment.corruptions", cfg.augment.corruptions)):
        try:
            expand(words)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
    for key in ("eval.corruption.severities", "augment.corruption_severities"):
        severities = get(cfg, key)
        if len(set(severities)) != len(severities) or not severities:
            raise UserError(f"{key}={severities}: list different ones, at least one")
    names = c.names
    if c.baseline and not names:
        raise UserError("eval.corruption.baseline: nothing to compare with it; set eval.corruption.names")
    if not names and not cfg.eval.threats:
        raise UserError("eval.threats and eval.corruption.names are both empty: nothing to measure")

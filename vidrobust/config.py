"""Every option there is, as typed dataclasses, and `load(path, overrides)`.

The dataclasses are the only list of options: `--help` prints it, a YAML page or `key=value` fills it,
and anything else (an unknown or duplicate key, a wrong type, a value out of range) is refused by name.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vidrobust.errors import UserError, nearest


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with its help line and what its values may be: low <= value <= high, value > above, or a choice."""
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class MotionShapes:
    seed: int = option(0, "seed of the drawing", low=0)
    train_per_class: int = option(40, "training videos of each of the eight classes", low=1)
    test_per_class: int = option(16, "test videos of each class, in each of the two test lists", low=1)
    frames: int = option(40, "frames of a video", low=8)
    size: int = option(48, "height and width of a video, pixels", low=24)
    textures: int = option(14, "size of the texture pool; the first eight belong to the classes", low=9)
    texture_correlation: float = option(
        0.7, "share of training clips whose foreground texture is their class's", low=0, high=1
    )
    shape_correlation: float = option(0.8, "share of training clips whose shape is their class's", low=0, high=1)
    background_contrast: float = option(0.3, "contrast of the background's texture; 1: as the shape's", low=0, high=1)


@dataclass
class Data:
    name: str = option("ucf101", "format of the data set: ucf101, list, folder, motionshapes")
    root: str = option("datasets/ucf101", "folder that holds the data set; ${oc.env:VAR} works")
    fold: int = option(1, "which official split: 1, 2, 3 (UCF101); 2 is texture-swapped (motionshapes)", low=1)
    frames: int = option(16, "frames of a clip, T; 1 for an image", low=1)
    stride: int = option(2, "source frames from one sampled frame to the next", low=1)
    policy: str = option(
        "repeat_last", "what a video shorter than a clip does", choices=("repeat_last", "loop", "error")
    )
    short_side: int = option(128, "short side after decoding, pixels", low=8)
    size: int = option(112, "height and width of the crop the model sees, pixels", low=8)
    backend: str = option("auto", "decoder; auto is decord, then PyAV", choices=("auto", "decord", "pyav"))
    workers: int = option(2, "loader processes of each rank; 0 decodes in the training process", low=0)
    motionshapes: MotionShapes = field(default_factory=MotionShapes)


@dataclass
class Augment:
    scale: list[float] = option([0.2, 1.0], "area of the random resized crop: from, to", above=0, high=1)
    flip: float = option(0.5, "probability of a horizontal flip", low=0, high=1)
    jitter: list[float] = option(
        [0.4, 0.4, 0.4, 0.1], "strength of brightness, contrast, saturation, hue jitter", low=0
    )
    jitter_prob: float = option(0.8, "probability of jitter", low=0, high=1)
    gray: float = option(0.2, "probability of grayscale", low=0, high=1)
    blur: float = option(0.5, "probability of Gaussian blur", low=0, high=1)


@dataclass
class Model:
    backbone: str = option("r2plus1d_18", "trunk: r2plus1d_18, r2plus1d_10, slowfast_r50, resnet18")
    width: int = option(0, "channels of the first stage, where the trunk has the option; 0: its default", low=0)
    stem: str = option("", "resnet18: imagenet or cifar; empty: its default", choices=("", "imagenet", "cifar"))
    weights: str = option("", "trunk weights to start from: a backbone.pt or a checkpoint; empty: random")
    hidden: int = option(512, "width of the projector's hidden layer", low=1)
    dim: int = option(128, "width of the embedding the contrastive loss sees", low=1)


@dataclass
class Adversary:
    name: str = option("none", "how adversarial views are made", choices=("none", "clae"))
    eps: float = option(4 / 255, "Linf budget of the adversarial view, [0,1] pixels", low=0, high=1)
    alpha: float = option(1.0, "weight of the adversarial loss", low=0)
    momentum: float = option(0.01, "momentum of the adversarial branch's norm statistics", above=0, high=1)


@dataclass
class Method:
    name: str = option("simclr", "what is learned: simclr, supervised")
    temperature: float = option(0.5, "temperature of the contrastive loss", above=0)
    adversary: Adversary = field(default_factory=Adversary)


@dataclass
class Optim:
    name: str = option("sgd", "optimizer: sgd, adamw, lars")
    lr: float = option(0.1, "peak learning rate for the whole (global) batch; never rescaled", above=0)
    momentum: float = option(0.9, "momentum (sgd, lars)", low=0, high=1)
    weight_decay: float = option(1e-4, "weight decay; never on norms and biases", low=0)
    schedule: str = option("cosine", "learning rate over the run: cosine, constant")
    warmup: float = option(0.1, "share of the run in which the rate climbs linearly", low=0, high=1)
    clip_norm: float = option(0.0, "largest gradient norm; 0: no clipping", low=0)


@dataclass
class Train:
    batch_size: int = option(64, "videos in a batch over all ranks", low=1)
    epochs: int = option(100, "passes over the training list", low=1)
    max_steps: int = option(0, "stop after so many steps; 0: epochs decide", low=0)
    amp: str = option("auto", "bf16 autocast; auto: on GPUs that have it", choices=("auto", "bf16", "fp32"))
    log_every: int = option(10, "steps between log lines", low=1)
    checkpoint_every: int = option(200, "steps between checkpoints", low=1)
    keep: int = option(2, "how many step_*.pt are kept besides last.pt", low=1)


@dataclass
class Eval:
    enabled: bool = option(True, "measure at the end of training")
    name: str = option("pgd", "folder of the results, under the run's eval/")
    batch_size: int = option(32, "clips in an evaluation batch", low=1)
    clips: int = option(3, "clips of a video for kNN, probe and features, spread over its length", low=1)
    knn_k: int = option(20, "neighbours that vote", low=1)
    knn_temperature: float = option(0.1, "temperature of the votes", above=0)
    probe_l2: float = option(1e-3, "L2 penalty of the linear probe on standardised features", low=0)
    eps: list[float] = option(
        [0, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255], "Linf budgets of PGD, [0,1] pixels", low=0, high=1
    )
    steps: int = option(20, "PGD steps", low=1)
    restarts: int = option(1, "PGD restarts; the best of a sample counts", low=1)
    branch: str = option("clean", "norm branch that is evaluated", choices=("clean", "adv"))
    limit: int = option(0, "attack only so many test videos, evenly over the list; 0: all", low=0)
    pictures: int = option(2, "clips drawn in the report, beside their adversarial twins", low=0)


@dataclass
class Config:
    seed: int = option(0, "seed of weights, sampling, augmentation and attacks", low=0, high=2**63 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    deterministic: bool = option(False, "deterministic kernels: slower on a GPU; CPU runs are exact without it")
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    method: Method = field(default_factory=Method)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)


def options(section: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, dataclass field) in the order of this file."""
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


def loads(text: str, overrides: Sequence[str] = (), source: str = "configuration") -> Config:
    """As `load`, from YAML text, such as the configuration that a checkpoint holds."""
    return _typed([OmegaConf.create(text), _read_overrides(overrides)], source)


def to_yaml(cfg: Config) -> str:
    """The resolved configuration, every option, as YAML that `loads` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def config_sha(cfg: Config, ignore: Sequence[str] = ()) -> str:
    """First 16 hex digits of the SHA-256 of the resolved configuration, without the keys in `ignore`."""
    lines = "".join(f"{key}={get(cfg, key)}\n" for key, _ in options() if key not in ignore)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def get(cfg: Config, key: str) -> Any:
    """The value of a dotted key."""
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
            text = "[" + ",".join(f"{v:g}" for v in value) + "]"
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
    return (f"{key}: " if key else "") + (str(error).splitlines() or ["?"])[0]


def _typed(pages: list[Any], source: str) -> Config:
    merged = _merge(pages, source)
    missing = OmegaConf.missing_keys(merged)
    if missing:
        raise UserError(f"{source}: {sorted(missing)[0]} has no value (???)")
    try:
        for key, item in options():
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
    if not cfg.eval.eps or sorted(set(cfg.eval.eps)) != cfg.eval.eps:
        raise UserError(f"eval.eps={cfg.eval.eps}: list different budgets from small to large")
    if cfg.method.name == "supervised" and cfg.method.adversary.name != "none":
        raise UserError("method.adversary.name=clae needs a contrastive method; use none with supervised")
    if cfg.eval.branch == "adv" and cfg.method.adversary.name == "none":
        raise UserError("eval.branch=adv: only a model trained with an adversary has an adversarial branch")

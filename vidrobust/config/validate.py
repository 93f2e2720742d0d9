"""Refuse options that do not go together."""

# Threats and corruptions are imported where they are checked: they import torch, which takes
# seconds, and reading a file does not need it.

import re

from vidrobust.config.options import Config
from vidrobust.utils.errors import UserError


def check_together(cfg: Config) -> None:
    """Check options that depend on each other; `methods.registry` checks those of methods.

    Raises:
        UserError: for options that cannot be combined.
    """
    _check_data(cfg)
    _check_training(cfg)
    _check_threats(cfg)
    _check_corruptions(cfg)
    _check_evaluation(cfg)


def _check_data(cfg: Config) -> None:
    data, augment = cfg.data, cfg.augment
    if data.resize and (len(data.resize) != 2 or min(data.resize) < data.size):
        raise UserError(
            f"data.resize={data.resize}: give height and width, each at least data.size={data.size}"
        )
    if data.size > data.short_side and not data.resize:
        raise UserError(f"data.size={data.size}: must be at most data.short_side={data.short_side}")
    if len(augment.scale) != 2 or augment.scale[0] > augment.scale[1]:
        raise UserError(f"augment.scale={augment.scale}: must be two areas, from and to")
    for option in ("shift", "original_shift"):
        pixels = getattr(augment, option)
        if pixels >= data.size:
            raise UserError(f"augment.{option}={pixels}: must be less than data.size={data.size}")
    if len(augment.jitter) != 4 or augment.jitter[3] > 0.5:
        raise UserError(
            f"augment.jitter={augment.jitter}: must be four strengths, the last (hue) at most 0.5"
        )
    if augment.motion and data.frames == 1:
        raise UserError(
            f"augment.motion={augment.motion:g}: clips of one frame have no motion; set 0"
        )


def _check_training(cfg: Config) -> None:
    method = cfg.method
    if method.clusters_from and not (method.clusters and cfg.model.weights):
        raise UserError(
            f"method.clusters_from={method.clusters_from}: names a norm branch of trained weights; "
            "set method.clusters and model.weights"
        )
    if cfg.optim.head_lr and not method.head_first:
        raise UserError(
            f"optim.head_lr={cfg.optim.head_lr:g}: the head is never trained alone; set "
            "method.head_first"
        )
    betas = cfg.optim.betas
    if len(betas) != 2 or max(betas) >= 1:
        raise UserError(f"optim.betas={betas}: must be two decays, each less than 1")
    if cfg.optim.final_lr > cfg.optim.lr:
        raise UserError(
            f"optim.final_lr={cfg.optim.final_lr:g}: must be at most optim.lr={cfg.optim.lr:g}"
        )
    if -1 < cfg.model.drop_path < 0:
        raise UserError(f"model.drop_path={cfg.model.drop_path:g}: must be -1, or 0 to 0.99")


def _check_evaluation(cfg: Config) -> None:
    e = cfg.eval
    if e.shift.root and not e.shift.name:
        raise UserError(
            f"eval.shift.root={e.shift.root}: set its format, eval.shift.name=class_folder, ..."
        )
    if e.open_set.root and not e.open_set.name:
        raise UserError(
            f"eval.open_set.root={e.open_set.root}: set its format,"
            " eval.open_set.name=class_folder, ..."
        )
    if e.sensitivity == 1:
        raise UserError("eval.sensitivity=1: distances between clips need two of them; 0 for none")
    if e.crops == 2:
        raise UserError("eval.crops=2: must be 1 (centre) or 3 (along the longer side)")
    # it becomes a folder below eval/
    if not re.fullmatch(r"[\w.+-]*\w", e.name) or e.name.startswith("."):
        raise UserError(
            f"eval.name={e.name}: must be the name of one folder, of letters, digits and . _ + -"
        )


def _check_threats(cfg: Config) -> None:
    from vidrobust.attacks import parse_threat

    names = cfg.method.adversary.threats
    _check_names("method.adversary.threats", names, cfg, fit=True)
    for name in names:
        if not parse_threat(name).eps:
            raise UserError(
                f"method.adversary.threats: {name} changes nothing; method.adversary.name=none"
                " trains without an adversary"
            )
    _check_names("optim.auto_threats", cfg.optim.auto_threats, cfg, fit=True)
    _check_names("eval.threats", cfg.eval.threats, cfg, fit=cfg.eval.unit == "clip")


def _check_names(key: str, names: list[str], cfg: Config, *, fit: bool) -> None:
    """Check names of threats.

    Args:
        key: the option that lists them.
        names: of threats.
        cfg: has the size of clips.
        fit: they must fit the clips that the model receives. Source frames, as many as a video has,
            are not known yet.
    """
    import torch

    from vidrobust.attacks import parse_threat
    from vidrobust.attacks.threat import require_fit

    clip = torch.empty(1, 3, cfg.data.frames, cfg.data.size, cfg.data.size, device="meta")
    try:
        threats = [parse_threat(name) for name in names]
        for threat in threats if fit else ():
            require_fit(threat, clip)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    if len(set(threats)) != len(threats):
        raise UserError(f"{key}=[{','.join(names)}]: must list each budget once")


def _check_corruptions(cfg: Config) -> None:
    from vidrobust.corruptions import expand

    c = cfg.eval.corruption
    for key, words in (
        ("eval.corruption.names", c.names),
        ("augment.corruptions", cfg.augment.corruptions),
    ):
        try:
            expand(words)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
    for key, severities in (
        ("eval.corruption.severities", c.severities),
        ("augment.corruption_severities", cfg.augment.corruption_severities),
    ):
        if len(set(severities)) != len(severities) or not severities:
            raise UserError(f"{key}={severities}: must list at least one, each once")
    names = c.names
    if c.baseline and not names:
        raise UserError(
            "eval.corruption.baseline: nothing to compare with it; set eval.corruption.names"
        )

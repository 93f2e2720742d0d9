"""Refuse options that do not go together."""

# Threats and corruptions are imported where they are checked: reading a file takes no torch, which
# takes seconds to import.

import re

from vidrobust.config.options import Config
from vidrobust.utils.errors import UserError


def check_together(cfg: Config) -> None:
    """Raises UserError for options that do not go together."""
    if cfg.data.size > cfg.data.short_side:
        raise UserError(
            f"data.size={cfg.data.size} is larger than data.short_side={cfg.data.short_side}"
        )
    if len(cfg.augment.scale) != 2 or cfg.augment.scale[0] > cfg.augment.scale[1]:
        raise UserError(f"augment.scale={cfg.augment.scale}: two areas, from and to")
    for option in ("shift", "original_shift"):
        pixels = getattr(cfg.augment, option)
        if pixels >= cfg.data.size:
            raise UserError(
                f"augment.{option}={pixels}: must be less than data.size={cfg.data.size}"
            )
    if len(cfg.augment.jitter) != 4 or cfg.augment.jitter[3] > 0.5:
        raise UserError(
            f"augment.jitter={cfg.augment.jitter}: four strengths, the last (hue) at most 0.5"
        )
    if cfg.augment.motion and cfg.data.frames == 1:
        raise UserError(
            f"augment.motion={cfg.augment.motion:g}: clips of one frame have no motion; set 0"
        )
    removal = cfg.method.false_negatives
    if removal.rule == "adaptive_threshold" and removal.start < removal.threshold:
        raise UserError(
            "method.false_negatives.start: the threshold falls from it to threshold; set one above"
            " that"
        )
    if cfg.model.hidden == 0 and cfg.method.name in ("byol", "simsiam"):
        raise UserError(
            f"model.hidden=0: the projector of {cfg.method.name} has a hidden layer; set its width"
        )
    if cfg.model.head_norm and not cfg.model.hidden:
        raise UserError(
            "model.head_norm: a projector without a hidden layer (model.hidden=0) has no place for"
            " a norm"
        )
    normed = cfg.model.head_norm or cfg.method.name in ("byol", "simsiam")
    for option, value in (
        ("head_layers", cfg.model.head_layers),
        ("head_norm_out", cfg.model.head_norm_out),
    ):
        if value and not normed:
            raise UserError(f"model.{option}: of projectors with norms; set model.head_norm=true")
    if cfg.model.head_layers == 1:
        raise UserError("model.head_layers=1: a projector with norms has two layers at least")
    _check_threats(cfg)
    _check_corruptions(cfg)
    if cfg.eval.shift.root and not cfg.eval.shift.name:
        raise UserError(
            f"eval.shift.root={cfg.eval.shift.root}: set its format,"
            " eval.shift.name=class_folder, ..."
        )
    if cfg.eval.sensitivity == 1:
        raise UserError("eval.sensitivity=1: distances between clips need two of them; 0 for none")
    if cfg.eval.crops == 2:
        raise UserError("eval.crops=2: 1 (centre) or 3 (along the longer side)")
    if cfg.eval.unit == "clip" and cfg.eval.crops > 1:
        raise UserError(
            f"eval.crops={cfg.eval.crops}: crops are of eval.unit=video; a clip is its centre"
        )
    if not re.fullmatch(r"[\w.+-]*\w", cfg.eval.name) or cfg.eval.name.startswith("."):
        raise UserError(
            f"eval.name={cfg.eval.name}: one folder's name, of letters, digits and . _ + -"
        )
    if cfg.eval.branch != "clean" and cfg.method.adversary.name == "none":
        raise UserError(
            f"eval.branch={cfg.eval.branch}: only a model trained with an adversary has another"
            " branch"
        )
    keyed = cfg.method.adversary.name == "dynacl" and cfg.method.adversary.key_encoder
    if cfg.method.clusters_from and not (cfg.method.clusters and cfg.model.weights):
        raise UserError(
            f"method.clusters_from={cfg.method.clusters_from}: clusters are of a trained trunk's "
            "branch; set method.clusters and model.weights"
        )
    if cfg.optim.fix_predictor and cfg.method.name not in ("byol", "simsiam"):
        raise UserError(
            f"optim.fix_predictor: {cfg.method.name} has no predictor; of byol and simsiam"
        )
    if cfg.optim.head_lr and not cfg.method.head_first:
        raise UserError(
            f"optim.head_lr={cfg.optim.head_lr:g}: no head is trained alone; set method.head_first"
        )
    if cfg.eval.average and not (cfg.train.average or keyed):
        raise UserError("eval.average: only a run with train.average keeps an average; set both")
    if cfg.train.average and keyed:
        raise UserError(
            f"train.average={cfg.train.average:g}: dynacl has a momentum encoder, which "
            "eval.average measures; set 0, or method.adversary.key_encoder=false"
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
    _check_names("eval.threats", cfg.eval.threats, cfg, fit=cfg.eval.unit == "clip")


def _check_names(key: str, names: list[str], cfg: Config, *, fit: bool) -> None:
    """fit: to the clips that the model sees; source frames are as many as a video has."""
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
        raise UserError(f"{key}=[{','.join(names)}]: list different budgets")


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
            raise UserError(f"{key}={severities}: list different ones, at least one")
    names = c.names
    if c.baseline and not names:
        raise UserError(
            "eval.corruption.baseline: nothing to compare with it; set eval.corruption.names"
        )

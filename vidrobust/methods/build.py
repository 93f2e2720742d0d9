"""The configured method. The only place that unpacks `method.*`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.engine import distributed
from vidrobust.errors import UserError, lookup
from vidrobust.methods.adversarial import Pairing, acl, clae, clae_published, dynacl, rocl
from vidrobust.methods.adversarial_training import AdversarialTraining, Free, Trades
from vidrobust.methods.adversary import Adversary
from vidrobust.methods.budget import Budget
from vidrobust.methods.byol import BYOL
from vidrobust.methods.distill import Distill
from vidrobust.methods.false_negatives import RULES
from vidrobust.methods.instdisc import InstDisc, plain, uel
from vidrobust.methods.method import Method
from vidrobust.methods.moco import MoCo
from vidrobust.methods.momentum import MomentumEncoder
from vidrobust.methods.removal import Removal
from vidrobust.methods.simclr import SimCLR
from vidrobust.methods.supcon import SupCon
from vidrobust.methods.supervised import Supervised
from vidrobust.models import Model, build_model, normed_mlp


@dataclass(frozen=True)
class Recipe:
    """How an adversary's own attack is made.

    step: a share of eps; None: 2.5 / steps. branch: adversarial views have a norm branch of their own.
    """

    threat: str = "linf-8/255"
    steps: int = 1
    step: float | None = None
    random_start: bool = False
    train_mode: bool = False
    branch: bool = True


RECIPES = {
    "clae": Recipe("linf-4/255", train_mode=True),
    "rocl": Recipe(steps=7, step=0.007 / 0.0314, random_start=True, branch=False),
    "acl": Recipe(steps=5, step=0.25, random_start=True),
    "dynacl": Recipe(steps=5, step=0.25, random_start=True),
    "pgd": Recipe(steps=10, step=0.25, random_start=True, branch=False),
    "trades": Recipe(steps=10, step=0.25, random_start=True, branch=False),
    "fast": Recipe(step=1.25, random_start=True, train_mode=True, branch=False),
    "free": Recipe(random_start=True, branch=False),
    "taro": Recipe(steps=10, step=0.25, random_start=True, branch=False),
    "deacl": Recipe(steps=5, step=0.25, random_start=True, branch=False),
}


def _branches(wanted: config.Adversary) -> tuple[str, ...]:
    """Names of the adversarial norm branches."""
    if wanted.name == "none":
        return ()
    if wanted.combine == "branches":
        return tuple(f"adv{number or ''}" for number in (0, *range(2, len(wanted.threats) + 1)))
    return ("adv",) if RECIPES[wanted.name].branch else ()


def _model(cfg: config.Config, head: str, classes: int = 0) -> Model:
    """With the norm branches that the adversary needs."""
    wanted = cfg.method.adversary
    return build_model(cfg.model, head, classes, branches=_branches(wanted), momentum=wanted.momentum)


def _adversary(cfg: config.Config) -> Adversary | None:
    wanted = cfg.method.adversary
    if wanted.name == "none":
        return None
    recipe = RECIPES[wanted.name]
    threats = [parse_threat(name) for name in wanted.threats or [recipe.threat]]
    return Adversary(
        threats, steps=wanted.steps or recipe.steps, step=wanted.step or recipe.step,
        random_start=recipe.random_start if not wanted.start else wanted.start == "random",
        train_mode=recipe.train_mode, combine=wanted.combine, branches=_branches(wanted) or ("clean",),
        budget=Budget(wanted.schedule, warmup=wanted.warmup, first=wanted.first),
    )  # fmt: skip


def _pairing(wanted: config.Adversary) -> Pairing:
    if wanted.faithful:
        eps = parse_threat(wanted.threats[0]).eps if wanted.threats else 0.03
        return partial(clae_published, alpha=wanted.alpha, eps=eps)
    pairings: dict[str, Pairing] = {
        "clae": partial(clae, alpha=wanted.alpha), "rocl": partial(rocl, regularizer=wanted.regularizer),
        "acl": partial(acl, pairing=wanted.pairing), "dynacl": dynacl,
    }  # fmt: skip
    return pairings.get(wanted.name, clae)


def _removal(cfg: config.Config, classes: int, negatives: int) -> Removal | None:
    """negatives: how many an anchor has at most."""
    wanted = cfg.method.false_negatives
    if wanted.rule == "none":
        return None
    find = lookup(RULES, wanted.rule, "method.false_negatives.rule")
    options = RULE_OPTIONS[wanted.rule]
    if "k" in options and wanted.k >= negatives:
        raise UserError(f"method.false_negatives.k={wanted.k}: an anchor has {negatives} negatives; choose fewer")
    k = (wanted.clusters or classes) if wanted.rule == "cluster" else 0
    if wanted.rule == "cluster" and k < 2:
        raise UserError(f"method.false_negatives.clusters={wanted.clusters}: the data set has {classes} classes, and "
                        "one cluster takes all negatives for false; say how many, two at least")  # fmt: skip
    return Removal(
        partial(find, **{argument: getattr(wanted, option) for option, argument in options.items()}),
        wanted.action, siblings=wanted.siblings and wanted.rule != "sibling",
        uses_labels=wanted.rule == "oracle", needs_groups=wanted.rule == "sibling",
        whole_batch=wanted.rule == "mean_std" or (wanted.rule == "quantile" and wanted.over == "batch"),
        k=k, dim=cfg.model.dim, classes=classes,
    )  # fmt: skip


def _momentum(cfg: config.Config, model: Model) -> MomentumEncoder:
    return MomentumEncoder(model, cfg.method.momentum, climbs=cfg.method.momentum_climbs)


def _simclr(cfg: config.Config, classes: int, kind: type[SimCLR] = SimCLR) -> Method:
    model, wanted = _model(cfg, "projector"), cfg.method.false_negatives
    detector = _momentum(cfg, model) if wanted.rule != "none" and wanted.encoder == "momentum" else None
    removal = _removal(cfg, classes, cfg.method.clips_per_video * (cfg.train.batch_size - 1))
    return kind(model, cfg.method.temperature, _adversary(cfg), removal, pairing=_pairing(cfg.method.adversary),
                clips=cfg.method.clips_per_video, chunk=cfg.method.chunk, detector=detector)  # fmt: skip


def _supcon(cfg: config.Config, classes: int) -> Method:
    return _simclr(cfg, classes, SupCon)


def _moco(cfg: config.Config, classes: int) -> Method:
    keys = cfg.train.batch_size * (cfg.method.clips_per_video - 1)
    if cfg.method.queue < keys:
        raise UserError(f"method.queue={cfg.method.queue} is less than the {keys} keys of a batch; raise it")
    model, removal = _model(cfg, "projector"), _removal(cfg, classes, cfg.method.queue)
    return MoCo(
        model, cfg.method.temperature, _momentum(cfg, model), cfg.method.queue, cfg.model.dim, removal,
        clips=cfg.method.clips_per_video, shuffle=cfg.method.norm == "shuffle",
        detect_on_keys=cfg.method.false_negatives.encoder == "momentum", adversary=_adversary(cfg),
        alpha=cfg.method.adversary.alpha,
    )  # fmt: skip


def _byol(cfg: config.Config, classes: int) -> Method:
    model = _model(cfg, "normed_projector")
    return BYOL(model, _predictor(cfg), _momentum(cfg, model), clips=cfg.method.clips_per_video,
                adversary=_adversary(cfg), weight=cfg.method.adversary.alpha)  # fmt: skip


def _simsiam(cfg: config.Config, classes: int) -> Method:
    model = _model(cfg, "simsiam_projector")
    return BYOL(model, _predictor(cfg), clips=cfg.method.clips_per_video, adversary=_adversary(cfg),
                weight=cfg.method.adversary.alpha)  # fmt: skip


def _predictor(cfg: config.Config) -> nn.Module:
    return normed_mlp(cfg.model.dim, cfg.method.predictor, cfg.model.dim)


def _instdisc(cfg: config.Config, classes: int) -> Method:
    if cfg.method.clips_per_video != 2:
        raise UserError(f"method.clips_per_video={cfg.method.clips_per_video}: {cfg.method.name} compares two views")
    return InstDisc(_model(cfg, "projector"), cfg.method.temperature, {"plain": plain, "uel": uel}[cfg.method.name],
                    _adversary(cfg), _pairing(cfg.method.adversary))  # fmt: skip


def _supervised(cfg: config.Config, classes: int) -> Method:
    model, adversary, wanted = _model(cfg, "linear", classes), _adversary(cfg), cfg.method.adversary
    if adversary is None:
        return Supervised(model)
    if wanted.name == "trades":
        return Trades(model, adversary, wanted.beta)
    return Free(model, adversary, wanted.replays) if wanted.name == "free" else AdversarialTraining(model, adversary)


def _distill(cfg: config.Config, classes: int) -> Method:
    return Distill(_model(cfg, "none"), _adversary(cfg), cfg.method.adversary.gamma)


METHODS: dict[str, Callable[[config.Config, int], Method]] = {
    "simclr": _simclr, "moco": _moco, "byol": _byol, "simsiam": _simsiam, "supcon": _supcon, "plain": _instdisc,
    "uel": _instdisc, "supervised": _supervised, "distill": _distill,
}  # fmt: skip

# those that learn from labels
SUPERVISED = ("supervised", "supcon")

# method -> the options of `method` that it takes; the names of adversary and rule, and norm, are all methods'
USES = {
    "simclr": {"temperature", "clips_per_video", "chunk"},
    "moco": {"temperature", "clips_per_video", "queue", "momentum", "momentum_climbs"},
    "byol": {"clips_per_video", "predictor", "momentum", "momentum_climbs"},
    "simsiam": {"clips_per_video", "predictor"},
    "supcon": {"temperature", "clips_per_video", "chunk"},
    "plain": {"temperature"}, "uel": {"temperature"}, "supervised": set(),
    "distill": {"teacher"},
}  # fmt: skip
# adversary -> options of `method.adversary` of its own; those of the attack are all adversaries'
ADVERSARY_OPTIONS: dict[str, set[str]] = {
    "clae": {"alpha", "faithful"}, "rocl": {"regularizer"}, "acl": {"pairing"}, "dynacl": set(), "pgd": set(),
    "trades": {"beta"}, "fast": set(), "free": {"replays"}, "deacl": {"gamma"}, "taro": {"alpha"},
}  # fmt: skip
_ATTACK = {"threats", "combine", "steps", "step", "start", "schedule", "momentum"}
# rule -> option of `method.false_negatives` -> the argument that it is
RULE_OPTIONS: dict[str, dict[str, str]] = {
    "fixed": {"threshold": "threshold"}, "topk": {"k": "k"}, "topk_threshold": {"k": "k", "threshold": "threshold"},
    "quantile": {"rate": "rate", "over": "over"},
    "adaptive_threshold": {"start": "start", "threshold": "end", "warmup": "warmup"},
    "adaptive_rate": {"rate": "rate", "warmup": "warmup"}, "mean_std": {"sigmas": "k"},
    "cluster": {}, "oracle": {}, "sibling": {},
}  # fmt: skip


def without_effect(method: config.Method) -> list[str]:
    """Keys of options that differ from their defaults, and that the method does not look at as it is configured."""
    rule, default = method.false_negatives.rule, config.Method()
    used = {"name", "norm", "adversary.name", "false_negatives.rule"} | USES[method.name]
    if method.adversary.name != "none":
        used |= {f"adversary.{name}" for name in _ATTACK | ADVERSARY_OPTIONS[method.adversary.name]}
        used |= {"adversary.warmup"} if method.adversary.schedule == "linear" else set()
        used |= {"adversary.first"} if method.adversary.schedule == "curriculum" else set()
    if rule != "none":
        used |= {f"false_negatives.{name}" for name in ("action", "siblings", "encoder", *RULE_OPTIONS[rule])}
        used |= {"false_negatives.clusters"} if rule == "cluster" else set()
        used |= {"momentum", "momentum_climbs"} if method.false_negatives.encoder == "momentum" else set()
    return [f"method.{key}" for key, _ in config.options(config.Method)
            if key not in used and config.get(method, key) != config.get(default, key)]  # fmt: skip


def build_method(cfg: config.Config, classes: int) -> Method:
    """The configured method around a model with fresh weights; classes: K of the data set.

    Raises UserError for an unknown name, and for options that the method has no use for.
    """
    config.require_used(cfg.method)
    method = lookup(METHODS, cfg.method.name, "method.name")(cfg, classes)
    together = cfg.method.norm == "sync" and distributed.world() > 1
    return nn.SyncBatchNorm.convert_sync_batchnorm(method) if together else method

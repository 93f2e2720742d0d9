"""METHODS: build the configured method."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from vidrobust import config
from vidrobust.losses.info_nce import Hardness
from vidrobust.methods.adversarial.advcl import AdvCL
from vidrobust.methods.adversarial.adversarial_training import AdversarialTraining, Free, Trades
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.presets import (
    RECIPES,
    branches_of,
    build_adversary,
    momentum_of,
    pairing_of,
    require_adversary,
    shows_original,
)
from vidrobust.methods.adversarial.taro import TARO
from vidrobust.methods.base import Method
from vidrobust.methods.byol import BYOL
from vidrobust.methods.distill import Distill
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.methods.false_negatives.rules import RULES
from vidrobust.methods.instance_discrimination import InstDisc, plain, uel
from vidrobust.methods.moco import MoCo
from vidrobust.methods.simclr import SimCLR, SupCon
from vidrobust.methods.supervised import Supervised
from vidrobust.methods.uses import RULE_OPTIONS
from vidrobust.models import Model, build_model, normed_mlp
from vidrobust.models.momentum import MomentumEncoder
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.views import NEGATIVES, NegativeSpec


def _adversary(cfg: config.Config) -> Adversary | None:
    return build_adversary(cfg.method.adversary)


def _model(cfg: config.Config, head: str, classes: int = 0) -> Model:
    """With the norm branches that the adversary needs."""
    wanted = cfg.method.adversary
    return build_model(cfg.model, head, classes, branches=branches_of(wanted), momentum=momentum_of(wanted),
                       branched_head=wanted.name == "none" or RECIPES[wanted.name].branched_head,
                       selector=wanted.selector)  # fmt: skip


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
    if cfg.method.adversary.name == "advcl":
        return _advcl(cfg, classes)
    model, wanted, a = _model(cfg, "projector"), cfg.method.false_negatives, cfg.method.adversary
    detector = _momentum(cfg, model) if wanted.rule != "none" and wanted.encoder == "momentum" else None
    removal = _removal(cfg, classes, cfg.method.clips_per_video * (cfg.train.batch_size - 1))
    pairing = pairing_of(a, cfg.method.temperature)
    return kind(model, cfg.method.temperature, _adversary(cfg), removal, pairing=pairing,
                clips=cfg.method.clips_per_video, chunk=cfg.method.chunk, detector=detector,
                original=shows_original(a), joint=cfg.method.joint_views,
                slow=_momentum(cfg, model) if a.name == "dynacl" and a.key_encoder else None,
                scale=cfg.method.loss_scale,
                **_a_info_nce(cfg.method))  # fmt: skip


def _advcl(cfg: config.Config, classes: int) -> Method:
    wanted, model = cfg.method.adversary, _model(cfg, "projector")
    if cfg.method.clips_per_video != 2 or cfg.method.false_negatives.encoder == "momentum":
        raise UserError("method.adversary.name=advcl: two clips a video, and the model's own eye for false negatives")
    first, second = (build_adversary(cfg.method.adversary, (name,)) for name in ("adv", "adv_ce"))
    assert first is not None and second is not None
    return AdvCL(model, cfg.method.temperature, first, second, wanted.clusters,
                 _removal(cfg, classes, 2 * (cfg.train.batch_size - 1)), weight=wanted.ce_weight,
                 radius=wanted.radius, chunk=cfg.method.chunk, joint=cfg.method.joint_views,
                 scale=cfg.method.loss_scale,
                 **_a_info_nce(cfg.method))  # fmt: skip


def _a_info_nce(method: config.Method) -> dict[str, Any]:
    a = method.adversary
    if a.hardness and method.false_negatives.rule != "none" and method.false_negatives.action == "downweight":
        raise UserError("method.adversary.hardness: hard negatives have weights of their own; eliminate false ones, or "
                        "attract them")  # fmt: skip
    if a.hardness and method.chunk:
        raise UserError(f"method.chunk={method.chunk}: method.adversary.hardness weighs negatives by the rows of all "
                        "anchors; set 0")  # fmt: skip
    # the released RoCL adds up an anchor's positives, so that 0.2 and 0.8 are of a sum; the released AdvCL has means
    weight = a.pair_weight * (1 if a.name == "rocl" else 2)
    # the mean negative of the released AdvCL, whose logits have 1 / temperature taken off, is at least 1 there
    floor = 1.0 if a.name == "advcl" else math.exp(-1 / method.temperature)
    return {"asymmetry": None if a.asymmetry == 0.5 else (weight * a.asymmetry, weight * (1 - a.asymmetry)),
            "hard": Hardness(a.hardness, a.debias, floor) if a.hardness else None}  # fmt: skip


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
    return _positives(cfg, model, _momentum(cfg, model))


def _simsiam(cfg: config.Config, classes: int) -> Method:
    return _positives(cfg, _model(cfg, "simsiam_projector"), None)


def _positives(cfg: config.Config, model: Model, target: MomentumEncoder | None) -> Method:
    predictor, adversary = normed_mlp(cfg.model.dim, cfg.method.predictor, cfg.model.dim), _adversary(cfg)
    if adversary is None:
        return BYOL(model, predictor, target, clips=cfg.method.clips_per_video)
    return TARO(model, predictor, adversary, target, weight=cfg.method.adversary.alpha)


def _instdisc(cfg: config.Config, classes: int) -> Method:
    if cfg.method.clips_per_video != 2:
        raise UserError(f"method.clips_per_video={cfg.method.clips_per_video}: {cfg.method.name} compares two views")
    return InstDisc(_model(cfg, "projector"), cfg.method.temperature, {"plain": plain, "uel": uel}[cfg.method.name],
                    _adversary(cfg), pairing_of(cfg.method.adversary, cfg.method.temperature))  # fmt: skip


def _supervised(cfg: config.Config, classes: int) -> Method:
    clusters, first, wanted = cfg.method.clusters, cfg.method.head_first, cfg.method.adversary
    model, adversary = _model(cfg, "linear", clusters or classes), _adversary(cfg)
    unit = cfg.method.clusters_metric == "cosine"
    if adversary is None:
        return Supervised(model, clusters, first, unit=unit)
    if wanted.name == "trades":
        return Trades(model, adversary, clusters, first, beta=wanted.beta, unit=unit)
    if wanted.name == "free":
        return Free(model, adversary, clusters, first, replays=wanted.replays, unit=unit)
    return AdversarialTraining(model, adversary, clusters, first, unit=unit)


def _distill(cfg: config.Config, classes: int) -> Method:
    return Distill(_model(cfg, "none"), _adversary(cfg), cfg.method.adversary.gamma)


def _negatives(cfg: config.Config) -> tuple[NegativeSpec, bool]:
    """Those that are made of views, and whether there are textures besides; none where they count nothing."""
    wanted = cfg.method.negatives
    for name in wanted.names:
        lookup({**NEGATIVES, "texture": None}, name, "method.negatives.names")
    if len(set(wanted.names)) != len(wanted.names):
        raise UserError(f"method.negatives.names=[{','.join(wanted.names)}]: list different ones; count makes more")
    if len(wanted.patch_px) != 2:
        raise UserError(f"method.negatives.patch_px={wanted.patch_px}: two sides, from and to")
    names = wanted.names if wanted.alpha and wanted.count else []
    spec = NegativeSpec(tuple(name for name in names if name != "texture"), wanted.count,
                        (wanted.patch_px[0], wanted.patch_px[1]), wanted.turn, wanted.tube, wanted.grid)  # fmt: skip
    return spec, "texture" in names


METHODS: dict[str, Callable[[config.Config, int], Method]] = {
    "simclr": _simclr, "moco": _moco, "byol": _byol, "simsiam": _simsiam, "supcon": _supcon, "plain": _instdisc,
    "uel": _instdisc, "supervised": _supervised, "distill": _distill,
}  # fmt: skip


def build_method(cfg: config.Config, classes: int) -> Method:
    """The configured method around a model with fresh weights; classes: K of the data set.

    Raises UserError for an unknown name, and for options that the method has no use for.
    """
    config.require_used(cfg.method)
    require_adversary(cfg.method)
    method = lookup(METHODS, cfg.method.name, "method.name")(cfg, classes)
    one_sided = cfg.method.adversary.name == "acl" and cfg.method.adversary.pairing != "ds"
    method.skips = one_sided or (cfg.method.name == "supervised" and cfg.method.head_first > 0)
    method.negatives, method.twin = _negatives(cfg)
    method.alpha_negatives = cfg.method.negatives.alpha
    together = cfg.method.norm == "sync" and distributed.world() > 1
    return nn.SyncBatchNorm.convert_sync_batchnorm(method) if together else method

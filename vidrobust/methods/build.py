"""Build the configured method. The only place that unpacks `method.*`."""

from functools import partial

from torch import nn

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.losses.air import Invariance, regularizer
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.eps_schedule import Budget
from vidrobust.methods.adversarial.view_batch import Pairing
from vidrobust.methods.base import Method
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.methods.false_negatives.rules import RULE_OPTIONS, RULES
from vidrobust.methods.registry import (
    METHODS,
    adversary_spec,
    branches_of,
    require_method,
    shows_original,
    steps_of,
)
from vidrobust.methods.spec import Parts
from vidrobust.models import Model, build_model
from vidrobust.models.momentum import MomentumEncoder
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.views import NEGATIVES, NegativeSpec


def build_method(cfg: config.Config, classes: int) -> Method:
    """Return the configured method around a model with fresh weights.

    Args:
        cfg: the configuration.
        classes: K of the data set.

    Raises:
        UserError: for an unknown name, and for options that the method does not take.
    """
    options = cfg.method
    require_method(options)
    adversary = adversary_spec(options.adversary)
    own_build = None if adversary is None else adversary.build
    build = own_build or METHODS[options.name].build
    method = build(
        Parts(
            options=options,
            classes=classes,
            batch_size=cfg.train.batch_size,
            dim=cfg.model.dim,
            model=partial(_model, cfg),
            momentum=partial(_momentum, options),
            removal=partial(_removal, cfg, classes),
            attack=partial(build_adversary, options.adversary),
            pairing=partial(_pairing, options),
            uses_original=shows_original(options.adversary),
        )
    )
    one_sided = options.adversary.name == "acl" and options.adversary.pairing != "ds"
    method.skips = one_sided or (options.name == "supervised" and options.head_first > 0)
    method.negatives, method.twin = _negatives(options.negatives)
    method.alpha_negatives = options.negatives.alpha
    together = options.norm == "sync" and distributed.world() > 1
    return nn.SyncBatchNorm.convert_sync_batchnorm(method) if together else method


def build_adversary(options: config.AdversaryConfig, *branches: str) -> Adversary | None:
    """Return the configured adversary, or None for `none`.

    Args:
        options: `method.adversary.*`.
        branches: norm branches of its views; none: all that the model has.
    """
    spec = adversary_spec(options)
    if spec is None:
        return None
    return Adversary(
        [parse_threat(name) for name in options.threats or [spec.threat]],
        steps=steps_of(options),
        step=options.step or spec.step,
        random_start=spec.random_start if not options.start else options.start == "random",
        train_mode=spec.train_mode,
        combine=options.combine,
        branches=branches or branches_of(options) or ("clean",),
        budget=Budget(options.schedule, warmup=options.warmup, first=options.first),
    )


def _model(cfg: config.Config, head: str, classes: int = 0) -> Model:
    """Return a model with the norm branches that the adversary needs."""
    options = cfg.method.adversary
    spec = adversary_spec(options)
    return build_model(
        cfg.model,
        head,
        classes,
        branches=branches_of(options),
        momentum=options.momentum or (0.1 if spec is None else spec.momentum),
        branched_head=spec is None or spec.branched_head,
        selector=options.selector,
    )


def _momentum(options: config.MethodConfig, model: Model) -> MomentumEncoder:
    return MomentumEncoder(model, options.momentum, climbs=options.momentum_climbs)


def _pairing(options: config.MethodConfig) -> Pairing | None:
    spec = adversary_spec(options.adversary)
    if spec is None or spec.pairing is None:
        return None
    return spec.pairing(options.adversary, _invariance(options))


def _invariance(options: config.MethodConfig) -> Invariance | None:
    """Return AIR's loss, or None where its weights are 0."""
    a = options.adversary
    if not (a.sir or a.air):
        return None
    return partial(
        regularizer,
        temperature=options.temperature,
        clean=a.sir,
        adversarial=a.air,
        released=not a.air_kl,
    )


def _removal(cfg: config.Config, classes: int, negatives: int) -> Removal | None:
    """Return the removal of false negatives, or None.

    negatives: how many negatives an anchor has at most.
    """
    options = cfg.method.false_negatives
    if options.rule == "none":
        return None
    rule = lookup(RULES, options.rule, "method.false_negatives.rule")
    arguments = RULE_OPTIONS[options.rule]
    if "k" in arguments and options.k >= negatives:
        raise UserError(
            f"method.false_negatives.k={options.k}: an anchor has {negatives} negatives; choose"
            " fewer"
        )
    clusters = 0
    if options.rule == "cluster":
        clusters = options.clusters or classes
        if clusters < 2:
            raise UserError(
                f"method.false_negatives.clusters={options.clusters}: the data set has {classes} "
                "classes, and one cluster takes all negatives for false; say how many, two at least"
            )
    values = {argument: getattr(options, key) for key, argument in arguments.items()}
    over_batch = options.rule == "quantile" and options.over == "batch"
    return Removal(
        partial(rule, **values),
        options.action,
        siblings=options.siblings and options.rule != "sibling",
        uses_labels=options.rule == "oracle",
        needs_groups=options.rule == "sibling",
        whole_batch=options.rule == "mean_std" or over_batch,
        k=clusters,
        dim=cfg.model.dim,
        classes=classes,
    )


def _negatives(options: config.NegativesConfig) -> tuple[NegativeSpec, bool]:
    """Return (negatives that are made of views, whether there are texture twins besides)."""
    for name in options.names:
        lookup({**NEGATIVES, "texture": None}, name, "method.negatives.names")
    if len(set(options.names)) != len(options.names):
        raise UserError(
            f"method.negatives.names=[{','.join(options.names)}]: list different ones; count makes "
            "more"
        )
    if len(options.patch_px) != 2:
        raise UserError(f"method.negatives.patch_px={options.patch_px}: two sides, from and to")
    names = options.names if options.alpha and options.count else []
    spec = NegativeSpec(
        tuple(name for name in names if name != "texture"),
        options.count,
        (options.patch_px[0], options.patch_px[1]),
        options.turn,
        options.tube,
        options.grid,
    )
    return spec, "texture" in names

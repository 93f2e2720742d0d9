"""Build the configured method. The only place that unpacks `method.*`."""

from functools import partial

from torch import nn

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.losses.air import Invariance, regularizer
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.eps_schedule import EpsSchedule
from vidrobust.methods.adversarial.view_batch import Pairing
from vidrobust.methods.base import Method
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.methods.false_negatives.rules import RULES
from vidrobust.methods.registry import (
    METHODS,
    adversary_spec,
    branches_of,
    has_key_encoder,
    require_options,
    shows_original,
    steps_of,
)
from vidrobust.methods.spec import Parts
from vidrobust.models import Model, build_model
from vidrobust.models.momentum import MomentumEncoder
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.views import NegativeSpec


def build_method(cfg: config.Config, classes: int) -> Method:
    """Return the configured method around a model with fresh weights.

    Args:
        cfg: the configuration.
        classes: K of the data set.

    Raises:
        UserError: for an unknown name, and for options that the method does not take.
    """
    require_options(cfg)
    options = cfg.method
    spec = METHODS[options.name]
    adversary = adversary_spec(options.adversary)
    # an adversary that changes the method itself builds it, such as TRADES
    build = spec.build if adversary is None or adversary.build is None else adversary.build
    method = build(
        Parts(
            options=options,
            classes=classes,
            batch_size=cfg.train.batch_size,
            dim=cfg.model.dim,
            model=partial(_model, cfg, spec.head),
            momentum=partial(_momentum, options),
            removal=partial(_removal, cfg, classes),
            attack=partial(build_adversary, options.adversary),
            pairing=partial(_pairing, options),
            uses_original=shows_original(options.adversary),
            key_encoder=has_key_encoder(options.adversary),
        )
    )
    # after the branches are added, so that all of them are synchronised
    together = options.norm == "sync" and distributed.world() > 1
    return nn.SyncBatchNorm.convert_sync_batchnorm(method) if together else method


def build_negatives(options: config.NegativesConfig) -> tuple[NegativeSpec, bool]:
    """Return the configured non-semantic negatives.

    Args:
        options: `method.negatives.*`.

    Returns:
        (negatives that are made of views, whether the loader also brings texture twins).
    """
    # With alpha 0 a column would still add exp(0) to the denominator: none is made.
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


def build_adversary(options: config.AdversaryConfig, *branches: str) -> Adversary | None:
    """Return the configured adversary, or None for `none`.

    Args:
        options: `method.adversary.*`.
        branches: norm branches of its views; without any, all branches of the model.
    """
    spec = adversary_spec(options)
    if spec is None:
        return None
    return Adversary(
        [parse_threat(name) for name in options.threats or [spec.threat]],
        steps=steps_of(options),
        step=options.step or spec.step,  # 0 and "" stand for the adversary's own values
        random_start=spec.random_start if not options.start else options.start == "random",
        train_mode=spec.train_mode,
        combine=options.combine,
        branches=branches or branches_of(options) or ("clean",),
        budget=EpsSchedule(options.schedule, warmup=options.warmup, first=options.first),
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
        clip=(3, cfg.data.frames, cfg.data.size, cfg.data.size),
    )


def _momentum(options: config.MethodConfig, model: Model) -> MomentumEncoder:
    return MomentumEncoder(model, options.momentum, increases=options.momentum_climbs)


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

    Args:
        cfg: the configuration.
        classes: K of the data set.
        negatives: of an anchor, at most.

    Raises:
        UserError: for an unknown rule, and for numbers that do not fit the batch or the data set.
    """
    options = cfg.method.false_negatives
    if options.rule == "none":
        return None
    spec = lookup(RULES, options.rule, "method.false_negatives.rule")
    needs = spec.needs(options)
    if "k" in spec.arguments and options.k >= negatives:
        raise UserError(
            f"method.false_negatives.k={options.k}: an anchor has {negatives} negatives; choose"
            " fewer"
        )
    clusters = options.clusters or classes if needs.clusters else 0
    if needs.clusters and clusters < 2:
        raise UserError(
            f"method.false_negatives.clusters={options.clusters}: the data set has {classes} "
            "classes, and with one cluster all negatives are false; set at least 2"
        )
    values = {argument: getattr(options, key) for key, argument in spec.arguments.items()}
    return Removal(
        partial(spec.rule, **values),
        options.action,
        siblings=options.siblings and not needs.groups,  # such a rule detects them itself
        needs=needs,
        clusters=clusters,
        dim=cfg.model.dim,
        classes=classes,
    )

"""Registry of methods and adversaries, and all that is derived from their entries."""

from vidrobust import config
from vidrobust.methods import (
    byol,
    distill,
    instance_discrimination,
    moco,
    simclr,
    supervised,
    vicreg,
)
from vidrobust.methods.adversarial import (
    a_info_nce,
    acl,
    advcl,
    adversarial_training,
    autolora,
    clae,
    deacl,
    dynacl,
    rocl,
    taro,
)
from vidrobust.methods.false_negatives.rules import RULES
from vidrobust.methods.spec import AdversarySpec, MethodSpec
from vidrobust.utils.errors import UserError, lookup
from vidrobust.views.negatives import NEGATIVE_OPTIONS, NEGATIVES

METHODS: dict[str, MethodSpec] = {
    "simclr": simclr.SPEC,
    "moco": moco.SPEC,
    "byol": byol.SPEC,
    "simsiam": byol.SIMSIAM,
    "supcon": simclr.SUPCON,
    "plain": instance_discrimination.PLAIN,
    "uel": instance_discrimination.UEL,
    "supervised": supervised.SPEC,
    "distill": distill.SPEC,
    "vicreg": vicreg.SPEC,
}
ADVERSARIES: dict[str, AdversarySpec] = {
    "clae": clae.SPEC,
    "rocl": rocl.SPEC,
    "acl": acl.SPEC,
    "dynacl": dynacl.SPEC,
    "advcl": advcl.SPEC,
    "taro": taro.SPEC,
    "deacl": deacl.SPEC,
    "pgd": adversarial_training.PGD,
    "trades": adversarial_training.TRADES,
    "fast": adversarial_training.FAST,
    "free": adversarial_training.FREE,
    "autolora": autolora.SPEC,
}
# options that every method has
_SHARED = {"name", "norm", "adversary.name", "false_negatives.rule", "negatives.names"}
_NORMED_HEADS = ("normed_projector", "simsiam_projector")


def adversary_spec(options: config.AdversaryConfig) -> AdversarySpec | None:
    """Return the entry of the configured adversary, or None where there is none."""
    if options.name == "none":
        return None
    return lookup({"none": None, **ADVERSARIES}, options.name, "method.adversary.name")


def branches_of(options: config.AdversaryConfig) -> tuple[str, ...]:
    """Return the names of the adversarial norm branches."""
    spec = adversary_spec(options)
    return () if spec is None else spec.branches(options)


def shows_original(options: config.AdversaryConfig) -> bool:
    """Return whether views include the clip before its augmentation."""
    spec = adversary_spec(options)
    return spec is not None and spec.uses_original(options)


def options_with_labels(options: config.MethodConfig) -> list[str]:
    """Return the options of a method by which it learns from labels, such as "method.name=supcon".

    Each of them needs a label of every video.
    """
    rule = options.false_negatives.rule
    needs = {
        f"method.name={options.name}": METHODS[options.name].needs_labels(options),
        f"method.false_negatives.rule={rule}": rule in RULES
        and RULES[rule].needs(options.false_negatives).labels,
    }
    return [name for name, needed in needs.items() if needed]


def has_key_encoder(options: config.AdversaryConfig) -> bool:
    """Return whether a momentum encoder embeds the second of two views."""
    spec = adversary_spec(options)
    return spec is not None and spec.key_encoder(options)


def skips_weights(cfg: config.Config) -> bool:
    """Return whether some weights have no gradient in some steps."""
    options = cfg.method
    spec = adversary_spec(options.adversary)
    by_adversary = spec is not None and spec.skips_weights(options.adversary)
    # what comes after the stage whose tokens the head takes, such as a final norm
    by_head = cfg.model.head == "attentive" and not options.freeze
    return by_adversary or by_head or METHODS[options.name].skips_weights(options)


def steps_of(options: config.AdversaryConfig) -> int:
    """Return the steps of the attack: those of the options, or the adversary's own for -1.

    An adversary that does not take the option, such as `fast`, keeps its own.
    """
    spec = ADVERSARIES[options.name]
    return spec.steps if options.steps < 0 or "steps" not in spec.attack else options.steps


# What is refused


def require_options(cfg: config.Config) -> None:
    """Check the options of the method, and those that depend on it.

    Args:
        cfg: its method, model, optimizer and averages are checked.

    Raises:
        UserError: for an unknown method or adversary, and for options that they do not take.
    """
    _require_method(cfg.method)
    _require_head(cfg)
    _require_finetuning(cfg)
    _require_measured(cfg)
    _require_average(cfg)


def _require_method(options: config.MethodConfig) -> None:
    """Raise UserError for an unknown method or adversary, and for options they do not take."""
    # the entry says what the method refuses, with its reason
    spec = lookup(METHODS, options.name, "method.name")
    if options.negatives.names and (why := spec.refuses.get("negatives")):
        names = ",".join(options.negatives.names)
        raise UserError(f"method.negatives.names=[{names}]: {options.name} {why}; leave it empty")
    _require_negatives(options.negatives)
    rule = options.false_negatives.rule
    if rule != "none" and (why := spec.refuses.get("false_negatives")):
        raise UserError(f"method.false_negatives.rule={rule}: {options.name} {why}; set none")
    if rule in RULES and (why := RULES[rule].refusal(options.false_negatives)):
        raise UserError(why)
    adversary = adversary_spec(options.adversary)
    if adversary is not None:
        _require_adversary(options, adversary)


def _require_negatives(options: config.NegativesConfig) -> None:
    for name in options.names:
        lookup({**NEGATIVES, "texture": None}, name, "method.negatives.names")
    if len(set(options.names)) != len(options.names):
        raise UserError(
            f"method.negatives.names=[{','.join(options.names)}]: must list each name once; count"
            " makes more of each"
        )
    if len(options.patch_px) != 2:
        raise UserError(
            f"method.negatives.patch_px={options.patch_px}: must be two sides, from and to"
        )


def _require_adversary(options: config.MethodConfig, spec: AdversarySpec) -> None:
    a = options.adversary
    key = "method.adversary"
    method = METHODS[options.name]
    if a.name not in method.adversaries:
        names = ", ".join(method.adversaries)
        remedy = f"takes {names}" if names else "has no adversarial views; set none"
        raise UserError(f"{key}.name={a.name}: {options.name} {remedy}")
    if reason := spec.refusal(options):
        raise UserError(reason)
    if not a.steps:
        raise UserError(
            f"{key}.steps=0: an attack takes at least one step; {key}.name=none trains without"
        )
    if a.selector and (a.combine != "branches" or "selector" not in method.takes):
        takers = ", ".join(name for name, each in METHODS.items() if "selector" in each.takes)
        raise UserError(
            f"{key}.selector: it chooses among norm branches of {takers}; set combine=branches"
        )
    if a.faithful and not _takes_faithful(options):
        raise UserError(
            f"{key}.faithful: CLAE as published is one step within one Linf budget of two views of "
            "a batch"
        )
    if spec.two_clips and options.clips_per_video != 2:
        raise UserError(
            f"method.clips_per_video={options.clips_per_video}: {a.name} needs two clips per video"
        )
    if (a.sir or a.air) and not spec.takes_air(a):
        raise UserError(
            f"{key}.sir, air: AIR's terms compare two streams; set acl with pairing=ds, or dynacl"
        )
    if not a.clusters:
        raise UserError(f"{key}.clusters=[]: name at least one granularity")


def _takes_faithful(options: config.MethodConfig) -> bool:
    """Return whether CLAE's published form, one step within one Linf budget, is what is set."""
    a = options.adversary
    if "faithful" not in ADVERSARIES[a.name].options or options.name == "moco":
        return False
    one_step = a.steps in (-1, 1) and not a.step and a.start != "random"
    one_budget = len(a.threats) <= 1 and all(name.startswith("linf-") for name in a.threats)
    return one_step and one_budget and a.schedule == "constant" and a.combine != "branches"


def _require_head(cfg: config.Config) -> None:
    """Raise UserError for options of a projector or predictor that the method does not have."""
    name, model = cfg.method.name, cfg.model
    normed_by_method = METHODS[name].head in _NORMED_HEADS
    if model.hidden == 0 and normed_by_method:
        raise UserError(
            f"model.hidden=0: the projector of {name} has a hidden layer; set its width"
        )
    if model.head_norm and not model.hidden:
        raise UserError(
            "model.head_norm: a projector without a hidden layer (model.hidden=0) has no place for"
            " a norm"
        )
    for option in ("head_layers", "head_norm_out"):
        if getattr(model, option) and not (model.head_norm or normed_by_method):
            raise UserError(f"model.{option}: of projectors with norms; set model.head_norm=true")
    if model.head_layers == 1:
        raise UserError("model.head_layers=1: a projector with norms has at least two layers")
    if cfg.optim.fix_predictor and "predictor" not in METHODS[name].options:
        takers = " and ".join(key for key, each in METHODS.items() if "predictor" in each.options)
        raise UserError(f"optim.fix_predictor: {name} has no predictor; of {takers}")


def _require_finetuning(cfg: config.Config) -> None:
    """Raise UserError for a classifier that the method does not have, and idle options."""
    method, model = cfg.method, cfg.model
    if model.head != "linear" and METHODS[method.name].head != "linear":
        takers = ", ".join(name for name, each in METHODS.items() if each.head == "linear")
        raise UserError(f"model.head={model.head}: {method.name} has no classifier; of {takers}")
    if model.head == "attentive" and cfg.train.compile:
        raise UserError(
            "train.compile: a compiled backbone gives no tokens of its stages to"
            " model.head=attentive; set false"
        )
    if method.freeze and "freeze" in METHODS[method.name].options:
        if method.head_first:
            raise UserError(
                f"method.head_first={method.head_first:g}: with method.freeze only the head ever"
                " learns; set 0"
            )
        if method.adversary.selector:
            raise UserError(
                "method.adversary.selector: it is a part of the backbone, which method.freeze keeps"
                " as it is; set false"
            )


def _require_measured(cfg: config.Config) -> None:
    """Raise UserError for options that do not go with accuracies measured in training."""
    method = cfg.method
    spec = adversary_spec(method.adversary)
    if spec is not None and spec.measures and cfg.train.compile:
        raise UserError(
            f"train.compile: {method.adversary.name} replaces weights of the backbone in each step;"
            " set false"
        )
    if cfg.optim.schedule != "auto":
        return
    if METHODS[method.name].head != "linear":
        takers = ", ".join(name for name, each in METHODS.items() if each.head == "linear")
        raise UserError(
            f"optim.schedule=auto: {method.name} has no classifier whose accuracy could decide on"
            f" the rate; of {takers}"
        )
    if spec is None and not cfg.optim.auto_threats:
        raise UserError(
            "optim.schedule=auto: accuracy under attack decides on the rate; set"
            " optim.auto_threats=[linf-8/255], or an adversary"
        )
    if cfg.train.average:
        raise UserError(
            f"train.average={cfg.train.average:g}: optim.schedule=auto goes back to its best"
            " weights, which an average does not; set 0"
        )


def _require_average(cfg: config.Config) -> None:
    """Raise UserError for an average of weights that is not kept, and for two of them."""
    keyed = has_key_encoder(cfg.method.adversary)
    if cfg.eval.average and not (cfg.train.average or keyed):
        raise UserError("eval.average: only a run with train.average keeps an average; set both")
    if cfg.train.average and keyed:
        name = cfg.method.adversary.name
        raise UserError(
            f"train.average={cfg.train.average:g}: {name} has a momentum encoder, which "
            "eval.average measures; set 0, or method.adversary.key_encoder=false"
        )


def require_branch(cfg: config.Config) -> None:
    """Raise UserError for an eval.branch that a model with this adversary does not have."""
    options = cfg.method.adversary
    branch = cfg.eval.branch
    branches = ["clean", *branches_of(options)]
    if branch != "clean" and options.name == "none":
        raise UserError(
            f"eval.branch={branch}: only a model trained with an adversary has another branch"
        )
    if len(branches) > 1:
        branches.append("average")
    if options.selector:
        branches.append("select")
    if branch not in branches:
        raise UserError(
            f"eval.branch={branch}: a model trained so has {', '.join(branches)}; set one of them"
        )


def unmeasured(cfg: config.Config) -> str:
    """Return a warning that eval.branch is not the branch of the paper's numbers, or ""."""
    options = cfg.method.adversary
    spec = adversary_spec(options)
    if spec is None or not spec.measured or cfg.eval.branch != "clean" or not branches_of(options):
        return ""
    return (
        f"eval.branch=clean measures, and backbone.pt keeps, the branch that {options.name} trains "
        f"without an attack; its papers' numbers are of eval.branch={spec.measured}"
    )


def fixed_options() -> list[str]:
    """Return the keys of `method.*` that a resume may not change."""
    # those of all methods, then what entries add
    keys = {"name", "adversary.name", "adversary.combine", "adversary.schedule"}
    keys |= {"adversary.selector", "false_negatives.rule", "false_negatives.encoder"}
    keys |= {"false_negatives.clusters"}
    for method in METHODS.values():
        keys |= method.fixed
    for adversary in ADVERSARIES.values():
        keys |= {f"adversary.{key}" for key in adversary.fixed}
    return [f"method.{key}" for key, _ in config.options(config.MethodConfig) if key in keys]


# What has no effect


def without_effect(cfg: config.Config) -> list[str]:
    """Return the keys of training options that differ from their defaults and have no effect.

    Args:
        cfg: the method, the augmentation and the optimizer are checked.
    """
    default = config.Config()
    used = _used_options(cfg.method)
    idle = [f"method.{key}" for key, _ in config.options(config.MethodConfig) if key not in used]
    idle += _switched_off(cfg)
    return [key for key in idle if config.get(cfg, key) != config.get(default, key)]


def _switched_off(cfg: config.Config) -> list[str]:
    """Return the keys of options that others switch off, whatever their values."""
    optim = cfg.optim
    spec = adversary_spec(cfg.method.adversary)
    measured = optim.schedule == "auto" or (spec is not None and spec.measures)
    has_classifier = METHODS[cfg.method.name].head == "linear"
    attentive = has_classifier and cfg.model.head == "attentive"
    switches = {  # key -> whether what it needs is on
        "augment.scale": not cfg.augment.shift,
        "augment.original_shift": shows_original(cfg.method.adversary),
        "augment.corruption_prob": bool(cfg.augment.corruptions),
        "augment.corruption_severities": bool(cfg.augment.corruptions),
        "optim.milestones": optim.schedule in ("step", "auto"),
        "optim.gamma": optim.schedule in ("step", "auto"),
        "optim.patience": optim.schedule == "auto",
        "optim.auto_threats": optim.schedule == "auto",
        "train.measured": measured,
        "optim.lars_exclude": optim.name == "lars",
        "optim.momentum": optim.name in ("sgd", "lars"),
        "optim.betas": optim.name == "adamw",
        "optim.eps": optim.name == "adamw",
        "optim.final_lr": optim.schedule in ("cosine", "linear"),
        "optim.layer_decay": not cfg.method.freeze,
        "model.drop_path": not cfg.method.freeze,
        "model.head_scale": has_classifier,
        "model.head_dropout": has_classifier and not attentive,
        "model.head_blocks": attentive,
        "model.head_stage": attentive,
        "model.head_heads": attentive,
        "model.head_mlp_ratio": attentive,
    }
    return [key for key, needed in switches.items() if not needed]


def _used_options(options: config.MethodConfig) -> set[str]:
    """Return the keys of `method.*` that have an effect as the method is configured."""
    # every group adds the keys that its own switches have turned on
    used = _SHARED | METHODS[options.name].options
    if options.clusters:
        used |= {"clusters_from", "clusters_metric"}
    used |= _used_by_negatives(options.negatives)
    used |= _used_by_removal(options.false_negatives)
    used |= _used_by_adversary(options)
    return used


def _used_by_negatives(options: config.NegativesConfig) -> set[str]:
    used = set()
    for name in options.names:
        used |= {f"negatives.{key}" for key in ("alpha", *NEGATIVE_OPTIONS.get(name, ()))}
        if name != "texture":
            used.add("negatives.count")
    return used


def _used_by_removal(options: config.FalseNegativesConfig) -> set[str]:
    if options.rule == "none":
        return set()
    rule = RULES[options.rule]
    keys = ["action", "siblings", "encoder", *rule.arguments]
    if rule.needs(options).clusters:
        keys.append("clusters")
    used = {f"false_negatives.{key}" for key in keys}
    if options.encoder == "momentum":
        used |= {"momentum", "momentum_climbs"}
    return used


def _used_by_adversary(options: config.MethodConfig) -> set[str]:
    a = options.adversary
    spec = adversary_spec(a)
    if spec is None:
        return set()
    keys = set(spec.attack | spec.options)
    if len(a.threats) < 2 and a.combine != "branches":
        keys.discard("combine")
    if branches_of(a):
        keys.add("momentum")
    if a.schedule == "linear":
        keys.add("warmup")
    if a.schedule == "curriculum":
        keys.add("first")
    if "a_info_nce" in METHODS[options.name].takes:
        keys |= a_info_nce.used_options(a, mixed=spec.mixed(a))
    return {f"adversary.{key}" for key in keys} | spec.uses(a)

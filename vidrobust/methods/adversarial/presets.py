"""ADVERSARIES: defaults and options of each adversary, and how it is built."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.losses.air import regularizer
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.eps_schedule import Budget
from vidrobust.methods.adversarial.view_batch import (
    Invariance,
    Pairing,
    a2a,
    a2s,
    acl,
    clae,
    clae_published,
    dynacl,
    rocl,
)
from vidrobust.utils.errors import UserError, lookup


@dataclass(frozen=True)
class Recipe:
    """An adversary: what it is for, and how its attack is made unless options say otherwise.

    methods: names of `method.name`. options: of `method.adversary` that it takes besides those of the attack. pairing:
    what contrastive methods make of its views. step: a share of eps; None: 2.5 / steps. branch: adversarial views have
    a norm branch of their own. branched_head: also in the projector. momentum: of the statistics of such branches.
    attack: options of the attack that have an effect.
    """

    methods: tuple[str, ...]
    options: frozenset[str] = frozenset()
    pairing: Callable[[config.Adversary, Invariance | None], Pairing] | None = None
    threat: str = "linf-8/255"
    steps: int = 1
    step: float | None = None
    random_start: bool = False
    train_mode: bool = False
    branch: bool = True
    branched_head: bool = True
    momentum: float = 0.1
    attack: frozenset[str] = frozenset({"threats", "combine", "selector", "steps", "step", "start", "schedule"})


def _clae(a: config.Adversary, _: Invariance | None) -> Pairing:
    if a.faithful:
        return partial(clae_published, alpha=a.alpha, eps=parse_threat(a.threats[0]).eps if a.threats else 0.03)
    return partial(clae, alpha=a.alpha)


_ACL: dict[str, Pairing] = {"a2a": a2a, "a2s": a2s}
_NEGATIVES, _LABELS = ("simclr", "supcon"), ("supervised",)
RECIPES: dict[str, Recipe] = {
    "clae": Recipe((*_NEGATIVES, "plain", "uel", "moco"), frozenset({"alpha", "faithful"}), _clae, "linf-4/255",
                   train_mode=True, momentum=0.01),
    "rocl": Recipe(_NEGATIVES, frozenset({"regularizer"}), lambda a, _: partial(rocl, regularizer=a.regularizer),
                   steps=7, step=0.007 / 0.0314, random_start=True, branch=False),
    "acl": Recipe(_NEGATIVES, frozenset({"pairing", "sir", "air", "air_kl"}),
                  lambda a, air: _ACL[a.pairing] if a.pairing in _ACL else partial(acl, invariance=air),
                  steps=5, step=0.25, random_start=True),
    "dynacl": Recipe(_NEGATIVES, frozenset({"sir", "air", "air_kl", "key_encoder"}),
                     lambda a, air: partial(dynacl, invariance=air), steps=5, step=0.25, random_start=True),
    "advcl": Recipe(("simclr",), frozenset({"clusters", "ce_weight", "radius"}), steps=5, step=0.25, random_start=True,
                    train_mode=True, branched_head=False),
    "taro": Recipe(("byol", "simsiam"), frozenset({"alpha"}), steps=10, step=0.25, random_start=True, branch=False),
    "deacl": Recipe(("distill",), frozenset({"gamma"}), steps=5, step=0.25, random_start=True, branch=False),
    "pgd": Recipe(_LABELS, steps=10, step=0.25, random_start=True, branch=False),
    "trades": Recipe(_LABELS, frozenset({"beta"}), steps=10, step=0.25, random_start=True, branch=False),
    "fast": Recipe(_LABELS, step=1.25, random_start=True, train_mode=True, branch=False,
                   attack=frozenset({"threats", "combine", "selector", "step", "start", "schedule"})),
    "free": Recipe(_LABELS, frozenset({"replays"}), random_start=True, branch=False,
                   attack=frozenset({"threats", "schedule"})),
}  # fmt: skip


def require_adversary(method: config.Method) -> None:
    """Raises UserError for an unknown adversary, and for one, or options of it, that the method would not look at."""
    a, key = method.adversary, "method.adversary"
    if a.name == "none":
        return
    lookup({"none": None, **RECIPES}, a.name, f"{key}.name")
    if method.name not in RECIPES[a.name].methods:
        known = [name for name, recipe in RECIPES.items() if method.name in recipe.methods]
        raise UserError(f"{key}.name={a.name}: {method.name} " + (
            f"takes {', '.join(known)}" if known else "has no adversarial views; set none"
        ))  # fmt: skip
    if a.name == "advcl" and a.combine == "branches":
        raise UserError(f"{key}.combine=branches: advcl's branches are of its two attacks; set average or worst")
    if a.name == "acl" and a.pairing == "a2a" and a.combine == "branches":
        raise UserError(f"{key}.combine=branches: acl's a2a has no clean stream, whose branch nothing would train; set "
                        "average, worst, or pairing=ds")  # fmt: skip
    if not a.steps:
        raise UserError(f"{key}.steps=0: an attack takes one step at least; {key}.name=none trains without")
    if a.selector and (a.combine != "branches" or method.name not in ("simclr", "supcon", "supervised")):
        raise UserError(
            f"{key}.selector: it chooses among branches of simclr, supcon, supervised; set combine=branches"
        )
    one_step = a.steps in (-1, 1) and not a.step and a.start != "random" and a.schedule == "constant"
    linf = len(a.threats) <= 1 and all(name.startswith("linf-") for name in a.threats) and a.combine != "branches"
    if a.faithful and not (a.name == "clae" and method.name != "moco" and linf and one_step):
        raise UserError(f"{key}.faithful: CLAE as published is one step within one Linf budget of two views of a batch")
    if a.name == "free" and (len(a.threats) > 1 or a.combine == "branches" or not all(
        parse_threat(name).support in ("dense", "tube", "flicker") for name in a.threats
    )):  # fmt: skip
        raise UserError(f"{key}.threats: free adversarial training takes one, dense, tube or flicker, without branches")
    if a.name in ("rocl", "acl", "dynacl", "advcl", "taro") and method.clips_per_video != 2:
        raise UserError(f"method.clips_per_video={method.clips_per_video}: {a.name} is of two clips a video")
    if (a.sir or a.air) and not (a.name == "dynacl" or (a.name == "acl" and a.pairing == "ds")):
        raise UserError(f"{key}.sir, air: AIR's terms are of two streams; set acl with pairing=ds, or dynacl")
    if not a.clusters:
        raise UserError(f"{key}.clusters=[]: one granularity at least")


def shows_original(wanted: config.Adversary) -> bool:
    """Return whether an adversary also takes the clip before its augmentation."""
    return wanted.name == "advcl" or (wanted.name != "none" and bool(wanted.sir or wanted.air))


def branches_of(wanted: config.Adversary) -> tuple[str, ...]:
    """Names of the adversarial norm branches."""
    if wanted.name == "none":
        return ()
    if wanted.name == "advcl":
        return "adv", "adv_ce"
    if wanted.name == "acl" and wanted.pairing == "a2a":
        return ()
    if wanted.combine == "branches":
        return tuple(f"adv{number or ''}" for number in (0, *range(2, len(wanted.threats) + 1)))
    return ("adv",) if RECIPES[wanted.name].branch else ()


def unmeasured(cfg: config.Config) -> str:
    """What to say of a model whose clean branch is measured, and whose adversarial one alone is robust; or nothing."""
    name, streams = cfg.method.adversary.name, branches_of(cfg.method.adversary)
    if name not in ("acl", "dynacl", "advcl") or cfg.eval.branch != "clean" or not streams:
        return ""
    return (f"eval.branch=clean measures, and backbone.pt keeps, the branch that {name} trains without an attack; its "
            "papers' numbers are of eval.branch=adv")  # fmt: skip


def require_branch(cfg: config.Config) -> None:
    """Raises UserError for an eval.branch that a model with this adversary does not have."""
    wanted, branch = cfg.method.adversary, cfg.eval.branch
    known = ["clean", *branches_of(wanted)]
    known += (["average"] if len(known) > 1 else []) + (["select"] if wanted.selector else [])
    if branch not in known:
        raise UserError(f"eval.branch={branch}: a model trained so has {', '.join(known)}; set one of them")


def steps_of(wanted: config.Adversary) -> int:
    """Of its attack: the method's own, or those that are asked for where it takes the option."""
    recipe = RECIPES[wanted.name]
    return recipe.steps if wanted.steps < 0 or "steps" not in recipe.attack else wanted.steps


def momentum_of(wanted: config.Adversary) -> float:
    """Of the adversarial branches' norm statistics: CLAE's own is 0.01, all others' are those of a plain norm."""
    return wanted.momentum or (RECIPES[wanted.name].momentum if wanted.name != "none" else 0.1)


def build_adversary(wanted: config.Adversary, branches: tuple[str, ...] = ()) -> Adversary | None:
    """branches: in place of all that the model has."""
    if wanted.name == "none":
        return None
    recipe = RECIPES[wanted.name]
    threats = [parse_threat(name) for name in wanted.threats or [recipe.threat]]
    return Adversary(
        threats, steps=steps_of(wanted), step=wanted.step or recipe.step,
        random_start=recipe.random_start if not wanted.start else wanted.start == "random",
        train_mode=recipe.train_mode, combine=wanted.combine,
        branches=branches or branches_of(wanted) or ("clean",),
        budget=Budget(wanted.schedule, warmup=wanted.warmup, first=wanted.first),
    )  # fmt: skip


def pairing_of(wanted: config.Adversary, temperature: float) -> Pairing:
    """What the adversary makes of clean and adversarial views; CLAE's where there is none."""
    air = None
    if wanted.sir or wanted.air:
        air = partial(regularizer, temperature=temperature, clean=wanted.sir, adversarial=wanted.air,
                      released=not wanted.air_kl)  # fmt: skip
    pairing = RECIPES[wanted.name].pairing if wanted.name != "none" else None
    return pairing(wanted, air) if pairing else clae

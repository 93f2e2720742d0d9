"""The configured adversary: what each is made of when nothing else is said. The only place that unpacks its options."""

from dataclasses import dataclass
from functools import partial

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.methods.adversarial import Pairing, acl, clae, clae_published, dynacl, rocl
from vidrobust.methods.adversary import Adversary
from vidrobust.methods.budget import Budget
from vidrobust.methods.invariance import regularizer


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
    "advcl": Recipe(steps=5, step=0.25, random_start=True),
    "taro": Recipe(steps=10, step=0.25, random_start=True, branch=False),
    "deacl": Recipe(steps=5, step=0.25, random_start=True, branch=False),
}


def branches_of(wanted: config.Adversary) -> tuple[str, ...]:
    """Names of the adversarial norm branches."""
    if wanted.name == "none":
        return ()
    if wanted.name == "advcl":
        return "adv", "adv_ce"
    if wanted.combine == "branches":
        return tuple(f"adv{number or ''}" for number in (0, *range(2, len(wanted.threats) + 1)))
    return ("adv",) if RECIPES[wanted.name].branch else ()


def build_adversary(wanted: config.Adversary, branches: tuple[str, ...] = ()) -> Adversary | None:
    """branches: in place of all that the model has."""
    if wanted.name == "none":
        return None
    recipe = RECIPES[wanted.name]
    threats = [parse_threat(name) for name in wanted.threats or [recipe.threat]]
    return Adversary(
        threats, steps=wanted.steps or recipe.steps, step=wanted.step or recipe.step,
        random_start=recipe.random_start if not wanted.start else wanted.start == "random",
        train_mode=recipe.train_mode, combine=wanted.combine,
        branches=branches or branches_of(wanted) or ("clean",),
        budget=Budget(wanted.schedule, warmup=wanted.warmup, first=wanted.first),
    )  # fmt: skip


def pairing_of(wanted: config.Adversary, temperature: float) -> Pairing:
    if wanted.faithful:
        eps = parse_threat(wanted.threats[0]).eps if wanted.threats else 0.03
        return partial(clae_published, alpha=wanted.alpha, eps=eps)
    invariance = None
    if wanted.sir or wanted.air:
        invariance = partial(regularizer, temperature=temperature, clean=wanted.sir, adversarial=wanted.air)
    pairings: dict[str, Pairing] = {
        "clae": partial(clae, alpha=wanted.alpha), "rocl": partial(rocl, regularizer=wanted.regularizer),
        "acl": partial(acl, pairing=wanted.pairing, invariance=invariance),
        "dynacl": partial(dynacl, invariance=invariance),
    }  # fmt: skip
    return pairings.get(wanted.name, clae)

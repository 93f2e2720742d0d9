"""A-InfoNCE (Yu et al., ECCV 2022): asymmetric pairs and hard negatives in adversarial losses."""

import math

from vidrobust import config
from vidrobust.losses.info_nce import Hardness
from vidrobust.utils.errors import UserError


def asymmetry_of(options: config.MethodConfig) -> tuple[float, float] | None:
    """Return the weights of a clean anchor's loss with an adversarial positive, and of the reverse.

    None: both count alike. The released RoCL adds up an anchor's positives, so that 0.2 and 0.8 are
    of a sum; the released AdvCL has means.
    """
    a = options.adversary
    if a.asymmetry == 0.5:
        return None
    weight = a.pair_weight * (1 if a.name == "rocl" else 2)
    return weight * a.asymmetry, weight * (1 - a.asymmetry)


def hardness_of(options: config.MethodConfig) -> Hardness | None:
    """Return how hard negatives count, or None where all count alike.

    Raises UserError for options that do not go together with it.
    """
    a = options.adversary
    removal = options.false_negatives
    if not a.hardness:
        return None
    if removal.rule != "none" and removal.action == "downweight":
        raise UserError(
            "method.adversary.hardness: hard negatives have weights of their own; eliminate false "
            "ones, or attract them"
        )
    if options.chunk:
        raise UserError(
            f"method.chunk={options.chunk}: method.adversary.hardness weighs negatives by the rows "
            "of all anchors; set 0"
        )
    # the mean negative of the released AdvCL, whose logits have 1 / temperature taken off, is at
    # least 1 there
    floor = 1.0 if a.name == "advcl" else math.exp(-1 / options.temperature)
    return Hardness(a.hardness, a.debias, floor)


def used_options(options: config.MethodConfig) -> set[str]:
    """Return the keys of `method.adversary.*` of A-InfoNCE that have an effect.

    The weights of pairs act on pairs of a clean and an adversarial view alone.
    """
    a = options.adversary
    if options.name not in ("simclr", "supcon"):
        return set()
    used = {"hardness"}
    if a.hardness:
        used.add("debias")
    mixed = a.name in ("clae", "rocl", "advcl") or (a.name == "acl" and a.pairing == "a2s")
    if mixed:
        used.add("asymmetry")
    if mixed and a.asymmetry != 0.5:
        used.add("pair_weight")
    return used

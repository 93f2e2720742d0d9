"""A-InfoNCE (Yu et al., ECCV 2022): asymmetric pairs and hard negatives in adversarial losses."""

import math

from vidrobust import config
from vidrobust.losses.info_nce import Hardness
from vidrobust.utils.errors import UserError


def asymmetry_of(options: config.MethodConfig) -> tuple[float, float] | None:
    """Return the weights of a clean anchor's loss with an adversarial positive, and of the reverse.

    They are factors of terms in a mean over positives. Two of them that are alike sum to 2, so that
    `asymmetry` and 1 - `asymmetry`, which sum to 1, are doubled. RoCL's loss is doubled as a whole
    (`rocl`): in the released code it is a sum over two positives, with 0.2 and 0.8 as factors.

    Returns:
        The weights, or None where both count alike.
    """
    a = options.adversary
    if a.asymmetry == 0.5:  # the plain loss, which needs one pass over the logits instead of two
        return None
    weight = a.pair_weight * (1 if a.name == "rocl" else 2)
    return weight * a.asymmetry, weight * (1 - a.asymmetry)


def hardness_of(options: config.MethodConfig) -> Hardness | None:
    """Return how hard negatives count, or None where all count alike.

    Raises:
        UserError: for options that cannot be combined with it.
    """
    a = options.adversary
    removal = options.false_negatives
    if not a.hardness:
        return None
    if removal.rule != "none" and removal.action == "downweight":
        raise UserError(
            "method.adversary.hardness: hard negatives have weights of their own; eliminate or "
            "attract false negatives"
        )
    if options.chunk:
        raise UserError(
            f"method.chunk={options.chunk}: method.adversary.hardness weights negatives by all "
            "anchors; set 0"
        )
    # The lower bound of the mean negative. The released AdvCL subtracts 1 / temperature from its
    # logits before it applies the bound of 1.
    floor = 1.0 if a.name == "advcl" else math.exp(-1 / options.temperature)
    return Hardness(a.hardness, a.debias, floor)


def used_options(options: config.AdversaryConfig, *, mixed: bool) -> set[str]:
    """Return the keys of `method.adversary.*` of A-InfoNCE that have an effect.

    Args:
        options: of the adversary.
        mixed: its losses compare clean with adversarial views; the weights of pairs apply to such
            pairs only.
    """
    used = {"hardness"}
    if options.hardness:
        used.add("debias")
    if mixed:
        used.add("asymmetry")
    if mixed and options.asymmetry != 0.5:
        used.add("pair_weight")
    return used

"""Changes of methods between revisions, for checks at a resume."""

from vidrobust.config import MethodConfig

# Revision 1: before methods were compared with their authors' code. Revision 2: methods as their
# authors released them (docs/fidelity.md). A checkpoint without a number is of revision 1.
REVISION = 2


def changed_since(method: MethodConfig, revision: int) -> str:
    """Return what changed in a configured method since a revision, and what to do; or nothing."""
    if revision >= 2:
        return ""
    what = _changed_in_2(method)
    if (
        what
        and method.adversary.name == "dynacl"
        and not (method.adversary.sir or method.adversary.air)
    ):
        return f"{what}; train anew, or go on as before by method.adversary.key_encoder=false"
    return f"{what}; train anew in another --output-dir" if what else ""


def _changed_in_2(method: MethodConfig) -> str:
    a = method.adversary
    released = "as its authors released it"
    if a.sir or a.air:
        return (
            "AIR does not halve the contrastive losses any more, and sums other terms, " + released
        )
    if a.name == "dynacl" and a.key_encoder:
        return f"dynacl's second view goes through a momentum encoder now, {released}"
    if a.asymmetry != 0.5 or a.hardness:
        return f"A-InfoNCE weighs whole losses now, {released}"
    if a.name in ("rocl", "advcl", "taro"):
        return f"{a.name} is now {released} (docs/fidelity.md)"
    if method.name in ("byol", "simsiam", "uel"):
        return f"{method.name} has another scale of its loss now, {released}"
    if method.false_negatives.rule == "topk_threshold":
        return (
            "topk_threshold finds the same false negatives for all views of a video now, as FNC"
            " does"
        )
    return ""

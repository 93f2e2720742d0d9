"""ACL: clean and adversarial streams with norms of their own (Jiang et al., NeurIPS 2020)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.losses.air import Invariance
from vidrobust.methods.adversarial.adversary import AdversarialView
from vidrobust.methods.adversarial.view_batch import Pairing, Streams, average, through
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat


def acl(s: Streams, weight: float = 1.0, invariance: Invariance | None = None) -> dict[str, Tensor]:
    """ACL (Jiang et al., NeurIPS 2020; METHODS section 4.2): ((2 - weight) L(z1, z2) + weight L(a1, a2)) / 2.

    The weight is 1. Both views are attacked together; a1, a2 go through the adversarial norm branch. invariance: a loss
    of (z1, z2, a1, a2, z of the original), (B,), besides: AIR's, whose code does not halve the other two.
    """
    clean = s.clean
    pairs = _both_attacked(s)
    adv = average([s.loss(pair, (0, 1), adversarial=(0, 1)) for pair in pairs])
    both = (2 - weight) * clean + weight * adv
    parts = {"loss": 0.5 * both, "loss_clean": clean, "loss_adv": adv}
    if invariance is None:
        return parts
    assert s.original is not None
    z = s.model(s.original)
    more = average([invariance(s.z(0), s.z(1), *pair, z) for pair in pairs])
    return parts | {"loss": both + more, "loss_invariance": more}


def a2a(s: Streams) -> dict[str, Tensor]:
    """ACL's adversarial-to-adversarial variant: L(a1, a2) alone, with one norm branch."""
    adv = average([s.loss(pair, (0, 1), adversarial=(0, 1)) for pair in _both_attacked(s)])
    return {"loss": adv, "loss_adv": adv}


def a2s(s: Streams) -> dict[str, Tensor]:
    """ACL's adversarial-to-standard variant: L(a1, z2), which x1 is moved to raise; a1 has the adversarial branch.

    METHODS section 4.2 names it and no more: that the attack has the loss that is learned is our reading.
    """

    def aim() -> Callable[[Tensor], Tensor]:
        with s.model.use_branch("clean"):
            other = s.seen(1)
        return lambda z: s.loss([z, other], (0, 1))

    z2, made = s.z(1), s.attack(s.views[0], aim)
    adv = average([s.loss([s.embed(view), z2], (0, 1), adversarial=(0,)) for view in made])
    return {"loss": adv, "loss_adv": adv}


def _both_attacked(s: Streams) -> list[tuple[Tensor, Tensor]]:
    """a1, a2 (B, D) for each threat: both views are moved together to raise NT-Xent of the pair."""
    pairs = []
    for view in s.attack(torch.cat(s.views[:2]), lambda: lambda z: s.anchors(z.chunk(2), (0, 1)), s.joint):
        if s.joint is not None:
            a1, a2 = through(s.joint, view, s.joint).chunk(2)
            pairs.append((a1, a2))
            continue
        first, second = (AdversarialView(part, view.branch) for part in view.x.chunk(2))
        pairs.append((s.embed(first), s.embed(second)))
    return pairs


def _pairing(options: config.Adversary, invariance: Invariance | None) -> Pairing:
    one_sided: dict[str, Pairing] = {"a2a": a2a, "a2s": a2s}
    return one_sided.get(options.pairing) or partial(acl, invariance=invariance)


def _refusal(options: config.Method) -> str:
    a = options.adversary
    if a.pairing == "a2a" and a.combine == "branches":
        return (
            "method.adversary.combine=branches: acl's a2a has no clean stream, whose branch nothing "
            "would train; set average, worst, or pairing=ds"
        )
    return ""


SPEC = AdversarySpec(
    help="ACL: two streams, both views attacked together",
    costs={"": Cost(attack=1, together=2, learned=(1, 1, 1, 1))},
    variants={
        "pairing=a2a": Cost(attack=1, together=2, learned=(1, 1)),
        "pairing=a2s": Cost(forward=1, attack=1, learned=(1, 1)),
    },
    options=frozenset({"pairing", "sir", "air", "air_kl"}),
    pairing=_pairing,
    steps=5,
    step=0.25,
    random_start=True,
    branches=lambda options: () if options.pairing == "a2a" else branch_per_threat(options),
    two_clips=True,
    uses_original=lambda options: bool(options.sir or options.air),
    measured="adv",
    fixed=frozenset({"pairing"}),
    refusal=_refusal,
)

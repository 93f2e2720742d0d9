"""ACL: clean and adversarial streams with norms of their own (Jiang et al., NeurIPS 2020)."""

from functools import partial

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Loss
from vidrobust.losses.air import Invariance
from vidrobust.methods.adversarial.adversary import AdversarialView
from vidrobust.methods.adversarial.view_batch import Pairing, ViewBatch, average, through
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat
from vidrobust.models import Model
from vidrobust.models.momentum import SplitEncoder


def acl(
    batch: ViewBatch, weight: float = 1.0, invariance: Invariance | None = None
) -> dict[str, Tensor]:
    """Return ACL's loss ((2 - weight) L(z1, z2) + weight L(a1, a2)) / 2, with AIR's terms if given.

    Both views are attacked together; a1, a2 go through the adversarial norm branch.

    Args:
        batch: two views.
        weight: 1 in ACL; it grows in DynACL.
        invariance: AIR's loss of (z1, z2, a1, a2, z of the original clip). With AIR's terms the
            other two losses are not halved, as in AIR's code.
    """
    # the clean stream first: its embeddings are those in which false negatives are detected
    clean = batch.clean_loss()
    pairs = _both_attacked(batch)
    adv = average([batch.loss(pair, (0, 1), adversarial=(0, 1)) for pair in pairs])
    both = (2 - weight) * clean + weight * adv
    parts = {"loss": 0.5 * both, "loss_clean": clean, "loss_adv": adv}
    if invariance is None:
        return parts
    assert batch.original is not None  # `uses_original` of the entry
    # the clean branch embeds the original clip, which the adversarial views are also compared with
    z = batch.model(batch.original)
    terms = average([invariance(batch.z(0), batch.z(1), *pair, z) for pair in pairs])
    return parts | {"loss": both + terms, "loss_invariance": terms}


def a2a(batch: ViewBatch) -> dict[str, Tensor]:
    """Return the loss of ACL's adversarial-to-adversarial variant: L(a1, a2), one norm branch."""
    pairs = _both_attacked(batch)
    adv = average([batch.loss(pair, (0, 1), adversarial=(0, 1)) for pair in pairs])
    return {"loss": adv, "loss_adv": adv}


def a2s(batch: ViewBatch) -> dict[str, Tensor]:
    """Return the loss of ACL's adversarial-to-standard variant: L(a1, z2).

    a1 goes through the adversarial branch. The paper does not say what the attack maximises; here
    it is the loss that is learned.
    """

    def make_loss(model: Model) -> Loss:
        with batch.model.use_branch("clean"):
            other = batch.embed_as_attacked(1)
        return lambda x: batch.loss([model(x), other], (0, 1))

    z2 = batch.z(1)
    adv_views = batch.attack(batch.views[0], make_loss)
    pairs = [[batch.embed(view), z2] for view in adv_views]
    adv = average([batch.loss(pair, (0, 1), adversarial=(0,)) for pair in pairs])
    return {"loss": adv, "loss_adv": adv}


def _both_attacked(batch: ViewBatch) -> list[tuple[Tensor, Tensor]]:
    """Return a1, a2 (B, D) for each threat: both views maximise NT-Xent of the pair together."""

    # a loss per anchor, not per video: the attack is on 2B clips, each of which is an anchor
    def make_loss(model: Model | SplitEncoder) -> Loss:
        return lambda x: batch.anchor_losses(model(x).chunk(2), (0, 1))

    pairs = []
    for view in batch.attack(torch.cat(batch.views[:2]), make_loss, batch.joint):
        # one pass of both where clean views are one pass, otherwise a pass each
        if batch.joint is not None:
            a1, a2 = through(batch.joint, view, batch.joint).chunk(2)
        else:
            x1, x2 = view.x.chunk(2)
            a1 = batch.embed(AdversarialView(x1, view.branch))
            a2 = batch.embed(AdversarialView(x2, view.branch))
        pairs.append((a1, a2))
    return pairs


def _pairing(options: config.AdversaryConfig, invariance: Invariance | None) -> Pairing:
    one_sided: dict[str, Pairing] = {"a2a": a2a, "a2s": a2s}
    return one_sided.get(options.pairing) or partial(acl, invariance=invariance)


def _refusal(options: config.MethodConfig) -> str:
    a = options.adversary
    if a.pairing == "a2a" and a.combine == "branches":
        return (
            "method.adversary.combine=branches: acl's a2a has no clean stream, whose branch nothing"
            " would train; set average, worst, or pairing=ds"
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
    # 5 steps of 2/255 within 8/255, as in the released code
    steps=5,
    step=0.25,
    random_start=True,
    branches=lambda options: () if options.pairing == "a2a" else branch_per_threat(options),
    two_clips=True,
    uses_original=lambda options: bool(options.sir or options.air),
    takes_air=lambda options: options.pairing == "ds",  # a2a and a2s have one stream
    mixed=lambda options: options.pairing == "a2s",
    skips_weights=lambda options: options.pairing != "ds",
    measured="adv",
    fixed=frozenset({"pairing"}),
    refusal=_refusal,
)

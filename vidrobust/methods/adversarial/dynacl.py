"""DynACL: ACL with a growing weight of the adversarial stream (Luo et al., ICLR 2023)."""

import math
from functools import partial

from torch import Tensor

from vidrobust import config
from vidrobust.losses.air import Invariance
from vidrobust.methods.adversarial.acl import acl
from vidrobust.methods.adversarial.view_batch import ViewBatch
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat


def dynacl(batch: ViewBatch, invariance: Invariance | None = None) -> dict[str, Tensor]:
    """Return DynACL's loss: ACL's with a growing weight of the adversarial stream.

    The weight of epoch e is w = 1 + floor(e / 50) (50 / 1000) (2 / 3) in the paper's 1000 epochs:
    it starts at 1, and increases by 1/30 after each twentieth of the run, 19 times. In the released
    code the weight is one epoch ahead, and increases once more in the last epoch. `augment.fade`
    has the augmentations, which weaken at the same steps. With `key_encoder` the second view goes
    through a momentum encoder in both streams and in the attack, as in the released code:
    `batch.joint` is then a `SplitEncoder`.

    Args:
        batch: two views.
        invariance: AIR's loss, with which the method is AIR; None: DynACL.
    """
    # the bound of 2 is in the released code too: 2 - w, of the clean stream, cannot be negative
    weight = min(1 + math.floor(20 * batch.progress) / 20 * 2 / 3, 2.0)
    return acl(batch, weight, invariance)


def _uses(options: config.AdversaryConfig) -> frozenset[str]:
    return frozenset({"momentum", "momentum_climbs"} if options.key_encoder else ())


SPEC = AdversarySpec(
    help="DynACL: ACL with a momentum encoder for the second view, and a growing weight",
    costs={"": Cost(forward=2, attack=2, learned=(1, 1))},
    variants={
        "key_encoder=false, sir, air: AIR": Cost(attack=1, together=2, learned=(1, 1, 1, 1, 1)),
    },
    options=frozenset({"sir", "air", "air_kl", "key_encoder"}),
    uses=_uses,
    pairing=lambda options, invariance: partial(dynacl, invariance=invariance),
    # the attack of ACL
    steps=5,
    step=0.25,
    random_start=True,
    branches=branch_per_threat,
    two_clips=True,
    uses_original=lambda options: bool(options.sir or options.air),
    measured="adv",
    key_encoder=lambda options: options.key_encoder,
    takes_air=lambda options: True,
    fixed=frozenset({"key_encoder"}),
)

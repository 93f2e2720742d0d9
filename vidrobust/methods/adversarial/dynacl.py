"""DynACL: ACL whose adversarial stream gains weight (Luo et al., ICLR 2023); with AIR's terms,
AIR.
"""

import math
from functools import partial

from torch import Tensor

from vidrobust.losses.air import Invariance
from vidrobust.methods.adversarial.acl import acl
from vidrobust.methods.adversarial.view_batch import ViewBatch
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat


def dynacl(batch: ViewBatch, invariance: Invariance | None = None) -> dict[str, Tensor]:
    """Return DynACL's loss: ACL's with a growing weight of the adversarial stream.

    The weight increases from 1 by 1/30 at each twentieth of the run (every 50 of 1000 epochs, 2/3
    per run) to at most 2; the released code is one epoch ahead of it. Its augmentations, which
    weaken meanwhile, are those of `augment.fade`. In its code the second view goes through a
    momentum encoder, in both streams and in the attack: `batch.joint` is then a `SplitEncoder`.
    With `invariance` it is AIR.
    """
    weight = min(1 + math.floor(20 * batch.progress) / 20 * 2 / 3, 2.0)
    return acl(batch, weight, invariance)


SPEC = AdversarySpec(
    help="DynACL: ACL with a momentum encoder for the second view, and a growing weight",
    costs={"": Cost(forward=2, attack=2, learned=(1, 1))},
    variants={
        "key_encoder=false, sir, air: AIR": Cost(attack=1, together=2, learned=(1, 1, 1, 1, 1)),
    },
    options=frozenset({"sir", "air", "air_kl", "key_encoder"}),
    pairing=lambda options, invariance: partial(dynacl, invariance=invariance),
    steps=5,
    step=0.25,
    random_start=True,
    branches=branch_per_threat,
    two_clips=True,
    uses_original=lambda options: bool(options.sir or options.air),
    measured="adv",
    fixed=frozenset({"key_encoder"}),
)

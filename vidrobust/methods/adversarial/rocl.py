"""RoCL: adversarial views as a third positive (Kim et al., NeurIPS 2020)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from vidrobust.methods.adversarial.view_batch import Streams, average, together
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat_only


def rocl(s: Streams, regularizer: float = 1 / 256) -> dict[str, Tensor]:
    """RoCL (Kim et al., NeurIPS 2020): NT-Xent(x1, x2, x_adv) + NT-Xent(x_adv, x2) / lambda.

    As its code has it: x_adv raises NT-Xent(f(x_adv), f(x2)) from x1. All three are positives of
    each other, the two of an anchor added up. No gradient reaches the second factor of a
    similarity, also in the attack. A-InfoNCE changes the first loss alone. Norms have one branch: a
    pass of x_adv and x2 for the second loss, then one of all three for the first.
    """

    def aim() -> Callable[[Tensor], Tensor]:
        other = s.seen(1)
        return lambda z: s.loss([z, other], (0, 1), stop=True)

    made = s.attack(s.views[0], aim)
    pair = []
    for view in made:
        z2, z_adv = together(s.model, [s.views[1]], [view])
        pair.append(s.loss([z_adv, z2], (0, 1), stop=True))
    z1, z2, *moved = s.embed_together((0, 1), made)
    three = [s.loss([z1, z2, z_adv], (0, 1, 0), stop=True, adversarial=(2,)) for z_adv in moved]
    adv, pairs = 2 * average(three), average(pair)
    return {"loss": adv + regularizer * pairs, "loss_adv": adv, "loss_pair": pairs}


SPEC = AdversarySpec(
    help="RoCL: three views, one norm branch",
    costs={"": Cost(forward=1, attack=1, learned=(2, 3))},
    options=frozenset({"regularizer"}),
    pairing=lambda options, _: partial(rocl, regularizer=options.regularizer),
    steps=7,
    step=0.007 / 0.0314,
    random_start=True,
    branches=branch_per_threat_only,
    two_clips=True,
)

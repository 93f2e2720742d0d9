"""RoCL: adversarial views as a third positive (Kim et al., NeurIPS 2020)."""

from functools import partial

from torch import Tensor

from vidrobust.attacks import Loss
from vidrobust.methods.adversarial.view_batch import ViewBatch, average, together
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat_only
from vidrobust.models import Model


def rocl(batch: ViewBatch, regularizer: float = 1 / 256) -> dict[str, Tensor]:
    """Return RoCL's loss as released: NT-Xent(x1, x2, x_adv) + regularizer NT-Xent(x_adv, x2).

    x_adv maximises NT-Xent(f(x_adv), f(x2)), beginning at x1. All three views are positives of each
    other, and the losses of an anchor's two positives are summed. No gradient reaches the second
    factor of a similarity, neither here nor in the attack. A-InfoNCE changes the first loss only.
    Norms have one branch: x_adv and x2 are one pass for the second loss, then all three are one
    pass for the first.

    Args:
        batch: two views, the first of which is attacked.
        regularizer: weight of the second loss.
    """

    def make_loss(model: Model) -> Loss:
        other = batch.embed_as_attacked(1)
        return lambda x: batch.loss([model(x), other], (0, 1), stop=True)

    adv_views = batch.attack(batch.views[0], make_loss)
    # the second loss has a pass of its own, before the first, as in the released code: running
    # statistics depend on the order
    pairs = []
    for view in adv_views:
        z2, z_adv = together(batch.model, [batch.views[1]], [view])
        pairs.append(batch.loss([z_adv, z2], (0, 1), stop=True))
    z1, z2, *embedded = batch.embed_together((0, 1), adv_views)
    # x_adv was made from x1, so that it has the false negatives of x1: the place (0, 1, 0)
    triples = [[z1, z2, z_adv] for z_adv in embedded]
    losses = [batch.loss(triple, (0, 1, 0), stop=True, adversarial=(2,)) for triple in triples]
    adv = 2 * average(losses)  # the loss has the mean over two positives, RoCL's code the sum
    pair = average(pairs)
    return {"loss": adv + regularizer * pair, "loss_adv": adv, "loss_pair": pair}


SPEC = AdversarySpec(
    help="RoCL: three views, one norm branch",
    costs={"": Cost(forward=1, attack=1, learned=(2, 3))},
    options=frozenset({"regularizer"}),
    pairing=lambda options, _: partial(rocl, regularizer=options.regularizer),
    # eps 0.0314 (8/255), step 0.007 and 7 steps, as in the released scripts
    steps=7,
    step=0.007 / 0.0314,
    random_start=True,
    branches=branch_per_threat_only,
    two_clips=True,
    mixed=lambda options: True,
)

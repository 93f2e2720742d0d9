"""CLAE: adversarial examples of the contrastive loss (Ho and Vasconcelos, NeurIPS 2020)."""

from functools import partial

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Loss, parse_threat
from vidrobust.losses.air import Invariance
from vidrobust.methods.adversarial.adversary import AdversarialView
from vidrobust.methods.adversarial.view_batch import Pairing, ViewBatch, average
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat
from vidrobust.models import Model


def clae(batch: ViewBatch, alpha: float = 1.0) -> dict[str, Tensor]:
    """Return CLAE's loss L(z1, ..., zV) + alpha L(z1, z_adv) (Ho and Vasconcelos 2020).

    x_adv maximises L(f(x1), f(x_adv)), beginning at x1 itself. At x1 the similarity of the positive
    pair is at its maximum and has no gradient, so that the negatives of the batch drive the step.
    In the attack, both clips go through the adversarial norm branch. In the loss, z1 is of the
    clean branch, and z_adv of the adversarial one.

    Args:
        batch: its first view is attacked.
        alpha: weight of the adversarial loss.
    """

    def make_loss(model: Model) -> Loss:
        if batch.adversary.starts_at_x and not batch.adversary.takes_worst:
            return lambda x: _with_itself(batch, model(x))
        # With further steps or a random start x differs from x1, which is then embedded once. The
        # loss that compares the views of several threats also needs the embedding of x1.
        anchor = batch.embed_as_attacked(0)
        return lambda x: batch.loss([anchor, model(x)], (0, 1))

    clean = batch.clean_loss()
    # one view per threat; the loss is the mean over threats
    adv_views = batch.attack(batch.views[0], make_loss)
    pairs = [[batch.z(0), batch.embed(view)] for view in adv_views]
    adv = average([batch.loss(pair, (0, 1), adversarial=(1,)) for pair in pairs])
    return {"loss": clean + alpha * adv, "loss_clean": clean, "loss_adv": adv}


def _with_itself(batch: ViewBatch, z: Tensor) -> Tensor:
    """Return the loss of embeddings with themselves.

    At x = x1 both factors have the same value, so that one pass gives the step of two. The anchor
    is detached: the step follows the gradient of the second factor alone, as in the released code.
    """
    return batch.loss([z.detach(), z], (0, 1))


def clae_published(batch: ViewBatch, alpha: float = 1.0, eps: float = 0.03) -> dict[str, Tensor]:
    """Return CLAE's loss as in its released code (chihhuiho/CLAE, SimCLR/main.py).

    Nothing is clamped to [0, 1], and all three passes of the adversarial branch, two of them in the
    attack, update its running statistics.

    Args:
        batch: its first view is attacked.
        alpha: weight of the adversarial loss.
        eps: Linf budget of the normalised clip.
    """
    x = batch.views[0]
    clean = batch.clean_loss()
    # the attack updates running statistics, which `Adversary` would freeze
    with batch.model.use_branch("adv"), torch.enable_grad():
        with torch.no_grad():
            anchor = batch.model(x)
        tilde = x.detach().requires_grad_(True)
        loss = batch.loss([anchor, batch.model(tilde)], (0, 1)).sum()
        (gradient,) = torch.autograd.grad(loss, tilde)
    # a step of eps in normalised values is eps * std in pixels
    x_adv = x + eps * batch.model.backbone.std * gradient.sign()
    batch.adversary.warn_without_effect("published", x, x_adv, gradient.norm())
    batch.adversary.record("published", x, x_adv)
    z_adv = batch.embed(AdversarialView(x_adv, "adv"))
    adv = batch.loss([batch.z(0), z_adv], (0, 1), adversarial=(1,))
    return {"loss": clean + alpha * adv, "loss_clean": clean, "loss_adv": adv}


def _pairing(options: config.AdversaryConfig, _: Invariance | None) -> Pairing:
    if not options.faithful:
        return partial(clae, alpha=options.alpha)
    # eps of the normalised clip; 0.03 is that of the released scripts
    eps = parse_threat(options.threats[0]).eps if options.threats else 0.03
    return partial(clae_published, alpha=options.alpha, eps=eps)


SPEC = AdversarySpec(
    help="CLAE: one step against the loss of the whole batch",
    costs={
        "": Cost(attack=1, learned=(1, 1, 1), train_mode=True),
        "moco": Cost(forward=1, attack=1, learned=(1, 1), train_mode=True),
    },
    variants={"faithful=true": Cost(forward=1, attack=1, learned=(1, 1, 1))},
    options=frozenset({"alpha", "faithful"}),
    pairing=_pairing,
    threat="linf-4/255",  # 0.03 in the paper's normalised clips, whose deviation is 0.5: 3.8/255
    train_mode=True,
    branches=branch_per_threat,
    momentum=0.01,  # --bn_adv_momentum of the released code
    mixed=lambda options: True,
)

"""CLAE: adversarial examples of the contrastive loss (Ho and Vasconcelos, NeurIPS 2020)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.losses.air import Invariance
from vidrobust.methods.adversarial.adversary import AdversarialView
from vidrobust.methods.adversarial.view_batch import Pairing, Streams, average
from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat


def clae(s: Streams, alpha: float = 1.0) -> dict[str, Tensor]:
    """CLAE (Ho and Vasconcelos, NeurIPS 2020; METHODS section 2.1): L(z1, ..., zV) + alpha L(z1, z_adv).

    x_adv raises L(f(x1), f(x_adv)) from x1 itself, where the positive pair's similarity is at its maximum and the
    negatives of the batch drive the step. There the two embeddings that the loss compares are equal: one pass gives
    both, of which only one is differentiated. Further steps, a random start, or several threats of which the worst is
    taken, compare with f(x1) as it was.
    """

    def aim() -> Callable[[Tensor], Tensor]:
        if s.adversary is not None and s.adversary.starts_at_x and not s.adversary.chooses:
            return lambda z: s.loss([z.detach(), z], (0, 1))
        anchor = s.seen(0)
        return lambda z: s.loss([anchor, z], (0, 1))

    clean = s.clean
    adv = average([s.loss([s.z(0), s.embed(view)], (0, 1), adversarial=(1,))
                   for view in s.attack(s.views[0], aim)])  # fmt: skip
    return {"loss": clean + alpha * adv, "loss_clean": clean, "loss_adv": adv}


def clae_published(s: Streams, alpha: float = 1.0, eps: float = 0.03) -> dict[str, Tensor]:
    """CLAE as its code has it: eps is of the normalised clip, nothing is clamped, and the three passes of the
    adversarial branch (two of the attack) all move its running statistics. The published eps is 0.03.
    """
    x, clean = s.views[0], s.clean
    with s.model.use_branch("adv"), torch.enable_grad():
        with torch.no_grad():
            anchor = s.model(x)
        tilde = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(s.loss([anchor, s.model(tilde)], (0, 1)).sum(), tilde)
    x_adv = x + eps * s.model.backbone.std * gradient.sign()
    if s.adversary is not None:
        s.adversary.tell("published", x, x_adv, gradient.norm())
    adv = s.loss([s.z(0), s.embed(AdversarialView(x_adv, "adv"))], (0, 1), adversarial=(1,))
    return {"loss": clean + alpha * adv, "loss_clean": clean, "loss_adv": adv}


def _pairing(options: config.Adversary, _: Invariance | None) -> Pairing:
    if not options.faithful:
        return partial(clae, alpha=options.alpha)
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
    threat="linf-4/255",
    train_mode=True,
    branches=branch_per_threat,
    momentum=0.01,
)

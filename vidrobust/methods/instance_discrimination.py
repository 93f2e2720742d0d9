"""Instance discrimination: Plain, and UEL (Ye et al. 2019)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.losses.cosine import full_precision
from vidrobust.losses.info_nce import info_nce
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.clae import clae
from vidrobust.methods.adversarial.view_batch import Pairing
from vidrobust.methods.false_negatives.removal import Masks
from vidrobust.methods.simclr import AdversarialSimCLR
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

PairLoss = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]


class InstDisc(AdversarialSimCLR):
    """Two views of a video, compared by `plain` or `uel`; the adversary is CLAE's."""

    def __init__(
        self,
        model: Model,
        temperature: float,
        pair_loss: PairLoss,
        adversary: Adversary | None = None,
        pairing: Pairing = clae,
    ) -> None:
        """Set the loss of a pair of views, and the adversary."""
        super().__init__(model, temperature, adversary, pairing=pairing)
        self.pair_loss = pair_loss

    def contrast(
        self,
        z: Sequence[Tensor],
        ids: Tensor,
        labels: Tensor,
        masks: Masks,
        *,
        stop: bool = False,
        adversarial: Sequence[int] = (),
        extra: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the two views for each of them, (2 * B,)."""
        own = None if extra is None else extra[: len(ids)]
        return self.pair_loss(z[0], z[1], self.temperature, own).repeat(2)


def plain(a: Tensor, b: Tensor, temperature: float, extra: Tensor | None = None) -> Tensor:
    """-log softmax over the batch, in one direction -> (B,): anchors a (B, D), candidates b (B, D),
    of any norm.

    extra: (B, M) logits of more negatives.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (F.normalize(full_precision(z), dim=1) for z in (a, b))
        candidates = distributed.gather(b)
        number = torch.arange(len(candidates), device=a.device)
        positives = number[distributed.here(len(a)), None] == number
        return info_nce(a / temperature @ candidates.T, positives, None, extra)


def uel(a: Tensor, b: Tensor, temperature: float, extra: Tensor | None = None) -> Tensor:
    """-log P_ii' - sum over j of log(1 - P_ij) -> (B,), the mean of both views as anchors i.

    a, b (B, D) of any norm. P_ij: the softmax over all other rows of both views; i' is the other
    view of i, j every row but these two. No gradient reaches the second factor of a similarity, as
    the released code has it. extra: nothing; UEL takes no other negatives (`require_used`).
    """
    with torch.autocast(a.device.type, enabled=False):
        z = F.normalize(full_precision(torch.cat([a, b])), dim=1)
        everyone = distributed.gather(z.detach())
        number = torch.arange(len(everyone), device=z.device)
        own = number[distributed.here(len(z))]
        itself, positives = own[:, None] == number, own.roll(len(a))[:, None] == number
        log_p = (z / temperature @ everyone.T).masked_fill(itself, -torch.inf).log_softmax(1)
        log_not = torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))  # near P = 1 it has no end
        wrong = log_not.masked_fill(itself | positives, 0).sum(1)
        return -(log_p.masked_fill(~positives, 0).sum(1) + wrong).view(2, -1).mean(0)


def _build(parts: Parts, pair_loss: PairLoss) -> InstDisc:
    options = parts.options
    if options.clips_per_video != 2:
        raise UserError(
            f"method.clips_per_video={options.clips_per_video}: {options.name} compares two views"
        )
    model = parts.model("projector")
    pairing = parts.pairing() or clae
    return InstDisc(model, options.temperature, pair_loss, parts.attack(), pairing)


PLAIN = MethodSpec(
    build=lambda parts: _build(parts, plain),
    help="Plain: CLAE's baseline, one direction",
    cost=Cost(learned=(1, 1)),
    options=frozenset({"temperature"}),
    adversaries=("clae",),
    refuses={"false_negatives": "has no masks"},
)
UEL = MethodSpec(
    build=lambda parts: _build(parts, uel),
    help="UEL: CLAE's baseline, a batch criterion",
    cost=Cost(learned=(1, 1)),
    options=frozenset({"temperature"}),
    adversaries=("clae",),
    refuses={
        "false_negatives": "has no masks",
        "negatives": "is a batch criterion over its own views",
    },
)

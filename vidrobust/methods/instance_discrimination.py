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
from vidrobust.methods.simclr import AdversarialSimCLR, LossSettings
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

PairLoss = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]


class InstDisc(AdversarialSimCLR):
    """Instance discrimination of two views by `plain` or `uel`; its adversary is CLAE's."""

    def __init__(
        self,
        model: Model,
        loss: LossSettings,
        pair_loss: PairLoss,
        adversary: Adversary | None = None,
        pairing: Pairing = clae,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector.
            loss: of its settings, the temperature and `alpha_negatives` are used.
            pair_loss: (B, D), (B, D), temperature, logits of more negatives or None -> (B,).
            adversary: makes adversarial views.
            pairing: pairs clean and adversarial views.
        """
        super().__init__(model, loss, adversary, pairing=pairing)
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
        """Return the loss of the two views for each of them, (2 * B,).

        Args:
            z: two embeddings (B, D) of each video.
            ids: (B,).
            labels: (B,), not used.
            masks: not used; false negatives are not removed.
            stop: not used.
            adversarial: not used.
            extra: (2 * B, M) logits of more negatives.
        """
        # One loss per pair, repeated for callers that take the mean over both views. The first view
        # is the anchor, so that only its extra negatives count.
        first_view = None if extra is None else extra[: len(ids)]
        return self.pair_loss(z[0], z[1], self.loss.temperature, first_view).repeat(2)


def plain(a: Tensor, b: Tensor, temperature: float, extra: Tensor | None = None) -> Tensor:
    """Return -log softmax over the batch, in one direction, (B,).

    It is the baseline of CLAE's released code. Unlike in NT-Xent, candidates are the other view
    alone, and embeddings of the same view are no negatives.

    Args:
        a: anchors (B, D) of any norm.
        b: candidates (B, D) of any norm; those of all ranks are compared.
        temperature: divides similarities.
        extra: (B, M) logits of more negatives.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (F.normalize(full_precision(z), dim=1) for z in (a, b))
        # the positive of an anchor is the candidate in the same place of the whole batch
        candidates = distributed.gather(b)
        number = torch.arange(len(candidates), device=a.device)
        positives = number[distributed.here(len(a)), None] == number
        return info_nce(a / temperature @ candidates.T, positives, None, extra)


def uel(a: Tensor, b: Tensor, temperature: float, extra: Tensor | None = None) -> Tensor:
    """Return UEL's loss (Ye et al. 2019), (B,): -log P_ii' - sum over j of log(1 - P_ij).

    P_ij is the softmax of row i over all other rows of both views. i' is the other view of i, and j
    is every row but these two. The loss is the mean over both views as anchors i. No gradient
    reaches the second factor of a similarity, as in the released code.

    Args:
        a: embeddings (B, D) of one view, of any norm.
        b: embeddings (B, D) of the other view.
        temperature: divides similarities.
        extra: not used; UEL refuses other negatives (`UEL.refuses`).
    """
    with torch.autocast(a.device.type, enabled=False):
        z = F.normalize(full_precision(torch.cat([a, b])), dim=1)
        everyone = distributed.gather(z.detach())
        number = torch.arange(len(everyone), device=z.device)
        rows = number[distributed.here(len(z))]  # of this rank's 2B embeddings
        itself = rows[:, None] == number
        # half a turn of [a, b] puts each row in the place of its other view
        positives = rows.roll(len(a))[:, None] == number
        log_p = (z / temperature @ everyone.T).masked_fill(itself, -torch.inf).log_softmax(1)
        # log(1 - P) = log(-expm1(log P)), exact for small P; at P = 1 it would be -inf
        log_not = torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))
        wrong = log_not.masked_fill(itself | positives, 0).sum(1)
        return -(log_p.masked_fill(~positives, 0).sum(1) + wrong).view(2, -1).mean(0)


def _build(parts: Parts, pair_loss: PairLoss) -> InstDisc:
    options = parts.options
    if options.clips_per_video != 2:
        raise UserError(
            f"method.clips_per_video={options.clips_per_video}: {options.name} compares two views"
        )
    model = parts.model()
    pairing = parts.pairing() or clae
    loss = LossSettings(options.temperature, alpha_negatives=options.negatives.alpha)
    return InstDisc(model, loss, pair_loss, parts.attack(), pairing)


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

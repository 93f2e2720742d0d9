"""How adversarial views are made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidrobust.attacks import ThreatModel, fgsm
from vidrobust.models import Model

PairLoss = Callable[[Tensor, Tensor], Tensor]  # (B, D), (B, D) -> (B,)


@dataclass(frozen=True)
class CLAE:
    """CLAE (Ho & Vasconcelos, NeurIPS 2020; METHODS section 2.1): one FGSM step on the loss of the whole batch.

    eps: Linf, [0, 1] pixels (the paper's 0.03 in normalised space is 3.8/255). alpha: weight of the adversarial
    loss. Two departures from the released code: x_adv is clamped to [0, 1], and the attack's passes do not move
    the norms' running statistics.
    """

    eps: float = 4 / 255
    alpha: float = 1.0

    def view(self, model: Model, x: Tensor, pair_loss: PairLoss) -> Tensor:
        """The adversarial view of x (B, C, T, H, W), made on the model as it trains, adversarial branch.

        The attack starts at x itself, so the positive pair's similarity is at its maximum and the step is driven
        by the negatives of the batch. There the two embeddings that the loss compares are equal: one pass gives
        both, of which only one is differentiated.
        """

        def loss(x_tilde: Tensor) -> Tensor:
            z = model(x_tilde)
            return pair_loss(z.detach(), z)

        with model.use_branch("adv"), frozen_statistics(model):
            return fgsm(loss, x, ThreatModel("linf", self.eps))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Norms in train mode go on using the batch's statistics, but leave the running ones alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True

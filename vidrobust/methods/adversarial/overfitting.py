"""OverfittingWatch: detect catastrophic overfitting of one-step training (Wong et al. 2020)."""

import torch
from torch import Tensor, nn

from vidrobust.utils.logging import log

_DROP = 0.2  # of the accuracy under PGD, at which the released code stops


class OverfittingWatch(nn.Module):
    """Compares the accuracy under the attack of training with that under PGD, once per epoch.

    A model that is trained with one step may become robust to that step only: within an epoch, its
    accuracy under the step increases while that under PGD drops to 0. `report` warns of it once.

    Attributes:
        due: the first batch of the epoch is still to be measured.
    """

    best: Tensor  # largest accuracy under PGD so far
    last: Tensor  # accuracy under the attack of training and under PGD; -1: not measured

    def __init__(self) -> None:
        """Begin without measurements."""
        super().__init__()
        self.register_buffer("best", torch.zeros(()))
        self.register_buffer("last", torch.full((2,), -1.0))
        self.due = False
        self._warned = False

    def start_epoch(self) -> None:
        """Ask for a measurement on the next batch."""
        self.due = True

    def record(self, own: Tensor, pgd: Tensor) -> None:
        """Record the accuracy under the training's attack and under PGD, scalars in [0, 1]."""
        self.last.copy_(torch.stack([own, pgd]))
        self.due = False

    def report(self) -> dict[str, float]:
        """Return both accuracies of the epoch, and warn where PGD's has collapsed."""
        own, pgd = self.last.tolist()
        # not measured: the epoch began before a resume, or trained the head alone
        if pgd < 0:
            return {}
        if pgd < float(self.best) - _DROP and own > pgd + _DROP and not self._warned:
            self._warned = True
            log.warning(
                f"catastrophic overfitting: {pgd:.0%} of a batch are right under PGD, after"
                f" {float(self.best):.0%} before, and {own:.0%} under the one step of training;"
                " stop here, or train fewer epochs, with a smaller step or with"
                " method.adversary.name=pgd"
            )
        self.best.clamp_(min=pgd)
        self.last.fill_(-1.0)
        return {"own_attack_accuracy": own, "pgd_accuracy": pgd}

"""Detect catastrophic overfitting of one-step training (Wong et al., ICLR 2020)."""

import torch
from torch import Tensor, nn

from vidrobust.utils.logging import log

_DROP = 0.2  # of the accuracy under PGD, which the released code stops at


class OverfittingWatch(nn.Module):
    """Accuracy under the training's own attack and under PGD, once an epoch, on its first batch.

    A model that is trained by one step may come to resist that step alone: accuracy under it rises
    while that under PGD falls to nothing, within an epoch. `report` warns of that once.
    """

    best: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("best", torch.zeros(()))  # accuracy under PGD so far
        self.register_buffer("last", torch.full((2,), -1.0))  # own attack, PGD; -1: not looked at
        self.due = False
        self.told = False

    def saw(self, own: Tensor, pgd: Tensor) -> None:
        """Note the accuracy under the training's attack and under PGD, scalars of 0 to 1."""
        self.last.copy_(torch.stack([own, pgd]))
        self.due = False

    def report(self) -> dict[str, float]:
        """Return both accuracies of the epoch, and warn where PGD's has collapsed."""
        own, pgd = self.last.tolist()
        if pgd < 0:  # the epoch began before a resume
            return {}
        if pgd < float(self.best) - _DROP and own > pgd + _DROP and not self.told:
            self.told = True
            log.warning(
                f"catastrophic overfitting: {pgd:.0%} of a batch are right under PGD, after"
                f" {float(self.best):.0%} before, and {own:.0%} under the one step of training;"
                " stop here, or train fewer epochs, with a smaller step or with"
                " method.adversary.name=pgd"
            )
        self.best.clamp_(min=pgd)
        self.last.fill_(-1.0)
        return {"own_attack_accuracy": own, "pgd_accuracy": pgd}

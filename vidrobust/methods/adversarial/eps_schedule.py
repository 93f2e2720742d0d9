"""EpsSchedule: the budget eps over training."""

import torch
from torch import Tensor, nn

from vidrobust.utils import distributed

# The adaptive schedule samples one of this many budgets, evenly spaced from 0 to eps, and updates
# their probabilities after each part of the run, of as many equal parts.
_GRID = 10


class EpsSchedule(nn.Module):
    """The fraction of eps, 0 to 1, that is used at a point of training.

    - constant: 1.
    - linear: increases from 0 to 1 over the first `warmup` fraction of the run.
    - curriculum: increases from `first` to 1 over the whole run.
    - adaptive: sampled anew in each step from ten budgets between 0 and eps, with probabilities
      proportional to their losses (Kinfu and Vidal 2022). The paper measures these losses on
      held-out videos; here they are running means over training batches. Probabilities are updated
      after every tenth of the run.

    Attributes:
        current: the fraction that `fraction` returned last.
    """

    # buffers of the adaptive schedule
    losses: Tensor  # (10,) running mean of the adversarial loss at each budget; 0: not measured
    chances: Tensor  # (10,) probabilities
    drawn: Tensor  # index of the budget that was sampled last
    part: Tensor  # part of the run in which the probabilities were updated last

    def __init__(
        self, schedule: str = "constant", *, warmup: float = 0.1, first: float = 0.25
    ) -> None:
        """Set the schedule.

        Args:
            schedule: constant, linear, curriculum or adaptive.
            warmup: fraction of the run, for linear.
            first: fraction of eps at the beginning, for curriculum.
        """
        super().__init__()
        self.schedule = schedule
        self.warmup = warmup
        self.first = first
        self.current = 1.0
        if schedule == "adaptive":
            self.register_buffer("losses", torch.zeros(_GRID))
            self.register_buffer("chances", torch.full((_GRID,), 1 / _GRID))
            self.register_buffer("drawn", torch.zeros((), dtype=torch.long))
            self.register_buffer("part", torch.zeros((), dtype=torch.long))

    def fraction(self, progress: float) -> float:
        """Return the fraction of eps to use now.

        The adaptive schedule samples from torch's global generator, which is alike on all ranks.

        Args:
            progress: fraction of training done.
        """
        self.current = self._fraction(progress)
        return self.current

    @torch.no_grad()
    def record(self, loss: Tensor) -> None:
        """Record the adversarial losses (B,) that the last fraction led to."""
        if self.schedule != "adaptive":
            return
        # the mean over ranks, so that the probabilities are the same on all of them
        value = distributed.mean(loss.detach().float().mean())
        index = int(self.drawn)
        if self.losses[index] == 0:  # the first measurement at this budget
            self.losses[index] = value
        else:
            self.losses[index] = torch.lerp(self.losses[index], value, 0.1)

    def _fraction(self, progress: float) -> float:
        if self.schedule == "linear":
            return min(1.0, progress / self.warmup) if self.warmup else 1.0
        if self.schedule == "curriculum":
            return self.first + (1 - self.first) * progress
        if self.schedule == "adaptive":
            return self._sample(progress)
        return 1.0

    def _sample(self, progress: float) -> float:
        # a checkpoint keeps `part`, so that a resume does not update the probabilities again
        part = int(progress * _GRID)
        if part != int(self.part):
            self.part.fill_(part)
            self._update_chances()
        self.drawn.copy_(torch.multinomial(self.chances.cpu(), 1)[0])
        return int(self.drawn) / (_GRID - 1)

    def _update_chances(self) -> None:
        """Make the probabilities proportional to the losses."""
        losses = self.losses.clamp(min=0)
        measured = losses > 0
        # a budget that was never sampled counts as an average one, so that it is still sampled
        typical = losses[measured].mean() if measured.any() else 1.0
        losses = torch.where(measured, losses, typical)
        self.chances.copy_(losses / losses.sum())

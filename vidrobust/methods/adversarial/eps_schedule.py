"""Schedule the budget eps over training."""

import torch
from torch import Tensor, nn

from vidrobust.utils import distributed

# budgets that "adaptive" draws from, and parts of the run after each of which it looks at their
# losses
_GRID = 10


class Budget(nn.Module):
    """The share of eps at a moment of training, 0 to 1.

    constant: 1. linear: climbs from 0 to 1 in the `warmup` share of the run. curriculum: climbs
    from `first` to 1 over the whole run. adaptive: drawn anew each step among ten budgets, evenly
    from 0 to eps, as likely as their losses were large (Kinfu and Vidal 2022, METHODS section 6.2,
    who measure these on held-out videos; here they are running means over training batches), looked
    at after every tenth of the run.
    """

    losses: Tensor
    chances: Tensor
    drawn: Tensor
    part: Tensor

    def __init__(
        self, schedule: str = "constant", *, warmup: float = 0.1, first: float = 0.25
    ) -> None:
        super().__init__()
        self.schedule, self.warmup, self.first = schedule, warmup, first
        self.now = 1.0  # the share that was asked for last
        if schedule == "adaptive":
            self.register_buffer("losses", torch.zeros(_GRID))
            self.register_buffer("chances", torch.full((_GRID,), 1 / _GRID))
            self.register_buffer("drawn", torch.zeros((), dtype=torch.long))
            self.register_buffer("part", torch.zeros((), dtype=torch.long))

    def share(self, progress: float) -> float:
        """At this share of training; "adaptive" draws from torch's global generator, alike on all
        ranks.
        """
        self.now = self._share(progress)
        return self.now

    @torch.no_grad()
    def saw(self, loss: Tensor) -> None:
        """The adversarial losses (B,) that the last share led to."""
        if self.schedule != "adaptive":
            return
        value, at = distributed.mean(loss.detach().float().mean()), int(self.drawn)
        self.losses[at] = value if self.losses[at] == 0 else torch.lerp(self.losses[at], value, 0.1)

    def _share(self, progress: float) -> float:
        if self.schedule == "linear":
            return min(1.0, progress / self.warmup) if self.warmup else 1.0
        if self.schedule == "curriculum":
            return self.first + (1 - self.first) * progress
        if self.schedule == "adaptive":
            return self._draw(progress)
        return 1.0

    def _draw(self, progress: float) -> float:
        part = int(progress * _GRID)
        if part != int(self.part):
            self.part.fill_(part)
            known = self.losses.clamp(min=0)
            known = torch.where(
                known > 0, known, known[known > 0].mean() if (known > 0).any() else 1.0
            )
            self.chances.copy_(known / known.sum())
        self.drawn.copy_(torch.multinomial(self.chances.cpu(), 1)[0])
        return int(self.drawn) / (_GRID - 1)

"""Threat models: how large a perturbation may be and where it may lie. All geometry of attacks is here."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ThreatModel:
    """A perturbed clip stays within `eps` of the clip in `norm`, on `support`, and in [0, 1].

    norm: "linf", the largest change of a pixel's channel. eps: in [0, 1] units. support: "dense", any pixel.
    Raises ValueError for eps < 0 and for a norm or support that is not defined.
    """

    norm: Literal["linf"] = "linf"
    eps: float = 8 / 255
    support: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        if self.norm != "linf" or self.support != "dense":
            raise ValueError(f"no threat model {self.norm} x {self.support}; there is linf x dense")
        if not self.eps >= 0:
            raise ValueError(f"eps={self.eps}: must be at least 0, in [0, 1] units")

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The nearest allowed clip to x_adv; shapes alike, batch first."""
        return torch.clamp(x_adv.clamp(x - self.eps, x + self.eps), 0, 1)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor:
        """A step of length `size` (in this norm) in the direction that raises the loss fastest."""
        return x_adv + size * gradient.sign()

    def random_start(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A uniform draw from the allowed clips around x (before clamping to [0, 1])."""
        device = generator.device if generator else x.device
        noise = torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
        return self.project(x, x + self.eps * (2 * noise - 1))


def measure(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> Tensor:
    """The size of each sample's perturbation in the threat's norm, from the pixels -> (B,)."""
    return (x_adv - x).abs().flatten(1).amax(1)


def contains(threat: ThreatModel, x: Tensor, x_adv: Tensor, atol: float = 1e-6) -> Tensor:
    """Whether each sample obeys the threat model: budget, support and [0, 1] -> (B,) bool. NaN does not."""
    in_budget = measure(threat, x, x_adv) <= threat.eps + atol
    in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    return in_budget & in_range

"""Momentum encoder: an exponential moving average of a model."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vidrobust.models import Model


class MomentumEncoder(nn.Module):
    """Average a model's weights: theta_k <- m theta_k + (1 - m) theta_q (He et al. 2020, eq. 2).

    The momentum m increases from `momentum` to 1 along a cosine (BYOL, Grill et al. 2020), or stays
    constant (MoCo). Weights get no gradient. Norms have statistics of their own.

    Args:
        model: copied.
        momentum: m at the start, 0 to 1.
        increases: m increases during training; False: it is constant.
    """

    def __init__(self, model: Model, momentum: float, *, increases: bool = True) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: must be 0 to 1")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum
        self.increases = increases

    @torch.no_grad()
    def start_from(self, model: Model) -> None:
        """Copy all weights and statistics of a model, as at construction."""
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def follow(self, model: Model, progress: float) -> None:
        """Move the weights one step towards a model; progress: fraction of training done."""
        m = self.at(progress)
        # Parameters only: norms keep the statistics of this encoder's own forward passes, as in
        # MoCo's code.
        for slow, fast in zip(self.model.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - m)

    def at(self, progress: float) -> float:
        """Return the momentum at a fraction of training in 0 to 1."""
        if not self.increases:
            return self.momentum
        # Grill et al. 2020: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2 at step k of K
        return 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * progress))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings of clips (B, C, T, H, W), without gradient."""
        return self.model(x)


class SplitEncoder(nn.Module):
    """Embed the first half of a batch by a model, and the second half by its momentum encoder.

    The second half has gradients with respect to its clips, but not to weights. Both halves can
    therefore be attacked (DynACL's code, Luo et al., ICLR 2023).
    """

    def __init__(self, model: Model, slow: MomentumEncoder) -> None:
        super().__init__()
        self.model = model
        # the wrapped model, because MomentumEncoder.forward blocks all gradients
        self.slow = slow.model

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (2B, D) of clips (2B, C, T, H, W)."""
        first, second = x.chunk(2)
        return torch.cat([self.model(first), self.slow(second)])

    @contextmanager
    def use_branch(self, branch: str) -> Iterator[None]:
        """Run both models through one norm branch, within the context."""
        with self.model.use_branch(branch), self.slow.use_branch(branch):
            yield

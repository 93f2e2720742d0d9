"""Momentum encoder: an exponential moving average of a model."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vidrobust.models import Model


class MomentumEncoder(nn.Module):
    """theta_k <- m theta_k + (1 - m) theta_q, without gradient (He et al. 2020, eq. 2).

    m climbs from `momentum` to 1 along a cosine (BYOL, Grill et al. 2020), or stays where it is
    (MoCo). Norms have statistics of their own.
    """

    def __init__(self, model: Model, momentum: float, *, climbs: bool = True) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum}: 0 to 1")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.momentum, self.climbs = momentum, climbs

    @torch.no_grad()
    def start_from(self, model: Model) -> None:
        """Become the model, as at the beginning."""
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def follow(self, model: Model, progress: float) -> None:
        """One step after the model; progress: the share of training done."""
        m = self.at(progress)
        for slow, fast in zip(self.model.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - m)

    def at(self, progress: float) -> float:
        """The momentum there."""
        if not self.climbs:
            return self.momentum
        return 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * progress))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SplitEncoder(nn.Module):
    """Embeds the first half of a batch by a model and the second by its momentum encoder.

    The second half gets no gradient to weights; one to its clips it does get, so that both halves
    can be attacked (DynACL's code, Luo et al., ICLR 2023).
    """

    def __init__(self, model: Model, slow: MomentumEncoder) -> None:
        super().__init__()
        self.model, self.slow = model, slow.model

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (2B, D) of clips (2B, C, T, H, W)."""
        first, second = x.chunk(2)
        return torch.cat([self.model(first), self.slow(second)])

    @contextmanager
    def use_branch(self, branch: str) -> Iterator[None]:
        """Let both go through a norm branch."""
        with self.model.use_branch(branch), self.slow.use_branch(branch):
            yield

"""Exponential moving average of weights, for evaluation."""

import torch
from torch import Tensor, nn


class Average:
    """w_avg <- momentum w_avg + (1 - momentum) w after each step, norm statistics included (DynACL,
    METHODS 4.4).
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - self.momentum)
            else:
                self.state[key].copy_(value)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's."""
        for key, value in state.items():
            self.state[key].copy_(value)

"""Average: an exponential moving average of weights, for evaluation."""

import torch
from torch import Tensor, nn


class Average:
    """Moves by w_avg <- momentum w_avg + (1 - momentum) w after each step.

    Running statistics of norms are averaged too: no clip passes through the average, so that it
    has no statistics of its own, unlike a `MomentumEncoder`.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        """Begin with the weights of the model.

        Args:
            model: is averaged.
            momentum: fraction of the average that a step keeps, 0 to 1.
        """
        self.momentum = momentum
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move a step toward the model."""
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - self.momentum)
            else:  # counters of norms
                self.state[key].copy_(value)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from the average of a checkpoint."""
        for key, value in state.items():
            self.state[key].copy_(value)

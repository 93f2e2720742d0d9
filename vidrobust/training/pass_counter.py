"""Count the forward and backward passes of a step, in clips."""

from typing import Any

from torch import Tensor, nn

from vidrobust.models import Backbone


class PassCounter:
    """Counts the passes of every Backbone in a method: the model's, a momentum encoder's, a
    teacher's.

    A backward pass to the input alone, as an attack's, counts as one to the weights does.
    """

    def __init__(self, method: nn.Module) -> None:
        self.forward = self.backward = 0
        for module in method.modules():
            if isinstance(module, Backbone):
                module.register_forward_hook(self._count)

    def take(self) -> tuple[int, int]:
        """(forward, backward) since the last call."""
        found = self.forward, self.backward
        self.forward = self.backward = 0
        return found

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        clips = len(output)
        self.forward += clips
        if output.requires_grad:
            output.register_hook(lambda _: self._count_back(clips))

    def _count_back(self, clips: int) -> None:
        self.backward += clips

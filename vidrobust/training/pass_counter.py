"""PassCounter: count the forward and backward passes of a step, in clips."""

from typing import Any

from torch import Tensor, nn

from vidrobust.models import AttentiveHead, Backbone


class PassCounter:
    """Counts the passes of every Backbone in a method, also of momentum encoders and teachers.

    A backward pass to the input only, as in an attack, counts like one to the weights.
    """

    def __init__(self, method: nn.Module) -> None:
        """Hook into all backbones of a method."""
        self.forward = 0
        self.backward = 0
        for module in method.modules():
            if isinstance(module, Backbone):
                module.register_forward_hook(self._count)
            if isinstance(module, AttentiveHead):
                module.register_forward_hook(self._count_tokens)

    def take(self) -> tuple[int, int]:
        """Return (forward, backward) since the last call."""
        passes = self.forward, self.backward
        self.forward = 0
        self.backward = 0
        return passes

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        # a gradient that reaches the output means that a backward pass runs through the backbone
        clips = len(output)
        self.forward += clips
        if output.requires_grad:
            output.register_hook(lambda _: self._count_back(clips))

    def _count_tokens(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # the gradient of such a head reaches tokens inside of the backbone, not its output
        tokens = inputs[0]
        if tokens.requires_grad:
            clips = len(tokens)
            tokens.register_hook(lambda _: self._count_back(clips))

    def _count_back(self, clips: int) -> None:
        self.backward += clips

"""Count the forward and backward passes of an attack, in clips."""

import torch
from torch import Tensor

from vidrobust.attacks.losses import Predict
from vidrobust.attacks.outputs import as_tensor


class Passes:
    """A model whose passes are counted. Call it in place of the model.

    Attributes:
        predict: the model.
        forward: clips that passed forward.
        backward: clips that passed backward.
    """

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.forward = 0
        self.backward = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forward += len(x)
        logits = as_tensor(self.predict(x))
        # the hook runs when a gradient reaches the logits: once per backward pass
        if logits.requires_grad and torch.is_grad_enabled():
            logits.register_hook(lambda _: self._count_backward(len(x)))
        return logits

    def _count_backward(self, clips: int) -> None:
        self.backward += clips

"""Count the forward and backward passes of an attack, in clips."""

import torch
from torch import Tensor

from vidrobust.attacks.losses import Predict
from vidrobust.attacks.outputs import as_tensor


class Passes:
    """A model whose passes are counted: `forward` and `backward`, in clips. Call it in the model's
    place.
    """

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.forward = 0
        self.backward = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forward += len(x)
        logits = as_tensor(self.predict(x))
        if logits.requires_grad and torch.is_grad_enabled():
            logits.register_hook(lambda _: self._count(len(x)))
        return logits

    def _count(self, clips: int) -> None:
        self.backward += clips

"""Average the logits of the views of a video: its clips and their crops."""

import math

import torch
from torch import Tensor


def average_views(logits: Tensor, average: str) -> Tensor:
    """Return the logits of videos from those of their views.

    Args:
        logits: (B, V, K) of V views each.
        average: "logits": their mean. "probabilities": the logarithm of the mean probability, whose
            softmax is that mean (as mmaction2 with average_clips="prob").

    Returns:
        (B, K).
    """
    if average == "logits":
        return logits.mean(1)
    return torch.logsumexp(logits.log_softmax(2), 1) - math.log(logits.shape[1])

"""Label smoothing, mixup and CutMix: labels as distributions over classes.

Mixup (Zhang et al. 2018) blends two clips and their labels. CutMix (Yun et al. 2019) pastes a box
of one clip into another and blends their labels by its area. As in VideoMAE's code, which is
timm's, one lambda serves a batch, and with both each batch takes one of them at random.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.losses.cosine import full_precision


@dataclass(frozen=True)
class LabelSettings:
    """Hold how labels, and clips with them, are changed in training.

    Attributes:
        smoothing: fraction of each label that is spread over all classes, 0 to 1.
        mixup: alpha of the Beta distribution of mixup's lambda; 0: no mixup.
        cutmix: alpha of the Beta distribution of CutMix's lambda; 0: no CutMix.
    """

    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """True if clips are mixed."""
        return self.mixup > 0 or self.cutmix > 0


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy (B,) in full precision, 0 where the label is -1.

    Pseudo-labels are -1 for videos that did not decode. The mean over a batch counts them as 0.

    Args:
        logits: (B, K).
        labels: classes (B,), or distributions over classes (B, K), which are smoothed already.
        smoothing: fraction of each class label that is spread over all classes.
    """
    logits = full_precision(logits)
    if labels.ndim == 2:
        return -(labels * logits.log_softmax(1)).sum(1)
    return F.cross_entropy(
        logits, labels, reduction="none", ignore_index=-1, label_smoothing=smoothing
    )


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return labels as distributions (B, K); rows of label -1 are 0.

    Args:
        labels: classes (B,), -1 for none.
        classes: number of classes K.
        smoothing: fraction of each label that is spread over all classes.
    """
    rows = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    known = labels >= 0
    one_hot = F.one_hot(labels.clamp(min=0), classes)
    return (rows + (1 - smoothing) * one_hot) * known[:, None]


def mixed(
    x: Tensor, labels: Tensor, classes: int, settings: LabelSettings
) -> tuple[Tensor, Tensor]:
    """Return mixed clips and their labels as distributions over classes.

    Random numbers come from torch's global generator, whose state is in checkpoints and the same on
    all ranks. A clip's partner is its neighbour in the batch, so that the ranks, which have an even
    number of clips each, mix the pairs that a single process would mix.

    Args:
        x: clips (B, C, T, H, W).
        labels: classes (B,), -1 for none.
        classes: number of classes K.
        settings: at least one of mixup and CutMix.

    Returns:
        (B, C, T, H, W) and (B, K).
    """
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    cut = settings.cutmix > 0 and (not settings.mixup or rng.random() < 0.5)
    alpha = settings.cutmix if cut else settings.mixup
    weight = float(rng.beta(alpha, alpha))
    other = _partners(len(x), x.device)
    if cut:
        top, bottom, left, right = random_box(rng, x.shape[-2], x.shape[-1], weight)
        clips = x.clone()
        clips[..., top:bottom, left:right] = x[other][..., top:bottom, left:right]
        # the area that is left of the clip, as the box ends at the border
        weight = 1 - (bottom - top) * (right - left) / (x.shape[-2] * x.shape[-1])
    else:
        clips = weight * x + (1 - weight) * x[other]
    targets = smoothed(labels, classes, settings.smoothing)
    return clips, weight * targets + (1 - weight) * targets[other]


def _partners(count: int, device: torch.device) -> Tensor:
    """Return the neighbour of each clip; the last of an odd number is its own."""
    places = torch.arange(count, device=device)
    return (places ^ 1).clamp(max=count - 1)


def random_box(
    rng: np.random.Generator, height: int, width: int, weight: float
) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of CutMix's box, cut off at the border.

    Its area is 1 - weight of the frame, its centre uniform over pixels (Yun et al. 2019, eq. 2).

    Args:
        rng: gives the centre.
        height: of the frame, pixels.
        width: of the frame, pixels.
        weight: lambda, 0 to 1.
    """
    ratio = math.sqrt(1 - weight)
    tall, wide = int(height * ratio), int(width * ratio)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return (
        max(0, y - tall // 2),
        min(height, y + (tall + 1) // 2),
        max(0, x - wide // 2),
        min(width, x + (wide + 1) // 2),
    )

"""BYOL (Grill et al. 2020) and SimSiam (Chen and He 2021): positives alone, kept apart by a predictor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.data import Record
from vidrobust.methods.method import Method
from vidrobust.methods.momentum import MomentumEncoder
from vidrobust.models import Model


class BYOL(Method):
    """Each view predicts the others: 2 - 2 cos(predictor(z_v), target_w), averaged over all ordered pairs v != w.

    The target is a momentum encoder's embedding; without one, the model's own with its gradient stopped, which is
    SimSiam (whose loss, -cos, is this one's half less 1). Nothing is pushed away: there are no false negatives.
    """

    def __init__(
        self, model: Model, predictor: nn.Module, target: MomentumEncoder | None = None, *, clips: int = 2
    ) -> None:
        super().__init__()
        self.model, self.predictor, self.target, self.views = model, predictor, target, clips

    def prepare(self, records: Sequence[Record]) -> None:
        if self.target is not None:
            self.target.start_from(self.model)

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, V, C, T, H, W) in [0, 1] -> {"loss": (B,)}; neither ids nor labels are looked at."""
        z = [self.model(views[:, v]) for v in range(self.views)]
        if self.target is None:
            targets = [each.detach() for each in z]
        else:
            if self.training:
                self.target.follow(self.model, self.progress)
            targets = [self.target(views[:, v]) for v in range(self.views)]
        predicted = [self.predictor(each) for each in z]
        with torch.autocast(views.device.type, enabled=False):
            losses = [
                2 - 2 * F.cosine_similarity(predicted[v].float(), targets[w].float(), dim=1)
                for v in range(self.views) for w in range(self.views) if v != w
            ]  # fmt: skip
        return {"loss": torch.stack(losses).mean(0)}

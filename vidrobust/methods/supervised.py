"""Cross-entropy with labels: what contrastive methods are compared with."""

from torch import Tensor
from torch.nn import functional as F

from vidrobust.methods.method import Method
from vidrobust.models import Model


class Supervised(Method):
    """Cross-entropy on one augmented clip of a video."""

    views = 1

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, 1, C, T, H, W) in [0, 1], labels (B,) -> {"loss": (B,)}."""
        return {"loss": F.cross_entropy(self.model(views[:, 0]).float(), labels, reduction="none")}

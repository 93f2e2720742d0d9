"""Supervised training with labels or pseudo-labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.data import Record
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.adversarial.adversary import in_mode
from vidrobust.methods.base import Method
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Backbone, Model


class Supervised(Method):
    """Cross-entropy on one augmented clip of a video.

    clusters: of k-means on the features of the trunk as training begins, in place of labels; 0:
    labels. head_first: the share of the run in which only the head is trained, on clean clips:
    DynACL++ (Luo et al., ICLR 2023) finetunes so, with TRADES after it. unit: features are
    normalised before they are clustered.
    """

    views = 1

    def __init__(
        self, model: Model, clusters: int = 0, head_first: float = 0.0, *, unit: bool = True
    ) -> None:
        super().__init__()
        self.model, self.head_first = model, head_first
        self.pseudo = PseudoLabels([clusters], "method.clusters", unit=unit) if clusters else None

    def prepare(self, records: Sequence[Record]) -> None:
        if self.pseudo is not None:
            self.pseudo.know(len(records))

    def looks_with(self) -> Backbone | None:
        return None if self.pseudo is None else self.model.backbone

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, 1, C, T, H, W) in [0, 1], labels (B,) -> {"loss": (B,), and its parts}."""
        labels = labels if self.pseudo is None else self.pseudo(ids)[:, 0]
        if self.training and self.progress < self.head_first:
            with torch.no_grad(), in_mode(self.model.backbone, False):
                features = self.model.backbone(views[:, 0])
            return {"loss": cross_entropy(self.model.head(features), labels)}
        return self.losses(views[:, 0], labels)

    def losses(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """x (B, C, T, H, W), labels (B,), -1 for none -> as `forward`."""
        return {"loss": cross_entropy(self.model(x), labels)}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K), (B,) -> (B,), in full precision; 0 where there is no label."""
    return F.cross_entropy(full_precision(logits), labels, reduction="none", ignore_index=-1)


def _build(parts: Parts) -> Supervised:
    options = parts.options
    model = parts.model("linear", options.clusters or parts.classes)
    unit = options.clusters_metric == "cosine"
    return Supervised(model, options.clusters, options.head_first, unit=unit)


SPEC = MethodSpec(
    build=_build,
    help="cross-entropy",
    cost=Cost(),
    options=frozenset({"clusters", "head_first"}),
    adversaries=("pgd", "trades", "fast", "free"),
    needs_labels=lambda options: not options.clusters,
    refuses={"false_negatives": "has no negatives", "negatives": "learns from labels"},
    fixed=frozenset({"clusters"}),
)

"""Supervised training with labels or pseudo-labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust import config
from vidrobust.data import Record
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.adversarial.adversary import in_mode
from vidrobust.methods.base import Method
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Backbone, Model


class Supervised(Method):
    """Cross-entropy of one augmented clip per video."""

    views = 1

    def __init__(
        self, model: Model, pseudo: PseudoLabels | None = None, head_first: float = 0.0
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and linear head.
            pseudo: labels from clusters of the features with which training begins; None: the
                labels of the data set.
            head_first: fraction of the run in which only the head is trained, on clean clips.
                DynACL++ (Luo et al., ICLR 2023) finetunes in this way, with TRADES afterwards.
        """
        super().__init__()
        self.model = model
        self.head_first = head_first
        self.pseudo = pseudo

    def prepare(self, records: Sequence[Record]) -> None:
        """Make room for pseudo-labels."""
        if self.pseudo is not None:
            self.pseudo.set_videos(len(records))

    def backbone_to_cluster(self) -> Backbone | None:
        """Return the backbone whose features become pseudo-labels, or None with labels."""
        return None if self.pseudo is None else self.model.backbone

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, 1, C, T, H, W) in [0, 1].
            ids: (B,), for pseudo-labels.
            labels: (B,), -1 for none.
            progress: fraction of training done.
        """
        labels = labels if self.pseudo is None else self.pseudo(ids)[:, 0]  # one granularity
        if self.training and progress < self.head_first:
            # eval mode: the norms of a pretrained backbone keep their statistics
            with torch.no_grad(), in_mode(self.model.backbone, False):
                features = self.model.backbone(views[:, 0])
            return {"loss": cross_entropy(self.model.head(features), labels)}
        return self.losses(views[:, 0], labels, progress)

    def losses(self, x: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log} while the whole model is trained.

        Args:
            x: (B, C, T, H, W) in [0, 1].
            labels: (B,), -1 for none.
            progress: fraction of training done.
        """
        return {"loss": cross_entropy(self.model(x), labels)}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy (B,) in full precision, 0 where the label is -1.

    Pseudo-labels are -1 for videos that did not decode. The mean over a batch counts them as 0.
    """
    return F.cross_entropy(full_precision(logits), labels, reduction="none", ignore_index=-1)


def pseudo_labels_of(options: config.MethodConfig) -> PseudoLabels | None:
    """Return the configured pseudo-labels, or None with labels."""
    if not options.clusters:
        return None
    unit = options.clusters_metric == "cosine"
    return PseudoLabels([options.clusters], "method.clusters", unit=unit)


def _build(parts: Parts) -> Supervised:
    options = parts.options
    model = parts.model(options.clusters or parts.classes)
    return Supervised(model, pseudo_labels_of(options), options.head_first)


SPEC = MethodSpec(
    build=_build,
    help="cross-entropy",
    cost=Cost(),
    head="linear",
    takes=frozenset({"selector"}),
    options=frozenset({"clusters", "head_first"}),
    adversaries=("pgd", "trades", "fast", "free"),
    needs_labels=lambda options: not options.clusters,
    skips_weights=lambda options: options.head_first > 0,
    refuses={"false_negatives": "has no negatives", "negatives": "learns from labels"},
    fixed=frozenset({"clusters"}),
)

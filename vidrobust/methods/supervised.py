"""Supervised training with labels or pseudo-labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.data import Record
from vidrobust.methods.adversarial.adversary import in_mode
from vidrobust.methods.base import Method
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.soft_labels import LabelSettings, cross_entropy, mixed
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Backbone, Model, outputs_of


class Supervised(Method):
    """Cross-entropy of one augmented clip per video."""

    views = 1

    def __init__(
        self,
        model: Model,
        pseudo: PseudoLabels | None = None,
        head_first: float = 0.0,
        *,
        label_settings: LabelSettings | None = None,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and classifier. If its backbone is frozen, only the head learns.
            pseudo: labels from clusters of the features with which training begins; None: the
                labels of the data set.
            head_first: fraction of the run in which only the head is trained, on clean clips.
                DynACL++ (Luo et al., ICLR 2023) finetunes in this way, with TRADES afterwards.
            label_settings: smoothing and mixing of labels; None: neither.
        """
        super().__init__()
        self.model = model
        self.head_first = head_first
        self.pseudo = pseudo
        self.label_settings = label_settings or LabelSettings()

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
        labels = self.targets(ids, labels)
        x = views[:, 0]
        if self.training and self.label_settings.mixes:
            x, labels = mixed(x, labels, outputs_of(self.model.head), self.label_settings)
        if self.training and progress < self.head_first:
            # eval mode: the norms of a pretrained backbone keep their statistics
            with torch.no_grad(), in_mode(self.model.backbone, False):
                features = self.model.inputs_of_head(x)
            return {"loss": self.loss_of(self.model.head(features), labels)}
        return self.losses(x, labels, progress)

    def targets(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the classes (B,) that are learned, -1 for none: pseudo-labels if there are any.

        Args:
            ids: (B,).
            labels: (B,) of the data set.
        """
        return labels if self.pseudo is None else self.pseudo(ids)[:, 0]  # one granularity

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy (B,) that is learned, with label smoothing.

        Args:
            logits: (B, K).
            labels: classes (B,), or distributions over classes (B, K).
        """
        return cross_entropy(logits, labels, self.label_settings.smoothing)

    def losses(self, x: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log} while the whole model is trained.

        Args:
            x: (B, C, T, H, W) in [0, 1].
            labels: classes (B,), -1 for none, or distributions (B, K) of mixed clips.
            progress: fraction of training done.
        """
        return {"loss": self.loss_of(self.model(x), labels)}


def pseudo_labels_of(options: config.MethodConfig) -> PseudoLabels | None:
    """Return the configured pseudo-labels, or None with labels."""
    if not options.clusters:
        return None
    unit = options.clusters_metric == "cosine"
    return PseudoLabels([options.clusters], "method.clusters", unit=unit)


def label_settings_of(options: config.MethodConfig) -> LabelSettings:
    """Return the configured smoothing and mixing of labels."""
    return LabelSettings(options.label_smoothing, options.mixup, options.cutmix)


def classifier_of(parts: Parts) -> Model:
    """Return the configured model, with a frozen backbone where `method.freeze` is set."""
    model = parts.model(parts.options.clusters or parts.classes)
    if parts.options.freeze:
        model.freeze_backbone()
    return model


def _build(parts: Parts) -> Supervised:
    options = parts.options
    return Supervised(
        classifier_of(parts),
        pseudo_labels_of(options),
        options.head_first,
        label_settings=label_settings_of(options),
    )


SPEC = MethodSpec(
    build=_build,
    help="cross-entropy",
    cost=Cost(),
    head="linear",
    takes=frozenset({"selector"}),
    options=frozenset({"clusters", "cutmix", "freeze", "head_first", "label_smoothing", "mixup"}),
    adversaries=("pgd", "trades", "fast", "free", "autolora"),
    needs_labels=lambda options: not options.clusters,
    skips_weights=lambda options: options.head_first > 0,
    refuses={"false_negatives": "has no negatives", "negatives": "learns from labels"},
    fixed=frozenset({"clusters", "freeze"}),
)

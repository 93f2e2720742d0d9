"""BYOL (Grill et al. 2020) and SimSiam (Chen and He 2021)."""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from vidrobust.data import Record
from vidrobust.losses.cosine import cosines, similarity
from vidrobust.methods.base import Method, negative_cosine
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model, normed_mlp
from vidrobust.models.momentum import MomentumEncoder


class BYOL(Method):
    """BYOL and SimSiam: each view predicts the others; the loss is the mean over ordered pairs.

    With a momentum encoder, whose embeddings are the targets, this is BYOL: twice the mean of
    2 - 2 cos(predictor(z_v), target_w) (Grill et al. 2020, eq. 2), which for two views is the sum
    of both directions. Without one, the targets are the model's own embeddings without gradient,
    which is SimSiam: the mean of -cos (Chen and He 2021, eq. 2). The learning rates of the papers
    assume these scales. There are no negatives, and so no false negatives. Non-semantic negatives
    (Ge et al. 2021) add their mean cosine with the predictions, times `alpha_negatives` and 2
    (BYOL) or 1/2 (SimSiam). The paper has such a term; this form is ours.
    """

    def __init__(
        self,
        model: Model,
        predictor: nn.Module,
        target: MomentumEncoder | None = None,
        *,
        clips: int = 2,
        alpha_negatives: float = 1.0,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector.
            predictor: (B, D) -> (B, D).
            target: momentum encoder of the targets (BYOL); None: SimSiam.
            clips: V, views per video.
            alpha_negatives: weight of the term of non-semantic negatives.
        """
        super().__init__()
        self.model = model
        self.predictor = predictor
        self.target = target
        self.views = clips
        self.alpha_negatives = alpha_negatives

    def prepare(self, records: Sequence[Record]) -> None:
        """Start the momentum encoder from the model."""
        if self.target is not None:
            self.target.start_from(self.model)

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, V + M, C, T, H, W) in [0, 1]: V clips, followed by M non-semantic negatives.
            ids: (B,), not used.
            labels: (B,), not used.
            progress: fraction of training done.
        """
        z = [self.model(views[:, v]) for v in range(self.views)]
        # the model has the weights of the last optimizer step: the same as an update after a step
        self.follow(progress)
        targets = [self.target_of(views[:, v], z_v) for v, z_v in enumerate(z)]
        predictions = [self.predictor(z_v) for z_v in z]
        negatives = self.embed_negatives(views)
        loss = self.pair_loss(predictions, targets, negatives)
        return {"loss": loss} | negative_cosine(predictions[0], negatives)

    def follow(self, progress: float) -> None:
        """Update the momentum encoder, in training."""
        if self.target is not None and self.training:
            self.target.follow(self.model, progress)

    def target_of(self, x: Tensor, z: Tensor, branch: str = "clean") -> Tensor:
        """Return the target (B, D) of a view, without gradient.

        Args:
            x: the view, (B, C, T, H, W) in [0, 1].
            z: its embedding (B, D), which is the target without a momentum encoder.
            branch: norm branch of the view.
        """
        if self.target is None:
            return z.detach()
        with self.target.model.use_branch(branch):
            return self.target(x)

    @torch.no_grad()
    def embed_negatives(self, views: Tensor) -> Tensor | None:
        """Return the targets (B, M, D) of non-semantic negatives, or None."""
        # negatives are targets, which have no gradient in either method
        encoder = self.model if self.target is None else self.target
        return self.embed_behind_views(encoder, views)

    def pair_loss(
        self, predictions: Sequence[Tensor], targets: Sequence[Tensor], negatives: Tensor | None
    ) -> Tensor:
        """Return the loss (B,).

        Args:
            predictions: (B, D) of each view.
            targets: (B, D) of each view.
            negatives: targets (B, M, D) of non-semantic negatives, or None.
        """
        cosine = _mean_cosine(predictions, targets)
        # scale: the coefficient of one of the two similarities of a pair of views; the mean
        # similarity of the negatives has the same
        if self.target is None:
            scale, loss = 0.5, -cosine
        else:
            scale, loss = 2.0, 2.0 * (2 - 2 * cosine)
        if negatives is None:
            return loss
        similarity_of_view = cosines(predictions, negatives).mean(1).view(len(predictions), -1)
        return loss + scale * self.alpha_negatives * similarity_of_view.mean(0)


def _mean_cosine(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the mean cosine (B,) of each prediction with the target of each other view."""
    pairs = permutations(range(len(predictions)), 2)
    return torch.stack([similarity(predictions[v], targets[w]) for v, w in pairs]).mean(0)


def build_parts(parts: Parts) -> tuple[Model, nn.Module, MomentumEncoder | None]:
    """Return (model, predictor, momentum encoder of BYOL's targets), with fresh weights."""
    model = parts.model()
    target = parts.momentum(model) if parts.options.name == "byol" else None
    return model, normed_mlp(parts.dim, parts.options.predictor, parts.dim), target


def _build(parts: Parts) -> BYOL:
    options = parts.options
    return BYOL(
        *build_parts(parts),
        clips=options.clips_per_video,
        alpha_negatives=options.negatives.alpha,
    )


_REFUSES = {"false_negatives": "has no negatives"}
SPEC = MethodSpec(
    build=_build,
    help="BYOL",
    cost=Cost(forward=2, learned=(1, 1)),
    head="normed_projector",
    options=frozenset({"clips_per_video", "predictor", "momentum", "momentum_climbs"}),
    adversaries=("taro",),
    refuses=_REFUSES,
    fixed=frozenset({"predictor"}),
)
SIMSIAM = MethodSpec(
    build=_build,
    help="SimSiam",
    cost=Cost(learned=(1, 1)),
    head="simsiam_projector",
    options=frozenset({"clips_per_video", "predictor"}),
    adversaries=("taro",),
    refuses=_REFUSES,
    fixed=frozenset({"predictor"}),
)

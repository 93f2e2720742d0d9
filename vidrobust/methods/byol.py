"""BYOL (Grill et al. 2020) and SimSiam (Chen and He 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidrobust.data import Record
from vidrobust.losses.cosine import cosines, similarity
from vidrobust.methods.adversarial.adversary import frozen_statistics
from vidrobust.methods.base import Method, negative_cosine
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model, normed_mlp
from vidrobust.models.momentum import MomentumEncoder


class BYOL(Method):
    """Each view predicts the others, the mean over all ordered pairs v != w of views.

    With a momentum encoder, whose embeddings are the targets, this is BYOL: twice the mean of
    2 - 2 cos(predictor(z_v), target_w), the sum of both directions of two views. Without one the
    targets are the model's own embeddings, their gradient stopped, which is SimSiam: the mean of
    -cos. Both are the scales that the papers' learning rates count on. Nothing is pushed away:
    there are no false negatives. Non-semantic negatives (Ge et al. 2021) add `alpha_negatives`
    times the mean cosine of the predictions with their targets, on the same scale as 2 - 2 cos.
    `taro.py` has its adversary.
    """

    def __init__(
        self,
        model: Model,
        predictor: nn.Module,
        target: MomentumEncoder | None = None,
        *,
        clips: int = 2,
    ) -> None:
        super().__init__()
        self.model, self.predictor, self.target, self.views = model, predictor, target, clips

    def prepare(self, records: Sequence[Record]) -> None:
        if self.target is not None:
            self.target.start_from(self.model)

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, V + M, C, T, H, W) in [0, 1] -> {"loss": (B,), and its parts}; ids and labels
        are not looked at.
        """
        z = [self.model(views[:, v]) for v in range(self.views)]
        if self.target is not None and self.training:
            self.target.follow(self.model, self.progress)
        targets = [self._target(views[:, v], each) for v, each in enumerate(z)]
        predicted = [self.predictor(each) for each in z]
        pushed = self._embed_negatives(views)
        clean = self._losses(predicted, targets, pushed)
        return {"loss": clean} | negative_cosine(predicted[0], pushed)

    def _losses(
        self, predicted: Sequence[Tensor], targets: Sequence[Tensor], pushed: Tensor | None
    ) -> Tensor:
        """(B, D) of each view and (B, M, D) of negatives -> (B,)."""
        cosine, scale = _pairs(predicted, targets), 0.5 if self.target is None else 2.0
        loss = -cosine if self.target is None else scale * (2 - 2 * cosine)
        if pushed is None:
            return loss
        near = cosines(predicted, pushed).mean(1).view(len(predicted), -1).mean(0)
        return loss + scale * self.alpha_negatives * near

    @torch.no_grad()
    def _embed_negatives(self, views: Tensor) -> Tensor | None:
        """The targets (B, M, D) of negatives; running statistics of norms stay those of views."""
        encoder = self.model if self.target is None else self.target
        with frozen_statistics(self.model):
            found = [encoder(views[:, v]) for v in range(self.views, views.shape[1])]
        return torch.stack(found, 1) if found else None

    def _target(self, x: Tensor, z: Tensor, branch: str = "clean") -> Tensor:
        if self.target is None:
            return z.detach()
        with self.target.model.use_branch(branch):
            return self.target(x)


def _pairs(predicted: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """The cosine of each prediction with each other view's target, (B, D) each -> (B,), their
    mean.
    """
    losses = [
        similarity(predicted[v], targets[w])
        for v in range(len(predicted))
        for w in range(len(targets))
        if v != w
    ]
    return torch.stack(losses).mean(0)


def build_parts(parts: Parts) -> tuple[Model, nn.Module, MomentumEncoder | None]:
    """Return (model, predictor, momentum encoder of BYOL's targets), with fresh weights."""
    byol = parts.options.name == "byol"
    model = parts.model("normed_projector" if byol else "simsiam_projector")
    target = parts.momentum(model) if byol else None
    return model, normed_mlp(parts.dim, parts.options.predictor, parts.dim), target


def _build(parts: Parts) -> BYOL:
    return BYOL(*build_parts(parts), clips=parts.options.clips_per_video)


_REFUSES = {"false_negatives": "has no negatives"}
SPEC = MethodSpec(
    build=_build,
    help="BYOL",
    cost=Cost(forward=2, learned=(1, 1)),
    options=frozenset({"clips_per_video", "predictor", "momentum", "momentum_climbs"}),
    adversaries=("taro",),
    refuses=_REFUSES,
    fixed=frozenset({"predictor"}),
)
SIMSIAM = MethodSpec(
    build=_build,
    help="SimSiam",
    cost=Cost(learned=(1, 1)),
    options=frozenset({"clips_per_video", "predictor"}),
    adversaries=("taro",),
    refuses=_REFUSES,
    fixed=frozenset({"predictor"}),
)

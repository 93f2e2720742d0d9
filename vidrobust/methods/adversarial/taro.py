"""TARO: targeted attacks for BYOL and SimSiam (Kim et al., NeurIPS 2023).

METHODS has the attack's target; what else is here is what the released code does
(Kim-Minseon/TARO).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.attacks import Loss
from vidrobust.losses.cosine import full_precision, similarity
from vidrobust.methods.adversarial.adversary import (
    AdversarialView,
    Adversary,
    frozen_statistics,
    in_mode,
)
from vidrobust.methods.adversarial.view_batch import average, through
from vidrobust.methods.base import negative_cosine
from vidrobust.methods.byol import BYOL, build_parts
from vidrobust.methods.spec import AdversarySpec, Cost, Parts, branch_per_threat_only
from vidrobust.models import Model
from vidrobust.models.momentum import MomentumEncoder
from vidrobust.utils import distributed


class TARO(BYOL):
    """D(x1, a1) + weight (D(a2, a1) + D(a2, x1)), D the loss of BYOL or SimSiam between two views.

    a1 and a2 are adversarial: each view moves toward the clip of the batch that it is most
    `confusing` with, of the same view, so that its prediction becomes that clip's embedding. Paper
    C's negatives are in each D.
    """

    def __init__(
        self,
        model: Model,
        predictor: nn.Module,
        adversary: Adversary,
        target: MomentumEncoder | None = None,
        *,
        weight: float = 1.0,
    ) -> None:
        super().__init__(model, predictor, target)
        self.adversary, self.weight = adversary, weight

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, 2 + M, C, T, H, W) in [0, 1] -> {"loss": (B,), and its parts}; ids and labels
        are not looked at.
        """
        both = torch.cat([views[:, 0], views[:, 1]])
        made = self.adversary.views(
            self.model, lambda model: self._toward(both), both, self.progress
        )
        z = self.model(views[:, 0])
        if self.target is not None and self.training:
            self.target.follow(self.model, self.progress)
        clean = self.predictor(z), self._target(views[:, 0], z)
        pushed = self._embed_negatives(views)
        pairs, others = [], []
        for view in made:
            first, second = (self._seen(AdversarialView(x, view.branch)) for x in view.x.chunk(2))
            pairs.append(self._between(clean, first, pushed))
            others.append(
                self._between(second, first, pushed) + self._between(second, clean, pushed)
            )
        pair, adv = average(pairs), average(others)
        self.adversary.budget.saw(adv)
        parts = {"loss": pair + self.weight * adv, "loss_pair": pair, "loss_adv": adv}
        return parts | negative_cosine(clean[0], pushed)

    def _seen(self, view: AdversarialView) -> tuple[Tensor, Tensor]:
        """Its prediction, and the target that it is for others, (B, D) each."""
        z = through(self.model, view, self.model)
        return self.predictor(z), self._target(view.x, z, view.branch)

    def _between(
        self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], pushed: Tensor | None
    ) -> Tensor:
        """D of two views, each a prediction and a target."""
        predicted, targets = zip(a, b, strict=True)
        return self._losses(predicted, targets, pushed)

    def _toward(self, both: Tensor) -> Loss:
        """The cosine of a clip's prediction with the embedding of that to be taken for; both: (2B,
        C, T, H, W).
        """
        with torch.no_grad():
            aim = torch.cat(
                [distributed.gather(self.model(x))[self._chosen(x)] for x in both.chunk(2)]
            )
        return lambda v: similarity(self._predict(self.model(v)), aim)

    def _chosen(self, x: Tensor) -> Tensor:
        """Return which clip, of those of all ranks, each of x (B, C, T, H, W) is to be taken for.

        The released code chooses in training mode, each view by its own batch's statistics, and
        attacks in eval mode.
        """
        with in_mode(self.model, self.training), frozen_statistics(self.model):
            features = self.model.backbone(x)
            z = self.model.head(features)
        with in_mode(self.predictor, self.training), frozen_statistics(self.predictor):
            predicted = self.predictor(z)
        everyone, predictions = distributed.gather(features), distributed.gather(predicted)
        return confusing(features, everyone, predictions, distributed.here(len(x)))

    def _predict(self, z: Tensor) -> Tensor:
        """With the predictor as the attack sees the model."""
        with in_mode(self.predictor, self.adversary.train_mode), frozen_statistics(self.predictor):
            return self.predictor(z)


def confusing(features: Tensor, everyone: Tensor, predicted: Tensor, here: slice) -> Tensor:
    """Which of `everyone` (M, F) each of features (B, F), its rows `here`, is most easily taken for
    -> (B,).

    The largest norm((cos + 1) / 2) + norm(entropy), of the softmax of a candidate's prediction (M,
    D); norm divides by the L2 norm over the candidates, in which a clip's cosine with itself counts
    as 0. A clip is no candidate of itself, which the released code does not rule out.
    """
    cosine = (
        F.normalize(full_precision(features), dim=1)
        @ F.normalize(full_precision(everyone), dim=1).T
        + 1
    ) / 2
    log_p = full_precision(predicted).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    number = torch.arange(len(everyone), device=features.device)
    itself = number[here, None] == number
    score = F.normalize(cosine.masked_fill(itself, 0.5), dim=1) + F.normalize(entropy, dim=0)
    return score.masked_fill(itself, -torch.inf).argmax(1)


def _build(parts: Parts) -> TARO:
    model, predictor, target = build_parts(parts)
    adversary = parts.attack()
    assert adversary is not None
    return TARO(model, predictor, adversary, target, weight=parts.options.adversary.alpha)


SPEC = AdversarySpec(
    help="TARO: each view moves toward another video",
    costs={
        "": Cost(forward=4, attack=1, together=2, learned=(1, 1, 1)),
        "byol": Cost(forward=7, attack=1, together=2, learned=(1, 1, 1)),
    },
    build=_build,
    options=frozenset({"alpha"}),
    steps=10,
    step=0.25,
    random_start=True,
    branches=branch_per_threat_only,
    two_clips=True,
)

"""TARO: targeted attacks for BYOL and SimSiam (Kim et al., NeurIPS 2023).

What the paper leaves open is as in the released code (Kim-Minseon/TARO).
"""

from dataclasses import dataclass

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
    """TARO: BYOL or SimSiam with targeted attacks.

    The loss is D(x1, a1) + weight (D(a2, a1) + D(a2, x1)), where D is the loss of BYOL or SimSiam
    between two views. a1 and a2 are adversarial: each view moves toward the clip of the batch that
    it is most easily confused with (`confusing`), in the same view, so that its prediction becomes
    the embedding of that clip. The paper finds untargeted attacks ineffective where a loss has no
    negatives. Non-semantic negatives (Ge et al. 2021) are in each D.
    """

    adversary: Adversary

    def __init__(
        self,
        model: Model,
        predictor: nn.Module,
        adversary: Adversary,
        target: MomentumEncoder | None = None,
        *,
        weight: float = 1.0,
        alpha_negatives: float = 1.0,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector.
            predictor: (B, D) -> (B, D).
            adversary: makes the adversarial views.
            target: momentum encoder of the targets (BYOL); None: SimSiam.
            weight: of the losses of a2.
            alpha_negatives: weight of the term of non-semantic negatives.
        """
        super().__init__(model, predictor, target, alpha_negatives=alpha_negatives)
        self.adversary = adversary
        self.weight = weight

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, 2 + M, C, T, H, W) in [0, 1]: two clips, followed by M non-semantic
                negatives.
            ids: (B,), not used.
            labels: (B,), not used.
            progress: fraction of training done.
        """
        # both views are attacked in one batch, each toward a clip of the same view
        both = torch.cat([views[:, 0], views[:, 1]])
        adv_views = self.adversary.views(
            self.model, lambda model: self._targeted_loss(both), both, progress
        )
        z = self.model(views[:, 0])
        self.follow(progress)
        # only the first clean view is used
        clean = _Embedded(self.predictor(z), self.target_of(views[:, 0], z))
        negatives = self.embed_negatives(views)
        pairs = []
        others = []
        for view in adv_views:
            x1, x2 = view.x.chunk(2)
            a1 = self._embed(AdversarialView(x1, view.branch))
            a2 = self._embed(AdversarialView(x2, view.branch))
            pairs.append(self._between(clean, a1, negatives))
            others.append(self._between(a2, a1, negatives) + self._between(a2, clean, negatives))
        pair = average(pairs)
        adv = average(others)
        self.adversary.budget.record(adv)
        parts = {"loss": pair + self.weight * adv, "loss_pair": pair, "loss_adv": adv}
        return parts | negative_cosine(clean.prediction, negatives)

    def _embed(self, view: AdversarialView) -> "_Embedded":
        """Return the prediction and the target of an adversarial view."""
        z = through(self.model, view, self.model)
        return _Embedded(self.predictor(z), self.target_of(view.x, z, view.branch))

    def _between(self, a: "_Embedded", b: "_Embedded", negatives: Tensor | None) -> Tensor:
        """Return D of two views, (B,)."""
        return self.pair_loss([a.prediction, b.prediction], [a.target, b.target], negatives)

    # The attack

    def _targeted_loss(self, both: Tensor) -> Loss:
        """Return the loss that the attack maximises.

        It is the cosine of a clip's prediction with the embedding of its target clip.

        Args:
            both: (2B, C, T, H, W), the first views of all videos, then the second ones.
        """
        with torch.no_grad():
            targets = []
            for x in both.chunk(2):
                everyone = distributed.gather(self.model(x))
                targets.append(everyone[self._target_clips(x)])
            target = torch.cat(targets)
        return lambda x: similarity(self._predict(self.model(x)), target)

    def _target_clips(self, x: Tensor) -> Tensor:
        """Return the index, among the clips of all ranks, of each clip's target (B,).

        The released code chooses in training mode, each view with the statistics of its own batch,
        and attacks in eval mode.
        """
        with in_mode(self.model, self.training), frozen_statistics(self.model):
            features = self.model.backbone(x)
            z = self.model.head(features)
        with in_mode(self.predictor, self.training), frozen_statistics(self.predictor):
            predictions = self.predictor(z)
        return confusing(
            features,
            distributed.gather(features),
            distributed.gather(predictions),
            distributed.here(len(x)),
        )

    def _predict(self, z: Tensor) -> Tensor:
        """Return predictions with the predictor in the mode of the attack."""
        with in_mode(self.predictor, self.adversary.train_mode), frozen_statistics(self.predictor):
            return self.predictor(z)


@dataclass(frozen=True)
class _Embedded:
    """The prediction of a view, and the target that it is for other views, (B, D) each."""

    prediction: Tensor
    target: Tensor


def confusing(features: Tensor, everyone: Tensor, predictions: Tensor, rows: slice) -> Tensor:
    """Return the clip that each clip is most easily confused with, (B,) indices of M clips.

    It has the largest normalize((cos + 1) / 2) + normalize(entropy), where the entropy is that of
    the softmax of the candidate's prediction, and normalize divides by the L2 norm over candidates
    (a clip's cosine with itself counts as 0 there). A clip is no candidate for itself, which the
    released code does not exclude.

    Args:
        features: (B, F) of the clips of this rank.
        everyone: (M, F) of the clips of all ranks.
        predictions: (M, D) of the clips of all ranks.
        rows: which of `everyone` are `features`.
    """
    unit = F.normalize(full_precision(features), dim=1)
    cosine = (unit @ F.normalize(full_precision(everyone), dim=1).T + 1) / 2
    # the D entries of a prediction are read as logits
    log_p = full_precision(predictions).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    number = torch.arange(len(everyone), device=features.device)
    itself = number[rows, None] == number
    # a clip's cosine with itself counts as 0, for which (cos + 1) / 2 is 0.5
    score = F.normalize(cosine.masked_fill(itself, 0.5), dim=1) + F.normalize(entropy, dim=0)
    return score.masked_fill(itself, -torch.inf).argmax(1)


def _build(parts: Parts) -> TARO:
    model, predictor, target = build_parts(parts)
    adversary = parts.attack()
    assert adversary is not None
    return TARO(
        model,
        predictor,
        adversary,
        target,
        weight=parts.options.adversary.alpha,
        alpha_negatives=parts.options.negatives.alpha,
    )


SPEC = AdversarySpec(
    help="TARO: each view moves toward another video",
    costs={
        "": Cost(forward=4, attack=1, together=2, learned=(1, 1, 1)),
        "byol": Cost(forward=7, attack=1, together=2, learned=(1, 1, 1)),
    },
    build=_build,
    options=frozenset({"alpha"}),
    # 10 steps of 2/255 within 8/255, as in the released code
    steps=10,
    step=0.25,
    random_start=True,
    branches=branch_per_threat_only,
    two_clips=True,
)

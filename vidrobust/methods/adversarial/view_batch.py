"""ViewBatch: a batch as pairings of clean and adversarial views receive it.

A pairing is a function of a ViewBatch that returns the losses of clean and adversarial views. The
pairings are in `clae.py`, `rocl.py`, `acl.py`, `dynacl.py` and `advcl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidrobust.methods.adversarial.adversary import AdversarialView, Adversary, Encoder, MakeLoss
from vidrobust.methods.false_negatives.removal import FalseNegatives
from vidrobust.models import Model
from vidrobust.models.momentum import SplitEncoder

if TYPE_CHECKING:
    from vidrobust.methods.simclr import SimCLR

Pairing = Callable[["ViewBatch"], dict[str, Tensor]]


@dataclass(eq=False)
class ViewBatch:
    """A batch of B videos, its clean views and their embeddings, computed once each.

    Attributes:
        method: has the model, the loss and the removal of false negatives.
        adversary: makes adversarial views.
        views: V clean views (B, C, T, H, W) in [0, 1].
        ids: (B,), one per video.
        labels: (B,).
        progress: fraction of training done.
        original: the first view before augmentation, (B, C, T, H, W), or None.
        negatives: embeddings (B, M, D) of non-semantic negatives, or None.
        joint: embeds all views in one pass, as one batch for the norms; None: a pass per view.
        adv_views: adversarial views of the last attack.
    """

    method: SimCLR
    adversary: Adversary
    views: list[Tensor]
    ids: Tensor
    labels: Tensor
    progress: float = 0.0
    original: Tensor | None = None
    negatives: Tensor | None = None
    joint: Model | SplitEncoder | None = None
    adv_views: list[AdversarialView] = field(default_factory=list, init=False)
    _z: dict[int, Tensor] = field(default_factory=dict, init=False)
    _false_negatives: FalseNegatives | None = field(default=None, init=False)
    _detected: bool = field(default=False, init=False)

    @property
    def model(self) -> Model:
        """The model that is trained."""
        return self.method.model

    # Clean views

    def z(self, view: int) -> Tensor:
        """Return the clean embedding (B, D) of a view, with gradient."""
        # one pass embeds all views where they are one batch for the norms
        if view not in self._z and self.joint is not None:
            embedded = self.joint(torch.cat(self.views)).chunk(len(self.views))
            self._z.update(enumerate(embedded))
        elif view not in self._z:
            self._z[view] = self.model(self.views[view])
        return self._z[view]

    def is_embedded(self, view: int) -> bool:
        """Return whether the clean embedding of a view is already computed."""
        return view in self._z

    def clean_loss(self) -> Tensor:
        """Return the loss (B,) of the clean views."""
        every = range(len(self.views))
        return self.loss([self.z(v) for v in every], every)

    # False negatives

    def detect(self) -> FalseNegatives | None:
        """Return the false negatives among clean views, detected once."""
        if not self._detected:
            self._detected = True
            if self.method.removal is not None:
                z = [self._to_detect_in(view) for view in range(len(self.views))]
                self._false_negatives = self.method.detect(z, self.ids, self.progress)
        return self._false_negatives

    def _to_detect_in(self, view: int) -> Tensor:
        """Return the embedding of a view in which false negatives are detected.

        It is the momentum encoder's if there is one, otherwise the training embedding if it is
        already computed. Otherwise the view is embedded without gradient and without updating
        batch-norm statistics, as some pairings embed no clean view before the attack.
        """
        if self.method.detector is not None:
            return self.method.detector(self.views[view])
        if self.is_embedded(view):
            return self.z(view)
        return self.method.embed_for_detection(self.views[view])

    # Losses

    def anchor_losses(
        self,
        z: Sequence[Tensor],
        like: Sequence[int],
        *,
        stop: bool = False,
        adversarial: Sequence[int] = (),
    ) -> Tensor:
        """Return the loss of every anchor, (len(z) * B,).

        Args:
            z: embeddings (B, D).
            like: of each z, the clean view whose place it takes, so that false negatives between
                clean views are masked.
            stop: no gradient reaches candidates.
            adversarial: which of z are adversarial, in a loss that is learned and not attacked.
        """
        return self.method.contrast(
            z,
            self.ids,
            self.labels,
            self.method.false_negative_masks(self.detect(), like),
            stop=stop,
            adversarial=adversarial,
            extra=self.method.negative_logits(z, self.negatives, stop=stop),
        )

    def loss(
        self,
        z: Sequence[Tensor],
        like: Sequence[int],
        *,
        stop: bool = False,
        adversarial: Sequence[int] = (),
    ) -> Tensor:
        """Return the mean over the anchors of a video, (B,).

        Args:
            z: embeddings (B, D).
            like: as in `anchor_losses`.
            stop: no gradient reaches candidates.
            adversarial: as in `anchor_losses`.
        """
        losses = self.anchor_losses(z, like, stop=stop, adversarial=adversarial)
        return losses.view(len(z), -1).mean(0)

    # Adversarial views

    def attack(
        self, x: Tensor, make_loss: MakeLoss, encoder: Encoder | None = None
    ) -> list[AdversarialView]:
        """Return adversarial views of x (N, C, T, H, W).

        Args:
            x: the clips.
            make_loss: encoder as the attack uses it -> loss(x), (N,), which the attack maximises.
            encoder: embeds x; None: the model.
        """
        # before the attack changes modes and branches: false negatives are those of the clean
        # views, embedded as in training
        self.detect()
        self.adv_views = self.adversary.views(encoder or self.model, make_loss, x, self.progress)
        return self.adv_views

    @torch.no_grad()
    def embed_as_attacked(self, view: int) -> Tensor:
        """Return the embedding of a clean view, for a loss that an attack maximises.

        It is in the attack's mode and branch if it is called where the attack builds its loss.
        """
        return self.model(self.views[view])

    def embed(self, view: AdversarialView) -> Tensor:
        """Return the embedding (N, D) of an adversarial view, with gradient."""
        return through(self.model, view, self.model)

    def embed_together(
        self, views: Sequence[int], adv_views: Sequence[AdversarialView]
    ) -> list[Tensor]:
        """Return the embeddings of clean and adversarial views, as `together` does.

        `z` returns the same embeddings of the clean views from then on.
        """
        embedded = together(self.model, [self.views[v] for v in views], adv_views)
        self._z.update(zip(views, embedded, strict=False))  # adversarial ones follow in `embedded`
        return embedded


def through(
    model: Model | SplitEncoder, view: AdversarialView, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return function(view.x) with the model in the norm branch of the view.

    Args:
        model: its branch is set.
        view: an adversarial view.
        function: an embedding or a loss of clips, made with the model.
    """
    with model.use_branch(view.branch):
        return function(view.x)


def together(
    model: Model, clips: Sequence[Tensor], adv_views: Sequence[AdversarialView]
) -> list[Tensor]:
    """Return the embeddings (N, D) of clean clips, followed by those of adversarial views.

    Adversarial views of the clean norm branch are in one pass with the clips and share their batch
    statistics, as in the code of RoCL and DeACL, so that running statistics include both.

    Args:
        model: the encoder.
        clips: clean clips (N, C, T, H, W) each.
        adv_views: adversarial views.
    """
    # adversarial views of other branches have statistics of their own: a pass each
    shared = [view.x for view in adv_views if view.branch == "clean"]
    embedded = model(torch.cat([*clips, *shared])).chunk(len(clips) + len(shared))
    embedded_shared = iter(embedded[len(clips) :])
    adversarial = []
    for view in adv_views:
        in_pass = view.branch == "clean"
        adversarial.append(next(embedded_shared) if in_pass else through(model, view, model))
    return [*embedded[: len(clips)], *adversarial]


def average(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of losses (B,), one per adversarial view."""
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean(0)

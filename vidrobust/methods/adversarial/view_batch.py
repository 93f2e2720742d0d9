"""ViewBatch: a batch as pairings of clean and adversarial views receive it.

A pairing is a function of a ViewBatch: `clae.py`, `rocl.py`, `acl.py` and `dynacl.py` have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidrobust.methods.adversarial.adversary import AdversarialView, Adversary, Encoder, MakeLoss
from vidrobust.methods.false_negatives.removal import Found
from vidrobust.models import Model
from vidrobust.models.momentum import SplitEncoder

if TYPE_CHECKING:
    from vidrobust.methods.simclr import SimCLR

Pairing = Callable[["ViewBatch"], dict[str, Tensor]]


class ViewBatch:
    """A batch of B videos, its clean views and their embeddings, computed once each.

    views: V clean views (B, C, T, H, W) in [0, 1]. original: the first view before augmentation.
    negatives: embeddings (B, M, D) of non-semantic negatives. joint: what embeds all views in one
    pass, as one batch for the norms; None: each view is a pass of its own. made: adversarial views
    of the last attack.
    """

    def __init__(
        self,
        method: SimCLR,
        adversary: Adversary,
        views: list[Tensor],
        ids: Tensor,
        labels: Tensor,
        *,
        original: Tensor | None = None,
        negatives: Tensor | None = None,
        joint: Model | SplitEncoder | None = None,
    ) -> None:
        """Keep the parts of a batch.

        Args:
            method: has the model, the loss and the removal of false negatives.
            adversary: makes adversarial views.
            views: V of (B, C, T, H, W) in [0, 1].
            ids: (B,), one per video.
            labels: (B,).
            original: (B, C, T, H, W).
            negatives: (B, M, D).
            joint: embeds the views behind each other.
        """
        self.method = method
        self.model = method.model
        self.adversary = adversary
        self.progress = method.progress
        self.views = views
        self.ids = ids
        self.labels = labels
        self.original = original
        self.negatives = negatives
        self.joint = joint
        self.made: list[AdversarialView] = []
        self._z: dict[int, Tensor] = {}
        self._found: Found | None = None
        self._detected = False

    def z(self, view: int) -> Tensor:
        """Return the clean embedding (B, D) of a view, with gradient."""
        if view not in self._z and self.joint is not None:
            embedded = self.joint(torch.cat(self.views)).chunk(len(self.views))
            self._z.update(enumerate(embedded))
        elif view not in self._z:
            self._z[view] = self.model(self.views[view])
        return self._z[view]

    def knows(self, view: int) -> bool:
        """Return whether the clean embedding of a view is already computed."""
        return view in self._z

    def detect(self) -> Found | None:
        """Return the false negatives among clean views, detected once."""
        if not self._detected:
            self._detected = True
            if self.method.removal is not None:
                z = [self._to_detect_in(view) for view in range(len(self.views))]
                self._found = self.method.detect(z, self.ids)
        return self._found

    def _to_detect_in(self, view: int) -> Tensor:
        """Return the embedding of a view in which false negatives are detected.

        The momentum encoder's if there is one, otherwise the training embedding if it is already
        computed, otherwise one without gradient and without updating batch-norm statistics.
        """
        if self.method.detector is not None:
            return self.method.detector(self.views[view])
        if self.knows(view):
            return self.z(view)
        return self.method.embed_for_detection(self.views[view])

    def anchors(
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
        """Return the mean over a video's anchors, (B,); arguments as in `anchors`."""
        losses = self.anchors(z, like, stop=stop, adversarial=adversarial)
        return losses.view(len(z), -1).mean(0)

    def clean_loss(self) -> Tensor:
        """Return the loss (B,) of the clean views."""
        every = range(len(self.views))
        return self.loss([self.z(v) for v in every], every)

    def attack(
        self, x: Tensor, make_loss: MakeLoss, encoder: Encoder | None = None
    ) -> list[AdversarialView]:
        """Return adversarial views of x (N, C, T, H, W).

        Args:
            x: the clips.
            make_loss: encoder as the attack uses it -> loss(x), (N,), which the attack maximises.
            encoder: embeds x; None: the model.
        """
        self.detect()  # with the model as it is, before the attack changes modes and branches
        self.made = self.adversary.views(encoder or self.model, make_loss, x, self.progress)
        return self.made

    @torch.no_grad()
    def embed_as_attacked(self, view: int) -> Tensor:
        """Return the embedding of a clean view in the attack's mode and branch."""
        return self.model(self.views[view])

    def embed(self, view: AdversarialView) -> Tensor:
        """Return the embedding (N, D) of an adversarial view, with gradient."""
        return through(self.model, view, self.model)

    def embed_together(self, views: Sequence[int], made: Sequence[AdversarialView]) -> list[Tensor]:
        """Return the embeddings of clean and adversarial views, as `together` does.

        The clean ones are then those of `z`.
        """
        found = together(self.model, [self.views[v] for v in views], made)
        self._z.update(zip(views, found, strict=False))
        return found


def through(
    model: Model | SplitEncoder, view: AdversarialView, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return function(x_adv), an embedding or a loss, through the view's norm branch."""
    with model.use_branch(view.branch):
        return function(view.x)


def together(
    model: Model, clips: Sequence[Tensor], made: Sequence[AdversarialView]
) -> list[Tensor]:
    """Return embeddings (N, D) of clean clips, and behind them of adversarial views.

    Adversarial views of the clean norm branch are one pass with the clips and share their batch
    statistics, as in the code of RoCL and DeACL, so that running statistics are of both.

    Args:
        model: the encoder.
        clips: clean clips (N, C, T, H, W) each.
        made: adversarial views.
    """
    shared = [view.x for view in made if view.branch == "clean"]
    parts = model(torch.cat([*clips, *shared])).chunk(len(clips) + len(shared))
    embedded = iter(parts[len(clips) :])
    adversarial = [
        next(embedded) if view.branch == "clean" else through(model, view, model) for view in made
    ]
    return [*parts[: len(clips)], *adversarial]


def average(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of losses (B,), one per adversarial view."""
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean(0)

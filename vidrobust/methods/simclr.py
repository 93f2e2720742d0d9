"""SimCLR (Chen et al. 2020) and SupCon (Khosla et al. 2020) on clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.data import Record
from vidrobust.losses.cosine import cosines, full_precision
from vidrobust.losses.info_nce import Asymmetry, Hardness, nt_xent
from vidrobust.methods.adversarial.a_info_nce import asymmetry_of, hardness_of
from vidrobust.methods.adversarial.adversary import (
    AdversarialView,
    Adversary,
    frozen_statistics,
    with_selector,
)
from vidrobust.methods.adversarial.clae import clae
from vidrobust.methods.adversarial.view_batch import Pairing, ViewBatch
from vidrobust.methods.base import Method, negative_cosine
from vidrobust.methods.false_negatives.removal import FalseNegatives, Masks, Removal
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model
from vidrobust.models.momentum import MomentumEncoder, SplitEncoder
from vidrobust.utils import distributed


@dataclass(frozen=True)
class LossSettings:
    """Settings of the contrastive loss.

    Attributes:
        temperature: divides similarities.
        chunk: anchors per part of the loss, which saves memory; 0: all at once.
        scale: factor of the loss; temperature / 0.07 in the code of SupCon.
        alpha_negatives: factor of the similarity of non-semantic negatives.
        asymmetry: weights of clean and adversarial anchors (A-InfoNCE); None: all alike.
        hardness: of negatives in losses with adversarial views (A-InfoNCE); None: all alike.
    """

    temperature: float
    chunk: int = 0
    scale: float = 1.0
    alpha_negatives: float = 1.0
    asymmetry: tuple[float, float] | None = None
    hardness: Hardness | None = None


@dataclass(frozen=True)
class ViewSettings:
    """The views of a video.

    Attributes:
        clips: V, augmented clips.
        joint: all views are one batch for the norms, as in the code of SimCLR, SupCon and ACL;
            otherwise each view is a pass of its own, as in CLAE's code.
        original: the first clip before augmentation comes behind the V clips.
    """

    clips: int = 2
    joint: bool = False
    original: bool = False


class SimCLR(Method):
    """SimCLR (Chen et al. 2020): views of a video attract, views of other videos repel.

    On video, views are clips that are sampled independently in time (Feichtenhofer et al. 2021).
    """

    def __init__(
        self,
        model: Model,
        loss: LossSettings,
        removal: Removal | None = None,
        *,
        views: ViewSettings = ViewSettings(),
        detector: MomentumEncoder | None = None,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector.
            loss: settings of the contrastive loss.
            removal: of false negatives; None: all other videos are negatives.
            views: clips per video, and whether they share a pass.
            detector: embeds the views in which false negatives are detected; None: the model.
        """
        super().__init__(removal)
        self.model = model
        self.loss = loss
        self.clips = views.clips
        self.joint = views.joint
        self.original = views.original
        self.views = views.clips + views.original
        self.detector = detector

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, V + M, C, T, H, W) in [0, 1]: V clips, followed by M non-semantic negatives.
            ids: (B,), one per video.
            labels: (B,), used by SupCon.
            progress: fraction of training done.
        """
        clips = [views[:, v] for v in range(self.clips)]
        self.follow(self.detector, progress)
        negatives = self.embed_negatives(views)
        z = self.embed(clips)
        detected = self.detect(self.embeddings_to_detect_in(clips, z), ids, progress)
        masks = self.false_negative_masks(detected)
        extra = self.negative_logits(z, negatives)
        # anchors are ordered view by view; the loss of a video is the mean over its views
        loss = self.contrast(z, ids, labels, masks, extra=extra).view(len(z), -1).mean(0)
        return {"loss": loss} | negative_cosine(z[0], negatives)

    def embed(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the embeddings (B, D) of V views, in one pass or in a pass each."""
        if self.joint:
            return list(self.model(torch.cat(list(clips))).chunk(len(clips)))
        return [self.model(x) for x in clips]

    def follow(self, encoder: MomentumEncoder | None, progress: float) -> None:
        """Update a momentum encoder, in training."""
        if encoder is not None and self.training:
            encoder.follow(self.model, progress)

    # False negatives (Gupta et al. 2022)

    def embeddings_to_detect_in(
        self, clips: Sequence[Tensor], z: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Return the embeddings in which false negatives are detected, (B, D) per view."""
        if self.removal is None or self.detector is None:
            return z
        return [self.detector(x) for x in clips]

    def detect(self, z: Sequence[Tensor], ids: Tensor, progress: float) -> FalseNegatives | None:
        """Detect false negatives among all views of all ranks.

        Args:
            z: embeddings (B, D) of each view.
            ids: (B,).
            progress: fraction of training done.

        Returns:
            The false negatives, or None without removal.
        """
        if self.removal is None:
            return None
        # similarities in bf16 would tie
        all_views = full_precision(torch.cat(list(z)).detach())
        keys = ids.repeat(len(z))
        if self.training:
            # the first view stands for its video in the next clustering
            self.removal.remember(all_views[: len(ids)], ids)
        sides = keys, distributed.gather(keys)
        return self.removal.detect(all_views, distributed.gather(all_views), sides, progress)

    @torch.no_grad()
    def embed_for_detection(self, x: Tensor) -> Tensor:
        """Return the embedding of a view, leaving batch-norm statistics as they are."""
        with frozen_statistics(self.model):
            return self.model(x)

    def false_negative_masks(
        self, detected: FalseNegatives | None, views: Sequence[int] | None = None
    ) -> Masks:
        """Return the masks of the loss.

        Args:
            detected: what `detect` returned for the V clean views.
            views: of each row of the loss, the clean view whose place it takes; None: all V. The
                rule is applied once, to the clean views: a rule such as top-k would find others in
                a longer list.
        """
        if self.removal is None or detected is None:
            return Masks()
        if views is None or tuple(views) == tuple(range(self.clips)):
            return self.removal.masks(detected)
        # a pairing with other views, such as [z1, z2, z_adv], where z_adv takes the place of z1
        return self.removal.masks(detected.at(views, self.clips))

    # Non-semantic negatives (Ge et al. 2021)

    def embed_negatives(self, views: Tensor) -> Tensor | None:
        """Return the embeddings (B, M, D) of non-semantic negatives, with gradient, or None."""
        return self.embed_behind_views(self.model, views)

    def negative_logits(
        self, z: Sequence[Tensor], negatives: Tensor | None, *, stop: bool = False
    ) -> Tensor | None:
        """Return the logits (V * B, M) of anchors with the negatives of their video, or None.

        Args:
            z: embeddings (B, D) of V views.
            negatives: (B, M, D), or None.
            stop: no gradient reaches the negatives.
        """
        if negatives is None:
            return None
        similarities = cosines(z, negatives.detach() if stop else negatives)
        # alpha is inside of the exponential: exp(alpha q . t / T), as published (Ge et al. 2021)
        return similarities * self.loss.alpha_negatives / self.loss.temperature

    # The loss

    def contrast(
        self,
        z: Sequence[Tensor],
        ids: Tensor,
        labels: Tensor,
        masks: Masks,
        *,
        stop: bool = False,
        adversarial: Sequence[int] = (),
        extra: Tensor | None = None,
    ) -> Tensor:
        """Return a loss per anchor, (V * B,).

        Args:
            z: V embeddings (B, D) of each video.
            ids: (B,).
            labels: (B,), used by SupCon.
            masks: of false negatives.
            stop: no gradient reaches candidates.
            adversarial: which of z are adversarial, for A-InfoNCE.
            extra: (V * B, M) logits of more negatives.
        """
        return self.loss.scale * nt_xent(
            torch.cat(list(z)),
            self.positive_keys(ids, labels).repeat(len(z)),
            self.loss.temperature,
            masks.ignore,
            extra,
            attract=masks.attract,
            weights=masks.weights,
            chunk=self.loss.chunk,
            stop=stop,
            **self.a_info_nce(len(z), ids, adversarial),
        )

    def a_info_nce(self, count: int, ids: Tensor, adversarial: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of A-InfoNCE for `nt_xent`: none, as all views are clean.

        Args:
            count: V, embeddings of each video.
            ids: (B,).
            adversarial: which of them are adversarial, none here.
        """
        return {}

    def positive_keys(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return (B,): views with equal keys are positives of each other."""
        return ids

    def prepare(self, records: Sequence[Record]) -> None:
        """Start momentum encoders from the model, and learn what is known of the videos."""
        if self.detector is not None:
            self.detector.start_from(self.model)
        super().prepare(records)


class AdversarialSimCLR(SimCLR):
    """SimCLR with adversarial views. A pairing makes the loss of clean and adversarial views.

    False negatives between clean views are also masked in the adversarial loss, and in the loss
    that the attack maximises. Non-semantic negatives are extra columns of all these losses.
    """

    def __init__(
        self,
        model: Model,
        loss: LossSettings,
        adversary: Adversary | None = None,
        removal: Removal | None = None,
        *,
        pairing: Pairing = clae,
        views: ViewSettings = ViewSettings(),
        detector: MomentumEncoder | None = None,
        slow: MomentumEncoder | None = None,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector, with the norm branches of the adversary.
            loss: settings of the contrastive loss.
            adversary: makes adversarial views; None: SimCLR.
            removal: of false negatives.
            pairing: pairs clean and adversarial views.
            views: clips per video.
            detector: embeds the views in which false negatives are detected.
            slow: embeds the second of two views (DynACL).
        """
        super().__init__(model, loss, removal, views=views, detector=detector)
        self.adversary = adversary
        self.pairing = pairing
        self.slow = slow

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}, as `SimCLR.forward`.

        Args:
            views: (B, V + M, C, T, H, W) in [0, 1]; where the pairing uses it, the last of the V
                views is the original clip.
            ids: (B,), one per video.
            labels: (B,).
            progress: fraction of training done.
        """
        if self.adversary is None:
            return super().forward(views, ids, labels, progress)
        # false negatives are detected by the encoder of this step, before anything is embedded
        self.follow(self.detector, progress)
        batch = ViewBatch(
            self,
            self.adversary,
            [views[:, v] for v in range(self.clips)],
            ids,
            labels,
            progress,
            original=views[:, self.clips] if self.original else None,
            negatives=self.embed_negatives(views),
            joint=self.joint_encoder(),
        )
        # the pairing embeds what it needs: some have no clean stream
        parts = self.pairing(batch)
        self.follow(self.slow, progress)  # after the batch is embedded, as in the released code
        if batch.is_embedded(0):
            parts |= negative_cosine(batch.z(0), batch.negatives)
        self.adversary.budget.record(parts["loss_adv"])
        # an attack on two views has 2B clips, of which the first B belong to the clean first view
        firsts = [AdversarialView(view.x[: len(ids)], view.branch) for view in batch.adv_views]
        return with_selector(self.model, batch.views[0], firsts, parts)

    def a_info_nce(self, count: int, ids: Tensor, adversarial: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of A-InfoNCE (Yu et al. 2022) for `nt_xent`.

        Args:
            count: V, embeddings of each video.
            ids: (B,).
            adversarial: which of them are adversarial.
        """
        if not adversarial:
            return {}
        # rows are view by view, as in `contrast`
        asymmetric = None
        if self.loss.asymmetry is not None:
            which = torch.tensor([v in adversarial for v in range(count)], device=ids.device)
            asymmetric = Asymmetry(which.repeat_interleave(len(ids)), *self.loss.asymmetry)
        return {"asymmetric": asymmetric, "hard": self.loss.hardness}

    def joint_encoder(self) -> Model | SplitEncoder | None:
        """Return what embeds all views in one pass, or None where each view is a pass."""
        if self.slow is not None:
            return SplitEncoder(self.model, self.slow)
        return self.model if self.joint else None

    def prepare(self, records: Sequence[Record]) -> None:
        """Start momentum encoders from the model, and learn what is known of the videos."""
        if self.slow is not None:
            self.slow.start_from(self.model)
        super().prepare(records)


class SupCon(AdversarialSimCLR):
    """SupCon (Khosla et al. 2020): SimCLR with positives by label.

    The mean over positives is outside of the logarithm (L_out, eq. 2). A label that occurs once in
    a batch still has the other views of its video.
    """

    def positive_keys(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the labels."""
        return labels


def loss_settings(options: config.MethodConfig) -> LossSettings:
    """Return the configured settings of the contrastive loss."""
    return LossSettings(
        options.temperature,
        options.chunk,
        options.loss_scale,
        options.negatives.alpha,
        asymmetry_of(options),
        hardness_of(options),
    )


def _build(parts: Parts, kind: type[AdversarialSimCLR]) -> AdversarialSimCLR:
    options = parts.options
    model = parts.model()
    # a momentum encoder that nothing uses would only cost memory
    rule = options.false_negatives
    detects_slowly = rule.rule != "none" and rule.encoder == "momentum"
    return kind(
        model,
        loss_settings(options),
        parts.attack(),
        # an anchor's negatives are all views of the other videos
        parts.removal(options.clips_per_video * (parts.batch_size - 1)),
        pairing=parts.pairing() or clae,
        views=ViewSettings(options.clips_per_video, options.joint_views, parts.uses_original),
        detector=parts.momentum(model) if detects_slowly else None,
        slow=parts.momentum(model) if parts.key_encoder else None,
    )


# adversaries whose pairing is a function; AdvCL has a method of its own
_PAIRED = ("clae", "rocl", "acl", "dynacl")
_OPTIONS = frozenset({"temperature", "clips_per_video", "chunk", "joint_views", "loss_scale"})
_TAKES = frozenset({"selector", "a_info_nce"})
SPEC = MethodSpec(
    build=lambda parts: _build(parts, AdversarialSimCLR),
    help="SimCLR",
    cost=Cost(learned=(1, 1)),
    options=_OPTIONS,
    takes=_TAKES,
    adversaries=(*_PAIRED, "advcl"),
)
SUPCON = MethodSpec(
    build=lambda parts: _build(parts, SupCon),
    help="SupCon: positives by label",
    cost=Cost(learned=(1, 1)),
    options=_OPTIONS,
    takes=_TAKES,
    adversaries=_PAIRED,
    needs_labels=lambda options: True,
    refuses={"false_negatives": "has positives by label"},
)

"""SimCLR (Chen et al. 2020) and SupCon (Khosla et al. 2020) on clips."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidrobust.data import Record
from vidrobust.losses.cosine import cosines, full_precision
from vidrobust.losses.info_nce import Asymmetry, Hardness, nt_xent
from vidrobust.methods.adversarial.a_info_nce import asymmetry_of, hardness_of
from vidrobust.methods.adversarial.adversary import (
    AdversarialView,
    Adversary,
    frozen_statistics,
    selection,
)
from vidrobust.methods.adversarial.clae import clae
from vidrobust.methods.adversarial.view_batch import Pairing, ViewBatch
from vidrobust.methods.base import Method, negative_cosine
from vidrobust.methods.false_negatives.removal import Found, Masks, Removal
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model
from vidrobust.models.momentum import MomentumEncoder, SplitEncoder
from vidrobust.utils import distributed


class SimCLR(Method):
    """The views of a video are positives of each other, those of other videos negatives.

    On video, views are clips of a video that are sampled independently in time (Feichtenhofer et
    al. 2021).
    """

    def __init__(
        self,
        model: Model,
        temperature: float,
        removal: Removal | None = None,
        *,
        clips: int = 2,
        chunk: int = 0,
        detector: MomentumEncoder | None = None,
        joint: bool = False,
        scale: float = 1.0,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector.
            temperature: divides similarities.
            removal: of false negatives; None: all other videos are negatives.
            clips: V, views per video.
            chunk: anchors of the loss at a time, which saves memory; 0: all.
            detector: embeds the views in which false negatives are detected; None: the model.
            joint: all views are one batch for the norms, as in the code of SimCLR, SupCon and ACL;
                otherwise each view is a pass of its own, as in CLAE's.
            scale: factor of the contrastive losses.
        """
        super().__init__(removal)
        self.model = model
        self.temperature = temperature
        self.clips = clips
        self.views = clips
        self.chunk = chunk
        self.detector = detector
        self.joint = joint
        self.scale = scale

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, V + M, C, T, H, W) in [0, 1]; the M behind the V views are negatives.
            ids: (B,), one per video.
            labels: (B,), not used.
        """
        clips = [views[:, v] for v in range(self.clips)]
        self.follow(self.detector)
        negatives = self.embed_negatives(views)
        z = self.embed(clips)
        masks = self.false_negative_masks(self.detect(self.embeddings_to_detect_in(clips, z), ids))
        extra = self.negative_logits(z, negatives)
        loss = self.contrast(z, ids, labels, masks, extra=extra).view(len(z), -1).mean(0)
        return {"loss": loss} | negative_cosine(z[0], negatives)

    def embed(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the embeddings (B, D) of V views, in one pass or in a pass each."""
        if self.joint:
            return list(self.model(torch.cat(list(clips))).chunk(len(clips)))
        return [self.model(x) for x in clips]

    def follow(self, encoder: MomentumEncoder | None) -> None:
        """Update a momentum encoder, in training."""
        if encoder is not None and self.training:
            encoder.follow(self.model, self.progress)

    # False negatives (Gupta et al. 2022)

    def embeddings_to_detect_in(
        self, clips: Sequence[Tensor], z: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Return the embeddings in which false negatives are detected, (B, D) per view."""
        if self.removal is None or self.detector is None:
            return z
        return [self.detector(x) for x in clips]

    def detect(self, z: Sequence[Tensor], ids: Tensor) -> Found | None:
        """Detect false negatives among all views of all ranks; None without removal."""
        if self.removal is None:
            return None
        everything = full_precision(torch.cat(list(z)).detach())
        keys = ids.repeat(len(z))
        if self.training:
            self.removal.remember(everything[: len(ids)], ids)
        sides = keys, distributed.gather(keys)
        return self.removal.look(everything, distributed.gather(everything), sides, self.progress)

    @torch.no_grad()
    def embed_for_detection(self, x: Tensor) -> Tensor:
        """Return the embedding of a view, leaving batch-norm statistics as they are."""
        with frozen_statistics(self.model):
            return self.model(x)

    def false_negative_masks(
        self, found: Found | None, views: Sequence[int] | None = None
    ) -> Masks:
        """Return the masks of the loss.

        Args:
            found: what `detect` returned for the V clean views.
            views: of each row of the loss, the clean view whose place it takes; None: all V. A rule
                of ranks would find others in a longer list, so that it is asked once.
        """
        if self.removal is None or found is None:
            return Masks()
        if views is None or tuple(views) == tuple(range(self.clips)):
            return self.removal.masks(found)
        return self.removal.masks(found.at(views, self.clips))

    # Non-semantic negatives (Ge et al. 2021)

    def embed_negatives(self, views: Tensor) -> Tensor | None:
        """Return the embeddings (B, M, D) of non-semantic negatives, with gradient, or None.

        Each is a pass of its own. Running statistics of norms stay those of views, which are what
        is evaluated.
        """
        with frozen_statistics(self.model):
            found = [self.model(views[:, v]) for v in range(self.views, views.shape[1])]
        return torch.stack(found, 1) if found else None

    def negative_logits(
        self, z: Sequence[Tensor], negatives: Tensor | None, *, stop: bool = False
    ) -> Tensor | None:
        """Return the logits (V * B, M) of anchors with their video's negatives, or None.

        stop: no gradient reaches the negatives.
        """
        if negatives is None:
            return None
        found = cosines(z, negatives.detach() if stop else negatives)
        return found * self.alpha_negatives / self.temperature

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
            labels: (B,), not used.
            masks: of false negatives.
            stop: no gradient reaches candidates.
            adversarial: which of z are adversarial, for A-InfoNCE.
            extra: (V * B, M) logits of more negatives.
        """
        return self.scale * nt_xent(
            torch.cat(list(z)),
            self.positive_keys(ids, labels).repeat(len(z)),
            self.temperature,
            masks.ignore,
            extra,
            attract=masks.attract,
            weights=masks.weights,
            chunk=self.chunk,
            stop=stop,
            **self.a_info_nce(len(z), ids, adversarial),
        )

    def a_info_nce(self, count: int, ids: Tensor, adversarial: Sequence[int]) -> dict[str, Any]:
        """Return A-InfoNCE's arguments of the loss: none without an adversary."""
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
        temperature: float,
        adversary: Adversary | None = None,
        removal: Removal | None = None,
        *,
        pairing: Pairing = clae,
        clips: int = 2,
        chunk: int = 0,
        detector: MomentumEncoder | None = None,
        asymmetry: tuple[float, float] | None = None,
        hard: Hardness | None = None,
        original: bool = False,
        joint: bool = False,
        slow: MomentumEncoder | None = None,
        scale: float = 1.0,
    ) -> None:
        """Set the parts of the method; those not listed are SimCLR's.

        Args:
            model: backbone and projector, with the norm branches of the adversary.
            temperature: divides similarities.
            adversary: makes adversarial views; None: SimCLR.
            removal: of false negatives.
            pairing: pairs clean and adversarial views.
            clips: V, views per video.
            chunk: anchors of the loss at a time.
            detector: embeds the views in which false negatives are detected.
            asymmetry: A-InfoNCE's weights of clean and adversarial anchors.
            hard: A-InfoNCE's hard negatives, in losses with adversarial views.
            original: the first clip before augmentation comes behind the V views.
            joint: all views are one batch for the norms.
            slow: embeds the second of two views (DynACL).
            scale: factor of the contrastive losses.
        """
        super().__init__(
            model,
            temperature,
            removal,
            clips=clips,
            chunk=chunk,
            detector=detector,
            joint=joint,
            scale=scale,
        )
        self.adversary = adversary
        self.pairing = pairing
        self.original = original
        self.views = clips + original
        self.asymmetry = asymmetry
        self.hard = hard
        self.slow = slow

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}, as `SimCLR.forward`.

        The last of the V views is the original clip where the pairing uses it.
        """
        if self.adversary is None:
            return super().forward(views, ids, labels)
        self.follow(self.detector)
        batch = ViewBatch(
            self,
            self.adversary,
            [views[:, v] for v in range(self.clips)],
            ids,
            labels,
            original=views[:, self.clips] if self.original else None,
            negatives=self.embed_negatives(views),
            joint=self.joint_encoder(),
        )
        parts = self.pairing(batch)
        self.follow(self.slow)  # after the batch is embedded, as in the released code
        if batch.knows(0):
            parts |= negative_cosine(batch.z(0), batch.negatives)
        self.adversary.budget.saw(parts["loss_adv"])
        made = [AdversarialView(view.x[: len(ids)], view.branch) for view in batch.made]
        chosen = selection(self.model, batch.views[0], made)
        if chosen is None:
            return parts
        return parts | {"loss": parts["loss"] + chosen, "loss_selector": chosen}

    def joint_encoder(self) -> Model | SplitEncoder | None:
        """Return what embeds all views in one pass, or None where each view is a pass."""
        if self.slow is not None:
            return SplitEncoder(self.model, self.slow)
        return self.model if self.joint else None

    def a_info_nce(self, count: int, ids: Tensor, adversarial: Sequence[int]) -> dict[str, Any]:
        """Return A-InfoNCE's arguments of the loss.

        Args:
            count: V, embeddings of each video.
            ids: (B,).
            adversarial: which of them are adversarial.
        """
        if not adversarial:
            return {}
        asymmetric = None
        if self.asymmetry is not None:
            which = torch.tensor([v in adversarial for v in range(count)], device=ids.device)
            asymmetric = Asymmetry(which.repeat_interleave(len(ids)), *self.asymmetry)
        return {"asymmetric": asymmetric, "hard": self.hard}

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


def _build(parts: Parts, kind: type[AdversarialSimCLR]) -> AdversarialSimCLR:
    options = parts.options
    model = parts.model("projector")
    removal = options.false_negatives
    detects_slowly = removal.rule != "none" and removal.encoder == "momentum"
    slow = options.adversary.name == "dynacl" and options.adversary.key_encoder
    return kind(
        model,
        options.temperature,
        parts.attack(),
        parts.removal(options.clips_per_video * (parts.batch_size - 1)),
        pairing=parts.pairing() or clae,
        clips=options.clips_per_video,
        chunk=options.chunk,
        detector=parts.momentum(model) if detects_slowly else None,
        asymmetry=asymmetry_of(options),
        hard=hardness_of(options),
        original=parts.uses_original,
        joint=options.joint_views,
        slow=parts.momentum(model) if slow else None,
        scale=options.loss_scale,
    )


# adversaries that pair the views of a batch
_PAIRED = ("clae", "rocl", "acl", "dynacl")
_OPTIONS = frozenset({"temperature", "clips_per_video", "chunk", "joint_views", "loss_scale"})
SPEC = MethodSpec(
    build=lambda parts: _build(parts, AdversarialSimCLR),
    help="SimCLR",
    cost=Cost(learned=(1, 1)),
    options=_OPTIONS,
    adversaries=(*_PAIRED, "advcl"),
)
SUPCON = MethodSpec(
    build=lambda parts: _build(parts, SupCon),
    help="SupCon: positives by label",
    cost=Cost(learned=(1, 1)),
    options=_OPTIONS,
    adversaries=_PAIRED,
    needs_labels=lambda options: True,
    refuses={"false_negatives": "has positives by label"},
)

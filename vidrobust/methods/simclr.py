"""SimCLR (Chen et al. 2020) and SupCon (Khosla et al. 2020) on clips."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vidrobust.data import Record
from vidrobust.losses.cosine import cosines, full_precision
from vidrobust.losses.info_nce import Asymmetry, Hardness, nt_xent
from vidrobust.methods.adversarial.a_info_nce import asymmetry_of, hardness_of
from vidrobust.methods.adversarial.adversary import AdversarialView, Adversary, frozen_statistics, selection
from vidrobust.methods.adversarial.clae import clae
from vidrobust.methods.adversarial.view_batch import Pairing, Streams
from vidrobust.methods.base import Method
from vidrobust.methods.false_negatives.removal import Found, Masks, Removal
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model
from vidrobust.models.momentum import MomentumEncoder, SplitEncoder
from vidrobust.utils import distributed


class SimCLR(Method):
    """The views of a video are positives of each other, those of other videos negatives.

    With false-negative removal (paper A), negatives are looked through first, on the clean embeddings, detached: the
    model's own, or those of a momentum encoder. With an adversary, a pairing (`view_batch.py`) makes the loss of
    clean and adversarial views; what is removed between clean views is removed from the adversarial loss, and from the
    loss that the attack raises. Negatives of diminished semantics (paper C) are extra columns of all these losses, for
    the anchors of the video whose first view they were made of. asymmetry: A-InfoNCE's clean_weight and
    adversarial_weight; hard: its hard negatives; both as `nt_xent` has them, in losses with adversarial views.
    original: the pairing sees the first clip besides as it was before augmentation.
    joint: all views of a batch are one pass, one batch for the norms (the code of SimCLR, SupCon and ACL), not a pass
    each (CLAE's). slow: embeds the second of two views, which are then one pass (DynACL). scale: a factor of the
    contrastive losses.
    """

    def __init__(
        self, model: Model, temperature: float, adversary: Adversary | None = None, removal: Removal | None = None, *,
        pairing: Pairing = clae, clips: int = 2, chunk: int = 0, detector: MomentumEncoder | None = None,
        asymmetry: tuple[float, float] | None = None, hard: Hardness | None = None, original: bool = False,
        joint: bool = False, slow: MomentumEncoder | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(removal)
        self.model, self.temperature, self.adversary, self.pairing = model, temperature, adversary, pairing
        self.views, self.original, self.chunk, self.detector = clips + original, original, chunk, detector
        self.asymmetry, self.hard = asymmetry, hard
        self.joint, self.slow, self.scale = joint, slow, scale

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, V + M, C, T, H, W) in [0, 1], the last of the V the original if there is one, ids (B,) one a video.

        Labels are not looked at.

        Returns {"loss": (B,), and its parts (B,) for the log}.
        """
        everyone = tuple(range(self.views - self.original))
        clips = [views[:, v] for v in everyone]

        def anchors(
            of: Sequence[Tensor], like: Sequence[int], *, stop: bool = False, adversarial: Sequence[int] = ()
        ) -> Tensor:
            extra = None
            if pushed is not None:
                found = cosines(of, pushed.detach() if stop else pushed)
                extra = found * self.alpha_negatives / self.temperature
            return self._losses(of, ids, labels, masks(tuple(like)), stop=stop, adversarial=adversarial, extra=extra)

        @functools.cache
        def found() -> Found | None:
            return self._find([looked_at(v) for v in everyone], ids)

        def masks(places: tuple[int, ...]) -> Masks:
            # looked for once, among the clean clips: a rule of ranks would find others in a longer list
            false = found()
            if self.removal is None or false is None:
                return Masks()
            return self.removal.masks(false if places == everyone else false.at(places, len(everyone)))

        @functools.cache
        def looked_at(view: int) -> Tensor:
            """What the rule sees: what is learned from where that is there already, and else leaves no trace."""
            if self.removal is None:
                return views[:0]
            if self.detector is not None:
                return self.detector(clips[view])
            if s.knows(view):
                return s.z(view)
            with torch.no_grad(), frozen_statistics(self.model):
                return self.model(clips[view])

        joint = self.model if self.joint else None
        s = Streams(self.model, clips, anchors, self.adversary, self.progress, found,
                    original=views[:, len(everyone)] if self.original else None,
                    joint=joint if self.slow is None else SplitEncoder(self.model, self.slow))  # fmt: skip
        if self.detector is not None and self.training:
            self.detector.follow(self.model, self.progress)
        pushed = self._embed_negatives(views)
        parts = {"loss": s.clean} if self.adversary is None else self.pairing(s)
        if self.slow is not None and self.training:  # when the batch is embedded, as the released code does
            self.slow.follow(self.model, self.progress)
        if pushed is not None and s.knows(0):
            parts["negative_cosine"] = cosines([s.z(0).detach()], pushed.detach()).mean(1)
        if self.adversary is None:
            return parts
        self.adversary.budget.saw(parts["loss_adv"])
        chosen = selection(self.model, clips[0], [AdversarialView(v.x[: len(ids)], v.branch) for v in s.made])
        return parts if chosen is None else parts | {"loss": parts["loss"] + chosen, "loss_selector": chosen}

    def _embed_negatives(self, views: Tensor) -> Tensor | None:
        """(B, M, D), with gradient, as other negatives of the batch; each in a pass of its own.

        Running statistics of norms stay those of views, which are what is measured.
        """
        with frozen_statistics(self.model):
            found = [self.model(views[:, v]) for v in range(self.views, views.shape[1])]
        return torch.stack(found, 1) if found else None

    def prepare(self, records: Sequence[Record]) -> None:
        for encoder in (self.detector, self.slow):
            if encoder is not None:
                encoder.start_from(self.model)
        super().prepare(records)

    def _losses(
        self, z: Sequence[Tensor], ids: Tensor, labels: Tensor, masks: Masks, *, stop: bool = False,
        adversarial: Sequence[int] = (), extra: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """V embeddings (B, D) of each video -> (V * B,), a loss an anchor; stop, adversarial: as `Streams` says.

        extra: (V * B, M) logits of negatives.
        """
        keys = self._keys(ids, labels).repeat(len(z))
        asymmetric = None
        if adversarial and self.asymmetry is not None:
            which = torch.tensor([v in adversarial for v in range(len(z))], device=keys.device)
            asymmetric = Asymmetry(which.repeat_interleave(len(ids)), *self.asymmetry)
        return self.scale * nt_xent(
            torch.cat(list(z)), keys, self.temperature, masks.ignore, extra, attract=masks.attract,
            weights=masks.weights, chunk=self.chunk, stop=stop, asymmetric=asymmetric,
            hard=self.hard if adversarial else None,
        )  # fmt: skip

    def _keys(self, ids: Tensor, labels: Tensor) -> Tensor:
        """(B,): what makes views positives of each other."""
        return ids

    def _find(self, z: Sequence[Tensor], ids: Tensor) -> Found | None:
        """Look over all rows of `z`, V of each of the B videos, and those of all ranks."""
        if self.removal is None:
            return None
        everything, keys = full_precision(torch.cat(list(z)).detach()), ids.repeat(len(z))
        if self.training:
            self.removal.remember(everything[: len(ids)], ids)
        sides = keys, distributed.gather(keys)
        return self.removal.look(everything, distributed.gather(everything), sides, self.progress)


class SupCon(SimCLR):
    """SupCon (Khosla et al. 2020): SimCLR with positives by label.

    The mean over positives is outside of the logarithm (L_out, eq. 2). A label that occurs once in
    a batch still has the other views of its video.
    """

    def _keys(self, ids: Tensor, labels: Tensor) -> Tensor:
        return labels


# adversaries that pair the views of a batch
PAIRED = ("clae", "rocl", "acl", "dynacl")
_OPTIONS = frozenset({"temperature", "clips_per_video", "chunk", "joint_views", "loss_scale"})


def _build(parts: Parts, kind: type[SimCLR]) -> SimCLR:
    options = parts.options
    model = parts.model("projector")
    removal = options.false_negatives
    looks_slowly = removal.rule != "none" and removal.encoder == "momentum"
    slow = options.adversary.name == "dynacl" and options.adversary.key_encoder
    return kind(
        model,
        options.temperature,
        parts.attack(),
        parts.removal(options.clips_per_video * (parts.batch_size - 1)),
        pairing=parts.pairing() or clae,
        clips=options.clips_per_video,
        chunk=options.chunk,
        detector=parts.momentum(model) if looks_slowly else None,
        asymmetry=asymmetry_of(options),
        hard=hardness_of(options),
        original=parts.uses_original,
        joint=options.joint_views,
        slow=parts.momentum(model) if slow else None,
        scale=options.loss_scale,
    )


SPEC = MethodSpec(
    build=lambda parts: _build(parts, SimCLR),
    help="SimCLR",
    cost=Cost(learned=(1, 1)),
    options=_OPTIONS,
    adversaries=(*PAIRED, "advcl"),
)
SUPCON = MethodSpec(
    build=lambda parts: _build(parts, SupCon),
    help="SupCon: positives by label",
    cost=Cost(learned=(1, 1)),
    options=_OPTIONS,
    adversaries=PAIRED,
    needs_labels=lambda options: True,
    refuses={"false_negatives": "has positives by label"},
)

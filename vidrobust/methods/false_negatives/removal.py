"""Removal: turn detected false negatives into masks of the loss, and count them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.data import Record
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.false_negatives.rules import (
    NO_NEEDS,
    Pairs,
    Rule,
    RuleNeeds,
    Sides,
    detect,
    keep_one,
    negative_weights,
    oracle,
    sibling,
)
from vidrobust.methods.pseudo_labels import k_means
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log


@dataclass(frozen=True)
class Masks:
    """Masks of a loss, (N, M) each or None, as `nt_xent` takes them.

    Attributes:
        ignore: pairs that are neither positives nor negatives.
        attract: pairs that are additional positives.
        weights: in [0, 1], how much a negative counts.
    """

    ignore: Tensor | None = None
    attract: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class FalseNegatives:
    """False negatives among the pairs of N anchors and M candidates.

    Attributes:
        mask: (N, M) bool, pairs that the rule detects.
        similarities: (N, M), their cosines.
        negatives: (N, M) bool, all pairs of different videos.
    """

    mask: Tensor
    similarities: Tensor
    negatives: Tensor

    def at(self, places: Sequence[int], clips: int) -> "FalseNegatives":
        """Return the false negatives of other rows, each of which stands for one of the clips.

        Args:
            places: of each new view, the clip whose place it takes; several may take the same one.
            clips: V per video; rows are V * B here, and columns are V * B of each rank in turn.
        """
        videos = len(self.mask) // clips

        # rows and columns of the chosen clips: (V * B, W * V * B) -> (P * B, W * P * B), W ranks
        def pick(pairs: Tensor) -> Tensor:
            by_clip = pairs.view(clips, videos, -1, clips, videos)
            picked = by_clip[list(places)][:, :, :, list(places)]
            return picked.reshape(len(places) * videos, -1)

        mask = pick(self.mask)
        similarities = pick(self.similarities)
        negatives = pick(self.negatives)
        # an anchor keeps a negative, also among the new columns
        return FalseNegatives(keep_one(mask, similarities, negatives), similarities, negatives)


class Removal(nn.Module):
    """Detects false negatives by a rule and turns them into masks of the loss.

    Rules use labels only where they need them. For the log, detections are compared with labels
    where there are any, which changes nothing else.
    """

    groups: Tensor  # (videos,) source of each, -1 unknown
    labels: Tensor  # (videos,) label of each, -1 unknown
    clusters: Tensor  # (videos,) cluster of each, -1 not embedded yet
    bank: Tensor  # (videos, D) last embedding of each, 0 for none
    counts: Tensor  # (4,) pairs, detected, false by label, detected and false

    def __init__(
        self,
        rule: Rule,
        action: str = "eliminate",
        *,
        siblings: bool = False,
        needs: RuleNeeds = NO_NEEDS,
        clusters: int = 0,
        dim: int = 0,
        classes: int = 0,
    ) -> None:
        """Set the rule and what becomes of the false negatives.

        Args:
            rule: detects false negatives.
            action: "eliminate" them from the denominator, "attract" them as positives (Huynh et al.
                2022), or "downweight" them.
            siblings: also detect clips of the same source.
            needs: what the rule needs.
            clusters: of embeddings that are remembered from one epoch for the next; 0: none.
            dim: D of embeddings, for clusters.
            classes: of the data set; 0: unknown.
        """
        super().__init__()
        self.rule = rule
        self.action = action
        self.siblings = siblings
        self.needs = needs
        self.cluster_count = clusters
        self.dim = dim
        self.classes = classes
        self._warned = False  # that more than half of the negatives are detected
        # not persistent: they are known from the list of videos
        for name in ("groups", "labels"):
            self.register_buffer(name, torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("counts", torch.zeros(4, dtype=torch.long))
        if clusters:
            self.register_buffer("clusters", torch.empty(0, dtype=torch.long))
            self.register_buffer("bank", torch.empty(0, 0))

    def set_videos(self, records: Sequence[Record]) -> None:
        """Keep the source and label of each video, and make room for an embedding of each.

        Args:
            records: the training videos; a video's id is its index.

        Raises:
            UserError: for more clusters than videos, and where the rule needs sources and there are
                none.
        """
        sources = [record.group for record in records if record.group]
        if self.needs.groups and len(set(sources)) == len(sources):
            raise UserError(
                "method.false_negatives.rule=sibling: no two videos of the data set are known to be"
                " cut from the same source; choose another rule"
            )
        if self.cluster_count > len(records):
            raise UserError(
                f"method.false_negatives.clusters={self.cluster_count}: the data set has"
                f" {len(records)} videos; choose fewer"
            )
        names = dict.fromkeys(sources)  # each source once, in order
        numbers = {name: number for number, name in enumerate(names)}
        groups = [numbers.get(record.group, -1) for record in records]
        device = self.counts.device
        self.groups = torch.tensor(groups, device=device)
        self.labels = torch.tensor([record.label for record in records], device=device)
        if self.cluster_count:
            self.bank = torch.zeros(len(records), self.dim, device=device)
            self.clusters = torch.full((len(records),), -1, device=device)

    def forward(self, anchors: Tensor, candidates: Tensor, ids: Sides, progress: float) -> Masks:
        """Return the masks of the false negatives.

        Args:
            anchors: as in `detect`.
            candidates: as in `detect`.
            ids: as in `detect`.
            progress: fraction of training done.
        """
        return self.masks(self.detect(anchors, candidates, ids, progress))

    @torch.no_grad()
    def detect(
        self, anchors: Tensor, candidates: Tensor, ids: Sides, progress: float
    ) -> FalseNegatives:
        """Return the false negatives of each anchor among the candidates.

        Args:
            anchors: embeddings (N, D) of any norm.
            candidates: embeddings (M, D) of any norm.
            ids: of anchors (N,) and of candidates (M,), -1 unknown.
            progress: fraction of training done.
        """
        rows = slice(None)
        if self.needs.whole_batch and distributed.world() > 1:
            # such a rule compares all anchors with each other: take those of all ranks
            rows = distributed.here(len(anchors))
            anchors = distributed.gather(full_precision(anchors.detach()))
            ids = (distributed.gather(ids[0]), ids[1])
        # in bf16 nearly all similarities tie
        with torch.autocast(anchors.device.type, enabled=False):
            a, b = (F.normalize(full_precision(z.detach()), dim=1) for z in (anchors, candidates))
            similarities = a @ b.T
        pairs = Pairs(
            ids,
            _of_sides(self.groups, ids),
            _of_sides(self.clusters, ids) if self.cluster_count else None,
            _of_sides(self.labels, ids) if self.needs.labels else None,
            progress,
            self.classes,
        )
        also = sibling(similarities, pairs) if self.siblings else None
        mask = detect(self.rule, similarities, pairs, also)
        if self.training:  # statistics of evaluation passes would mix with those of the epoch
            self._count(mask[rows], pairs, rows)
        return FalseNegatives(mask[rows], similarities[rows], pairs.negatives[rows])

    def masks(self, detected: FalseNegatives) -> Masks:
        """Return the masks of the loss, by the action."""
        if self.action == "attract":
            return Masks(attract=detected.mask)
        if self.action == "downweight":
            return Masks(weights=negative_weights(detected.similarities, detected.mask))
        return Masks(ignore=detected.mask)

    # Clusters, which the rule `cluster` uses

    def remember(self, z: Tensor, ids: Tensor) -> None:
        """Keep the embeddings z (B, D) of videos ids (B,) for the next clustering."""
        # the embeddings of all ranks, so that every rank has the same clusters
        if self.cluster_count:
            unit = F.normalize(z.detach().float(), dim=1)
            self.bank[distributed.gather(ids)] = distributed.gather(unit)

    def start_epoch(self) -> None:
        """Cluster the remembered embeddings; videos without one have no cluster."""
        if self.cluster_count:
            embedded = self.bank.any(1)  # in the first epoch no video is
            if int(embedded.sum()) >= self.cluster_count:
                self.clusters[embedded] = k_means(self.bank[embedded], self.cluster_count)

    # Statistics for the log

    def report(self, last: bool = False) -> dict[str, float]:
        """Return statistics since the last call, and warn of unlikely ones.

        Args:
            last: the run has ended.

        Returns:
            fn_removed: the fraction of negatives that were detected. Where labels are known,
            fn_precision and fn_recall.
        """
        pairs, detected, false, both = self.counts.tolist()
        self.counts.zero_()
        rates = {"fn_removed": detected / pairs} if pairs else {}
        if detected > pairs / 2 and not self._warned:
            self._warned = True
            log.warning(
                f"method.false_negatives: {detected / pairs:.0%} of an epoch's negatives were"
                " treated as false: embeddings may collapse, and a model that predicts little"
                " appears robust; use a stricter rule"
            )
        if last and pairs and not detected:
            log.warning(
                "method.false_negatives: no negative of the last epoch was treated as false; the"
                " result is that of rule=none"
            )
        if detected and bool((self.labels >= 0).any()):
            rates["fn_precision"] = both / detected
        if false:
            rates["fn_recall"] = both / false
        return rates

    def _count(self, mask: Tensor, pairs: Pairs, rows: slice) -> None:
        """Count the pairs of this rank's rows, over all ranks."""
        labels = _of_sides(self.labels, pairs.ids)
        false = torch.zeros_like(mask)
        if labels is not None:
            false = oracle(mask, dataclasses.replace(pairs, labels=labels))[rows]
        negatives = pairs.negatives[rows]
        counts = [negatives.sum(), mask.sum(), false.sum(), (false & mask).sum()]
        self.counts += distributed.gather(torch.stack(counts)[None]).sum(0)


def _of_sides(values: Tensor, ids: Sides) -> Sides | None:
    """Return the values of anchors and candidates, -1 for an id of -1; None without values."""
    if not len(values):
        return None
    anchors, candidates = (torch.where(side >= 0, values[side.clamp(min=0)], -1) for side in ids)
    return anchors, candidates

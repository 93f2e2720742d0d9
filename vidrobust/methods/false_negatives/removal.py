"""Remove false negatives from a loss, and count what was found."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.data import Record
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.false_negatives.rules import (
    Pairs,
    Rule,
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
    """(N, M) each or None, as `nt_xent` takes them."""

    ignore: Tensor | None = None
    attract: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class Found:
    """What a rule found among N anchors and M candidates, (N, M) each.

    false: pairs taken for false negatives. similarities: their cosines. others: all negatives.
    """

    false: Tensor
    similarities: Tensor
    others: Tensor

    def at(self, places: Sequence[int], clips: int) -> "Found":
        """Return it for other rows, each of which stands for one of the clips that were looked at.

        Args:
            places: of each new view, the clip whose place it has; a clip may stand for several.
            clips: V, of each video; rows are V x B here, and V x B on each rank behind each other
                in the columns.
        """
        videos = len(self.false) // clips

        def pick(pairs: Tensor) -> Tensor:
            whole = pairs.view(clips, videos, -1, clips, videos)
            part = whole[list(places)][:, :, :, list(places)]
            return part.reshape(len(places) * videos, -1)

        false, similarities, others = map(pick, (self.false, self.similarities, self.others))
        return Found(keep_one(false, similarities, others), similarities, others)


class Removal(nn.Module):
    """False negatives by a rule, made into masks of the loss.

    action: eliminate them from the denominator, attract them as positives (FNC), or downweight
    them. siblings: clips of the same source are found besides. Rules see labels only where
    `uses_labels`; for the log, what they find is compared with labels where there are any, which
    changes nothing else. whole_batch: the rule looks at all anchors together, those of other ranks
    too. k: clusters of embeddings (dim) remembered from one epoch for the next; 0: none.
    """

    groups: Tensor
    labels: Tensor
    clusters: Tensor
    bank: Tensor
    counts: Tensor

    def __init__(
        self,
        rule: Rule,
        action: str = "eliminate",
        *,
        siblings: bool = False,
        uses_labels: bool = False,
        needs_groups: bool = False,
        whole_batch: bool = False,
        k: int = 0,
        dim: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.rule, self.action, self.siblings, self.uses_labels = (
            rule,
            action,
            siblings,
            uses_labels,
        )
        self.needs_groups, self.whole_batch, self.k, self.dim, self.classes = (
            needs_groups,
            whole_batch,
            k,
            dim,
            classes,
        )
        for name in ("groups", "labels"):
            self.register_buffer(name, torch.empty(0, dtype=torch.long), persistent=False)
        self.told = False  # that much was found
        self.register_buffer(
            "counts", torch.zeros(4, dtype=torch.long)
        )  # pairs, found, false, both
        if k:
            self.register_buffer("clusters", torch.empty(0, dtype=torch.long))
            self.register_buffer("bank", torch.empty(0, 0))

    def know(self, records: Sequence[Record]) -> None:
        """Groups and labels of the videos whose index is the id, and room for an embedding of each.

        Raises UserError for more clusters than videos, and where there are no groups and the rule
        is made of them.
        """
        sources = [record.group for record in records if record.group]
        if self.needs_groups and len(set(sources)) == len(sources):
            raise UserError(
                "method.false_negatives.rule=sibling: no two videos of the data set are known to be"
                " cut from the same source; choose another rule"
            )
        if self.k > len(records):
            raise UserError(
                f"method.false_negatives.clusters={self.k}: the data set has {len(records)} videos;"
                " choose fewer"
            )
        names = [record.group for record in records]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(filter(None, names)))}
        device = self.counts.device
        self.groups = torch.tensor([numbers.get(name, -1) for name in names], device=device)
        self.labels = torch.tensor([record.label for record in records], device=device)
        if self.k:
            self.bank = torch.zeros(len(records), self.dim, device=device)
            self.clusters = torch.full((len(records),), -1, device=device)

    def forward(self, anchors: Tensor, candidates: Tensor, ids: Sides, progress: float) -> Masks:
        """Return the masks of what `look` finds."""
        return self.masks(self.look(anchors, candidates, ids, progress))

    @torch.no_grad()
    def look(self, anchors: Tensor, candidates: Tensor, ids: Sides, progress: float) -> Found:
        """anchors (N, D), candidates (M, D) of any norm; ids of both; progress: the share of
        training done.

        Similarities are in full precision whatever the embeddings are: in bf16 nearly all of them
        tie.
        """
        own = slice(None)
        if self.whole_batch and distributed.world() > 1:
            own = distributed.here(len(anchors))
            anchors, ids = (
                distributed.gather(full_precision(anchors.detach())),
                (distributed.gather(ids[0]), ids[1]),
            )
        with torch.autocast(anchors.device.type, enabled=False):
            a, b = (F.normalize(full_precision(z.detach()), dim=1) for z in (anchors, candidates))
            similarities = a @ b.T
        pairs = Pairs(
            ids,
            self._sides(self.groups, ids),
            self._sides(self.clusters, ids) if self.k else None,
            self._sides(self.labels, ids) if self.uses_labels else None,
            progress,
            self.classes,
        )
        found = detect(
            self.rule, similarities, pairs, sibling(similarities, pairs) if self.siblings else None
        )
        if self.training:
            self._count(found[own], pairs, own)
        return Found(found[own], similarities[own], pairs.others[own])

    def masks(self, found: Found) -> Masks:
        """Return what the loss makes of it, by the action."""
        if self.action == "attract":
            return Masks(attract=found.false)
        if self.action == "downweight":
            return Masks(weights=negative_weights(found.similarities, found.false))
        return Masks(ignore=found.false)

    def remember(self, z: Tensor, ids: Tensor) -> None:
        """Keep the embeddings z (N, D) of videos for the next clustering."""
        if self.k:
            self.bank[distributed.gather(ids)] = distributed.gather(
                F.normalize(z.detach().float(), dim=1)
            )

    def start_epoch(self) -> None:
        """Cluster what is remembered; videos not seen yet have no cluster."""
        if self.k:
            seen = self.bank.any(1)
            if int(seen.sum()) >= self.k:
                self.clusters[seen] = k_means(self.bank[seen], self.k)

    def report(self, last: bool = False) -> dict[str, float]:
        """Since the last call: the share of negatives found, and precision and recall where labels
        are known.

        Warns, once, where that is more than half of them; and at the end of a run (last) where it
        is none.
        """
        pairs, found, false, both = self.counts.tolist()
        self.counts.zero_()
        rates = {"fn_removed": found / pairs} if pairs else {}
        if found > pairs / 2 and not self.told:
            self.told = True
            log.warning(
                f"{found / pairs:.0%} of an epoch's negatives were taken for false: their"
                " embeddings may collapse, and what predicts little looks robust; make the rule of"
                " method.false_negatives stricter"
            )
        if last and pairs and not found:
            log.warning(
                "method.false_negatives: no negative of the last epoch was taken for false, as with"
                " rule=none"
            )
        if found and bool((self.labels >= 0).any()):
            rates["fn_precision"] = both / found
        if false:
            rates["fn_recall"] = both / false
        return rates

    def _sides(self, known: Tensor, ids: Sides) -> Sides | None:
        """What is known of each side; an id of -1 is nobody."""
        if not len(known):
            return None
        anchors, candidates = (torch.where(side >= 0, known[side.clamp(min=0)], -1) for side in ids)
        return anchors, candidates

    def _count(self, found: Tensor, pairs: Pairs, own: slice) -> None:
        labels, others = self._sides(self.labels, pairs.ids), pairs.others[own]
        told = None if labels is None else oracle(found, dataclasses.replace(pairs, labels=labels))
        false = torch.zeros_like(found) if told is None else told[own]
        here = torch.stack([others.sum(), found.sum(), false.sum(), (false & found).sum()])
        self.counts += distributed.gather(here[None]).sum(0)

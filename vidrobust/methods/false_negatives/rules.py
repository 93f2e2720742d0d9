"""RULES that detect false negatives (Gupta et al. 2022), as pure functions.

Detection is a rule, a pure function `rule(similarities, pairs) -> (N, M) bool` over cosine
similarities of detached, clean embeddings; METHODS section 1.4 has the table. What is found is
eliminated from the denominator, attracted as a positive, or counted less.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rule = Callable[[Tensor, "Pairs"], Tensor]
Sides = tuple[Tensor, Tensor]  # of the anchors (N,), and of the candidates (M,)


@dataclass(frozen=True)
class Pairs:
    """What a rule may know of N anchors and M candidates besides their similarities.

    ids: one a video; equal ids are views of the same video, and never false negatives. groups,
    clusters, labels: of each side, -1 for none; None where nothing is known. progress: the share of
    training that is done. classes: how many there are, 0 if unknown.
    """

    ids: Sides
    groups: Sides | None = None
    clusters: Sides | None = None
    labels: Sides | None = None
    progress: float = 1.0
    classes: int = 0

    @functools.cached_property
    def others(self) -> Tensor:
        """(N, M) bool: candidates of another video than the anchor's; nobody's, whose id is -1, are
        not looked at.
        """
        return (self.ids[0][:, None] != self.ids[1]) & (self.ids[1] >= 0)


def fixed(similarities: Tensor, pairs: Pairs, threshold: float = 0.7) -> Tensor:
    """s > threshold; 0.7 is FNC's (Huynh et al. 2022)."""
    return pairs.others & (similarities > threshold)


def top_k(similarities: Tensor, pairs: Pairs, k: int = 10) -> Tensor:
    """The k most similar of each anchor; 10 is FNC's."""
    others = pairs.others
    most = (
        similarities.masked_fill(~others, -torch.inf)
        .topk(min(k, similarities.shape[1]), dim=1)
        .indices
    )
    return torch.zeros_like(others).scatter_(1, most, True) & others


def top_k_threshold(
    similarities: Tensor, pairs: Pairs, k: int = 10, threshold: float = 0.7
) -> Tensor:
    """Find the k most similar of each anchor that are above the threshold: FNC's own rule.

    A candidate's score is its largest similarity to any view of the anchor's video, the anchor's
    support set, so that all views of a video have the same false negatives (Huynh et al. 2022, and
    their code).
    """
    score = _best_of_views(similarities, pairs.ids[0])
    return top_k(score, pairs, k) & fixed(score, pairs, threshold)


def _best_of_views(similarities: Tensor, ids: Tensor) -> Tensor:
    """Return (N, M) similarities, each the largest of all anchors with the same id."""
    _, video = ids.unique(return_inverse=True)
    best = similarities.new_full((int(video.max()) + 1, similarities.shape[1]), -torch.inf)
    best.scatter_reduce_(0, video[:, None].expand_as(similarities), similarities, "amax")
    return best[video]


def quantile(
    similarities: Tensor,
    pairs: Pairs,
    rate: float = 0.0,
    over: Literal["anchor", "batch"] = "anchor",
) -> Tensor:
    """The share `rate` of the most similar negatives of each anchor, or of the whole batch; a whole
    number, rounded.

    Of the batch, those that tie with the last are taken as well.

    rate 0: 1 / classes where that is known, or else 0.05.
    """
    return _most_similar(similarities, pairs.others, rate or default_rate(pairs.classes), over)


def adaptive_threshold(
    similarities: Tensor, pairs: Pairs, start: float = 0.95, end: float = 0.7, warmup: float = 0.1
) -> Tensor:
    """s > theta; theta falls along a cosine from `start` to `end`, and nothing is found in the
    `warmup` share.
    """
    if pairs.progress < warmup:
        return torch.zeros_like(similarities, dtype=torch.bool)
    done = (pairs.progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return fixed(similarities, pairs, end + (start - end) * 0.5 * (1 + math.cos(math.pi * done)))


def adaptive_rate(
    similarities: Tensor, pairs: Pairs, rate: float = 0.0, warmup: float = 0.1
) -> Tensor:
    """`quantile` of each anchor at a rate that climbs from 0 at the end of the `warmup` share to
    `rate` at the end.
    """
    done = (pairs.progress - warmup) / (1 - warmup) if warmup < 1 else 0.0
    most = rate or default_rate(pairs.classes)
    return _most_similar(similarities, pairs.others, most * min(max(done, 0.0), 1.0), "anchor")


def mean_std(similarities: Tensor, pairs: Pairs, k: float = 2.5) -> Tensor:
    """s > mean + k standard deviations of the batch's negatives: a threshold that calibrates
    itself.
    """
    others = pairs.others
    known = similarities[others]
    if known.numel() < 2:
        return torch.zeros_like(others)
    return others & (similarities > known.mean() + k * known.std(correction=0))


def cluster(similarities: Tensor, pairs: Pairs) -> Tensor:
    """The same k-means pseudo-label (as AdvCL's and DynACL++'s)."""
    return pairs.others & _same(pairs.clusters, "clusters")


def oracle(similarities: Tensor, pairs: Pairs) -> Tensor:
    """The same label: the upper bound. Attracted, it is SupCon."""
    return pairs.others & _same(pairs.labels, "labels")


def sibling(similarities: Tensor, pairs: Pairs) -> Tensor:
    """Cut from the same source (UCF101's groups, HMDB51's films), which CoCLR leaves out as
    well.
    """
    return pairs.others & _same(pairs.groups, "groups")


RULES: dict[str, Rule] = {
    "fixed": fixed,
    "topk": top_k,
    "topk_threshold": top_k_threshold,
    "quantile": quantile,
    "adaptive_threshold": adaptive_threshold,
    "adaptive_rate": adaptive_rate,
    "mean_std": mean_std,
    "cluster": cluster,
    "oracle": oracle,
    "sibling": sibling,
}


@torch.no_grad()
def detect(rule: Rule, similarities: Tensor, pairs: Pairs, also: Tensor | None = None) -> Tensor:
    """The false negatives by `rule`, and those in `also`, (N, M) bool, with the guard: an anchor
    keeps a negative.

    Where everything would go, the least similar negative stays. An anchor that has none to begin
    with keeps none. NaN similarities are found by no threshold; the loss they give stops a run.
    """
    others = pairs.others
    found = rule(similarities, pairs) & others
    if also is not None:
        found |= also & others
    return keep_one(found, similarities, others)


def keep_one(found: Tensor, similarities: Tensor, others: Tensor) -> Tensor:
    """Return what is found (N, M), but for the least similar of an anchor whose negatives would all
    go.
    """
    nothing_left = ~(others & ~found).any(1)
    farthest = similarities.masked_fill(~others, torch.inf).argmin(1)
    kept = torch.zeros_like(found).scatter_(1, farthest[:, None], True)
    return found & ~(kept & nothing_left[:, None])


def negative_weights(similarities: Tensor, found: Tensor) -> Tensor:
    """(N, M): 1 - confidence, where the confidence that a found pair is a false negative is its
    similarity, 0 to 1.

    Our reading of METHODS section 1.4 (`downweight`): all others count wholly.
    """
    return torch.where(found, 1 - similarities.clamp(0, 1), torch.ones_like(similarities))


def default_rate(classes: int) -> float:
    """The share of negatives that are false when `classes` are as large as each other; 0.05 where
    they are unknown.

    One class is none: a folder of unlabelled videos has one.
    """
    return 1 / classes if classes > 1 else 0.05


def _most_similar(similarities: Tensor, others: Tensor, rate: float, over: str) -> Tensor:
    ranked = similarities.masked_fill(~others, -torch.inf)
    found = torch.zeros_like(others)
    if over == "batch":
        count = round(rate * int(others.sum()))
        if not count:
            return found
        # (i, j) and (j, i) tie, but for roundings: both or none, whichever rank has them
        return others & (ranked >= ranked.flatten().topk(count).values[-1] - 1e-6)
    counts = (rate * others.sum(1, dtype=torch.float32)).round()
    most = int(counts.max()) if len(counts) else 0
    taken = torch.arange(most, device=similarities.device) < counts[:, None]
    return found.scatter_(1, ranked.topk(most, dim=1).indices, taken) & others


def _same(sides: Sides | None, what: str) -> Tensor:
    if sides is None:
        raise ValueError(f"this rule needs {what}, and there are none")
    anchors, candidates = sides
    return (anchors[:, None] == candidates) & (anchors >= 0)[:, None]


# rule -> option of `method.false_negatives` -> the argument of the rule that it sets
RULE_OPTIONS: dict[str, dict[str, str]] = {
    "fixed": {"threshold": "threshold"},
    "topk": {"k": "k"},
    "topk_threshold": {"k": "k", "threshold": "threshold"},
    "quantile": {"rate": "rate", "over": "over"},
    "adaptive_threshold": {"start": "start", "threshold": "end", "warmup": "warmup"},
    "adaptive_rate": {"rate": "rate", "warmup": "warmup"},
    "mean_std": {"sigmas": "k"},
    "cluster": {},
    "oracle": {},
    "sibling": {},
}

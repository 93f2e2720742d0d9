"""RULES that detect false negatives (Gupta et al. 2022), as pure functions.

A rule is a function `rule(similarities, pairs) -> (N, M) bool` of the cosine similarities of clean
embeddings without gradient. `Removal` eliminates the pairs that a rule detects from the denominator
of the loss, attracts them as positives, or gives them less weight.

Gupta et al. 2022 do not publish their rule. `fixed`, `top_k` and `top_k_threshold` have the numbers
of FNC (Huynh et al. 2022). `quantile`, `adaptive_threshold`, `adaptive_rate` and `mean_std` are
reconstructions. docs/false_negatives.md has the source of each rule.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vidrobust import config

Rule = Callable[[Tensor, "Pairs"], Tensor]
Sides = tuple[Tensor, Tensor]  # of the anchors (N,), and of the candidates (M,)


@dataclass(frozen=True)
class Pairs:
    """Knowledge of N anchors and M candidates that a rule may use in addition to similarities.

    Attributes:
        ids: one per video, -1 unknown; views with equal ids are of the same video, and never false
            negatives.
        groups: source of each side, -1 unknown; None: all unknown.
        clusters: cluster of each side, -1 unknown; None: all unknown.
        labels: label of each side, -1 unknown; None: all unknown.
        progress: fraction of training done.
        classes: of the data set; 0: unknown.
    """

    ids: Sides
    groups: Sides | None = None
    clusters: Sides | None = None
    labels: Sides | None = None
    progress: float = 1.0
    classes: int = 0

    @functools.cached_property
    def negatives(self) -> Tensor:
        """(N, M) bool: candidates of a known video that is not the anchor's."""
        return (self.ids[0][:, None] != self.ids[1]) & (self.ids[1] >= 0)


@dataclass(frozen=True)
class RuleNeeds:
    """Needs of a rule.

    Attributes:
        labels: the labels of videos.
        groups: the sources of videos, some of which must be shared.
        whole_batch: all anchors of a batch, also those of other ranks.
        clusters: a clustering of the embeddings of the last epoch.
    """

    labels: bool = False
    groups: bool = False
    whole_batch: bool = False
    clusters: bool = False


NO_NEEDS = RuleNeeds()


def fixed(similarities: Tensor, pairs: Pairs, threshold: float = 0.7) -> Tensor:
    """Detect similarities above a threshold (0.7 in FNC, Huynh et al. 2022).

    Args:
        similarities: (N, M) cosines.
        pairs: what is known of them.
        threshold: a cosine.
    """
    return pairs.negatives & (similarities > threshold)


def top_k(similarities: Tensor, pairs: Pairs, k: int = 10) -> Tensor:
    """Detect the k most similar negatives of each anchor (10 in FNC, Huynh et al. 2022).

    Args:
        similarities: (N, M) cosines.
        pairs: what is known of them.
        k: per anchor.
    """
    negatives = pairs.negatives
    ranked = similarities.masked_fill(~negatives, -torch.inf)
    most_similar = ranked.topk(min(k, similarities.shape[1]), dim=1).indices
    # an anchor with fewer than k negatives also has others among its k
    return torch.zeros_like(negatives).scatter_(1, most_similar, True) & negatives


def top_k_threshold(
    similarities: Tensor, pairs: Pairs, k: int = 10, threshold: float = 0.7
) -> Tensor:
    """Detect the k most similar negatives of each anchor that are above a threshold: FNC's rule.

    The score of a candidate is its largest similarity to any view of the anchor's video, the
    anchor's support set, so that all views of a video have the same false negatives (Huynh et al.
    2022, and their code).

    Args:
        similarities: (N, M) cosines.
        pairs: what is known of them.
        k: per anchor.
        threshold: a cosine.
    """
    # both conditions use the score of the whole video
    score = _largest_over_views(similarities, pairs.ids[0])
    return top_k(score, pairs, k) & fixed(score, pairs, threshold)


def quantile(
    similarities: Tensor,
    pairs: Pairs,
    rate: float = 0.0,
    over: Literal["anchor", "batch"] = "anchor",
) -> Tensor:
    """Detect a fraction of the negatives, the most similar ones.

    Args:
        similarities: (N, M) cosines.
        pairs: what is known of them.
        rate: the fraction; their number is rounded. 0: `default_rate`.
        over: of the negatives of each anchor, or of the whole batch, where those that tie with the
            last one are also detected.
    """
    return _most_similar(similarities, pairs.negatives, rate or default_rate(pairs.classes), over)


def adaptive_threshold(
    similarities: Tensor, pairs: Pairs, start: float = 0.95, end: float = 0.7, warmup: float = 0.1
) -> Tensor:
    """Detect similarities above a threshold that decays along a cosine.

    Args:
        similarities: (N, M) cosines.
        pairs: what is known of them.
        start: threshold at the end of the warm-up.
        end: threshold at the end of training.
        warmup: fraction of training in which nothing is detected.
    """
    if pairs.progress < warmup:
        return torch.zeros_like(similarities, dtype=torch.bool)
    done = (pairs.progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return fixed(similarities, pairs, end + (start - end) * 0.5 * (1 + math.cos(math.pi * done)))


def adaptive_rate(
    similarities: Tensor, pairs: Pairs, rate: float = 0.0, warmup: float = 0.1
) -> Tensor:
    """Detect a fraction of the negatives of each anchor that increases linearly from 0.

    IFND (Chen et al. 2022) has such a ramp: early in training, similarities are not reliable yet.

    Args:
        similarities: (N, M) cosines.
        pairs: what is known of them.
        rate: the fraction at the end of training; 0: `default_rate`.
        warmup: fraction of training in which nothing is detected.
    """
    done = (pairs.progress - warmup) / (1 - warmup) if warmup < 1 else 0.0
    final = rate or default_rate(pairs.classes)
    now = final * min(max(done, 0.0), 1.0)
    return _most_similar(similarities, pairs.negatives, now, "anchor")


def mean_std(similarities: Tensor, pairs: Pairs, k: float = 2.5) -> Tensor:
    """Detect similarities above mean + k standard deviations of the negatives of the batch.

    Such a threshold follows the similarities, whose range changes during training.

    Args:
        similarities: (N, M) cosines.
        pairs: what is known of them.
        k: standard deviations.
    """
    negatives = pairs.negatives
    values = similarities[negatives]
    if values.numel() < 2:  # no spread
        return torch.zeros_like(negatives)
    return negatives & (similarities > values.mean() + k * values.std(correction=0))


def cluster(similarities: Tensor, pairs: Pairs) -> Tensor:
    """Detect negatives of the same k-means cluster, as AdvCL and DynACL++ define pseudo-labels."""
    return pairs.negatives & _equal(pairs.clusters, "clusters")


def oracle(similarities: Tensor, pairs: Pairs) -> Tensor:
    """Detect negatives of the same label: the upper bound. With action=attract this is SupCon."""
    return pairs.negatives & _equal(pairs.labels, "labels")


def sibling(similarities: Tensor, pairs: Pairs) -> Tensor:
    """Detect negatives cut from the same source, such as UCF101's groups and HMDB51's films.

    CoCLR (Han et al. 2020) also leaves them out.
    """
    return pairs.negatives & _equal(pairs.groups, "groups")


@dataclass(frozen=True)
class RuleSpec:
    """A rule: an entry of RULES.

    Attributes:
        rule: the function.
        arguments: key of `method.false_negatives.*` -> the argument of the function that it sets.
        needs: options -> what it needs.
        refusal: options -> why they cannot be combined, or "".
    """

    rule: Callable[..., Tensor]
    arguments: Mapping[str, str] = field(default_factory=dict)
    needs: Callable[[config.FalseNegativesConfig], RuleNeeds] = lambda options: NO_NEEDS
    refusal: Callable[[config.FalseNegativesConfig], str] = lambda options: ""


def _refuse_increase(options: config.FalseNegativesConfig) -> str:
    if options.start >= options.threshold:
        return ""
    return (
        f"method.false_negatives.start={options.start:g}: the threshold decays from start to"
        f" method.false_negatives.threshold={options.threshold:g}; set a start above it"
    )


RULES: dict[str, RuleSpec] = {
    "fixed": RuleSpec(fixed, {"threshold": "threshold"}),
    "topk": RuleSpec(top_k, {"k": "k"}),
    "topk_threshold": RuleSpec(top_k_threshold, {"k": "k", "threshold": "threshold"}),
    "quantile": RuleSpec(
        quantile,
        {"rate": "rate", "over": "over"},
        needs=lambda options: RuleNeeds(whole_batch=options.over == "batch"),
    ),
    "adaptive_threshold": RuleSpec(
        adaptive_threshold,
        {"start": "start", "threshold": "end", "warmup": "warmup"},
        refusal=_refuse_increase,
    ),
    "adaptive_rate": RuleSpec(adaptive_rate, {"rate": "rate", "warmup": "warmup"}),
    "mean_std": RuleSpec(
        mean_std, {"sigmas": "k"}, needs=lambda options: RuleNeeds(whole_batch=True)
    ),
    "cluster": RuleSpec(cluster, needs=lambda options: RuleNeeds(clusters=True)),
    "oracle": RuleSpec(oracle, needs=lambda options: RuleNeeds(labels=True)),
    "sibling": RuleSpec(sibling, needs=lambda options: RuleNeeds(groups=True)),
}


@torch.no_grad()
def detect(rule: Rule, similarities: Tensor, pairs: Pairs, also: Tensor | None = None) -> Tensor:
    """Return the false negatives of each anchor, with the guard of `keep_one`.

    NaN similarities are above no threshold. The loss is then NaN as well, which stops the run.

    Args:
        rule: detects false negatives.
        similarities: (N, M) cosines.
        pairs: what is known of them.
        also: (N, M) bool, more false negatives.

    Returns:
        (N, M) bool.
    """
    negatives = pairs.negatives
    mask = rule(similarities, pairs) & negatives
    if also is not None:
        mask |= also & negatives
    return keep_one(mask, similarities, negatives)


def keep_one(mask: Tensor, similarities: Tensor, negatives: Tensor) -> Tensor:
    """Return the mask, but leave an anchor its least similar negative if it would lose all.

    Without negatives, the loss of an anchor with one positive is constant, and moves nothing. An
    anchor that has no negatives in any case keeps none.

    Args:
        mask: (N, M) bool, false negatives.
        similarities: (N, M) cosines.
        negatives: (N, M) bool, pairs of different videos.
    """
    loses_all = ~(negatives & ~mask).any(1)
    least_similar = similarities.masked_fill(~negatives, torch.inf).argmin(1)
    kept = torch.zeros_like(mask).scatter_(1, least_similar[:, None], True)
    return mask & ~(kept & loses_all[:, None])


def negative_weights(similarities: Tensor, mask: Tensor) -> Tensor:
    """Return how much each negative counts, (N, M), for the action `downweight`.

    The weight is 1 - similarity, clamped to [0, 1], for false negatives, and 1 for all others. The
    similarity is read as the confidence that a pair is a false negative; this reading is ours.

    Args:
        similarities: (N, M) cosines.
        mask: (N, M) bool, false negatives.
    """
    return torch.where(mask, 1 - similarities.clamp(0, 1), torch.ones_like(similarities))


def default_rate(classes: int) -> float:
    """Return the fraction of negatives that are false with this many classes of equal size.

    0.05 where the number is unknown: 0, or 1, which a folder of unlabelled videos has.
    """
    return 1 / classes if classes > 1 else 0.05


def _largest_over_views(similarities: Tensor, ids: Tensor) -> Tensor:
    """Return (N, M) similarities, each the largest of all anchors with the same id."""
    # number the videos, then take the maximum over the rows (views) of each
    _, video = ids.unique(return_inverse=True)
    largest = similarities.new_full((int(video.max()) + 1, similarities.shape[1]), -torch.inf)
    largest.scatter_reduce_(0, video[:, None].expand_as(similarities), similarities, "amax")
    return largest[video]


def _most_similar(similarities: Tensor, negatives: Tensor, rate: float, over: str) -> Tensor:
    """Return the most similar fraction of negatives, of each anchor or of the batch."""
    ranked = similarities.masked_fill(~negatives, -torch.inf)
    mask = torch.zeros_like(negatives)
    if over == "batch":
        count = round(rate * int(negatives.sum()))
        if not count:
            return mask
        # (i, j) and (j, i) tie but for rounding: detect both or none, whichever rank has them
        return negatives & (ranked >= ranked.flatten().topk(count).values[-1] - 1e-6)
    counts = (rate * negatives.sum(1, dtype=torch.float32)).round()
    most = int(counts.max()) if len(counts) else 0
    # of the `most` most similar of each anchor, the first `counts`
    taken = torch.arange(most, device=similarities.device) < counts[:, None]
    return mask.scatter_(1, ranked.topk(most, dim=1).indices, taken) & negatives


def _equal(sides: Sides | None, what: str) -> Tensor:
    """Return (N, M) bool: anchors and candidates with the same known value."""
    if sides is None:
        raise ValueError(f"this rule needs {what}, and there are none")
    anchors, candidates = sides
    return (anchors[:, None] == candidates) & (anchors >= 0)[:, None]

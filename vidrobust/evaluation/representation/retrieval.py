"""Retrieve training videos by test videos: similarities, ranks and recall at k.

Test videos are the queries, training videos the gallery. A video's feature is the mean over its
clips. N queries, M gallery videos, D feature dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidrobust.evaluation.representation.knn import directions
from vidrobust.utils.intervals import wilson

RANKS = (1, 5, 10, 20, 50)  # values of k that papers report
SIMILARITIES = ("centered", "cosine")
_AT_ONCE = 2**24  # similarities computed at a time: 64 MiB of float32


@dataclass(frozen=True)
class Space:
    """The space in which videos are compared, by inner products of unit vectors.

    Both means are those of the clean features. So the place of one attacked video does not depend
    on which other videos are attacked.

    Attributes:
        query_mean: subtracted from the features of queries, (D,).
        gallery_mean: subtracted from the features of the gallery, (D,).
    """

    query_mean: Tensor
    gallery_mean: Tensor

    def queries(self, features: Tensor) -> Tensor:
        """Return the unit vectors of queries, of the shape of their features (N, D)."""
        return directions(features - self.query_mean)

    def gallery(self, features: Tensor) -> Tensor:
        """Return the unit vectors of gallery videos, of the shape of their features (M, D)."""
        return directions(features - self.gallery_mean)


def space_of(similarity: str, queries: Tensor, gallery: Tensor) -> Space:
    """Return the space of a published variant.

    "centered" subtracts from each set its own mean and compares by cosine (Han et al. 2020,
    released code). "cosine" compares features as they are (Chen et al. 2021, released code).

    Args:
        similarity: one of SIMILARITIES.
        queries: clean features (N, D).
        gallery: clean features (M, D).
    """
    if similarity == "centered":
        return Space(queries.mean(0), gallery.mean(0))
    nothing = torch.zeros_like(gallery[0])
    return Space(nothing, nothing)


def first_ranks(queries: Tensor, gallery: Tensor, labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """Return the rank of the nearest gallery video of each query's class, (N,).

    The rank is 1 for the nearest of all, and 0 where no gallery video has the class. Of equally
    similar videos, earlier ones come first. A gallery video with NaN is never found, and a query
    with NaN finds none.

    Args:
        queries: unit vectors (N, D).
        gallery: unit vectors (M, D).
        labels: classes of the queries, (N,).
        gallery_labels: classes of the gallery, (M,).
    """
    ranks = []
    place = torch.arange(len(gallery), device=gallery.device)
    for part, part_labels in _parts(queries, gallery, labels):
        similarity = _similarity(part, gallery)
        is_right = part_labels[:, None] == gallery_labels
        right = similarity.masked_fill(~is_right, -torch.inf)
        best = right.amax(1, keepdim=True)
        first = torch.where(right == best, place, len(gallery)).amin(1, keepdim=True)
        before = (similarity > best) | ((similarity == best) & (place < first))
        ranks.append(torch.where(best.flatten().isneginf(), 0, 1 + before.sum(1)))
    return torch.cat(ranks)


def nearest(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """Return the places of the nearest gallery videos, nearest first, (N, min(count, M)).

    Ties and NaN are treated as in `first_ranks`.

    Args:
        queries: unit vectors (N, D).
        gallery: unit vectors (M, D).
        count: number of gallery videos for each query.
    """
    places = []
    for part, _ in _parts(queries, gallery, queries):
        order = _similarity(part, gallery).sort(dim=1, descending=True, stable=True).indices
        places.append(order[:, :count])
    return torch.cat(places)


def _parts(queries: Tensor, gallery: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the queries and their labels in parts whose similarities fit into memory."""
    size = max(1, _AT_ONCE // max(len(gallery), 1))
    return list(zip(queries.split(size), labels.split(size), strict=True))


def _similarity(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return inner products (N, M); -inf for NaN."""
    similarity = queries @ gallery.T
    return similarity.masked_fill(similarity.isnan(), -torch.inf)


@dataclass(frozen=True)
class Recall:
    """Fraction of queries with a video of their class among the k nearest.

    Attributes:
        k: number of nearest gallery videos.
        recall: the fraction.
        ci95: its 95 % interval (Wilson).
    """

    k: int
    recall: float
    ci95: list[float]


def recalls(ranks: Sequence[int], gallery: int, n: int) -> list[Recall]:
    """Return recall at each k of RANKS that is at most the size of the gallery.

    Args:
        ranks: rank of the first right video for each query; 0 for none.
        gallery: number of gallery videos.
        n: queries that count; those without a rank find nothing.
    """
    table = []
    for k in RANKS:
        if k <= gallery:
            hits = sum(1 <= rank <= k for rank in ranks)
            table.append(Recall(k, hits / n, list(wilson(hits, n))))
    return table

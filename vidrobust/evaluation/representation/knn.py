"""Classify features by k nearest neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.attacks.arguments import above_zero, at_least_one
from vidrobust.evaluation.representation.finite import require_finite

_SIMILARITIES = (
    2**24
)  # at a time, 64 MiB: those of a whole set fill memory, those of one video leave the cores idle


def knn_scores(
    queries: Tensor,
    gallery: Tensor,
    labels: Tensor,
    classes: int,
    *,
    k: int = 20,
    temperature: float = 0.1,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Tensor:
    """Return votes of the k nearest clips by cosine similarity, (N, classes).

    A video's votes are the mean over its K clips.

    A vote weighs exp(similarity / temperature), as in Wu et al. (CVPR 2018). Computed where the
    tensors are.

    Args:
        queries: (N, K, D).
        gallery: (M, D).
        labels: (M,), of the gallery.
        classes: how many there are.
        k: neighbours, at most M.
        temperature: of the weights.
        names: of the queries' videos and of the gallery's, for messages; a gallery of several clips
            per video has as many names as videos.

    Raises:
        UserError: for features that are NaN or infinite, with the clips.
        ValueError: for k below 1, and for a temperature that is not above 0.
    """
    at_least_one(k=k)
    above_zero(temperature=temperature)
    of_queries, of_gallery = names or (None, None)
    require_finite(queries, "features of the queries", of_queries)
    require_finite(gallery, "features of the gallery", of_gallery)
    gallery = _directions(gallery)
    k = min(k, len(gallery))
    videos = max(1, _SIMILARITIES // (queries.shape[1] * len(gallery)))
    votes = []
    for clips in queries.split(videos):
        similarity, nearest = (_directions(clips) @ gallery.T).topk(k, dim=-1)
        weight = (
            (similarity - similarity[..., :1]) / temperature
        ).exp()  # 1 for the nearest: no over- or underflow
        scores = queries.new_zeros(*clips.shape[:2], classes).scatter_add_(
            2, labels[nearest], weight
        )
        votes.append((scores / scores.sum(-1, keepdim=True)).mean(1))
    return torch.cat(votes)


def _directions(features: Tensor) -> Tensor:
    """Return features (..., D) at length 1, however short they are; those of zeros stay."""
    length = features.norm(dim=-1, keepdim=True)
    extreme = (length < 1e-12) | length.isinf()  # squares are too small, or too large, for the type
    if extreme.any():
        largest = features.abs().amax(-1, keepdim=True)
        features = torch.where(
            extreme & (largest > 0),
            features / largest.clamp(min=torch.finfo(features.dtype).tiny),
            features,
        )
    return F.normalize(features, dim=-1)

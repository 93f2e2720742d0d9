"""Classify features by k nearest neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.attacks.arguments import above_zero, at_least_one
from vidrobust.evaluation.representation.finite import require_finite

# Similarities computed at a time: 64 MiB of float32. All of a data set's would fill the memory, and
# those of a single video would not keep the cores busy.
_SIMILARITIES = 2**24


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
    """Return the votes of the k nearest clips by cosine similarity, (N, classes).

    A vote has the weight exp(similarity / temperature), as in Wu et al. 2018. The votes for a clip
    add up to 1, and a video's votes are the mean over its K clips. The computation runs on the
    device of the tensors.

    Args:
        queries: features of N videos with K clips each, (N, K, D).
        gallery: features of the clips that vote, (M, D).
        labels: classes of the gallery's clips, (M,).
        classes: number of classes.
        k: number of neighbours; at most M are used.
        temperature: temperature of the weights, above 0.
        names: names of the queries' videos, and of the gallery's videos, for messages. A gallery
            with several clips per video has one name per video.

    Raises:
        UserError: for features that are NaN or infinite, with the clips.
        ValueError: for k below 1, and for a temperature that is not above 0.
    """
    at_least_one(k=k)
    above_zero(temperature=temperature)
    query_names, gallery_names = names or (None, None)
    require_finite(queries, "features of the queries", query_names)
    require_finite(gallery, "features of the gallery", gallery_names)
    gallery = directions(gallery)
    k = min(k, len(gallery))
    at_once = max(1, _SIMILARITIES // (queries.shape[1] * len(gallery)))  # videos
    votes = []
    for clips in queries.split(at_once):
        similarity, nearest = (directions(clips) @ gallery.T).topk(k, dim=-1)
        # Relative to the nearest neighbour, whose weight is 1: nothing over- or underflows.
        weight = ((similarity - similarity[..., :1]) / temperature).exp()
        scores = queries.new_zeros(*clips.shape[:2], classes)
        scores.scatter_add_(2, labels[nearest], weight)
        votes.append((scores / scores.sum(-1, keepdim=True)).mean(1))
    return torch.cat(votes)


def directions(features: Tensor) -> Tensor:
    """Return features (..., D) scaled to length 1, at any scale; vectors of zeros stay zero."""
    length = features.norm(dim=-1, keepdim=True)
    # Squares of very small or very large values are 0 or infinite, so that the length is wrong.
    # Dividing by the largest entry first avoids this.
    extreme = (length < 1e-12) | length.isinf()
    if extreme.any():
        largest = features.abs().amax(-1, keepdim=True)
        features = torch.where(
            extreme & (largest > 0),
            features / largest.clamp(min=torch.finfo(features.dtype).tiny),
            features,
        )
    return F.normalize(features, dim=-1)

"""k nearest neighbours on features."""

import torch
from torch import Tensor
from torch.nn import functional as F

_SIMILARITIES = 2**24  # at a time, 64 MiB: those of a whole set fill memory, those of one video leave the cores idle


def knn_scores(
    queries: Tensor, gallery: Tensor, labels: Tensor, classes: int, *, k: int = 20, temperature: float = 0.1
) -> Tensor:
    """Votes of the k nearest clips by cosine similarity, weighted exp(similarity / temperature) -> (N, classes).

    queries (N, K, D), gallery (M, D), labels (M,); a video's score is the mean over its K clips. The weighting is
    that of Wu et al. (CVPR 2018), which CLAE's evaluation uses (METHODS section 2.2). k is at most M. Computed where
    the tensors are.
    """
    gallery = F.normalize(gallery, dim=1)
    k = min(k, len(gallery))
    videos = max(1, _SIMILARITIES // (queries.shape[1] * len(gallery)))
    votes = []
    for clips in queries.split(videos):
        similarity, nearest = (F.normalize(clips, dim=-1) @ gallery.T).topk(k, dim=-1)
        weight = ((similarity - similarity[..., :1]) / temperature).exp()  # 1 for the nearest: no over- or underflow
        scores = queries.new_zeros(*clips.shape[:2], classes).scatter_add_(2, labels[nearest], weight)
        votes.append((scores / scores.sum(-1, keepdim=True)).mean(1))
    return torch.cat(votes)

"""k nearest neighbours on features."""

import torch
from torch import Tensor
from torch.nn import functional as F


def knn_scores(
    queries: Tensor, gallery: Tensor, labels: Tensor, classes: int, *, k: int = 20, temperature: float = 0.1
) -> Tensor:
    """Votes of the k nearest clips by cosine similarity, weighted exp(similarity / temperature) -> (N, classes).

    queries (N, K, D), gallery (M, D), labels (M,); a video's score is the mean over its K clips. The weighting is
    that of Wu et al. (CVPR 2018), which CLAE's evaluation uses (METHODS section 2.2). k is at most M.
    """
    gallery = F.normalize(gallery, dim=1)
    k = min(k, len(gallery))
    votes = torch.zeros(len(queries), classes)
    for row, clips in enumerate(queries):  # one video at a time: the similarities of a whole set fill memory
        similarity, nearest = (F.normalize(clips, dim=1) @ gallery.T).topk(k, dim=1)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # 1 for the nearest: no over- or underflow
        scores = torch.zeros(len(clips), classes).scatter_add_(1, labels[nearest], weight)
        votes[row] = (scores / scores.sum(1, keepdim=True)).mean(0)
    return votes

"""Pseudo-labels: k-means clusters of a backbone's features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.utils.errors import UserError


class PseudoLabels(nn.Module):
    """A label of each video at each granularity of `counts` (ClusterFit, as AdvCL and DynACL++ have
    it; METHODS 4.3).

    They are found once, before the first step, and kept in checkpoints. -1: a video that did not
    decode. option: what configures the counts, for errors. unit: features are normalised first.
    """

    labels: Tensor

    def __init__(self, counts: Sequence[int], option: str, *, unit: bool = True) -> None:
        super().__init__()
        self.counts, self.option, self.unit = tuple(counts), option, unit
        self.register_buffer("labels", torch.empty(0, len(self.counts), dtype=torch.long))

    def know(self, videos: int) -> None:
        """Room for so many videos. Raises UserError for more clusters than videos."""
        if max(self.counts) > videos:
            raise UserError(
                f"{self.option}: {max(self.counts)} clusters of {videos} videos; choose fewer"
            )
        self.labels = torch.full((videos, len(self.counts)), -1, device=self.labels.device)

    def cluster(self, features: Tensor, index: Tensor) -> None:
        """features (M, D) of the videos `index` (M,). Raises UserError for more clusters than
        videos that decode.
        """
        self.know(len(self.labels))
        if max(self.counts) > len(index):
            raise UserError(
                f"{self.option}: {max(self.counts)} clusters, and {len(index)} training videos"
                " decode; choose fewer"
            )
        points = features.float().to(self.labels.device)
        points = F.normalize(points, dim=1) if self.unit else points
        for column, k in enumerate(self.counts):
            self.labels[index.to(self.labels.device), column] = k_means(points, k)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, G) labels of the videos ids (B,)."""
        return self.labels[ids]


@torch.no_grad()
def k_means(x: Tensor, k: int, *, iterations: int = 20, seed: int = 0) -> Tensor:
    """(N,) in 0..k-1: the cluster of each row of x (N, D), unit vectors, by cosine similarity.

    k-means++ from `seed`, then Lloyd's iterations until nothing moves; a cluster that loses its
    last member starts again at the row that is farthest from its own centre. Raises ValueError for
    k above N.
    """
    if not 1 <= k <= len(x):
        raise ValueError(f"{k} clusters of {len(x)} samples: choose 1 to {len(x)}")
    centres = x[_spread(x, k, seed)]
    labels = torch.full((len(x),), -1, device=x.device)
    for _ in range(iterations):
        nearest, found = (x @ centres.T).max(1)
        if torch.equal(found, labels):
            break
        labels = found
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        empty = torch.bincount(labels, minlength=k) == 0
        sums[empty] = x[nearest.argsort()[: int(empty.sum())]]
        centres = torch.nn.functional.normalize(sums, dim=1)
    return labels


def _spread(x: Tensor, k: int, seed: int) -> Tensor:
    """k rows, each drawn by its squared distance from those before (Arthur and Vassilvitskii 2007).

    Of several that are drawn, the one that leaves the least distance is taken.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    distance = (1 - x @ x[chosen[0]]).clamp(min=0)
    for _ in range(k - 1):
        weights = distance.cpu().double()
        weights[chosen] = 0
        if not weights.any():  # no more different rows than centres
            weights[:] = 1
            weights[chosen] = 0
        tried = min(2 + int(math.log(k)), int((weights > 0).sum()))
        drawn = torch.multinomial(weights, tried, generator=generator).to(x.device)
        left = torch.minimum(distance, (1 - x[drawn] @ x.T).clamp(min=0))
        best = int(left.sum(1).argmin())
        chosen.append(int(drawn[best]))
        distance = left[best]
    return torch.tensor(chosen, device=x.device)

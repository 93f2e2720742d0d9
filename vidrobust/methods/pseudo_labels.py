"""Pseudo-labels: k-means clusters of a backbone's features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.utils.errors import UserError


class PseudoLabels(nn.Module):
    """A label of each video at each granularity, as ClusterFit (Yan et al. 2020) makes them.

    AdvCL and DynACL++ use them. They are computed once, before the first step, and kept in
    checkpoints. A video that did not decode has the label -1.
    """

    labels: Tensor  # (videos, G)

    def __init__(self, counts: Sequence[int], option: str, *, unit: bool = True) -> None:
        """Set the granularities.

        Args:
            counts: clusters at each of G granularities.
            option: the key that configures the counts, for errors.
            unit: features are normalised before they are clustered.
        """
        super().__init__()
        self.counts = tuple(counts)
        self.option = option
        self.unit = unit
        self.register_buffer("labels", torch.empty(0, len(self.counts), dtype=torch.long))

    def set_videos(self, videos: int) -> None:
        """Make room for the labels of this many videos, -1 each.

        Raises:
            UserError: for more clusters than videos.
        """
        if max(self.counts) > videos:
            raise UserError(
                f"{self.option}: {max(self.counts)} clusters of {videos} videos; choose fewer"
            )
        self.labels = torch.full((videos, len(self.counts)), -1, device=self.labels.device)

    def cluster(self, features: Tensor, index: Tensor) -> None:
        """Compute the labels.

        Args:
            features: (M, D), of the videos that decode.
            index: (M,), which videos they are.

        Raises:
            UserError: for more clusters than videos that decode.
        """
        self.set_videos(len(self.labels))  # videos that do not decode keep -1
        if max(self.counts) > len(index):
            raise UserError(
                f"{self.option}: {max(self.counts)} clusters, and {len(index)} training videos"
                " decode; choose fewer"
            )
        points = features.float().to(self.labels.device)
        points = F.normalize(points, dim=1) if self.unit else points
        for column, k in enumerate(self.counts):
            labels = k_means(points, k, euclidean=not self.unit)
            self.labels[index.to(self.labels.device), column] = labels

    def forward(self, ids: Tensor) -> Tensor:
        """Return the labels (B, G) of the videos ids (B,)."""
        return self.labels[ids]


@torch.no_grad()
def k_means(
    x: Tensor, k: int, *, iterations: int = 20, seed: int = 0, euclidean: bool = False
) -> Tensor:
    """Return the cluster of each row, (N,) in 0..k-1.

    k-means++ from `seed`, then Lloyd's iterations until no row changes its cluster. A cluster that
    loses its last member starts again at the row that is farthest from its own centre.

    Args:
        x: (N, D), unit vectors unless `euclidean`.
        k: clusters, 1 to N.
        iterations: of Lloyd's algorithm, at most.
        seed: of k-means++.
        euclidean: cluster by Euclidean distance; False: by cosine similarity.

    Raises:
        ValueError: for k above N.
    """
    if not 1 <= k <= len(x):
        raise ValueError(f"{k} clusters of {len(x)} samples: choose 1 to {len(x)}")
    centres = x[_initial_centres(x, k, seed, euclidean)]
    labels = torch.full((len(x),), -1, device=x.device)
    for _ in range(iterations):
        similarities = -torch.cdist(x, centres) if euclidean else x @ centres.T
        similarity, nearest = similarities.max(1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        sizes = torch.bincount(labels, minlength=k)
        empty = sizes == 0
        sums[empty] = x[similarity.argsort()[: int(empty.sum())]]
        # the centre of a cluster is its mean, or the direction of the sum of its unit vectors
        centres = sums / sizes.clamp(min=1)[:, None] if euclidean else F.normalize(sums, dim=1)
    return labels


def _initial_centres(x: Tensor, k: int, seed: int, euclidean: bool) -> Tensor:
    """Return the indices of k rows by greedy k-means++ (Arthur and Vassilvitskii 2007).

    Each is sampled in proportion to its squared distance from those before. Of several samples, the
    one that leaves the smallest sum of distances is taken.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    first = x[chosen[0]]
    # 1 - cosine is half the squared distance of unit vectors
    distance = (x - first).square().sum(1) if euclidean else (1 - x @ first).clamp(min=0)
    for _ in range(k - 1):
        weights = distance.cpu().double()
        weights[chosen] = 0
        if not weights.any():  # fewer different rows than centres
            weights[:] = 1
            weights[chosen] = 0
        trials = min(2 + int(math.log(k)), int((weights > 0).sum()))
        samples = torch.multinomial(weights, trials, generator=generator).to(x.device)
        rows = x[samples]
        to_rows = torch.cdist(rows, x).square() if euclidean else (1 - rows @ x.T).clamp(min=0)
        distances = torch.minimum(distance, to_rows)
        best = int(distances.sum(1).argmin())
        chosen.append(int(samples[best]))
        distance = distances[best]
    return torch.tensor(chosen, device=x.device)

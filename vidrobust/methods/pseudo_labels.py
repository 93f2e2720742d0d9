"""Labels that nobody gave: k-means clusters of a trunk's features, at one or several granularities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.errors import UserError
from vidrobust.methods.clusters import k_means


class PseudoLabels(nn.Module):
    """A label of each video at each granularity of `counts` (ClusterFit, as AdvCL and DynACL++ have it; METHODS 4.3).

    They are found once, before the first step, and kept in checkpoints. -1: a video that did not decode. option: what
    configures the counts, for errors. unit: features are normalised first.
    """

    labels: Tensor

    def __init__(self, counts: Sequence[int], option: str, *, unit: bool = True) -> None:
        super().__init__()
        self.counts, self.option, self.unit = tuple(counts), option, unit
        self.register_buffer("labels", torch.empty(0, len(self.counts), dtype=torch.long))

    def know(self, videos: int) -> None:
        """Room for so many videos. Raises UserError for more clusters than videos."""
        if max(self.counts) > videos:
            raise UserError(f"{self.option}: {max(self.counts)} clusters of {videos} videos; choose fewer")
        self.labels = torch.full((videos, len(self.counts)), -1, device=self.labels.device)

    def cluster(self, features: Tensor, index: Tensor) -> None:
        """features (M, D) of the videos `index` (M,). Raises UserError for more clusters than videos that decode."""
        self.know(len(self.labels))
        if max(self.counts) > len(index):
            raise UserError(
                f"{self.option}: {max(self.counts)} clusters, and {len(index)} training videos decode; choose fewer"
            )
        points = features.float().to(self.labels.device)
        points = F.normalize(points, dim=1) if self.unit else points
        for column, k in enumerate(self.counts):
            self.labels[index.to(self.labels.device), column] = k_means(points, k)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, G) labels of the videos ids (B,)."""
        return self.labels[ids]

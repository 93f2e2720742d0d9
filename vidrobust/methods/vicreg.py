"""VICReg: variance, invariance and covariance of embeddings (Bardes et al., ICLR 2022)."""

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.losses.cosine import full_precision
from vidrobust.methods.base import Method
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model
from vidrobust.utils import distributed


class VICReg(Method):
    """VICReg: views of a video have close embeddings, which do not collapse.

    The loss is the weighted sum of three terms (Bardes et al. 2022, eq. 6). The variance term keeps
    each dimension from being constant over the batch, and the covariance term keeps dimensions from
    being correlated. There are no negatives, and so no false negatives. With more than two views,
    the loss is the mean over all pairs.
    """

    def __init__(
        self,
        model: Model,
        *,
        clips: int = 2,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        """Set the weights of the three terms, by default those of the released code.

        Args:
            model: backbone and projector.
            clips: V, views per video.
            invariance: weight of the invariance term.
            variance: weight of the variance term.
            covariance: weight of the covariance term.
        """
        super().__init__()
        self.model = model
        self.views = clips
        self.weights = (invariance, variance, covariance)

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its three terms}.

        Args:
            views: (B, V, C, T, H, W) in [0, 1].
            ids: (B,), not used.
            labels: (B,), not used.
            progress: fraction of training done, not used.
        """
        embeddings = [full_precision(self.model(views[:, v])) for v in range(self.views)]
        pairs = [vicreg_terms(a, b) for a, b in combinations(embeddings, 2)]
        names = ("loss_invariance", "loss_variance", "loss_covariance")
        means = [torch.stack(term).mean(0) for term in zip(*pairs, strict=True)]
        weighted = [weight * term for weight, term in zip(self.weights, means, strict=True)]
        return {"loss": torch.stack(weighted).sum(0)} | dict(zip(names, means, strict=True))


def vicreg_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the invariance, variance and covariance terms, (B,) each.

    As in the code of Bardes et al. 2022 (facebookresearch/vicreg): the mean over dimensions in the
    invariance term, half of each view's variance term, the sum of both views' covariance terms. The
    last two are terms of the whole batch, over all ranks, the same for all videos.

    Args:
        a: (B, D) embeddings of a view.
        b: (B, D) embeddings of another view.
    """
    with torch.autocast(a.device.type, enabled=False):
        invariance = (a - b).square().mean(1)  # eq. 5, but over D
        # variance and covariance are statistics of the batch of all ranks
        whole = [distributed.gather(z) for z in (a, b)]
        variance = torch.stack([_hinge(z) for z in whole]).mean()
        covariance = torch.stack([_off_diagonal(z) for z in whole]).sum()
    return invariance, variance.expand(len(a)), covariance.expand(len(a))


def _hinge(z: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Return the mean over dimensions of max(0, 1 - standard deviation) (eq. 1 and 2)."""
    # epsilon keeps the gradient of the root finite for a dimension that is constant
    return F.relu(1 - torch.sqrt(z.var(0) + epsilon)).mean()


def _off_diagonal(z: Tensor) -> Tensor:
    """Return the sum of squared covariances of different dimensions, over D (eq. 3 and 4)."""
    centred = z - z.mean(0)
    covariances = centred.T @ centred / (len(z) - 1)
    return (covariances.square().sum() - covariances.diagonal().square().sum()) / z.shape[1]


def _build(parts: Parts) -> VICReg:
    return VICReg(parts.model(), clips=parts.options.clips_per_video)


_WHY = "has no negatives"
SPEC = MethodSpec(
    build=_build,
    help="VICReg: variance, invariance and covariance",
    cost=Cost(learned=(1, 1)),
    options=frozenset({"clips_per_video"}),
    refuses={"false_negatives": _WHY, "negatives": _WHY},
)

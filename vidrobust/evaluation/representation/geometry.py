"""Geometry of features: alignment, uniformity, margins, effective rank, CKA.

N samples, D feature, K classes. Functions of features alone; nothing here sees a model
(sensitivity.py does). Features are taken as they are unless a function says that it normalises
them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 2**24  # distances at a time, 64 MiB


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean |x_i - y_i|^2 over positive pairs (N, D), (N, D), normalised (Wang and Isola 2020, alpha
    = 2).
    """
    return float((F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t |x_i - x_j|^2) over pairs i < j of (N, D), normalised (Wang and
    Isola 2020, t = 2).

    Lower is more uniform. Raises ValueError for fewer than two samples.
    """
    _require(x, 2)
    x = F.normalize(x, dim=1)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for at, rows in _row_blocks(x):
        kernel = torch.exp(-t * (2 - 2 * rows @ x.T).clamp(min=0)).double()
        total += kernel.triu(at + 1).sum()
    return float(torch.log(2 * total / (len(x) * (len(x) - 1))))


def tolerance(x: Tensor, labels: Tensor) -> float:
    """Mean cosine similarity of pairs i != j of a class (Wang and Liu 2021); NaN where no class has
    two samples.
    """
    x = F.normalize(x, dim=1)
    sums = torch.zeros(_classes(labels), x.shape[1], device=x.device).index_add_(0, labels, x)
    counts = torch.bincount(labels, minlength=len(sums))
    pairs = float((counts * (counts - 1)).sum())
    return float(sums.square().sum() - x.square().sum()) / pairs if pairs else float("nan")


@dataclass(frozen=True)
class Margins:
    """Distances on normalised features, to centroids, the means of the K classes that have samples.

    centroid_min, centroid_mean: between the centroids of two classes. sample (N,): distance to the
    nearest centroid of another class less that to the own one; negative where a sample is on the
    wrong side. radius: mean distance of a sample to its own centroid. fisher: trace of the scatter
    between classes over that within.
    """

    centroid_min: float
    centroid_mean: float
    sample: Tensor
    radius: float
    fisher: float


def margins(x: Tensor, labels: Tensor) -> Margins:
    """Class margins of features (N, D) with labels (N,) in 0..K-1 (paper A, figure 1; METHODS
    section 1.4).

    Raises ValueError for fewer than two classes, and for samples without a label.
    """
    _classes(labels)
    present, labels = labels.unique(return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"margins between classes: the {len(x)} samples are of {len(present)}")
    x = F.normalize(x, dim=1)
    counts = torch.bincount(labels).to(x.dtype)
    centroids = (
        torch.zeros(len(present), x.shape[1], device=x.device).index_add_(0, labels, x)
        / counts[:, None]
    )
    between = torch.pdist(centroids)
    distances = _distances(x, centroids)
    own = distances.gather(1, labels[:, None])[:, 0]
    nearest = distances.scatter(1, labels[:, None], torch.inf).amin(1)
    within = (x - centroids[labels]).square().sum()
    spread = (counts * (centroids - x.mean(0)).square().sum(1)).sum()
    return Margins(
        float(between.min()),
        float(between.mean()),
        nearest - own,
        float(own.mean()),
        float(spread / within),
    )


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values of centred features (N, D), as shares (Roy and
    Vetterli 2007).

    1 to min(N - 1, D); 0 where all samples are the same.
    """
    _require(x, 2)
    x = x.double()
    values = torch.linalg.svdvals(x - x.mean(0))
    if not values.max() > 1e-9 * x.norm():
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """|Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centred (N, D), (N, E) of the same samples (Kornblith et al.
    2019) -> 0 to 1.

    1 for representations that differ by a rotation and a scale; NaN where one of them is constant.
    """
    if len(x) != len(y):
        raise ValueError(
            f"CKA of {len(x)} and {len(y)} samples: both representations are of the same ones"
        )
    wholes = [z.double() for z in (x, y)]
    x, y = (z - z.mean(0) for z in wholes)
    if any(not z.norm() > 1e-9 * whole.norm() for z, whole in zip((x, y), wholes, strict=True)):
        return float("nan")
    if len(x) < max(x.shape[1], y.shape[1]):  # the same by Gram matrices, (N, N) instead of (D, E)
        gx, gy = x @ x.T, y @ y.T
        return float((gx * gy).sum() / (gx.norm() * gy.norm()))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def universal_quantile(moved: Tensor, features: Tensor, *, order: float = 2.0) -> Tensor:
    """Where each of the distances moved (M,) lies among those of all pairs of features (N, D) ->
    (M,), 0 to 1.

    The share of pairs i < j with |f_i - f_j| <= moved (Petrov and Kwiatkowska 2022; METHODS section
    4.11). moved:
    |f(x_adv) - f(x)| in the same norm, order 1, 2 or inf.
    """
    _require(features, 2)
    sorted_moved, place = moved.sort()
    below = torch.zeros(len(moved), dtype=torch.long, device=moved.device)
    for at, rows in _row_blocks(features):
        distances = _distances(rows, features, order)
        later = torch.ones_like(distances, dtype=torch.bool).triu(at + 1)
        pairs = distances[later].sort().values
        below += torch.searchsorted(pairs, sorted_moved, right=True)
    found = torch.empty_like(moved)
    found[place] = below.to(moved.dtype) * 2 / (len(features) * (len(features) - 1))
    return found


def relative_displacement(moved: Tensor, features: Tensor, *, order: float = 2.0) -> Tensor:
    """moved (M,) over the median distance of pairs of features (N, D) -> (M,) ("normalised" there).

    All pairs of at most 8,192 samples, evenly: their distances are in memory at once.
    """
    _require(features, 2)
    features = features[:: -(-len(features) // 8192)]
    distances = _distances(features, features, order)
    later = torch.ones_like(distances, dtype=torch.bool).triu(1)
    return moved / distances[later].median()


def breakaway_risk(attacked: Tensor, features: Tensor, index: Tensor) -> float:
    """The mean share of other samples that are nearer to f(x_adv) than f(x) is (Petrov and
    Kwiatkowska 2022).

    attacked (M, D): f(x_adv); features (N, D): clean ones of all candidates; index (M,): which of
    them each x is. A tie is nearer: a constant encoder recognises nothing. By its definition, not
    by the released line, which counts the last batch alone (METHODS section 13). Raises ValueError
    for features that are not finite.
    """
    _require(features, 2)
    return float(_nearer(attacked, features, index).double().mean()) / (len(features) - 1)


def neighbour_accuracy(attacked: Tensor, features: Tensor, index: Tensor, k: int = 1) -> float:
    """The share of attacked samples whose own clean representation is among the k nearest to
    f(x_adv); there k = 1, 5.

    Arguments, ties and errors as in `breakaway_risk`.
    """
    return float((_nearer(attacked, features, index) < k).double().mean())


def _nearer(attacked: Tensor, features: Tensor, index: Tensor) -> Tensor:
    """(M,): how many other samples are at least as near to f(x_adv) as f(x) is."""
    if not (attacked.isfinite().all() and features.isfinite().all()):
        raise ValueError("features that are not finite: nothing is near or far")
    counts = []
    for rows, places in zip(
        attacked.split(_rows(features)), index.split(_rows(features)), strict=True
    ):
        distances = _distances(rows, features)
        counts.append((distances <= distances.gather(1, places[:, None])).sum(1) - 1)
    return torch.cat(counts)


def overlap_margin(x: Tensor, y: Tensor, x_to_y: Tensor, y_to_x: Tensor) -> Tensor:
    """(B,): (|f(x) - f(y->x)| - |f(x) - f(x->y)|) / |f(x) - f(y)| of pairs of samples; NaN where x
    and y are one.

    x, y (B, D): clean features; x_to_y: those of x attacked toward y, y_to_x: of y toward x.
    Negative: what y became is nearer to x than what x became, so that the two overlap;
    `overlap_risk` is the share of those (Petrov and Kwiatkowska 2022; METHODS section 4.11).
    """
    apart = (x - y).norm(dim=1)
    margin = ((x - y_to_x).norm(dim=1) - (x - x_to_y).norm(dim=1)) / apart
    return margin.masked_fill(apart == 0, torch.nan)


def overlap_risk(margin: Tensor) -> float:
    """The share of pairs whose `overlap_margin` is negative, of those that have one; NaN where none
    has.
    """
    return float((margin[~margin.isnan()] < 0).double().mean())


def describe(
    features: Tensor, labels: Tensor, views: Tensor | None = None
) -> dict[str, float | list[float] | None]:
    """These measures of a data set's features (N, K, D), K clips of each of N videos, as a summary
    has them.

    Alignment between two augmented views of each of some videos (M, 2, D), None without; all else
    of the clip in the middle, None for one video. margin_quantiles: of the samples' margins, at
    .05, .25, .5, .75 and .95; margin_histogram: their counts in 40 bins of equal width from -1 to
    1, the ends open. None, as all that needs classes, where there are fewer than two.
    """
    x = features[:, features.shape[1] // 2].float()
    found: dict[str, float | list[float] | None] = {
        "alignment": None if views is None else alignment(*views.float().unbind(1)),
        "uniformity": None,
        "effective_rank": None,
        "tolerance": None,
        "centroid_min": None,
        "centroid_mean": None,
        "radius": None,
        "fisher": None,
        "margin_mean": None,
        "margin_negative": None,
        "margin_quantiles": None,
        "margin_histogram": None,
    }
    if len(x) > 1:
        found |= {
            "uniformity": uniformity(x),
            "effective_rank": effective_rank(F.normalize(x, dim=1)),
        }
    if len(labels.unique()) < 2:
        return found
    m = margins(x, labels)
    quantiles = torch.quantile(
        m.sample, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], device=x.device)
    )
    return found | {
        "tolerance": tolerance(x, labels),
        "centroid_min": m.centroid_min,
        "centroid_mean": m.centroid_mean,
        "radius": m.radius,
        "fisher": m.fisher,
        "margin_mean": float(m.sample.mean()),
        "margin_negative": float((m.sample < 0).float().mean()),
        "margin_quantiles": quantiles.tolist(),
        "margin_histogram": torch.histc(m.sample.clamp(-1, 1).cpu(), 40, -1, 1).tolist(),
    }


def _classes(labels: Tensor) -> int:
    if len(labels) and int(labels.min()) < 0:
        raise ValueError("samples without a label: leave them out")
    return int(labels.max()) + 1 if len(labels) else 0


def _require(x: Tensor, least: int) -> None:
    if len(x) < least:
        raise ValueError(f"{len(x)} samples: at least {least}")


def _rows(x: Tensor) -> int:
    return max(1, _BLOCK // len(x))


def _distances(x: Tensor, y: Tensor, order: float = 2.0) -> Tensor:
    """By differences: products, which are faster, lose distances that are small beside the
    vectors.
    """
    return torch.cdist(x, y, p=order, compute_mode="donot_use_mm_for_euclid_dist")


def _row_blocks(x: Tensor) -> list[tuple[int, Tensor]]:
    """(the first row's number, rows) of blocks whose distances to all of x fit in memory."""
    return [(at, x[at : at + _rows(x)]) for at in range(0, len(x), _rows(x))]

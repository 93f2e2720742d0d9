"""Geometry of features: alignment, uniformity, margins, effective rank, CKA.

Shapes: N samples, D feature dimension, K classes. All functions take features; `sensitivity.py` has
those that also need the model. Features are used unnormalised unless a function says otherwise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 2**24  # distances computed at a time, 64 MiB
_CONSTANT = 1e-9  # of a norm: smaller deviations are rounding errors
_MOST_CLASSES = 20  # whose distances to each other are kept
_SAMPLES = 8192  # largest number of samples whose pairwise distances are in memory at once


# --- Alignment and uniformity ---


def alignment(x: Tensor, y: Tensor) -> float:
    """Return the mean |x_i - y_i|^2 over positive pairs of normalised features.

    Wang and Isola 2020, with alpha = 2. x and y have shape (N, D).
    """
    return float((F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """Return the log of the mean of exp(-t |x_i - x_j|^2) over pairs i < j of normalised features.

    Wang and Isola 2020, with t = 2. Lower is more uniform. x has shape (N, D).

    Raises:
        ValueError: for fewer than two samples.
    """
    _require(x, 2)
    x = F.normalize(x, dim=1)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for first, rows in _row_blocks(x):
        # |a - b|^2 = 2 - 2 a.b for vectors of length 1
        kernel = torch.exp(-t * (2 - 2 * rows @ x.T).clamp(min=0)).double()
        total += kernel.triu(first + 1).sum()
    return float(torch.log(2 * total / (len(x) * (len(x) - 1))))


# --- Classes ---


def tolerance(x: Tensor, labels: Tensor) -> float:
    """Return the mean cosine similarity of pairs i != j within a class (Wang and Liu 2021).

    NaN if no class has two samples. x has shape (N, D), labels (N,).

    Raises:
        ValueError: for samples without a label.
    """
    x = F.normalize(x, dim=1)
    sums = torch.zeros(_classes(labels), x.shape[1], device=x.device).index_add_(0, labels, x)
    counts = torch.bincount(labels, minlength=len(sums))
    pairs = float((counts * (counts - 1)).sum())
    # |sum of a class|^2 is the sum over all its pairs, of which i = j are subtracted.
    return float(sums.square().sum() - x.square().sum()) / pairs if pairs else float("nan")


@dataclass(frozen=True)
class Margins:
    """Distances of normalised features to class centroids.

    A centroid is the mean of a class; only classes with samples have one.

    Attributes:
        centroid_min: smallest distance between two centroids.
        centroid_mean: mean distance between two centroids.
        sample: margin of each sample, (N,): its distance to the nearest centroid of another class
            minus that to its own. Negative for samples on the wrong side.
        radius: mean distance of a sample to its own centroid.
        fisher: trace of the scatter between classes divided by that within classes.
    """

    centroid_min: float
    centroid_mean: float
    sample: Tensor
    radius: float
    fisher: float


def margins(x: Tensor, labels: Tensor) -> Margins:
    """Return the class margins of features (N, D) with labels (N,) in 0..K-1.

    See Gupta et al. 2022, figure 1.

    Raises:
        ValueError: for fewer than two classes, and for samples without a label.
    """
    _classes(labels)
    # Classes are renumbered, so that each has samples.
    present, labels = labels.unique(return_inverse=True)
    if len(present) < 2:
        raise ValueError(
            f"margins need at least two classes: the {len(x)} samples are of {len(present)}"
        )
    x = F.normalize(x, dim=1)
    counts = torch.bincount(labels).to(x.dtype)
    sums = torch.zeros(len(present), x.shape[1], device=x.device).index_add_(0, labels, x)
    centroids = sums / counts[:, None]

    between = torch.pdist(centroids)
    distances = _distances(x, centroids)
    own = distances.gather(1, labels[:, None])[:, 0]
    nearest_other = distances.scatter(1, labels[:, None], torch.inf).amin(1)
    within_scatter = (x - centroids[labels]).square().sum()
    between_scatter = (counts * (centroids - x.mean(0)).square().sum(1)).sum()
    return Margins(
        float(between.min()),
        float(between.mean()),
        nearest_other - own,
        float(own.mean()),
        float(between_scatter / within_scatter),
    )


def class_distances(x: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cosine distance 1 - cos between samples of each two classes, (K, K).

    The diagonal holds distances within a class, of pairs i != j; NaN for a class with one sample,
    and for classes without. x has shape (N, D), labels (N,).

    Raises:
        ValueError: for samples without a label.
    """
    x = F.normalize(x.double(), dim=1)
    classes = _classes(labels)
    sums = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device)
    sums.index_add_(0, labels, x)
    counts = torch.bincount(labels, minlength=classes).to(x.dtype)
    pairs = counts[:, None] * counts - counts.diag()
    # |sum of a class|^2 also counts each sample with itself, whose cosine is 1
    return 1 - (sums @ sums.T - counts.diag()) / pairs


# --- Dimension and similarity of representations ---


def effective_rank(x: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values of centred features (N, D).

    Roy and Vetterli 2007. The singular values are divided by their sum. From 1 to min(N - 1, D), or
    0 if all samples are equal.

    Raises:
        ValueError: for fewer than two samples.
    """
    _require(x, 2)
    x = x.double()
    values = torch.linalg.svdvals(x - x.mean(0))
    if not values.max() > _CONSTANT * x.norm():
        return 0.0
    fractions = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(fractions, fractions).sum()))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of two representations of the same samples, from 0 to 1.

    |Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centred X and Y (Kornblith et al. 2019). It is 1 for
    representations that differ by a rotation and a scale, and NaN if one of them is constant.

    Args:
        x: first representation, (N, D).
        y: second representation, (N, E).

    Raises:
        ValueError: if the numbers of samples differ.
    """
    if len(x) != len(y):
        raise ValueError(
            f"CKA of {len(x)} and {len(y)} samples: both representations must be of the same ones"
        )
    originals = [z.double() for z in (x, y)]
    x, y = (z - z.mean(0) for z in originals)
    for centred, original in zip((x, y), originals, strict=True):
        if not centred.norm() > _CONSTANT * original.norm():
            return float("nan")
    if len(x) < max(x.shape[1], y.shape[1]):
        # The same value from Gram matrices, which are (N, N) instead of (D, E).
        gram_x = x @ x.T
        gram_y = y @ y.T
        return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


# --- Displacement by an attack ---


def universal_quantile(moved: Tensor, features: Tensor, *, order: float = 2.0) -> Tensor:
    """Return the quantile of distances among those of all pairs of features, (M,), 0 to 1.

    It is the fraction of pairs i < j with |f_i - f_j| <= moved (Petrov and Kwiatkowska 2022).

    Args:
        moved: distances |f(x_adv) - f(x)| in the norm of `order`, (M,).
        features: clean features, (N, D).
        order: order of the norm: 1, 2 or inf.

    Raises:
        ValueError: for fewer than two samples.
    """
    _require(features, 2)
    sorted_moved, place = moved.sort()
    below = torch.zeros(len(moved), dtype=torch.long, device=moved.device)
    # Pairs are counted block by block, as all their distances may not fit in memory.
    for first, rows in _row_blocks(features):
        distances = _distances(rows, features, order)
        is_later = torch.ones_like(distances, dtype=torch.bool).triu(first + 1)
        pairs = distances[is_later].sort().values
        below += torch.searchsorted(pairs, sorted_moved, right=True)
    quantiles = torch.empty_like(moved)
    quantiles[place] = below.to(moved.dtype) * 2 / (len(features) * (len(features) - 1))
    return quantiles


def relative_displacement(moved: Tensor, features: Tensor, *, order: float = 2.0) -> Tensor:
    """Return distances divided by the median distance between features, (M,).

    Petrov and Kwiatkowska 2022 call it normalised. The median is over all pairs of at most 8,192
    samples, spread evenly, as their distances are in memory at once.

    Args:
        moved: distances |f(x_adv) - f(x)| in the norm of `order`, (M,).
        features: clean features, (N, D).
        order: order of the norm: 1, 2 or inf.

    Raises:
        ValueError: for fewer than two samples.
    """
    _require(features, 2)
    every = -(-len(features) // _SAMPLES)
    features = features[::every]
    distances = _distances(features, features, order)
    is_later = torch.ones_like(distances, dtype=torch.bool).triu(1)
    return moved / distances[is_later].median()


def breakaway_risk(attacked: Tensor, features: Tensor, index: Tensor) -> float:
    """Return the mean fraction of other samples that are nearer to f(x_adv) than f(x) is.

    Petrov and Kwiatkowska 2022. A tie counts as nearer, so that a constant encoder, which
    recognises nothing, has the risk 1. This follows the paper's definition; the released code
    counts only the last batch.

    Args:
        attacked: features f(x_adv), (M, D).
        features: clean features of all candidates, (N, D).
        index: which of the candidates each x is, (M,).

    Raises:
        ValueError: for features that are not finite, and for fewer than two candidates.
    """
    _require(features, 2)
    return float(_nearer(attacked, features, index).double().mean()) / (len(features) - 1)


def neighbour_accuracy(attacked: Tensor, features: Tensor, index: Tensor, k: int = 1) -> float:
    """Return the fraction of attacked samples with f(x) among the k features nearest to f(x_adv).

    Petrov and Kwiatkowska 2022 use k = 1 and k = 5. Ties are as in `breakaway_risk`.

    Args:
        attacked: features f(x_adv), (M, D).
        features: clean features of all candidates, (N, D).
        index: which of the candidates each x is, (M,).
        k: number of neighbours.

    Raises:
        ValueError: for features that are not finite.
    """
    return float((_nearer(attacked, features, index) < k).double().mean())


def _nearer(attacked: Tensor, features: Tensor, index: Tensor) -> Tensor:
    """Count, for each attacked sample, the other samples at least as near to it as its own, (M,).

    Args:
        attacked: features f(x_adv), (M, D).
        features: clean features of all candidates, (N, D).
        index: which of the candidates each x is, (M,).

    Raises:
        ValueError: for features that are not finite.
    """
    if not (attacked.isfinite().all() and features.isfinite().all()):
        raise ValueError("features that are not finite have no neighbours; leave them out")
    at_once = _rows_per_block(features)
    counts = []
    for rows, own in zip(attacked.split(at_once), index.split(at_once), strict=True):
        distances = _distances(rows, features)
        # The sample's own feature is always counted, and subtracted.
        counts.append((distances <= distances.gather(1, own[:, None])).sum(1) - 1)
    return torch.cat(counts)


def overlap_margin(x: Tensor, y: Tensor, x_to_y: Tensor, y_to_x: Tensor) -> Tensor:
    """Return (|f(x) - f(y->x)| - |f(x) - f(x->y)|) / |f(x) - f(y)| of pairs of samples, (B,).

    Petrov and Kwiatkowska 2022. A negative margin means an overlap: y, attacked toward x, is nearer
    to x than x attacked toward y. NaN if x and y have the same feature.

    Args:
        x: clean features of the first samples, (B, D).
        y: clean features of the second samples, (B, D).
        x_to_y: features of x attacked toward y, (B, D).
        y_to_x: features of y attacked toward x, (B, D).
    """
    apart = (x - y).norm(dim=1)
    margin = ((x - y_to_x).norm(dim=1) - (x - x_to_y).norm(dim=1)) / apart
    return margin.masked_fill(apart == 0, torch.nan)


def overlap_risk(margin: Tensor) -> float:
    """Return the fraction of pairs with a negative `overlap_margin`, (B,).

    NaN margins are not counted; the risk is NaN if there are no others.
    """
    return float((margin[~margin.isnan()] < 0).double().mean())


# --- Summary ---


@dataclass
class Geometry:
    """The measures of this module that a summary holds; None: cannot be computed.

    Attributes:
        alignment: distance of augmented views.
        uniformity: of all features.
        effective_rank: of normalised features.
        tolerance: similarity within a class.
        centroid_min: smallest distance between two class centroids.
        centroid_mean: mean distance between two class centroids.
        radius: mean distance of a sample to its own centroid.
        fisher: scatter between classes divided by that within.
        margin_mean: mean margin of the samples.
        margin_negative: fraction of samples with a margin below 0.
        margin_quantiles: margins at .05, .25, .5, .75 and .95.
        margin_histogram: counts of margins in 40 bins of equal width from -1 to 1. The outer bins
            also count what lies beyond.
        distance_within: mean cosine distance of samples of one class, mean over classes.
        distance_between: the same of samples of two classes, mean over pairs of classes.
        class_distances: `class_distances`, for at most 20 classes; None where NaN.
    """

    alignment: float | None = None
    uniformity: float | None = None
    effective_rank: float | None = None
    tolerance: float | None = None
    centroid_min: float | None = None
    centroid_mean: float | None = None
    radius: float | None = None
    fisher: float | None = None
    margin_mean: float | None = None
    margin_negative: float | None = None
    margin_quantiles: list[float] | None = None
    margin_histogram: list[float] | None = None
    distance_within: float | None = None
    distance_between: float | None = None
    class_distances: list[list[float | None]] | None = None


def describe(features: Tensor, labels: Tensor, views: Tensor | None = None) -> Geometry:
    """Return the measures of a data set's features.

    All but alignment are of the middle clip of each video. They are None for a single video, and
    those of classes are None for fewer than two classes.

    Args:
        features: features of N videos with K clips each, (N, K, D).
        labels: classes of the videos, (N,).
        views: features of two augmented views of some videos, for the alignment, (M, 2, D).
            Without them the alignment is None.
    """
    x = features[:, features.shape[1] // 2].float()
    measures = Geometry()
    if views is not None:
        measures.alignment = alignment(*views.float().unbind(1))
    if len(x) > 1:
        measures.uniformity = uniformity(x)
        measures.effective_rank = effective_rank(F.normalize(x, dim=1))
    if len(labels.unique()) < 2:
        return measures
    by_class = margins(x, labels)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], device=x.device)
    measures.tolerance = tolerance(x, labels)
    measures.centroid_min = by_class.centroid_min
    measures.centroid_mean = by_class.centroid_mean
    measures.radius = by_class.radius
    measures.fisher = by_class.fisher
    measures.margin_mean = float(by_class.sample.mean())
    measures.margin_negative = float((by_class.sample < 0).float().mean())
    measures.margin_quantiles = torch.quantile(by_class.sample, levels).tolist()
    bins = torch.histc(by_class.sample.clamp(-1, 1).cpu(), 40, -1, 1)
    measures.margin_histogram = bins.tolist()
    _add_distances(measures, class_distances(x, labels))
    return measures


def _add_distances(measures: Geometry, distances: Tensor) -> None:
    """Set the measures of distances between classes; see `Geometry`."""
    known = distances[~distances.isnan().all(1)][:, ~distances.isnan().all(0)]
    inside = torch.eye(len(known), dtype=torch.bool, device=known.device)
    within = known[inside & ~known.isnan()]
    measures.distance_within = float(within.mean()) if len(within) else None
    measures.distance_between = float(known[~inside].mean())
    if len(distances) <= _MOST_CLASSES:
        rows = distances.tolist()
        measures.class_distances = [[None if x != x else x for x in row] for row in rows]


# --- Helpers ---


def _classes(labels: Tensor) -> int:
    """Return the number of classes, one more than the largest label.

    Raises:
        ValueError: for samples without a label.
    """
    if len(labels) and int(labels.min()) < 0:
        raise ValueError("samples without a label: leave them out")
    return int(labels.max()) + 1 if len(labels) else 0


def _require(x: Tensor, least: int) -> None:
    """Raise ValueError for fewer than `least` samples."""
    if len(x) < least:
        raise ValueError(f"{len(x)} samples: at least {least} are needed")


def _distances(x: Tensor, y: Tensor, order: float = 2.0) -> Tensor:
    """Return the distances of all x to all y, (N, M).

    They are computed from differences. Matrix products would be faster, but lose distances that are
    small compared with the vectors.
    """
    return torch.cdist(x, y, p=order, compute_mode="donot_use_mm_for_euclid_dist")


def _rows_per_block(x: Tensor) -> int:
    """Return for how many samples the distances to all of x fit in memory."""
    return max(1, _BLOCK // len(x))


def _row_blocks(x: Tensor) -> list[tuple[int, Tensor]]:
    """Split x into blocks of rows whose distances to all of x fit in memory.

    Returns:
        (number of the first row, rows) of each block.
    """
    at_once = _rows_per_block(x)
    return [(first, x[first : first + at_once]) for first in range(0, len(x), at_once)]

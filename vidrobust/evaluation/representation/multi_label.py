"""Measure a representation on videos with several labels: linear probe, mean average precision.

As in the evaluation of Charades (Sigurdsson et al. 2016). N videos, C clips of each, K classes, D
features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust import config
from vidrobust.data import Record
from vidrobust.evaluation.representation.knn_and_probe import device_with_room
from vidrobust.evaluation.representation.probes import fit_linear
from vidrobust.models.feature_store import Features
from vidrobust.utils.errors import UserError

# ------------------------------------------------------------------ average precision


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision of a ranking.

    It is the mean, over the positives, of the precision among the videos that score at least as
    high. So videos of equal scores share a rank, as in scikit-learn, and the order of the videos
    does not matter.

    Args:
        scores: (N,); -inf for a video without a score, which is ranked last.
        targets: (N,) bool, or 0 and 1: which videos are positives.

    Returns:
        A float64 scalar in [0, 1]; NaN without a positive.

    Raises:
        ValueError: for scores that are NaN, and for other shapes.
    """
    _require_pairs(scores, targets, 1)
    positive = targets.bool()
    if not positive.any():
        return torch.tensor(torch.nan, dtype=torch.float64, device=scores.device)
    order = scores.argsort(descending=True, stable=True)
    ranked = scores[order]
    hits = positive[order]
    positives_so_far = hits.cumsum(0)
    # The rank of a video is the last place with its score.
    last = torch.searchsorted(-ranked, -ranked, right=True) - 1
    precision = positives_so_far[last].double() / (last + 1)
    return precision[hits].mean()


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Hold the mean average precision of a classifier.

    Attributes:
        mean: over the classes with a positive, in [0, 1].
        per_class: average precision of each class, K values; None for a class without a positive.
        n: number of videos that are ranked.
        classes: number of classes with a positive.
        ci95: 95 % interval of the mean, by bootstrap over videos; [] in files of earlier revisions.
    """

    mean: float
    per_class: list[float | None]
    n: int
    classes: int
    ci95: list[float] = field(default_factory=list)


def mean_average_precision(scores: Tensor, targets: Tensor) -> MeanAveragePrecision:
    """Return the mean over classes of the average precision, as the evaluation of Charades does.

    Classes without a positive are left out of the mean. Videos without any class are left out of
    the rankings: Charades ranks them last, which gives the same numbers.

    Args:
        scores: (N, K); -inf for a video without scores, which is ranked last.
        targets: (N, K) bool, or 0 and 1.

    Raises:
        ValueError: for scores that are NaN, for other shapes, and without any positive.
    """
    _require_pairs(scores, targets, 2)
    positive = targets.bool()
    labelled = positive.any(1)
    if not labelled.any():
        raise ValueError("targets: no video has a class, so that nothing can be ranked")
    scores = scores[labelled]
    positive = positive[labelled]
    values = torch.stack(
        [average_precision(scores[:, k], positive[:, k]) for k in range(scores.shape[1])]
    )
    present = values[~values.isnan()]
    per_class = [None if math.isnan(value) else value for value in values.tolist()]
    interval = _bootstrap(scores.detach().double().cpu().numpy(), positive.cpu().numpy())
    n = int(labelled.sum())
    return MeanAveragePrecision(float(present.mean()), per_class, n, len(present), list(interval))


def _bootstrap(
    scores: np.ndarray, positive: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean average precision, by bootstrap over videos.

    A video that is drawn w times counts w times. All draws share the order of the scores.

    Args:
        scores: (N, K).
        positive: (N, K) bool.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        (low, high).
    """
    n, classes = scores.shape
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    values = np.full((resamples, classes), np.nan)
    for k in range(classes):
        order = np.argsort(-scores[:, k], kind="stable")
        ranked = -scores[order, k]
        hits = positive[order, k]
        last = np.searchsorted(ranked, ranked, side="right") - 1
        drawn = weights[:, order]
        right = drawn * hits
        totals = right.sum(1)
        # a draw of videos that all lie behind has a total of 0 where the precision is not used
        precision = right.cumsum(1)[:, last] / np.maximum(drawn.cumsum(1)[:, last], 1)
        has = totals > 0
        values[has, k] = (right * precision).sum(1)[has] / totals[has]
    # a draw without any positive has no mean
    means = np.nanmean(values[~np.isnan(values).all(1)], 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _require_pairs(scores: Tensor, targets: Tensor, dims: int) -> None:
    """Raise ValueError unless scores and targets have one shape, and no score is NaN.

    Args:
        scores: the scores.
        targets: the targets.
        dims: number of dimensions that both must have.
    """
    if scores.shape != targets.shape or scores.ndim != dims:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} and targets of shape {tuple(targets.shape)}:"
            f" must have one shape of {dims} dimensions"
        )
    if scores.isnan().any():
        raise ValueError("scores: some are NaN; give -inf to a video without scores")


# ------------------------------------------------------------------ linear probe


def fit_multi_label_probe(
    features: Tensor,
    targets: Tensor,
    *,
    l2: float = 1e-3,
    iterations: int = 300,
    names: Sequence[str] | None = None,
) -> nn.Linear:
    """Fit a linear layer with a sigmoid per class, by binary cross-entropy.

    The loss is summed over classes and averaged over clips. So each class is a logistic regression
    of its own, with penalty l2 / 2 |w|^2, whatever the other classes are. Standardisation and
    minimisation are those of `fit_probe`.

    Args:
        features: features of the training clips, (M, D).
        targets: classes of the clips, (M, K) bool, or 0 and 1.
        l2: weight of the penalty, at least 0.
        iterations: largest number of iterations of L-BFGS.
        names: names of the clips, or of videos with several consecutive clips each, for messages.

    Returns:
        The layer, from raw features to logits.

    Raises:
        UserError: for features that are NaN or infinite, with the clips.
        ValueError: for l2 below 0, and for iterations below 1.
    """
    float_targets = targets.to(features)

    def loss(logits: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits, float_targets, reduction="none")
        return each.sum(1).mean()

    return fit_linear(features, targets.shape[1], loss, l2=l2, iterations=iterations, names=names)


# ------------------------------------------------------------------ measurement


def is_multi_label(records: Sequence[Record]) -> bool:
    """Return whether the videos have several labels each, or none."""
    return any(record.labels is not None for record in records)


def target_matrix(records: Sequence[Record], classes: int) -> Tensor:
    """Return which classes each video has, (N, K) bool.

    Args:
        records: videos with several labels each.
        classes: number of classes K.

    Raises:
        UserError: for a video of a data set with one label per video.
    """
    targets = torch.zeros(len(records), classes, dtype=torch.bool)
    for i, record in enumerate(records):
        if record.labels is None:
            raise UserError(
                f"{record.uid}: has one label, and mean average precision is for data sets with"
                " several labels per video; choose another data.name"
            )
        targets[i, list(record.labels)] = True
    return targets


@dataclass
class MultiLabelRepresentation:
    """Hold the scores of linear probes for the test videos.

    Attributes:
        targets: classes of the N test videos, (N, K) bool, in the order of their list.
        scores: name of a probe -> logits, (N, K); -inf for a video that did not decode.
        probe: the probe on features of the trained weights.
    """

    targets: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)
    probe: nn.Linear | None = None

    def precisions(self) -> dict[str, MeanAveragePrecision]:
        """Return name of a probe -> its mean average precision."""
        return {
            name: mean_average_precision(scores, self.targets)
            for name, scores in self.scores.items()
        }

    def rows(self, test: Sequence[Record]) -> list[dict[str, Any]]:
        """Return one row per test video: uid, classes and scores; scores are None where it failed.

        Args:
            test: the test videos.
        """
        rows = []
        for i, record in enumerate(test):
            row: dict[str, Any] = {"uid": record.uid, "labels": list(record.labels or ())}
            for name, scores in self.scores.items():
                found = bool(scores[i].isfinite().all())
                row[name] = [round(score, 5) for score in scores[i].tolist()] if found else None
            rows.append(row)
        return rows


def require_multi_label_options(cfg: config.Config) -> None:
    """Refuse measurements that need one label per video, before anything is measured.

    Raises:
        UserError: with the options that switch them off.
    """
    e = cfg.eval
    asked = {
        "eval.threats=[]": e.threats,
        "eval.corruption.names=[]": e.corruption.names,
        "eval.bias=[]": e.bias,
        "eval.shift.name=": e.shift.name,
        "eval.open_set.name=": e.open_set.name,
        "eval.sensitivity=0": e.sensitivity,
        "eval.save=none": e.save != "none",
        "eval.transfer=[]": e.transfer,
        "protocol.stages=false": cfg.protocol.stages,
        "protocol.name=auto": cfg.protocol.name not in ("auto", "linear"),
        "eval.classifier=auto": e.classifier not in ("auto", "probe"),
        "data.labels=": cfg.data.labels,
    }
    if remedies := [remedy for remedy, value in asked.items() if value]:
        raise UserError(
            f"data.name={cfg.data.name} has several labels per video: only the mean average"
            f" precision of linear probes is measured; set {' '.join(remedies)}"
        )


def measure_multi_label(
    gallery: Sequence[Features],
    queries: Sequence[Features],
    train: Sequence[Record],
    test: Sequence[Record],
    classes: int,
    cfg: config.EvalConfig,
    device: torch.device,
) -> MultiLabelRepresentation:
    """Score the test videos by a linear probe under the trained and under random weights.

    The probe uses all clips of the training videos. The logits of a test video's clips are
    averaged, or with eval.view_average=probabilities their sigmoids. A test video that did not
    decode is ranked last in every class.

    Args:
        gallery: features of the training videos, under the trained and the random weights.
        queries: features of the test videos, under the trained and the random weights.
        train: the training videos, to whose places the index of the features refers.
        test: the test videos, likewise.
        classes: number of classes K.
        cfg: options of the probe.
        device: device of the computation, if its memory is large enough.
    """
    train_targets = target_matrix(train, classes)
    result = MultiLabelRepresentation(target_matrix(test, classes))
    for name, train_features, test_features in zip(
        ("trained", "random"), gallery, queries, strict=False
    ):
        roomy = device_with_room(train_features.features, device)
        clips = train_features.features.flatten(0, 1).to(roomy)
        targets = train_targets[train_features.index]
        targets = targets.repeat_interleave(train_features.features.shape[1], 0).to(roomy)
        probe = fit_multi_label_probe(clips, targets, l2=cfg.probe_l2, names=train_features.uids)
        probe.requires_grad_(False)
        logits = average_sigmoids(probe(test_features.features.to(roomy)), cfg.view_average)
        scores = torch.full(result.targets.shape, -torch.inf)
        # a video without finite scores is ranked last, as one that did not decode
        finite = logits.isfinite().all(1, keepdim=True)
        scores[test_features.index] = logits.where(finite, -torch.inf).cpu()
        result.scores[f"{name}_probe"] = scores
        # The first probe is that of the trained weights.
        result.probe = result.probe or probe
    return result


def average_sigmoids(logits: Tensor, average: str) -> Tensor:
    """Return the logits of videos from those of their views, for a sigmoid per class.

    Args:
        logits: (B, V, K) of V views each.
        average: "logits": their mean; "probabilities": the logit of the mean sigmoid.

    Returns:
        (B, K).
    """
    if average == "logits":
        return logits.mean(1)
    # In logarithms, as a sigmoid of float32 is exactly 1 from a logit of 17 on.
    positive = torch.logsumexp(F.logsigmoid(logits), 1)
    negative = torch.logsumexp(F.logsigmoid(-logits), 1)
    return positive - negative

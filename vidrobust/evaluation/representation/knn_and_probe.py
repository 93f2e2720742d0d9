"""Evaluate kNN and the linear probe on trained and on random weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.evaluation.representation.class_accuracy import (
    NONE,
    confusion_matrix,
    mean_class_accuracy,
    mean_class_interval,
    ranks_of_truth,
)
from vidrobust.evaluation.representation.knn import knn_scores
from vidrobust.evaluation.representation.probes import fit_probe
from vidrobust.evaluation.view_average import average_views
from vidrobust.models.feature_store import Features
from vidrobust.utils.intervals import wilson


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a classifier on the test videos, an entry of `representation` in summary.json.

    Attributes:
        acc: fraction of right predictions.
        ci95: its 95 % interval (Wilson).
        n: videos; one that did not decode counts as wrong.
        top5: fraction of videos whose class is among the five with the highest scores; None for
            fewer than six classes, and in files of earlier revisions.
        mean_class: mean over classes of their accuracy; None in files of earlier revisions.
        top5_ci95: interval of top5 (Wilson).
        mean_class_ci95: interval of mean_class (`mean_class_interval`).
    """

    acc: float
    ci95: list[float]
    n: int
    top5: float | None = None
    mean_class: float | None = None
    top5_ci95: list[float] | None = None
    mean_class_ci95: list[float] | None = None


@dataclass
class Representation:
    """Hold the predictions of several classifiers for the test videos.

    Attributes:
        asked: features of the N test videos that decoded, under the trained weights.
        classes: number of classes.
        predictions: name of a classifier -> predicted classes, (N,); -1 for none, where the own
            head gives NaN.
        ranks: name of a classifier -> place of the true class among its scores, (N,).
        probe: the linear probe on features of the trained weights.
    """

    asked: Features
    classes: int
    predictions: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, Tensor] = field(default_factory=dict)
    probe: nn.Linear | None = None

    def add(self, name: str, scores: Tensor) -> None:
        """Add the scores (N, K) of a classifier; a video with NaN or infinite ones has no class."""
        scores = scores.detach().cpu()
        valid = ~(scores.isnan() | (scores == torch.inf)).any(1)
        self.predictions[name] = scores.argmax(1).where(valid, NONE)
        ranks = ranks_of_truth(scores, self.asked.labels)
        self.ranks[name] = ranks.where(valid, self.classes)

    def accuracies(self) -> dict[str, Accuracy]:
        """Return name of a classifier -> its accuracy."""
        n = len(self.asked.uids) + len(self.asked.failed)
        table = {}
        for name, confusion in self.confusions().items():
            hits = int(confusion.diagonal().sum())
            among_five = int((self.ranks[name] <= 5).sum())
            has_top5 = self.classes > 5  # of five classes, each is among five
            table[name] = Accuracy(
                hits / n,
                list(wilson(hits, n)),
                n,
                among_five / n if has_top5 else None,
                mean_class_accuracy(confusion),
                list(wilson(among_five, n)) if has_top5 else None,
                list(mean_class_interval(confusion)),
            )
        return table

    def confusions(self) -> dict[str, Tensor]:
        """Return name of a classifier -> its `confusion_matrix`, of all test videos."""
        failed = torch.tensor([f.label for f in self.asked.failed], dtype=torch.long)
        labels = torch.cat([self.asked.labels, failed])
        none = torch.full_like(failed, NONE)
        return {
            name: confusion_matrix(torch.cat([predicted, none]), labels, self.classes)
            for name, predicted in self.predictions.items()
        }

    def faults(self) -> list[str]:
        """Return a warning, or none, of videos that a classifier gives no class."""
        return [
            f"{missing} of {len(classes)} videos count as wrong for {name}, which gives NaN"
            for name, classes in self.predictions.items()
            if (missing := int((classes < 0).sum()))
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per test video: uid, label, predictions, error and ranks.

        `ranks` holds the place of the true class among the scores of each classifier, 1 to K.
        """
        decoded = []
        for i, uid in enumerate(self.asked.uids):
            answers = {name: int(classes[i]) for name, classes in self.predictions.items()}
            predicted = {name: None if answer < 0 else answer for name, answer in answers.items()}
            ranks = {name: int(places[i]) for name, places in self.ranks.items()}
            label = int(self.asked.labels[i])
            decoded.append({"uid": uid, "label": label, **predicted, "error": None, "ranks": ranks})
        none = dict.fromkeys(self.predictions)
        failed = [
            {"uid": f.uid, "label": f.label, **none, "error": f.reason, "ranks": none}
            for f in self.asked.failed
        ]
        return decoded + failed


def measure_representation(
    gallery: list[Features],
    queries: list[Features],
    classes: int,
    cfg: config.EvalConfig,
    device: torch.device,
    heads: Mapping[str, tuple[int, nn.Module]] | None = None,
) -> Representation:
    """Classify the test videos by kNN, by a linear probe, and by further classifiers.

    kNN and the probe use all clips of the training videos. The logits (or, by eval.view_average,
    probabilities) of a test video's clips are averaged, and so are its votes of kNN.

    Args:
        gallery: features of the training videos, under the trained and the random weights; empty:
            neither kNN nor the probe.
        queries: features of the test videos, under the trained and the random weights.
        classes: number of classes.
        cfg: options of kNN and of the probe.
        device: device of the computation, if its memory is large enough.
        heads: name of another classifier -> (which of `queries` it classifies, the classifier on
            `device`), as the model's own head.
    """
    result = Representation(queries[0], classes)
    for name, train, test in zip(("trained", "random"), gallery, queries, strict=False):
        # The training clips are the samples of the probe, and the gallery of kNN.
        roomy = device_with_room(train.features, device)
        clips, labels = _clips_of(train, roomy)
        videos = test.features.to(roomy)

        probe = _probe_of(clips, labels, classes, cfg, train.uids)
        votes = knn_scores(
            videos,
            clips,
            labels,
            classes,
            k=cfg.knn_k,
            temperature=cfg.knn_temperature,
            names=(test.uids, train.uids),
        )
        result.add(f"{name}_probe", average_views(probe(videos), cfg.view_average))
        # a class that no neighbour votes for is not among the five best
        result.add(f"{name}_knn", votes.where(votes > 0, -torch.inf))
        # The first probe is that of the trained weights, which is attacked later.
        result.probe = result.probe or probe
    for name, (which, head) in (heads or {}).items():
        with torch.no_grad():
            logits = average_views(head(queries[which].features.to(device)), cfg.view_average)
            # attacks take finite logits only, so that a video without them has no class
            result.add(name, logits.where(logits.isfinite(), torch.nan))
    return result


def probe_accuracy(
    train: Features, test: Features, classes: int, cfg: config.EvalConfig, device: torch.device
) -> Accuracy:
    """Return the accuracy of a linear probe on features.

    Args:
        train: features of the training videos.
        test: features of the test videos.
        classes: number of classes.
        cfg: options of the probe.
        device: device of the computation, if its memory is large enough.
    """
    result = Representation(test, classes)
    roomy = device_with_room(train.features, device)
    probe = _probe_of(*_clips_of(train, roomy), classes, cfg, train.uids)
    result.add("probe", average_views(probe(test.features.to(roomy)), cfg.view_average))
    return result.accuracies()["probe"]


def _clips_of(train: Features, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the features (N K, D) of all clips, and their labels (N K,), on a device."""
    labels = train.labels.repeat_interleave(train.features.shape[1])
    return train.features.flatten(0, 1).to(device), labels.to(device)


def _probe_of(
    clips: Tensor, labels: Tensor, classes: int, cfg: config.EvalConfig, names: Sequence[str]
) -> nn.Linear:
    """Return a linear probe without gradients of its own: attacks need those of the pixels only.

    Args:
        clips: features (N K, D).
        labels: (N K,).
        classes: number of classes.
        cfg: options of the probe.
        names: of the N videos, for messages.
    """
    probe = fit_probe(clips, labels, classes, l2=cfg.probe_l2, names=names)
    return probe.requires_grad_(False)


def device_with_room(features: Tensor, device: torch.device) -> torch.device:
    """Return `device`, or the CPU if it is a GPU with too little free memory.

    The features need room four times: raw, standardised, normalised, and for a gradient.
    """
    if device.type == "cuda" and 4 * features.nbytes > torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device

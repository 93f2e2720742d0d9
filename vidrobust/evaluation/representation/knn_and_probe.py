"""Evaluate kNN and the linear probe on trained and on random weights."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import config
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
    """

    acc: float
    ci95: list[float]
    n: int


@dataclass
class Representation:
    """Hold the predictions of several classifiers for the test videos.

    Attributes:
        asked: features of the N test videos that decoded, under the trained weights.
        predictions: name of a classifier -> predicted classes, (N,); -1 for none, where the own
            head gives NaN.
        probe: the linear probe on features of the trained weights.
    """

    asked: Features
    predictions: dict[str, Tensor] = field(default_factory=dict)
    probe: nn.Linear | None = None

    def accuracies(self) -> dict[str, Accuracy]:
        """Return name of a classifier -> its accuracy."""
        n = len(self.asked.uids) + len(self.asked.failed)
        table = {}
        for name, predicted in self.predictions.items():
            hits = int((predicted == self.asked.labels).sum())
            table[name] = Accuracy(hits / n, list(wilson(hits, n)), n)
        return table

    def faults(self) -> list[str]:
        """Return a warning, or none, of videos that a classifier gives no class."""
        return [
            f"{missing} of {len(classes)} videos count as wrong for {name}, which gives NaN"
            for name, classes in self.predictions.items()
            if (missing := int((classes < 0).sum()))
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per test video: uid, label, the prediction of each classifier, error."""
        decoded = []
        for i, uid in enumerate(self.asked.uids):
            answers = {name: int(classes[i]) for name, classes in self.predictions.items()}
            predicted = {name: None if answer < 0 else answer for name, answer in answers.items()}
            label = int(self.asked.labels[i])
            decoded.append({"uid": uid, "label": label, **predicted, "error": None})
        failed = [
            {"uid": f.uid, "label": f.label, **dict.fromkeys(self.predictions), "error": f.reason}
            for f in self.asked.failed
        ]
        return decoded + failed


def measure_representation(
    gallery: list[Features],
    queries: list[Features],
    classes: int,
    cfg: config.EvalConfig,
    device: torch.device,
    head: nn.Module | None = None,
) -> Representation:
    """Classify the test videos by kNN, by a linear probe, and by the model's own head.

    kNN and the probe use all clips of the training videos. The logits (or, by eval.view_average,
    probabilities) of a test video's clips are averaged, and so are its votes of kNN.

    Args:
        gallery: features of the training videos, under the trained and the random weights; empty:
            neither kNN nor the probe.
        queries: features of the test videos, under the trained and the random weights.
        classes: number of classes.
        cfg: options of kNN and of the probe.
        device: device of the computation, if its memory is large enough.
        head: the model's own classifier on `device`, if it has one.
    """
    result = Representation(queries[0])
    for name, train, test in zip(("trained", "random"), gallery, queries, strict=False):
        # The training clips are the samples of the probe, and the gallery of kNN.
        roomy = device_with_room(train.features, device)
        clips = train.features.flatten(0, 1).to(roomy)
        labels = train.labels.repeat_interleave(train.features.shape[1]).to(roomy)
        videos = test.features.to(roomy)

        probe = fit_probe(clips, labels, classes, l2=cfg.probe_l2, names=train.uids)
        probe.requires_grad_(False)  # attacks need the gradient of the pixels only
        votes = knn_scores(
            videos,
            clips,
            labels,
            classes,
            k=cfg.knn_k,
            temperature=cfg.knn_temperature,
            names=(test.uids, train.uids),
        )
        logits = average_views(probe(videos), cfg.view_average)
        result.predictions[f"{name}_probe"] = logits.argmax(1).cpu()
        result.predictions[f"{name}_knn"] = votes.argmax(1).cpu()
        # The first probe is that of the trained weights, which is attacked later.
        result.probe = result.probe or probe
    if head is not None:
        with torch.no_grad():
            logits = average_views(head(queries[0].features.to(device)), cfg.view_average)
            # argmax of NaN is a class: a video without finite logits has none
            answers = logits.argmax(1).where(logits.isfinite().all(1), -1)
            result.predictions["head"] = answers.cpu()
    return result


def device_with_room(features: Tensor, device: torch.device) -> torch.device:
    """Return `device`, or the CPU if it is a GPU with too little free memory.

    The features need room four times: raw, standardised, normalised, and for a gradient.
    """
    if device.type == "cuda" and 4 * features.nbytes > torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device

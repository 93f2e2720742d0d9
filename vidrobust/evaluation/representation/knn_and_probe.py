"""Evaluate kNN and the linear probe on trained and on random weights."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.evaluation.representation.knn import knn_scores
from vidrobust.evaluation.representation.probes import fit_probe
from vidrobust.models.feature_store import Features
from vidrobust.utils.intervals import wilson


@dataclass
class Representation:
    """Predictions by classifier (N,), for the N test videos that decoded, and the probe on the
    trained features.
    """

    asked: Features
    predictions: dict[str, Tensor] = field(default_factory=dict)
    probe: nn.Linear | None = None

    def accuracies(self) -> dict[str, Any]:
        """{classifier: {acc, ci95, n}}; a video that did not decode is a miss."""
        n = len(self.asked.uids) + len(self.asked.failed)
        found = {}
        for name, predicted in self.predictions.items():
            hits = int((predicted == self.asked.labels).sum())
            found[name] = {"acc": hits / n, "ci95": list(wilson(hits, n)), "n": n}
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row a test video: uid, label, a prediction a classifier, error."""
        rows = [
            {
                "uid": uid,
                "label": int(self.asked.labels[i]),
                **{k: int(v[i]) for k, v in self.predictions.items()},
            }
            for i, uid in enumerate(self.asked.uids)
        ]
        failed = [
            {"uid": f.uid, "label": f.label, **dict.fromkeys(self.predictions), "error": f.reason}
            for f in self.asked.failed
        ]
        return [row | {"error": None} for row in rows] + failed


def measure_representation(
    gallery: list[Features],
    queries: list[Features],
    classes: int,
    cfg: config.EvalConfig,
    device: torch.device,
    head: nn.Module | None = None,
) -> Representation:
    """Fit on all clips of the training videos, ask the test videos; a video's logits or votes are
    averaged over clips.

    gallery, queries: features under the trained and under the random weights, of training and test
    videos. device: where the features go, if its memory takes them. head: the model's own
    classifier on `device`, if it has one.
    """
    found = Representation(queries[0])
    for name, seen, asked in zip(("trained", "random"), gallery, queries, strict=True):
        here = _room_for(seen.features, device)
        clips, videos = seen.features.flatten(0, 1).to(here), asked.features.to(here)
        labels = seen.labels.repeat_interleave(seen.features.shape[1]).to(here)
        probe = fit_probe(clips, labels, classes, l2=cfg.probe_l2, names=seen.uids).requires_grad_(
            False
        )
        votes = knn_scores(
            videos,
            clips,
            labels,
            classes,
            k=cfg.knn_k,
            temperature=cfg.knn_temperature,
            names=(asked.uids, seen.uids),
        )
        found.predictions[f"{name}_probe"] = probe(videos).mean(1).argmax(1).cpu()
        found.predictions[f"{name}_knn"] = votes.argmax(1).cpu()
        found.probe = found.probe or probe
    if head is not None:
        with torch.no_grad():
            found.predictions["head"] = head(queries[0].features.to(device)).mean(1).argmax(1).cpu()
    return found


def _room_for(features: Tensor, device: torch.device) -> torch.device:
    """`device`, unless it is a GPU without memory for the features and three copies (standardised,
    normalised, a gradient's): then the CPU.
    """
    if device.type == "cuda" and 4 * features.nbytes > torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device

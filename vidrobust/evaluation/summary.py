"""Build summary.json."""

from typing import Any

from vidrobust import config
from vidrobust.data import FOLDED
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings
from vidrobust.evaluation.adversarial.curve import (
    median_norms,
    robust_curve,
    robust_to_all,
    suite_warnings,
)
from vidrobust.evaluation.representation.knn_and_probe import Representation
from vidrobust.models.feature_store import Features
from vidrobust.utils.intervals import wilson


def about(
    cfg: config.Config, representation: Representation, gallery: Features, classes: list[str]
) -> dict[str, Any]:
    """Return the part of the summary on the data, the protocol and the representation.

    Args:
        cfg: the configuration.
        representation: accuracies of kNN, probes and the own head.
        gallery: features of the training videos.
        classes: names.
    """
    data, e = cfg.data, cfg.eval
    split = f"validation {data.validation:g}" if data.validation else "test"
    if data.name in FOLDED:
        split += f", fold {data.fold}"
    own_head = "head" in representation.predictions
    failures = gallery.failed + representation.asked.failed
    return {
        "dataset": data.name,
        "split": split,
        "unit": e.unit,
        "branch": e.branch,
        "views": {
            "attack": f"{e.clips}x{e.crops}" if e.unit == "video" else "1x1",
            "representation": f"{e.clips}x1",
        },
        "chance": 1 / len(classes),
        "classifier": "own head" if own_head else "linear probe",
        "representation": representation.accuracies(),
        "knn": {
            "k": min(e.knn_k, gallery.features.shape[0] * e.clips),
            "temperature": e.knn_temperature,
        },
        "failed": [failure.reason for failure in failures],
    }


def learned_nothing(accuracies: dict[str, Any]) -> list[str]:
    """Return a warning, or none, of a probe that is not better than on random weights."""
    trained = accuracies["trained_probe"]["acc"]
    random = accuracies["random_probe"]["acc"]
    if trained > random:
        return []
    return [
        f"the probe on trained weights ({100 * trained:.1f} %) is not above that on random ones "
        f"({100 * random:.1f} %): a model that predicts little may appear robust"
    ]


def attacked(
    cfg: config.Config, rows: list[AttackRow], attack: AttackSettings, doubts: list[str]
) -> dict[str, Any]:
    """Return the part of the summary on attacks.

    Args:
        cfg: the configuration.
        rows: of all videos and threats, by videos.
        attack: threats and attacks.
        doubts: warnings of checks before the attacks.
    """
    threats = attack.ordered
    curve = robust_curve(rows, threats)
    videos = rows[:: len(curve)]  # one row per video
    robust = robust_to_all(rows)
    robust_uint8 = robust_to_all(rows, lambda row: row.uint8_right)
    clean_h264 = [row.clean_h264_pred == row.label for row in videos]
    largest = curve[-1]
    one_family = len(attack.families) == 1
    threat = {
        "norm": largest.norm,
        "support": largest.support,
        "k": largest.k,
        "eps": largest.eps,
    }
    return {
        "clean_acc": sum(row.clean_right for row in videos) / len(videos),
        "clean_acc_h264": sum(clean_h264) / len(videos) if cfg.eval.h264 else None,
        # under all threats together; with one family that is its largest
        "robust_acc": sum(robust) / len(robust),
        "robust_acc_uint8": sum(robust_uint8) / len(robust_uint8),
        "ci95": list(wilson(sum(robust), len(robust))),
        "threat": threat if one_family else None,
        "threats": [str(each) for each in threats],
        "suite": str(attack.suite),
        "median_norm": median_norms(rows, threats) if attack.suite.smallest else None,
        "attacks": sorted({name for point in curve for name in point.passes}),
        "curve": [point.to_json() for point in curve],
        "warnings": doubts + suite_warnings(rows, curve),
    }

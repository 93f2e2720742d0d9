"""Build summary.json."""

from typing import Any

from vidrobust import config
from vidrobust.attacks import ThreatModel
from vidrobust.data import FOLDED
from vidrobust.evaluation.adversarial.curve import (
    median_norms,
    robust_curve,
    robust_to_all,
    suite_warnings,
)
from vidrobust.evaluation.adversarial.suites import Suite, families
from vidrobust.evaluation.representation.knn_and_probe import Representation
from vidrobust.evaluation.results import Row
from vidrobust.models.feature_store import Features
from vidrobust.utils.intervals import wilson


def about(
    cfg: config.Config, found: Representation, gallery: Features, classes: list[str]
) -> dict[str, Any]:
    """What it says of what was measured, and of the representation."""
    return {
        "dataset": cfg.data.name,
        "split": (f"validation {cfg.data.validation:g}" if cfg.data.validation else "test")
        + (f", fold {cfg.data.fold}" if cfg.data.name in FOLDED else ""),
        "unit": cfg.eval.unit,
        "branch": cfg.eval.branch,
        "views": {
            "attack": f"{cfg.eval.clips}x{cfg.eval.crops}" if cfg.eval.unit == "video" else "1x1",
            "representation": f"{cfg.eval.clips}x1",
        },
        "chance": 1 / len(classes),
        "classifier": "own head" if "head" in found.predictions else "linear probe",
        "representation": found.accuracies(),
        "knn": {
            "k": min(cfg.eval.knn_k, gallery.features.shape[0] * cfg.eval.clips),
            "temperature": cfg.eval.knn_temperature,
        },
        "failed": [failure.reason for failure in gallery.failed + found.asked.failed],
    }


def learned_nothing(accuracies: dict[str, Any]) -> list[str]:
    """A warning where the probe on the trained trunk is not above that on random weights, else
    none.
    """
    trained, random = (accuracies[f"{name}_probe"]["acc"] for name in ("trained", "random"))
    if trained > random:
        return []
    return [
        f"the probe on trained weights ({100 * trained:.1f} %) is not above that on random ones "
        f"({100 * random:.1f} %): what predicts little may look robust"
    ]


def attacked(
    cfg: config.Config, rows: list[Row], threats: list[ThreatModel], suite: Suite, doubts: list[str]
) -> dict[str, Any]:
    """What it says of attacks."""
    curve = robust_curve(rows, threats)
    clean, withstood = rows[:: len(curve)], robust_to_all(rows)  # one row a video
    rounded = robust_to_all(rows, lambda row: row["uint8_pred"] == row["label"])
    one_family = len(families(threats)) == 1
    return {
        "clean_acc": sum(row["clean_pred"] == row["label"] for row in clean) / len(clean),
        "clean_acc_h264": sum(row["clean_h264_pred"] == row["label"] for row in clean) / len(clean)
        if cfg.eval.h264
        else None,
        # over all threats; of one family that is its largest
        "robust_acc": sum(withstood) / len(withstood),
        "robust_acc_uint8": sum(rounded) / len(rounded),
        "ci95": list(wilson(sum(withstood), len(withstood))),
        "threat": {key: curve[-1][key] for key in ("norm", "support", "k", "eps")}
        if one_family
        else None,
        "threats": [str(threat) for threat in threats],
        "suite": str(suite),
        "median_norm": median_norms(rows, threats) if suite.smallest else None,
        "attacks": sorted({name for c in curve for name in c["passes"]}),
        "curve": curve,
        "warnings": doubts + suite_warnings(rows, curve),
    }

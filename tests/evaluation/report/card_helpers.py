"""Cards that differ in what a test is about."""

from typing import Any

from vidrobust.attacks import parse_threat
from vidrobust.evaluation.report.card import (
    Card,
    Checks,
    CleanAccuracy,
    Hashes,
    RobustAccuracy,
)


def card(
    name: str,
    robust: float | None,
    threat: str = "linf-1/255",
    *,
    clean: float = 0.95,
    n: int = 20,
    **others: Any,
) -> Card:
    """Return a card with an accuracy under one threat, or under none."""
    model = parse_threat(threat)
    under = [
        RobustAccuracy(threat, model.norm, model.support, model.eps, value, [0.0, 1.0], value, n)
        for value in ([] if robust is None else [robust])
    ]
    values: dict[str, Any] = {
        "name": name,
        "reported": {},
        "architecture": "r2plus1d_10, width 8",
        "training": "simclr",
        "dataset": "ucf101",
        "split": "test, fold 1",
        "chance": 0.1,
        "classifier": "own head",
        "protocol": "auto",
        "labels": "",
        "branch": "clean",
        "input": {"frames": 4, "stride": 2, "size": [36, 36]},
        "views": {"attack": "1x1", "representation": "3x1"},
        "view_average": "logits",
        "unit": "clip",
        "number_forward_passes": 1,
        "clean": CleanAccuracy(clean, [0.5, 1.0], n),
        "robust": under,
        "corrupted": None,
        "suite": "pgd-20x1",
        "attacks": ["pgd"],
        "effort": None,
        "checks": Checks(8, []),
        "unreliable": False,
        "unreliable_reasons": [],
        "parameters": 1000,
        "gflops_per_view": 0.5,
        "gflops_per_prediction": 0.5,
        "hashes": Hashes("step 1, weights a", "c", "v"),
        "vidrobust": "0.1.0",
        "date": "2026-01-01",
    }
    return Card(**values | others)

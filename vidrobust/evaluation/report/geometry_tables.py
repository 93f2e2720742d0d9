"""Tables of geometry and sensitivity of features."""

from typing import Any

from vidrobust.evaluation.report.tables import table

_ROWS = (
    ("alignment: distance of augmented views (lower: closer)", "alignment"),
    ("uniformity (lower: spread more evenly; 0: all in one place)", "uniformity"),
    ("effective rank (higher: more dimensions used)", "effective_rank"),
    ("tolerance: similarity within a class (higher: tighter)", "tolerance"),
    ("between centroids: least (higher: farther apart)", "centroid_min"),
    ("between centroids: mean (higher: farther apart)", "centroid_mean"),
    ("within a class: mean radius (lower: tighter)", "radius"),
    ("Fisher ratio: between over within classes (higher: apart)", "fisher"),
    ("margin of a sample: mean (higher: nearer to its own class)", "margin_mean"),
    ("share of samples of negative margin (lower)", "margin_negative"),
)
_COLUMNS = {
    "universal_quantile": "universal quantile (lower)",
    "relative_displacement": "relative displacement (lower)",
    "breakaway_risk": "breakaway risk (lower)",
    "nn_top1": "own among nearest 1 (higher)",
    "nn_top5": "own among nearest 5 (higher)",
    "overlap_risk": "overlap risk (lower)",
    "overlap_margin": "overlap margin (higher)",
}


def geometry_lines(
    geometry: dict[str, Any] | None, sensitivity: dict[str, Any] | None
) -> list[str]:
    """Sections of report.md, none for None."""
    lines: list[str] = []
    if geometry:
        rows = [
            [title, *(_number(geometry[side][key]) for side in ("trained", "random"))]
            for title, key in _ROWS
        ]
        lines += [
            "## Geometry",
            "",
            *table(["on test features, normalised", "trained", "random weights"], *rows),
            "",
        ]
    if sensitivity:
        rows = [
            [f"{255 * b['eps']:.3g}/255", *(_number(b[key]) for key in _COLUMNS)]
            for b in sensitivity["budgets"]
        ]
        layers = list(sensitivity["budgets"][0]["cka"])
        cka = [
            [f"{255 * b['eps']:.3g}/255", *(_number(b["cka"][name]) for name in layers)]
            for b in sensitivity["budgets"]
        ]
        lines += [
            "## How far it can be moved",
            "",
            (
                f"{sensitivity['n']} clips: how far an attack on the representation, without"
                " labels, moves them (docs/methods.md; in brackets what is better)."
            ),
            "",
            *table(["Linf", *_COLUMNS.values()], *rows),
            "",
            "Linear CKA of clean with attacked clips, layer by layer (1: nothing moved):",
            "",
            *table(["Linf", *layers], *cka),
            "",
            (
                "With labels: the gradient of the classifier's cross-entropy by the pixels has a"
                f" median L2 norm of {_number(sensitivity['gradient_norm'])}."
            ),
            "",
        ]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

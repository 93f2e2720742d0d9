"""What a report says of a representation's geometry, and of how it gives way."""

from typing import Any

from vidrobust.evaluation.markdown import table

_ROWS = (
    ("alignment of augmented views", "alignment"),
    ("uniformity", "uniformity"),
    ("effective rank", "effective_rank"),
    ("tolerance", "tolerance"),
    ("between centroids: least", "centroid_min"),
    ("between centroids: mean", "centroid_mean"),
    ("within a class: mean radius", "radius"),
    ("Fisher ratio", "fisher"),
    ("margin of a sample: mean", "margin_mean"),
    ("samples of negative margin", "margin_negative"),
)
_COLUMNS = (
    "universal_quantile", "relative_displacement", "breakaway_risk", "nn_top1", "nn_top5", "overlap_risk",
    "overlap_margin",
)  # fmt: skip


def geometry_lines(geometry: dict[str, Any] | None, sensitivity: dict[str, Any] | None) -> list[str]:
    """Sections of report.md, none for None."""
    lines: list[str] = []
    if geometry:
        rows = [[title, *(_number(geometry[side][key]) for side in ("trained", "random"))] for title, key in _ROWS]
        lines += [
            "## Geometry",
            "",
            *table(["on test features, normalised", "trained", "random weights"], *rows),
            "",
        ]
    if sensitivity:
        rows = [[f"{255 * b['eps']:.3g}/255", *(_number(b[key]) for key in _COLUMNS)] for b in sensitivity["budgets"]]
        layers = list(sensitivity["budgets"][0]["cka"])
        cka = [[f"{255 * b['eps']:.3g}/255", *(_number(b["cka"][name]) for name in layers)]
               for b in sensitivity["budgets"]]  # fmt: skip
        lines += [
            "## How far it can be moved", "",
            f"{sensitivity['n']} clips, without labels; gradient of the classifier's cross-entropy by the pixels: "
            f"{_number(sensitivity['gradient_norm'])} (median L2 norm).", "",
            *table(["Linf", *(name.replace("_", " ") for name in _COLUMNS)], *rows), "",
            "Linear CKA of clean with attacked clips, layer by layer:", "",
            *table(["Linf", *layers], *cka), "",
        ]  # fmt: skip
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

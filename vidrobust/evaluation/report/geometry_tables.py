"""Tables of geometry and sensitivity of features."""

from vidrobust.evaluation.report.tables import table
from vidrobust.evaluation.representation.geometry import Geometry
from vidrobust.evaluation.representation.sensitivity import Sensitivity

# (title of the row, attribute of Geometry); in brackets what a lower or higher value means.
_ROWS = (
    ("alignment: distance of augmented views (lower: closer)", "alignment"),
    ("uniformity (lower: spread more evenly; 0: all in one place)", "uniformity"),
    ("effective rank (higher: more dimensions used)", "effective_rank"),
    ("tolerance: similarity within a class (higher: tighter)", "tolerance"),
    ("between centroids: smallest distance (higher: farther apart)", "centroid_min"),
    ("between centroids: mean distance (higher: farther apart)", "centroid_mean"),
    ("within a class: mean radius (lower: tighter)", "radius"),
    ("Fisher ratio: scatter between over within classes (higher: farther apart)", "fisher"),
    ("margin of a sample: mean (higher: nearer to its own class)", "margin_mean"),
    ("fraction of samples with a negative margin (lower: fewer)", "margin_negative"),
)
# Attribute of Displacement -> title of the column; in brackets which values are more robust.
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
    geometry: dict[str, Geometry] | None, sensitivity: Sensitivity | None
) -> list[str]:
    """Return the sections of report.md about geometry and sensitivity; no lines for None."""
    lines: list[str] = []
    if geometry:
        lines += _geometry_section(geometry)
    if sensitivity:
        lines += _sensitivity_section(sensitivity)
    return lines


def _geometry_section(geometry: dict[str, Geometry]) -> list[str]:
    """Return the section about geometry, with a column per model."""
    titles = [{"random": "random weights"}.get(side, side) for side in geometry]
    rows = [
        [title, *(_number(getattr(side, key)) for side in geometry.values())]
        for title, key in _ROWS
    ]
    return [
        "## Geometry",
        "",
        *table(["normalised features of test videos", *titles], *rows),
        "",
    ]


def _sensitivity_section(sensitivity: Sensitivity) -> list[str]:
    """Return the section about sensitivity, with a row per budget."""
    budgets = sensitivity.budgets
    measures = [[_size(b.eps), *(_number(getattr(b, key)) for key in _COLUMNS)] for b in budgets]
    # All budgets measure the same layers.
    layers = list(budgets[0].cka)
    cka = [[_size(b.eps), *(_number(b.cka[name]) for name in layers)] for b in budgets]
    return [
        "## Sensitivity",
        "",
        (
            f"{sensitivity.n} clips: how far an attack without labels moves their"
            " representation (docs/measures.md). Brackets say which values are better."
        ),
        "",
        *table(["Linf", *_COLUMNS.values()], *measures),
        "",
        "Linear CKA of clean and attacked clips by layer (1: the representation did not move):",
        "",
        *table(["Linf", *layers], *cka),
        "",
        (
            "With labels: the gradient of the classifier's cross-entropy with respect to the pixels"
            f" has a median L2 norm of {_number(sensitivity.gradient_norm)}."
        ),
        "",
    ]


def _size(eps: float) -> str:
    """Format a budget in units of 1/255."""
    return f"{255 * eps:.3g}/255"


def _number(value: float | None) -> str:
    """Format a number with three digits."""
    return "-" if value is None else f"{value:.3f}"

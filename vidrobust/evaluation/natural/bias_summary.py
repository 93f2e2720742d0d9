"""Summarise rows of cues: accuracy and bias of each view."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vidrobust.evaluation.results import Row, decoding_failures, model_faults
from vidrobust.utils.intervals import wilson

CLEAN = "clean"  # the view of the unchanged clip

# View -> (cue that belongs to the video's class, cue that belongs to another class). Of unchanged
# clips, only those of motionshapes have two such cues (`data.second_cues`).
CUES = {
    "conflict": ("shape", "texture"),
    "swapped": ("what moves", "background"),
    "swapped_frozen": ("what moves, frozen", "background"),
    CLEAN: ("motion", "texture"),
}


@dataclass(frozen=True)
class BiasView:
    """Accuracy on one view, and its bias if its two cues disagree.

    Cues disagree on a video if they belong to different classes. A prediction of one of these
    classes follows the cue that belongs to it.

    Attributes:
        acc: accuracy.
        ci95: its 95 % interval (Wilson).
        per_class: class -> accuracy.
        kept: acc divided by the accuracy on unchanged videos; None if that is 0.
        cues: the cue that belongs to the video's class, and the other cue; empty if no video has
            two cues that disagree.
        apart: number of videos whose two cues disagree.
        own: fraction of these videos whose prediction follows the first cue.
        other: fraction of these videos whose prediction follows the other cue.
        bias: own / (own + other); None if both are 0. For "conflict" this is the shape bias of
            Geirhos et al. 2019.
        bias_ci95: the 95 % interval of the bias.
    """

    acc: float
    ci95: list[float]
    per_class: dict[str, float]
    kept: float | None
    cues: list[str] = field(default_factory=list)
    apart: int = 0
    own: float | None = None
    other: float | None = None
    bias: float | None = None
    bias_ci95: list[float] | None = None


@dataclass(frozen=True)
class BiasTable:
    """The entry `bias` of summary.json.

    Attributes:
        n: number of videos.
        views: name of the view -> its accuracies.
        failed: why videos do not decode.
        warnings: warnings of NaN outputs.
        views_of: views per video, clips x crops.
    """

    n: int
    views: dict[str, BiasView]
    failed: list[str]
    warnings: list[str] = field(default_factory=list)
    views_of: str = ""


def bias_table(rows: Sequence[Row], classes: Sequence[str]) -> BiasTable:
    """Summarise rows of `evaluate_bias`.

    Accuracies are fractions. A video that does not decode counts as wrong.

    Args:
        rows: rows of all views.
        classes: names of the classes.
    """
    clean = [row for row in rows if row["name"] == CLEAN]
    clean_acc = sum(row["predicted"] == row["label"] for row in clean) / len(clean)
    views = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        view_rows = [row for row in rows if row["name"] == name]
        views[name] = _view(name, view_rows, classes, clean_acc)
    return BiasTable(len(clean), views, decoding_failures(rows), model_faults(rows))


def _view(name: str, rows: Sequence[Row], classes: Sequence[str], clean_acc: float) -> BiasView:
    """Return the accuracies of one view.

    Args:
        name: name of the view.
        rows: its rows.
        classes: names of the classes.
        clean_acc: accuracy on unchanged videos.
    """
    hits = sum(row["predicted"] == row["label"] for row in rows)
    acc = hits / len(rows)
    view = BiasView(
        acc=acc,
        ci95=list(wilson(hits, len(rows))),
        per_class=_per_class(rows, classes),
        kept=acc / clean_acc if clean_acc else None,
    )
    # Only videos whose two cues stand for different classes can show a bias.
    disagreeing = [row for row in rows if row["other"] is not None and row["other"] != row["label"]]
    if not disagreeing:
        return view
    own_hits = sum(row["predicted"] == row["label"] for row in disagreeing)
    other_hits = sum(row["predicted"] == row["other"] for row in disagreeing)
    either = own_hits + other_hits
    return replace(
        view,
        cues=list(CUES[name]),
        apart=len(disagreeing),
        own=own_hits / len(disagreeing),
        other=other_hits / len(disagreeing),
        bias=own_hits / either if either else None,
        bias_ci95=list(wilson(own_hits, either)) if either else None,
    )


def _per_class(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, float]:
    """Return class name -> accuracy on the rows of that class."""
    by_label: dict[int, list[bool]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row["predicted"] == row["label"])
    return {classes[label]: sum(hits) / len(hits) for label, hits in sorted(by_label.items())}

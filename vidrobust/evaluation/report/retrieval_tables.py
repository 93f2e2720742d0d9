"""Tables and figure of retrieval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidrobust.evaluation.report import drawing
from vidrobust.evaluation.report.tables import table
from vidrobust.evaluation.representation.retrieval import Recall
from vidrobust.evaluation.retrieval_summary import RetrievalPoint, RetrievalTable
from vidrobust.utils.readable import percent, with_interval

_UNITS = {
    "clip": "each of the clips of a video within the budget",
    "video": "the source frames of each video, which its clips share",
}


def retrieval_lines(out: Path, retrieval: RetrievalTable | None) -> list[str]:
    """Draw retrieval.png, and return the section of report.md; no lines for None.

    Args:
        out: folder of the evaluation.
        retrieval: the results.
    """
    if retrieval is None:
        return []
    rows = []
    for weights, by_similarity in retrieval.recall.items():
        for similarity, recall in by_similarity.items():
            name = "random weights" if weights == "random" else weights
            rows.append([name, similarity, *[_cell(each) for each in recall]])
    ranks = [f"R@{each.k}" for each in retrieval.recall["trained"][retrieval.similarity]]
    lines = [
        "## Retrieval",
        "",
        (
            f"{retrieval.n} test videos search {retrieval.gallery} training videos by the mean"
            f" feature of {retrieval.clips} clips. R@k is the fraction of queries with a video of"
            f" their class among the k nearest, %; 95 % Wilson intervals. R@1 of a random order:"
            f" {percent(retrieval.chance)}."
        ),
        "",
        *table(["weights", "similarity", *ranks], *rows),
        "",
    ]
    if retrieval.curve:
        lines += _attack_lines(retrieval, ranks)
    lines += _figure_lines(out, retrieval)
    return lines


def _attack_lines(retrieval: RetrievalTable, ranks: list[str]) -> list[str]:
    """Return the tables of recall under attack, and of the attacks.

    Args:
        retrieval: the results.
        ranks: titles of the columns of recall.
    """
    rows = [
        [point.side, point.threat, *[_cell(each) for each in point.recall]]
        for point in retrieval.curve
    ]
    costs = []
    for point in retrieval.curve:
        for name, (forward, backward) in point.passes.items():
            r1 = percent(point.by_attack[name][0], unit="")
            costs.append([point.side, point.threat, name, r1, str(forward), str(backward)])
    return [
        (
            f"Under attack without labels, {retrieval.suite} on each loss: {retrieval.attacked}"
            f" queries, similarity {retrieval.similarity}, {_UNITS[retrieval.unit]}. The worst of"
            " both attacks; the videos that are not attacked stay clean."
        ),
        "",
        *table(["attacked", "threat", *ranks], *rows),
        "",
        *table(
            ["attacked", "threat", "attack", "R@1 alone", "forward passes", "backward passes"],
            *costs,
        ),
        "",
    ]


def _cell(recall: Recall) -> str:
    """Format recall and its interval in per cent."""
    return with_interval(recall.recall, recall.ci95, unit="")


def _figure_lines(out: Path, retrieval: RetrievalTable) -> list[str]:
    """Draw R@1 by budget for each kind of threat, and return the line that shows the figure.

    Args:
        out: folder of the evaluation.
        retrieval: the results.
    """
    path = out / "retrieval.png"
    kinds: dict[str, list[RetrievalPoint]] = {}
    for point in retrieval.curve:
        kinds.setdefault(point.kind, []).append(point)
    several = {
        kind: points for kind, points in kinds.items() if len({point.eps for point in points}) > 1
    }
    if not several:
        # A report that is written again may have had a figure before.
        path.unlink(missing_ok=True)
        return []
    figure = drawing.new_figure(5 * len(several), 3.4, dpi=150)
    panels = figure.subplots(1, len(several), squeeze=False)[0]
    for axes, (kind, points) in zip(panels, several.items(), strict=True):
        unit = 255 if points[0].norm == "linf" else 1
        for side in dict.fromkeys(point.side for point in points):
            _draw(axes, [point for point in points if point.side == side], unit, side)
        axes.axhline(100 * retrieval.chance, color="gray", linestyle="--", label="random order")
        budget = f"budget, {kind}{', /255' if unit == 255 else ''}"
        axes.set(xlabel=drawing.label(budget), ylabel="R@1, %", ylim=(0, 102), xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    drawing.save(figure, path)
    return ["![recall at 1](retrieval.png)", ""]


def _draw(axes: Any, points: Sequence[RetrievalPoint], unit: int, side: str) -> None:
    """Draw R@1 and its interval by budget.

    Args:
        axes: the panel.
        points: of one side, by increasing budget.
        unit: of the budget.
        side: for the legend.
    """
    eps = [unit * point.eps for point in points]
    first = [point.recall[0] for point in points]
    axes.fill_between(
        eps,
        [100 * each.ci95[0] for each in first],
        [100 * each.ci95[1] for each in first],
        alpha=0.2,
        linewidth=0,
    )
    label = f"{side} attacked"
    axes.plot(eps, [100 * each.recall for each in first], marker="o", label=label)

"""Tables of the cues that a model uses."""

from vidrobust.evaluation.natural.bias_summary import CLEAN, BiasTable, BiasView
from vidrobust.evaluation.report.tables import escape, table
from vidrobust.utils.readable import between, percent, with_interval

# Name of a view -> what its clips show.
_SHOWN = {
    CLEAN: "the unchanged clip",
    "patch": "patches from other places",
    "patch_frames": "patches from other places, new ones in each frame",
    "tube": "tubes from other places and times",
    "texture": "the clip's texture",
    "shuffle": "frames in another order",
    "freeze": "one frame",
    "loop": "a quarter of the clip, repeated",
    "reverse": "frames backward",
    "tube_shuffle": "cells of a grid, each with its frames in another order",
    "background": "background alone",
    "motion": "temporal differences alone",
    "conflict": "the image's shapes in another's texture",
    "swapped": "what moves, before another background",
    "swapped_frozen": "one frame of swapped",
}
_CLASSES = 5  # classes named at each end: those that lose most, and those that lose least


def bias_lines(bias: BiasTable | None) -> list[str]:
    """Return the section of report.md about cues, or no lines for None."""
    if bias is None:
        return []
    views = bias.views
    accuracies = [
        [
            name,
            _SHOWN[name],
            with_interval(e.acc, e.ci95, unit=""),
            "-" if e.kept is None else f"{e.kept:.2f}",
        ]
        for name, e in views.items()
    ]
    # Only views with two cues that disagree have a bias.
    biases = [
        [
            name,
            f"{e.cues[0]}, not {e.cues[1]}",
            str(e.apart),
            percent(e.own, unit=""),
            percent(e.other, unit=""),
            _bias(e),
        ]
        for name, e in views.items()
        if e.cues and e.own is not None and e.other is not None
    ]
    lines = [
        "## Cues that the model uses",
        "",
        (
            f"Accuracy on {bias.n} videos, {bias.views_of} views (clips x crops) of each; 95 %"
            " Wilson intervals."
        ),
        "",
        *table(
            ["clips", "what they show", "accuracy, %", "relative to unchanged clips"], *accuracies
        ),
        "",
    ]
    if biases:
        titles = [
            "clips",
            "bias toward",
            "videos",
            "classified by this cue, %",
            "by the other, %",
            "bias",
        ]
        lines += [
            "Videos whose two cues belong to different classes:",
            "",
            *table(titles, *biases),
            "",
        ]
    return lines + _by_class(views)


def _by_class(views: dict[str, BiasView]) -> list[str]:
    """Return a list of the classes that need a removed cue most, and least, by view."""
    clean = views[CLEAN].per_class
    lines = []
    for name, entry in views.items():
        if name == CLEAN:
            continue
        # A loss is negative, so that the largest loss comes first.
        losses = {c: entry.per_class[c] - acc for c, acc in clean.items()}
        changes = [
            f"{escape(c)} {between([clean[c], entry.per_class[c]])}"
            for c in sorted(clean, key=losses.__getitem__)
        ]
        if len(changes) > 2 * _CLASSES:
            changes = [*changes[:_CLASSES], "...", *changes[-_CLASSES:]]
        lines.append(f"* {name}: {'; '.join(changes)}")
    title = "Accuracy by class, %, on unchanged clips and on these, largest loss first:"
    return [title, "", *lines, ""] if lines else []


def _bias(entry: BiasView) -> str:
    """Format a bias and its 95 % interval."""
    if entry.bias is None or entry.bias_ci95 is None:
        return "-"
    low, high = entry.bias_ci95
    return f"{entry.bias:.2f} ({low:.2f} to {high:.2f})"

"""Tables of the cues that a model uses."""

from typing import Any

from vidrobust.evaluation.natural.bias import CLEAN
from vidrobust.evaluation.report.tables import escape, table

_SHOWN = {
    CLEAN: "as it is",
    "patch": "patches in another order",
    "patch_frames": "patches, drawn for each frame",
    "tube": "tubes from anywhere",
    "texture": "its texture",
    "shuffle": "frames in another order",
    "freeze": "one frame",
    "loop": "a quarter, looped",
    "reverse": "backward",
    "tube_shuffle": "cells, each in an order of its own",
    "background": "background alone",
    "motion": "temporal differences alone",
    "conflict": "its shapes in another's texture",
    "swapped": "what moves, before another background",
    "swapped_frozen": "a frame of that",
}
_CLASSES = 5  # that lose most, and least, are named


def bias_lines(found: dict[str, Any] | None) -> list[str]:
    """A section of report.md, none for None."""
    if not found:
        return []
    rows = [
        [
            name,
            _SHOWN[name],
            f"{_percent(e['acc'])} ({_percent(e['ci95'][0])} to {_percent(e['ci95'][1])})",
            "-" if e["kept"] is None else f"{e['kept']:.2f}",
        ]
        for name, e in found["views"].items()
    ]
    cues = [
        [
            name,
            f"{e['cues'][0]}, not {e['cues'][1]}",
            str(e["apart"]),
            _percent(e["own"]),
            _percent(e["other"]),
            _with_interval(e),
        ]
        for name, e in found["views"].items()
        if "bias" in e
    ]
    lines = [
        "## What it looks at",
        "",
        f"{found['views_of']} views (clips x crops) of {found['n']} videos.",
        "",
        *table(["clips", "what they show", "accuracy, %", "of that of whole clips"], *rows),
        "",
    ]
    if cues:
        titles = ["clips", "bias toward", "videos", "answered so, %", "the other, %", "bias"]
        lines += ["Two cues that say different classes:", "", *table(titles, *cues), ""]
    return lines + _by_class(found["views"])


def _by_class(views: dict[str, Any]) -> list[str]:
    """Which classes need what was taken away, and which do not."""
    whole, lines = views[CLEAN]["per_class"], []
    for name, entry in views.items():
        if name != CLEAN:
            lost = sorted(whole, key=lambda c: entry["per_class"][c] - whole[c])
            said = [
                f"{escape(c)} {_percent(whole[c])} to {_percent(entry['per_class'][c])}"
                for c in lost
            ]
            some = (
                said if len(said) <= 2 * _CLASSES else [*said[:_CLASSES], "...", *said[-_CLASSES:]]
            )
            lines.append(f"* {name}: {'; '.join(some)}")
    return ["By class, from those that lose most:", "", *lines, ""] if lines else []


def _with_interval(entry: dict[str, Any]) -> str:
    if entry["bias"] is None:
        return "-"
    low, high = entry["bias_ci95"]
    return f"{entry['bias']:.2f} ({low:.2f} to {high:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"

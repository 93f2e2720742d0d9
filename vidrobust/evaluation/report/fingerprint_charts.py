"""Charts of when and where each threat acts, and of the budget at which videos break."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.curve import CurvePoint
from vidrobust.evaluation.adversarial.fingerprint import fingerprint
from vidrobust.evaluation.report.page import data_uri
from vidrobust.evaluation.report.svg_charts import Bar, bar_chart

_LABELS = 8  # largest number of labels below a chart


@dataclass(frozen=True)
class KindOfThreat:
    """Show what a kind of threat does, at its largest budget.

    Attributes:
        threat: the largest budget.
        n: number of attacked videos.
        frames: chart of the change by frame; None for images, and where rows of earlier revisions
            do not say it.
        place: picture of the change by place in the frame, as an address; "" for those rows.
        largest: mean absolute change where it is largest, in 1/255.
        breaks: chart of the smallest budget that breaks each video.
    """

    threat: str
    n: int
    frames: Markup | None
    place: str
    largest: float
    breaks: Markup


def fingerprints(curve: Sequence[CurvePoint], rows: Sequence[AttackRow]) -> list[KindOfThreat]:
    """Return the fingerprint of each kind of threat.

    Args:
        curve: entries of all threats.
        rows: of all threats.
    """
    kinds: dict[str, list[CurvePoint]] = {}
    for point in curve:
        if point.eps > 0:
            kinds.setdefault(point.kind, []).append(point)
    return [_of_kind(points, rows) for points in kinds.values()]


def _of_kind(points: Sequence[CurvePoint], rows: Sequence[AttackRow]) -> KindOfThreat:
    """Return the fingerprint of the budgets of one kind, from small to large."""
    largest = points[-1]
    found = fingerprint([row for row in rows if row.threat == largest.threat])
    breaks = _breaks(points)
    if found is None:
        return KindOfThreat(largest.threat, 0, None, "", 0.0, breaks)
    every = max(1, -(-len(found.frames) // _LABELS))
    # a value per frame, or of longer clips per part of equal length
    count = len(found.frames)
    # of an image there is no when
    bars = [
        Bar(str(t), value, f"time {t + 1} of {count}: {255 * value:.3g}/255")
        for t, value in enumerate(found.frames)
    ]
    return KindOfThreat(
        largest.threat,
        found.n,
        bar_chart(bars, f"Change over time under {largest.threat}", "time", every)
        if count > 1
        else None,
        _picture(found.place),
        255 * float(found.place.max()),
        breaks,
    )


def _breaks(points: Sequence[CurvePoint]) -> Markup:
    """Return the chart of how many videos break first at each budget."""
    n = points[0].n
    wrong = points[0].killed_by.get("clean", 0) + points[0].killed_by.get("error", 0)
    bars = [Bar("0", wrong, f"{wrong} of {n} videos are wrong without an attack", "cgrey")]
    before = n - wrong
    for point in points:
        right = round(point.robust_acc * n)
        size = point.threat.removeprefix(f"{point.kind}-")
        broken = before - right
        bars.append(Bar(size, broken, f"{broken} of {n} videos break first at {point.threat}"))
        before = right
    bars.append(Bar("none", before, f"{before} of {n} videos withstand {point.threat}", "c2"))
    every = max(1, -(-len(bars) // _LABELS))
    return bar_chart(
        bars, f"Smallest budget that breaks a video, {points[0].kind}", "budget", every
    )


def _picture(place: np.ndarray) -> str:
    """Return a map (H, W) as a small picture, in colours that differ for all eyes."""
    from matplotlib import colormaps  # here, as its import takes a third of a second

    relative = place / max(float(place.max()), 1e-12)
    colours = (255 * colormaps["viridis"](relative)[..., :3]).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, format="PNG")
    return data_uri(file.getvalue(), "png")

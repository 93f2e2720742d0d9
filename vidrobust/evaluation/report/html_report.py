"""Write report.html: an evaluation in one file, with its clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from vidrobust.attacks import parse_threat
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.broken_clips import file_part
from vidrobust.evaluation.adversarial.curve import CurvePoint
from vidrobust.evaluation.adversarial.rows import carry_breaks, timings
from vidrobust.evaluation.adversarial.suites import families
from vidrobust.evaluation.report.baseline import Baseline, baseline_sentence
from vidrobust.evaluation.report.class_sections import ClassSection, class_section
from vidrobust.evaluation.report.clip_player import ShownClip, shown_clips
from vidrobust.evaluation.report.corruption_viewer import corruption_viewer
from vidrobust.evaluation.report.fingerprint_charts import fingerprints
from vidrobust.evaluation.report.methods_text import Effort, bibtex, methods_text, used
from vidrobust.evaluation.report.page import LARGEST, html_of, render, write_page
from vidrobust.evaluation.report.svg_charts import Line, Point, legend, line_chart
from vidrobust.evaluation.report.verdict import verdict, worst
from vidrobust.evaluation.results import rank_files, read_doubts
from vidrobust.evaluation.summary import Summary, classifier_key
from vidrobust.utils.atomic_files import read_json, read_rows
from vidrobust.utils.environment import read_environment
from vidrobust.utils.intervals import wilson
from vidrobust.utils.readable import percent, with_interval

_CLIPS = 4_500_000  # bytes of all clips; the rest of a page's budget is for tables and pictures
_PICTURES = 1_500_000  # bytes of the pictures of corruptions


def write_html(
    out: Path,
    summary: Summary,
    classes: Sequence[str],
    sections: Mapping[str, Sequence[str]],
    baseline: Baseline | None = None,
) -> None:
    """Write out/report.html.

    Args:
        out: folder of the evaluation.
        summary: what it measured.
        classes: names of the classes.
        sections: name -> Markdown of the sections that report.md has too.
        baseline: another evaluation of the same videos.
    """
    rows = _attack_rows(out, summary)
    largest = worst(summary.curve)
    names = used(summary)
    sentence = verdict(summary, _kind(out))
    paths = sorted((out / "clips").glob("*.npz"))
    values = {
        "title": f"{summary.dataset}: {sentence}",
        "heading": _heading(summary),
        "verdict": sentence,
        "warnings": summary.warnings,
        "facts": _facts(out, summary),
        "chance": summary.chance,
        "random_on": _random_on(summary),
        "charts": _charts(summary, baseline),
        "of_baseline": baseline_sentence(summary, baseline) if baseline else "",
        "clips_kept": len(paths),
        "fingerprints": fingerprints(summary.curve, rows),
        "corruptions": corruption_viewer(out, summary, classes, _PICTURES),
        "classes": _classes(out, summary, rows, classes, largest),
        "sections": {name: html_of(lines, out) for name, lines in sections.items() if lines},
        "methods": methods_text(summary, _effort(out)),
        "bibtex": bibtex(names),
        "environment": read_environment(out),
    }
    # how much text a clip takes is only known once the page is written
    for most in (_CLIPS, _CLIPS // 2, _CLIPS // 4, 0):
        clips = _clips(paths, summary, classes, most)
        pairs = {(clip.true, clip.taken) for clip in clips}
        text = render("report.html", clips=clips, pairs=pairs, **values)
        if len(text.encode()) <= LARGEST:
            break
    write_page(out / "report.html", text)


def _clips(
    paths: Sequence[Path], summary: Summary, classes: Sequence[str], most: int
) -> list[ShownClip]:
    """Return the clips to show, in at most so many bytes, in the order of the threats."""
    place = {threat: number for number, threat in enumerate(summary.threats)}
    kinds = list(dict.fromkeys(file_part(point.kind) for point in summary.curve))
    clips = shown_clips(paths, classes, kinds, most) if most else []
    return sorted(clips, key=lambda clip: place.get(clip.threat, len(place)))


def _attack_rows(out: Path, summary: Summary) -> list[AttackRow]:
    """Return the rows of the threats of a summary, with breaks carried to larger budgets."""
    threats = {point.threat for point in summary.curve}
    rows = [
        AttackRow.from_json(row)
        for path in rank_files(out, "results")
        for row in read_rows(path)
        if row.get("threat") in threats
    ]
    return carry_breaks(rows, families([parse_threat(name) for name in threats]))


def _kind(out: Path) -> str:
    """Return what was measured, "images" for clips of one frame."""
    path = out / "identity.json"
    if not path.is_file():
        return "videos"
    options = read_json(path, "evaluate again, without --report-only").get("options", {})
    return "images" if options.get("data.frames") == "1" else "videos"


def _views(summary: Summary) -> str:
    """Return the views of a video, clips x crops."""
    views = summary.views["representation"]
    return f"{views}; attacked {summary.views['attack']}" if summary.curve else views


def _heading(summary: Summary) -> str:
    """Return what was measured, for the line above the verdict."""
    model = summary.classifier
    return f"{summary.dataset}, {summary.split}: robustness of the {model}"


def _facts(out: Path, summary: Summary) -> list[tuple[str, str]]:
    """Return the protocol line: names and values."""
    environment = read_environment(out)
    facts = [
        ("Data", f"{summary.dataset}, {summary.split}"),
        ("Videos", str(summary.n)),
        ("Views", _views(summary)),
        ("Protocol", summary.protocol),
        ("Classifier", summary.classifier),
        ("Labels", summary.labels),
        ("Norm branch", "" if summary.branch == "clean" else summary.branch),
        ("Threats", ", ".join(summary.threats)),
        ("Attack", summary.suite or ""),
        ("Chance", percent(summary.chance)),
        ("Checkpoint", summary.checkpoint),
        ("Date", str(environment.get("date", ""))),
        ("Command", str(environment.get("command", ""))),
    ]
    return [(name, value) for name, value in facts if value]


def _effort(out: Path) -> Effort:
    """Return what the attacks cost, from the files of an evaluation."""
    doubts = read_doubts(out) or []
    seconds = sum(sum(attacks.values()) for attacks in timings(out).values())
    return Effort(len(doubts), seconds)


# --- Robust accuracy by budget ---


@dataclass(frozen=True)
class Chart:
    """A chart of robust accuracy, with its legend and its numbers."""

    drawing: Markup
    legend: Markup
    rows: list[list[str]]


_RATIO = 8  # of the largest budgets of the kinds in one chart
_UNITS = {"linf": "largest change of a pixel, /255", "l2": "L2 norm", "l1": "L1 norm"}


def _charts(summary: Summary, baseline: Baseline | None) -> list[Chart]:
    """Return a chart per norm and order of budgets, with a line per kind of threat."""
    charts = []
    for norm in dict.fromkeys(point.norm for point in summary.curve if point.eps > 0):
        for kinds in _alike(summary.curve, norm):
            lines = _lines(summary, norm, kinds)
            if baseline:
                others = _lines(baseline.summary, norm, kinds)
                lines += [
                    Line(f"{line.name}, {baseline.name}", line.points, grey=True) for line in others
                ]
            lines += _random_weights(summary, max(p.x for line in lines for p in line.points))
            label = f"budget: {_UNITS.get(norm, 'largest L2 norm of a frame')}"
            charts.append(
                Chart(
                    line_chart(lines, label, "accuracy, %", f"Robust accuracy by {label}"),
                    legend(lines),
                    [[line.name, point.note] for line in lines for point in line.points],
                )
            )
    return charts


def _alike(curve: Sequence[CurvePoint], norm: str) -> list[list[str]]:
    """Return the kinds of threat of a norm, those of similar budgets together.

    A patch of any colour and a change of 1/255 of every pixel do not fit on one axis.
    """
    largest: dict[str, float] = {}
    for point in curve:
        if point.norm == norm and point.eps > 0:
            largest[point.kind] = max(largest.get(point.kind, 0.0), point.eps)
    groups: list[list[str]] = []
    for kind in sorted(largest, key=lambda kind: largest[kind]):
        if not groups or largest[kind] > _RATIO * largest[groups[-1][0]]:
            groups.append([])
        groups[-1].append(kind)
    return groups


def _lines(summary: Summary, norm: str, wanted: Sequence[str]) -> list[Line]:
    """Return a line per kind of threat, which begins at the accuracy without an attack.

    Args:
        summary: of an evaluation.
        norm: of the threats.
        wanted: the kinds.
    """
    kinds: dict[str, list[CurvePoint]] = {}
    for point in summary.curve:
        if point.kind in wanted and point.eps > 0:
            kinds.setdefault(point.kind, []).append(point)
    unit = 255 if norm == "linf" else 1
    lines = []
    for kind, points in kinds.items():
        shown = []
        if summary.clean_acc is not None:
            low, high = wilson(round(summary.clean_acc * summary.n), summary.n)
            shown.append(_point(0.0, summary.clean_acc, low, high, "no attack"))
        for point in points:
            low, high = point.ci95
            shown.append(_point(unit * point.eps, point.robust_acc, low, high, point.threat))
        lines.append(Line(kind, shown))
    return lines


def _point(x: float, y: float, low: float, high: float, name: str) -> Point:
    """Return a point that says its numbers."""
    note = f"{name}: {with_interval(y, [low, high])}"
    return Point(x, y, low, high, note)


def _random_on(summary: Summary) -> tuple[int, str] | None:
    """Return on how many videos, and views of each, random weights are measured, or None."""
    random = summary.representation.get("random_probe")
    return None if random is None else (random.n, summary.views["representation"])


def _random_weights(summary: Summary, largest: float) -> list[Line]:
    """Return a level line of the probe on random weights, which training must exceed; or none.

    Args:
        summary: of the evaluation.
        largest: where the line ends.
    """
    random = summary.representation.get("random_probe")
    if random is None:
        return []
    low, high = random.ci95
    name = "random weights, linear probe, no attack"
    points = [_point(x, random.acc, low, high, name) for x in (0.0, largest)]
    return [Line(name, points, grey=True)]


# --- Classes ---


def _classes(
    out: Path,
    summary: Summary,
    rows: Sequence[AttackRow],
    classes: Sequence[str],
    threat: CurvePoint | None,
) -> ClassSection | None:
    """Return accuracies and confusions by class, of the attacked videos or of all test videos.

    Args:
        out: folder of the evaluation.
        summary: what it measured.
        rows: of all threats.
        classes: names of the classes.
        threat: the one that confusions are shown for; None without attacks.
    """
    if threat is not None:
        of_threat = [row for row in rows if row.threat == threat.threat]
        before = [(row.label, row.clean_pred) for row in of_threat]
        return class_section(
            classes,
            before,
            [(row.label, row.adv_pred) for row in of_threat],
            [row.robust for row in of_threat],
            threat.threat,
        )
    path = out / "predictions.jsonl"
    if not path.is_file() or summary.average_precision:
        return None
    key = classifier_key(summary.classifier)
    answers = [(row["label"], row.get(key)) for row in read_rows(path) if "label" in row]
    return class_section(classes, answers, [], [], "") if answers else None

"""Write report.md, the robustness curve and adversarial clips."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidrobust.evaluation.adversarial.rows import timings
from vidrobust.evaluation.natural.shift import shift_lines
from vidrobust.evaluation.report import drawing
from vidrobust.evaluation.report import tables as markdown
from vidrobust.evaluation.report.bias_tables import bias_lines
from vidrobust.evaluation.report.corruption_tables import corruption_lines
from vidrobust.evaluation.report.geometry_tables import geometry_lines
from vidrobust.evaluation.results import classes_of
from vidrobust.utils.atomic_files import read_json
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import visible


def rewrite_report(out: Path) -> None:
    """Write the report of a finished evaluation again, from its files alone.

    Raises UserError where the folder holds none, and where its files are damaged.
    """
    if not (out / "summary.json").is_file():
        raise UserError(
            f"{out} holds no finished evaluation (no summary.json); evaluate without --report-only"
        )
    write_report(out, read_summary(out / "summary.json"), classes_of(out))


_PARTS: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "split": str,
    "n": int,
    "chance": (int, float),
    "branch": str,
    "views": dict,
    "representation": dict,
    "curve": list,
    "failed": list,
    "warnings": list,
    "corruption": (dict, type(None)),
    "geometry": dict,
}


def read_summary(path: Path) -> dict[str, Any]:
    """Return what a summary.json holds. Raises UserError, with the remedy, where it is damaged."""
    remedy = "delete it and evaluate again, which keeps the rows"
    summary = read_json(path, remedy)
    for key, kind in _PARTS.items():
        if key not in summary or not isinstance(summary[key], kind):
            raise UserError(f"{path}: damaged, its {key} is missing or of another kind; {remedy}")
    return summary


def write_report(out: Path, summary: dict[str, Any], classes: list[str]) -> None:
    """Write out/report.md and its pictures: curve.png (of threats with several budgets), one a clip
    of clips/*.npz, corruptions.png and corruption_curves.png.

    Raises UserError as `markdown.repeatable` does.
    """
    with markdown.repeatable(out / "report.md", "tools/test_net.py --report-only"):
        _write_report(out, summary, classes)


def _write_report(out: Path, summary: dict[str, Any], classes: list[str]) -> None:
    """Write the report and its pictures."""
    drawn = _draw_curves(out / "curve.png", summary)
    pictures = [_draw_clip(path, classes) for path in sorted((out / "clips").glob("*.npz"))]
    title = (
        f"{summary['dataset']}, {summary['split']}: {summary['n']} videos {_done(summary)}".rstrip()
    )
    lines = [
        f"# {markdown.escape(title)}",
        "",
        (
            f"{summary['checkpoint']}; norm branch {markdown.code(summary['branch'])}; chance "
            f"{_percent(summary['chance'])}."
        ),
        "",
        "## What was learned",
        "",
        (
            f"Accuracy over {summary['views']['representation']} views (clips x crops) of each test"
            " video, logits averaged; 95 % Wilson intervals."
        ),
        "",
        *markdown.table(
            ["classifier", "trained", "random weights"],
            *_representation_rows(summary["representation"]),
        ),
        "",
        *(_attack_lines(out, summary) if summary["curve"] else []),
        *(["![robust accuracy](curve.png)", ""] if drawn else []),
        *(markdown.image(p.stem, f"clips/{p.name}") + "\n" for p in pictures),
        *corruption_lines(out, summary["corruption"]),
        *shift_lines(summary.get("shift")),
        *bias_lines(summary.get("bias")),
        *geometry_lines(summary.get("geometry"), summary.get("sensitivity")),
        *(["## Warnings", ""] if summary["warnings"] else []),
        *(f"- {markdown.escape(warning)}" for warning in summary["warnings"]),
    ]
    markdown.write(out / "report.md", lines)


def _done(summary: dict[str, Any]) -> str:
    done = {
        "attacked": summary["curve"],
        "corrupted": summary["corruption"],
        "shown in part": summary.get("bias"),
        "compared": summary.get("shift"),
    }
    return " and ".join(name for name, found in done.items() if found)


def _attack_lines(out: Path, summary: dict[str, Any]) -> list[str]:
    return [
        "## How robust it is",
        "",
        (
            f"{summary['suite']} on the {summary['classifier']}; {_UNITS[summary['unit']]} (views"
            f" {summary['views']['attack']}); every adversarial clip measured from its pixels."
        ),
        "",
        *_threat_rows(summary["curve"]),
        "",
        (
            "Clean accuracy of what is attacked:"
            f" {_percent(summary['clean_acc'])}{_through(summary)}; robust to all of these threats:"
            f" {_percent(summary['robust_acc'])} ({_percent(summary['robust_acc_uint8'])} after"
            " rounding). A video broken at a budget counts as broken at the larger ones of its"
            " threat and is not attacked again; its change stays as large as it was."
        ),
        "",
        *_median_rows(summary["median_norm"]),
        *_attack_rows(summary["curve"], timings(out)),
    ]


def _representation_rows(found: dict[str, Any]) -> list[list[str]]:
    def cell(name: str) -> str:
        if name not in found:
            return ""
        low, high = found[name]["ci95"]
        return f"{_percent(found[name]['acc'])} ({_percent(low)} to {_percent(high)})"

    rows = [
        [title, cell(f"trained_{key}"), cell(f"random_{key}")]
        for title, key in (("linear probe", "probe"), ("kNN", "knn"))
    ]
    return rows + ([["own head", cell("head"), ""]] if "head" in found else [])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_UNITS = {
    "clip": "one centre clip a video is attacked",
    "video": "the source frames of a video are attacked, through the average over its views",
}


def _size(norm: str, size: float) -> str:
    return f"{size * 255:.3g}/255" if norm == "linf" and 0 < size < 1 else f"{size:.3g}"


def _threat_rows(curve: list[dict[str, Any]]) -> list[str]:
    coded = any(c["robust_acc_h264"] is not None for c in curve)
    titles = [
        "threat",
        "robust accuracy",
        "95 % interval",
        "after rounding to uint8",
        *(["after H.264"] if coded else []),
        "largest change before rounding",
    ]
    rows = [
        [
            c["threat"],
            _percent(c["robust_acc"]),
            f"{_percent(c['ci95'][0])} to {_percent(c['ci95'][1])}",
            _percent(c["robust_acc_uint8"]),
            *([_percent(c["robust_acc_h264"])] if coded else []),
            _size(c["norm"], c["max_measured"]),
        ]
        for c in curve
    ]
    return markdown.table(titles, *rows)


def _through(summary: dict[str, Any]) -> str:
    after = summary["clean_acc_h264"]
    return "" if after is None else f" ({_percent(after)} after H.264)"


def _median_rows(norms: dict[str, float | None] | None) -> list[str]:
    """What half of the videos that are right break at."""
    found = [
        f"{kind}"
        f" {'beyond the largest budget' if size is None else _size(kind.rpartition('-')[2], size)}"
        for kind, size in (norms or {}).items()
    ]
    return (
        [f"Median smallest change that breaks a video which is right: {'; '.join(found)}.", ""]
        if found
        else []
    )


def _attack_rows(curve: list[dict[str, Any]], seconds: dict[str, dict[str, float]]) -> list[str]:
    """Which attack broke what, and what it cost."""
    rows = [
        [
            c["threat"],
            name,
            str(c["killed_by"].get(name, 0)),
            str(forward),
            str(backward),
            f"{seconds.get(c['threat'], {}).get(name, 0.0):.1f}",
        ]
        for c in curve
        for name, (forward, backward) in c["passes"].items()
    ]
    titles = [
        "threat",
        "attack",
        "videos broken so far",
        "forward passes",
        "backward passes",
        "seconds",
    ]
    return [*markdown.table(titles, *rows), ""] if rows else []


def _draw_curves(path: Path, summary: dict[str, Any]) -> bool:
    """A panel a threat that has several budgets; False when none has."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for c in summary["curve"]:
        kinds.setdefault((c["norm"], c["kind"]), []).append(c)
    several = {kind: curve for kind, curve in kinds.items() if len(curve) > 1}
    if not several:
        path.unlink(missing_ok=True)
        return False
    figure = Figure(figsize=(5 * len(several), 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, ((norm, name), curve) in zip(
        figure.subplots(1, len(several), squeeze=False)[0], several.items(), strict=True
    ):
        _draw_curve(axes, summary, curve, norm, name)
    drawing.save(figure, path)
    return True


def _draw_curve(
    axes: Any, summary: dict[str, Any], curve: list[dict[str, Any]], norm: str, name: str
) -> None:
    unit = 255 if norm == "linf" else 1
    eps = [unit * c["eps"] for c in curve]
    axes.fill_between(
        eps,
        [100 * c["ci95"][0] for c in curve],
        [100 * c["ci95"][1] for c in curve],
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(
        eps,
        [100 * c["robust_acc"] for c in curve],
        marker="o",
        label="robust accuracy, 95 % interval",
    )
    axes.plot(
        eps,
        [100 * c["robust_acc_uint8"] for c in curve],
        marker="x",
        linestyle=":",
        label="after rounding to uint8",
    )
    axes.axhline(100 * summary["chance"], color="gray", linestyle="--", linewidth=1, label="chance")
    budget = f"budget, {name}{', /255' if norm == 'linf' else ''}"
    axes.set(xlabel=drawing.label(budget), ylabel="accuracy, %", ylim=(0, 102), xlim=(0, None))
    title = f"{summary['dataset']}, {summary['suite']}, n = {summary['n']}"
    axes.set_title(drawing.label(title), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _shown(difference: np.ndarray, most: int = 8) -> np.ndarray:
    """At most `most` frames of (C, T, H, W), evenly, those first that are changed: the others tell
    little.
    """
    changed = np.flatnonzero(
        np.abs(difference).max((0, 2, 3)) > 1e-5
    )  # by more than float32 cannot hold
    evenly = [
        at[np.linspace(0, len(at) - 1, min(most, len(at))).round().astype(int)]
        for at in (changed, np.arange(difference.shape[1]))
    ]
    kept = list(dict.fromkeys(np.concatenate(evenly).tolist()))[:most]
    return np.array(sorted(kept))


def _draw_clip(path: Path, classes: list[str]) -> Path:
    """A clip, its adversarial twin and the amplified difference, at most eight frames side by
    side.
    """
    with np.load(path) as saved:
        clip, twin = saved["clip"] / 255.0, saved["adversarial"].astype(np.float64)
        said = {
            k: drawing.label(_class_name(classes, int(saved[k])))
            for k in ("label", "clean_pred", "adv_pred")
        }
        uid, threat = str(saved["uid"]), str(saved["threat"])
    difference = twin - clip
    frames = _shown(difference)
    gain = 0.5 / max(float(np.abs(difference).max()), 1e-9)
    rows = [
        (f"clip\n{said['clean_pred']}", clip),
        (f"adversarial\n{said['adv_pred']}", twin),
        (f"difference\nx {gain:.3g}", 0.5 + gain * difference),
    ]
    figure = Figure(figsize=(1.3 * len(frames) + 1.2, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(frames), squeeze=False)
    for line, (title, images) in zip(grid, rows, strict=True):
        for axes, t in zip(line, frames, strict=True):
            axes.imshow(images[:, t].transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=9)
    for axes, t in zip(grid[0], frames, strict=True):
        axes.set_title(f"frame {t}", fontsize=8)
    across = int(9 * figure.get_figwidth())  # characters
    heading = textwrap.wrap(visible(f"{uid}  ({threat})"), across)
    figure.suptitle("\n".join(drawing.label(line) for line in heading), fontsize=10)
    target = path.with_suffix(".png")
    drawing.save(figure, target)
    return target


def _class_name(classes: list[str], number: int) -> str:
    return classes[number] if 0 <= number < len(classes) else f"class {number}"

"""A summary becomes something to look at: report.md, the curve, and adversarial clips frame by frame."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def write_report(out: Path, summary: dict[str, Any], classes: list[str]) -> None:
    """Write out/report.md, out/curve.png and one picture a saved clip of out/clips/*.npz."""
    _draw_curve(out / "curve.png", summary)
    pictures = [_draw_clip(path, classes) for path in sorted((out / "clips").glob("*.npz"))]
    lines = [
        f"# {summary['dataset']}, {summary['split']}: {summary['n']} videos attacked",
        "",
        f"{summary['checkpoint']}; norm branch `{summary['branch']}`; chance {_percent(summary['chance'])}.",
        "",
        "## What was learned",
        "",
        f"Accuracy over {summary['views']['representation']} views (clips x crops) of each test video, "
        "logits averaged; 95 % Wilson intervals.",
        "",
        "| classifier | trained | random weights |",
        "|---|---|---|",
        *_representation_rows(summary["representation"]),
        "",
        "## How robust it is",
        "",
        f"{', '.join(summary['suite'])} on the cross-entropy of the {summary['classifier']}, one centre clip "
        f"a video (unit: {summary['unit']}), every adversarial clip measured from its pixels.",
        "",
        "| budget | robust accuracy | 95 % interval | after rounding to uint8 | largest change measured |",
        "|---|---|---|---|---|",
        *(
            f"| {c['threat']} | {_percent(c['robust_acc'])} | {_percent(c['ci95'][0])} to {_percent(c['ci95'][1])} | "
            f"{_percent(c['robust_acc_uint8'])} | {c['max_measured'] * 255:.3g}/255 |"
            for c in summary["curve"]
        ),
        "",
        f"Clean accuracy of the attacked clips: {_percent(summary['clean_acc'])}. A video broken at a budget counts as "
        "broken at all larger ones and is not attacked again; its change stays as large as it was.",
        "",
        "![robust accuracy](curve.png)",
        "",
        *(f"![{p.stem}](clips/{p.name})\n" for p in pictures),
        *(["## Warnings", "", *(f"- {w}" for w in summary["warnings"])] if summary["warnings"] else []),
    ]
    (out / "report.md").write_text("\n".join(lines).rstrip() + "\n")


def _representation_rows(found: dict[str, Any]) -> list[str]:
    def cell(name: str) -> str:
        if name not in found:
            return ""
        low, high = found[name]["ci95"]
        return f"{_percent(found[name]['acc'])} ({_percent(low)} to {_percent(high)})"

    rows = [f"| {title} | {cell(f'trained_{key}')} | {cell(f'random_{key}')} |"
            for title, key in (("linear probe", "probe"), ("kNN", "knn"))]  # fmt: skip
    return rows + ([f"| own head | {cell('head')} | |"] if "head" in found else [])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _draw_curve(path: Path, summary: dict[str, Any]) -> None:
    curve = summary["curve"]
    eps = [255 * c["eps"] for c in curve]
    figure = Figure(figsize=(5, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.fill_between(
        eps, [100 * c["ci95"][0] for c in curve], [100 * c["ci95"][1] for c in curve], alpha=0.2, linewidth=0
    )
    axes.plot(eps, [100 * c["robust_acc"] for c in curve], marker="o", label="robust accuracy, 95 % interval")
    axes.plot(
        eps, [100 * c["robust_acc_uint8"] for c in curve], marker="x", linestyle=":", label="after rounding to uint8"
    )
    axes.axhline(100 * summary["chance"], color="gray", linestyle="--", linewidth=1, label="chance")
    axes.set(xlabel="Linf budget, /255", ylabel="accuracy, %", ylim=(0, 102), xlim=(0, None))
    axes.set_title(f"{summary['dataset']}, {summary['suite'][0]}, n = {summary['n']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def _draw_clip(path: Path, classes: list[str]) -> Path:
    """A clip, its adversarial twin and the amplified difference, at most eight frames side by side."""
    with np.load(path) as saved:
        clip, twin = saved["clip"] / 255.0, saved["adversarial"].astype(np.float64)
        said = {k: classes[int(saved[k])] for k in ("label", "clean_pred", "adv_pred")}
        uid, threat = str(saved["uid"]), str(saved["threat"])
    frames = np.unique(np.linspace(0, clip.shape[1] - 1, min(8, clip.shape[1])).round().astype(int))
    difference = twin - clip
    gain = 0.5 / max(float(np.abs(difference).max()), 1e-9)
    rows = [
        (f"clip\n{said['clean_pred']}", clip),
        (f"adversarial\n{said['adv_pred']}", twin),
        (f"difference\nx {gain:.0f}", 0.5 + gain * difference),
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
    figure.suptitle(f"{uid}  ({threat})", fontsize=10)
    target = path.with_suffix(".png")
    figure.savefig(target)
    return target

"""The summaries of a study's runs become a table with intervals, the gap that is closed, and figures."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidrobust.evaluation import markdown
from vidrobust.study.plan import Arm, Study

Runs = Sequence[tuple[Arm, dict[str, Any]]]
# 97.5 % points of Student's t by degrees of freedom; beyond, the normal's
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)


def summarise(study: Study, runs: Runs) -> dict[str, Any]:
    """data set -> arm -> {"n", measure -> {"mean", "std", "half", "values"}}, and "gap_closed" beside the measures.

    half: half the width of a 95 % interval of the mean over seeds by Student's t, None for one seed. Measures: probe,
    clean, `robust THREAT`, mpc, rpc, and those of geometry; accuracies and shares are fractions. gap_closed: comparator
    -> threat -> 100 (RA - RA_baseline) / (RA_comparator - RA_baseline) of the means (METHODS section 1.4), None where
    the comparator is not above the baseline. Clean accuracy, a budget of 0, is no gap.
    """
    found: dict[str, Any] = {}
    for dataset in dict.fromkeys(arm.dataset for arm, _ in runs):
        table: dict[str, Any] = {}
        for name in dict.fromkeys(arm.name for arm, _ in runs if arm.dataset == dataset):
            measured = [_measures(summary) for arm, summary in runs if (arm.dataset, arm.name) == (dataset, name)]
            table[name] = {"n": len(measured)} | {
                key: _spread(values)
                for key in measured[0] if (values := [value for m in measured if (value := m.get(key)) is not None])
            }  # fmt: skip
        for name, row in table.items():
            row["gap_closed"] = {
                other: _gap(table, study.baseline, other, name)
                for other in study.comparators
                if other in table and study.baseline in table and name not in (other, study.baseline)
            }
        found[dataset] = table
    return found


def write_study(study: Study, runs: Runs, out: Path, missing: int = 0) -> dict[str, Any]:
    """out/study.json, study.md and the figures, of the runs there are; returns what `summarise` finds.

    missing: runs of the study's page that are not there, which the report says.
    """
    found = summarise(study, runs)
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.json").write_text(json.dumps(found, indent=2) + "\n")
    lines = [f"Not finished: {missing} of {missing + len(runs)} runs of the page.", ""] if missing else []
    for dataset, table in found.items():
        here = [(arm, summary) for arm, summary in runs if arm.dataset == dataset]
        for name, draw in (("robust", _draw_robust), ("space", _draw_space), ("margins", _draw_margins)):
            draw(out / f"{dataset}_{name}.png", here, table)
        lines += [*_section(dataset, table), *(f"![{dataset}: {name}]({dataset}_{name}.png)\n"
                                               for name in ("robust", "space", "margins"))]  # fmt: skip
    (out / "study.md").write_text("\n".join(lines).rstrip() + "\n")
    return found


def _measures(summary: dict[str, Any]) -> dict[str, float | None]:
    learned, geometry, corruption = summary["representation"], summary["geometry"]["trained"], summary["corruption"]
    return {
        "probe": learned["trained_probe"]["acc"], "clean": summary["clean_acc"],
        **{f"robust {c['threat']}": c["robust_acc"] for c in summary["curve"]},
        "mpc": corruption and corruption["mpc"], "rpc": corruption and corruption["rpc"],
        **{key: value for key, value in geometry.items() if not isinstance(value, list)},
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, Any]:
    mean, n = statistics.fmean(values), len(values)
    std = statistics.stdev(values) if n > 1 else None
    t = _T[n - 2] if 1 < n <= len(_T) + 1 else 1.96
    return {"mean": mean, "std": std, "half": None if std is None else t * std / math.sqrt(n), "values": values}


def _gap(table: dict[str, Any], baseline: str, comparator: str, name: str) -> dict[str, float | None]:
    gaps: dict[str, float | None] = {}
    for key in (key for key in table[name] if key.startswith("robust ") and not key.endswith("-0")):
        low, high, own = (table[arm][key]["mean"] for arm in (baseline, comparator, name))
        gaps[key.removeprefix("robust ")] = 100 * (own - low) / (high - low) if high > low else None
    return gaps


def _section(dataset: str, table: dict[str, Any]) -> list[str]:
    threats = [key for key in next(iter(table.values())) if key.startswith("robust ")]
    shares = ["probe", "clean", *threats, "mpc"]
    others = ["rpc", "alignment", "uniformity", "tolerance", "margin_mean", "radius", "fisher", "effective_rank"]
    lines = [f"## {dataset}", "", "Accuracies in per cent, mean over seeds and half of a 95 % interval.", ""]
    lines += markdown.table(["arm", "seeds", *(key.removeprefix("robust ") for key in shares)],
                            *([name, f"{row['n']}", *(_cell(row.get(key), 100, 1) for key in shares)]
                              for name, row in table.items()))  # fmt: skip
    lines += ["", *markdown.table(["arm", *others], *([name, *(_cell(row.get(key), 1, 3) for key in others)]
                                                      for name, row in table.items())), ""]  # fmt: skip
    gaps = [[name, other, *("-" if value is None else f"{value:.0f}" for value in closed.values())]
            for name, row in table.items() for other, closed in row["gap_closed"].items()]  # fmt: skip
    if gaps:
        titles = ["arm", "comparator", *next(closed for row in table.values() for closed in row["gap_closed"].values())]
        lines += ["Gap to the comparator's robust accuracy that is closed, per cent (- where there is no gap):", "",
                  *markdown.table(titles, *gaps), ""]  # fmt: skip
    return lines


def _cell(spread: dict[str, Any] | None, scale: float, digits: int) -> str:
    if spread is None:
        return "-"
    half = "" if spread["half"] is None else f" ± {scale * spread['half']:.{digits}f}"
    return f"{scale * spread['mean']:.{digits}f}{half}"


def _figure(width: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _draw_robust(path: Path, runs: Runs, table: dict[str, Any]) -> None:
    """Robust accuracy against eps, a line an arm, its interval as a band: of the first family of threats."""
    curve = runs[0][1]["curve"]
    kind = curve[0]["kind"] if curve else ""
    budgets = [(c["threat"], c["eps"]) for c in curve if c["kind"] == kind and c["norm"] == curve[0]["norm"]]
    figure, axes = _figure(5.5)
    for name, row in table.items():
        spreads = [row[f"robust {threat}"] for threat, _ in budgets]
        eps = [255 * size for _, size in budgets]
        means = np.array([100 * s["mean"] for s in spreads])
        half = np.array([100 * (s["half"] or 0) for s in spreads])
        (line,) = axes.plot(eps, means, marker="o", markersize=3, label=name)
        axes.fill_between(eps, means - half, means + half, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="eps, of 255", ylabel="robust accuracy, %", ylim=(0, 100))
    axes.legend(fontsize=7)
    figure.savefig(path)


def _draw_space(path: Path, runs: Runs, table: dict[str, Any]) -> None:
    """Alignment against uniformity, a point a run, coloured by robust accuracy at the middle budget."""
    figure, axes = _figure(5.5)
    threats = [key for key in next(iter(table.values())) if key.startswith("robust ")]
    if threats:
        middle = threats[len(threats) // 2]
        placed = [(arm.name, _measures(summary)) for arm, summary in runs]
        shown = [(name, m) for name, m in placed if m["alignment"] is not None and m["uniformity"] is not None]
        dots = axes.scatter([m["uniformity"] for _, m in shown], [m["alignment"] for _, m in shown],
                            c=[100 * (m[middle] or 0) for _, m in shown], cmap="viridis")  # fmt: skip
        for name, m in shown:
            axes.annotate(
                name, (m["uniformity"], m["alignment"]), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
        figure.colorbar(dots, ax=axes, label=f"{middle}, %")
    axes.set(xlabel="uniformity (lower: more uniform)", ylabel="alignment (lower: closer)")
    figure.savefig(path)


def _draw_margins(path: Path, runs: Runs, table: dict[str, Any]) -> None:
    """Histograms of samples' margins, an outline an arm, over all seeds."""
    figure, axes = _figure(5.5)
    edges = np.linspace(-1, 1, 41)
    for name in table:
        counts = [summary["geometry"]["trained"]["margin_histogram"] for arm, summary in runs if arm.name == name]
        known = [np.array(c) for c in counts if c is not None]
        if known:
            total = np.sum(known, axis=0)
            axes.stairs(total / total.sum(), edges, label=name)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(xlabel="margin of a sample", ylabel="share of test samples")
    axes.legend(fontsize=7)
    figure.savefig(path)

"""Write report.md, the robustness curve and adversarial clips."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust import config
from vidrobust.evaluation.adversarial.curve import CurvePoint
from vidrobust.evaluation.adversarial.rows import timings
from vidrobust.evaluation.report import drawing
from vidrobust.evaluation.report import tables as markdown
from vidrobust.evaluation.report.baseline import (
    Baseline,
    read_baseline,
    remember_baseline,
    remembered_baseline,
)
from vidrobust.evaluation.report.bias_tables import bias_lines
from vidrobust.evaluation.report.calibration_tables import calibration_lines
from vidrobust.evaluation.report.card import write_card
from vidrobust.evaluation.report.clip_player import class_name
from vidrobust.evaluation.report.corruption_tables import corruption_lines
from vidrobust.evaluation.report.geometry_tables import geometry_lines
from vidrobust.evaluation.report.html_report import write_html
from vidrobust.evaluation.report.open_set_text import open_set_lines
from vidrobust.evaluation.report.representation_tables import representation_lines
from vidrobust.evaluation.report.retrieval_tables import retrieval_lines
from vidrobust.evaluation.report.shift_text import shift_lines
from vidrobust.evaluation.report.transfer_tables import transfer_lines
from vidrobust.evaluation.results import classes_of
from vidrobust.evaluation.summary import Summary, published_beside, read_summary
from vidrobust.models.complexity import parameters_text
from vidrobust.utils.errors import UserError
from vidrobust.utils.readable import between, percent
from vidrobust.utils.text import visible

_FRAMES = 8  # largest number of frames in the picture of a clip
_CLIPS = 2  # clips per kind of threat; report.html shows all that are kept
_VISIBLE = 1e-5  # smaller changes of a pixel are rounding errors of float32

_UNCHECKED = " The self-checks of the attacks were off (`eval.checks=0`)."

# Value of eval.unit -> what is attacked.
_UNITS = {
    "clip": "the centre clip of each video is attacked",
    "video": "the source frames of each video are attacked, through the average over its views",
}


# --- Entry points ---


def rewrite_report(
    out: Path, baseline: Path | None = None, card: config.CardConfig | None = None
) -> None:
    """Write reports and card of a finished evaluation again, from the files in its folder alone.

    Args:
        out: folder of the evaluation.
        baseline: folder of another evaluation of the same videos, or of its run, which
            report.html shows in grey; None: the one of before, if there was one.
        card: what card.json says of the model; None, and options that are empty: as before.

    Raises:
        UserError: if the folder holds no finished evaluation, or its files are damaged, and for a
            baseline of other videos.
    """
    if not (out / "summary.json").is_file():
        raise UserError(
            f"{out} holds no finished evaluation (no summary.json); evaluate without --report-only"
        )
    summary = read_summary(out / "summary.json")
    if baseline:
        other: Baseline | None = read_baseline(baseline, out, summary)
        remember_baseline(baseline, out)
    else:
        other = remembered_baseline(out, summary)
    write_report(out, summary, classes_of(out), other)
    write_card(out, summary, card or config.CardConfig())


def write_report(
    out: Path, summary: Summary, classes: list[str], baseline: Baseline | None = None
) -> None:
    """Write out/report.md and its pictures, and out/report.html.

    The pictures are curve.png (for threats with several budgets), one per file of clips/*.npz,
    retrieval.png, calibration.png, corruptions.png and corruption_curves.png.

    Args:
        out: folder of the evaluation.
        summary: what it measured.
        classes: names of the classes.
        baseline: another evaluation, for report.html.

    Raises:
        UserError: as `markdown.repeatable` does.
    """
    with markdown.repeatable(out / "report.md", "tools/test_net.py --report-only"):
        _write_report(out, summary, classes, baseline)


def _write_report(
    out: Path, summary: Summary, classes: list[str], baseline: Baseline | None
) -> None:
    """Write the reports and their pictures."""
    # Pictures come first, as the text links to those that exist.
    has_curve = _draw_curves(out / "curve.png", summary)
    pictures = [_draw_clip(path, classes) for path in _some_clips(out / "clips")]
    title = f"{summary.dataset}, {summary.split}: {_done(summary)}"
    sections = _sections(out, summary)
    lines = [
        f"# {markdown.escape(title)}",
        "",
        (
            f"Checkpoint: {summary.checkpoint}; norm branch {markdown.code(summary.branch)};"
            f" chance {percent(summary.chance)}."
        ),
        "",
        *sections["model"],
        *sections["representation"],
        *sections["retrieval"],
        *sections["attacks"],
        *(["![robust accuracy](curve.png)", ""] if has_curve else []),
        *(markdown.image(p.stem, f"clips/{p.name}") + "\n" for p in pictures),
        *sections["transfer"],
        *sections["calibration"],
        *corruption_lines(out, summary.corruption),
        *sections["natural"],
        *sections["cues"],
        *sections["geometry"],
        *(["## Warnings", ""] if summary.warnings else []),
        *(f"- {markdown.escape(warning)}" for warning in summary.warnings),
    ]
    markdown.write(out / "report.md", lines)
    write_html(out, summary, classes, sections, baseline)


def _sections(out: Path, summary: Summary) -> dict[str, list[str]]:
    """Return the sections that report.md and report.html share; they also draw their pictures.

    They are in the order of report.html.

    Args:
        out: folder of the evaluation.
        summary: what it measured.
    """
    representation = [
        "## Representation",
        "",
        (
            f"Accuracy over {summary.views['representation']} views (clips x crops) of each test"
            f" video, {summary.view_average} averaged; 95 % intervals, of means over classes by"
            " bootstrap, otherwise Wilson's."
        ),
        "",
        *_protocol_lines(summary),
        *representation_lines(out, summary),
        *_published_lines(summary),
    ]
    return {
        "cues": bias_lines(summary.bias),
        "natural": [*shift_lines(summary.shift), *open_set_lines(summary.open_set)],
        "geometry": geometry_lines(summary.geometry, summary.sensitivity),
        "representation": representation,
        "model": _model_lines(summary),
        "retrieval": retrieval_lines(out, summary.retrieval),
        "attacks": _attack_lines(out, summary) if summary.curve else [],
        "transfer": transfer_lines(summary.transfer),
        "calibration": calibration_lines(out, summary.calibration),
    }


# --- Text ---


def _done(summary: Summary) -> str:
    """Return what was done, and with how many videos, for the title."""
    done = {
        "attacked": summary.curve,
        "corrupted": summary.corruption,
        "shown without cues": summary.bias,
        "compared with another data set": summary.shift or summary.open_set,
    }
    names = " and ".join(name for name, result in done.items() if result)
    if summary.transfer:
        # as many as others have attacked, and not those of eval.limit
        others = f"{summary.transfer[0].n} adversarial clips of other models"
        return f"{summary.n} videos {names}, {others}" if names else others
    if not summary.retrieval:
        return f"{summary.n} videos {names}".rstrip()
    # all test videos are queries, and not only those of eval.limit
    retrieval = f"retrieval with {summary.retrieval.n} queries"
    return f"{summary.n} videos {names}, {retrieval}" if names else retrieval


def _protocol_lines(summary: Summary) -> list[str]:
    """Return a paragraph on the protocol and its training videos."""
    sentences = []
    if summary.protocol not in ("", "auto"):
        sentences.append(f"Protocol {markdown.code(summary.protocol)}.")
    if summary.labels:
        sentences.append(
            f"kNN and probes learn from {summary.train_videos} training videos"
            f" (data.labels={markdown.escape(summary.labels)})."
        )
    return [" ".join(sentences), ""] if sentences else []


def _model_lines(summary: Summary) -> list[str]:
    """Return a paragraph on size and cost of the model; none for files of earlier revisions."""
    sentences = []
    if summary.model:
        size = parameters_text(summary.model.parameters)
        cost = summary.model.text()
        sentences.append(f"Model: {size}, {cost}." if cost else f"Model: {size}.")
    if summary.input:
        sentences.append(f"Input: {markdown.escape(summary.input.text())}.")
    if summary.precise_bn:
        sentences.append(
            f"Batch-norm statistics: recomputed from {summary.precise_bn} training clips."
        )
    if summary.bf16:
        sentences.append("Precision: the backbone computed in bf16 (eval.amp).")
    return [" ".join(sentences), ""] if sentences else []


def _published_lines(summary: Summary) -> list[str]:
    """Return our accuracy beside the published one, where the model's authors report one."""
    both = published_beside(summary)
    if both is None:
        return []
    published, acc = both
    details = [f"{published.views} views"] if published.views else []
    details += [markdown.escape(published.source)] if published.source else []
    return [
        f"Own head here {percent(acc)}, published {percent(published.acc)}"
        + (f" ({', '.join(details)})." if details else "."),
        "",
    ]


def _attack_lines(out: Path, summary: Summary) -> list[str]:
    """Return the section about attacks."""
    after_h264 = ""
    if summary.clean_acc_h264 is not None:
        after_h264 = f" ({percent(summary.clean_acc_h264)} after H.264)"
    return [
        "## Adversarial robustness",
        "",
        (
            f"{summary.suite} on the {summary.classifier}{_passes(summary)};"
            f" {_UNITS[summary.unit]} (views {summary.views['attack']}). Perturbations are measured"
            " on the pixels of every adversarial clip."
        ),
        "",
        *_threat_rows(summary.curve),
        "",
        (
            f"Clean accuracy of the attacked classifier: {percent(summary.clean_acc)}"
            f"{after_h264}. Robust accuracy against all of these threats:"
            f" {percent(summary.robust_acc)} ({percent(summary.robust_acc_uint8)} after"
            " rounding). A video broken at one budget counts as broken at larger budgets of the"
            " same threat. It is not attacked again, and its perturbation keeps its size."
            f"{_UNCHECKED if summary.checks == 0 else ''}"
        ),
        "",
        *_median_lines(summary.median_norm),
        *_attack_table(summary.curve, timings(out)),
    ]


def _passes(summary: Summary) -> str:
    """Return how often a random model was run for each prediction; "" for once."""
    return f", averaged over {summary.eot} passes (EOT)" if summary.eot > 1 else ""


def _size(norm: str, size: float) -> str:
    """Format the size of a perturbation, in units of 1/255 for Linf."""
    return f"{size * 255:.3g}/255" if norm == "linf" and 0 < size < 1 else f"{size:.3g}"


def _threat_rows(curve: list[CurvePoint]) -> list[str]:
    """Return the table of robust accuracy, with a row per threat."""
    # The column of H.264 is left out where it was not measured.
    has_h264 = any(c.robust_acc_h264 is not None for c in curve)
    titles = [
        "threat",
        "robust accuracy",
        "95 % interval",
        "after rounding to uint8",
        *(["after H.264"] if has_h264 else []),
        "largest change before rounding",
    ]
    rows = [
        [
            c.threat,
            percent(c.robust_acc),
            f"{between(c.ci95)} %",
            percent(c.robust_acc_uint8),
            *([percent(c.robust_acc_h264)] if has_h264 else []),
            _size(c.norm, c.max_measured),
        ]
        for c in curve
    ]
    return markdown.table(titles, *rows)


def _median_lines(norms: dict[str, float | None] | None) -> list[str]:
    """Return a sentence with the change that breaks half of the correctly classified videos."""
    medians = []
    for kind, size in (norms or {}).items():
        # The kind of a threat ends with its norm.
        norm = kind.rpartition("-")[2]
        text = "beyond the largest budget" if size is None else _size(norm, size)
        medians.append(f"{kind} {text}")
    if not medians:
        return []
    return [
        f"Median smallest change that breaks a correctly classified video: {'; '.join(medians)}.",
        "",
    ]


def _attack_table(curve: list[CurvePoint], seconds: dict[str, dict[str, float]]) -> list[str]:
    """Return the table of what each attack broke, and what it cost.

    Args:
        curve: entries of the threats.
        seconds: threat -> attack -> seconds.
    """
    rows = []
    for c in curve:
        threat = c.threat
        for name, (forward, backward) in c.passes.items():
            broken = c.killed_by.get(name, 0)
            duration = seconds.get(threat, {}).get(name, 0.0)
            rows.append([threat, name, str(broken), str(forward), str(backward), f"{duration:.1f}"])
    titles = [
        "threat",
        "attack",
        "videos broken so far",
        "forward passes",
        "backward passes",
        "seconds",
    ]
    return [*markdown.table(titles, *rows), ""] if rows else []


# --- Figure of robust accuracy ---


def _draw_curves(path: Path, summary: Summary) -> bool:
    """Draw a panel per kind of threat with several budgets; return whether there is one."""
    kinds: dict[tuple[str, str], list[CurvePoint]] = {}
    for c in summary.curve:
        kinds.setdefault((c.norm, c.kind), []).append(c)
    several = {kind: curve for kind, curve in kinds.items() if len(curve) > 1}
    if not several:
        # A report that is written again may have had a curve before.
        path.unlink(missing_ok=True)
        return False
    figure = drawing.new_figure(5 * len(several), 3.4, dpi=150)
    panels = figure.subplots(1, len(several), squeeze=False)[0]
    for axes, ((norm, name), curve) in zip(panels, several.items(), strict=True):
        _draw_curve(axes, summary, curve, norm, name)
    drawing.save(figure, path)
    return True


def _draw_curve(axes: Any, summary: Summary, curve: list[CurvePoint], norm: str, name: str) -> None:
    """Draw robust accuracy by budget.

    Args:
        axes: the panel.
        summary: the summary, for the title and the accuracy of chance.
        curve: entries of the threats of this kind.
        norm: norm of the threats.
        name: kind of the threats.
    """
    unit = 255 if norm == "linf" else 1
    eps = [unit * c.eps for c in curve]
    axes.fill_between(
        eps,
        [100 * c.ci95[0] for c in curve],
        [100 * c.ci95[1] for c in curve],
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(
        eps,
        [100 * c.robust_acc for c in curve],
        marker="o",
        label="robust accuracy, 95 % interval",
    )
    axes.plot(
        eps,
        [100 * c.robust_acc_uint8 for c in curve],
        marker="x",
        linestyle=":",
        label="after rounding to uint8",
    )
    axes.axhline(100 * summary.chance, color="gray", linestyle="--", linewidth=1, label="chance")
    budget = f"budget, {name}{', /255' if norm == 'linf' else ''}"
    axes.set(xlabel=drawing.label(budget), ylabel="accuracy, %", ylim=(0, 102), xlim=(0, None))
    title = f"{summary.dataset}, {summary.suite}, n = {summary.n}"
    axes.set_title(drawing.label(title), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


# --- Pictures of adversarial clips ---


def _some_clips(folder: Path) -> list[Path]:
    """Return the files of the first clips of each kind of threat; their names end in a number."""
    by_kind: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.npz")):
        by_kind.setdefault(path.stem.rpartition("-")[0], []).append(path)
    return [path for paths in by_kind.values() for path in paths[:_CLIPS]]


def _frames_to_show(difference: np.ndarray, most: int = _FRAMES) -> np.ndarray:
    """Choose at most `most` frames, spread evenly, changed frames first.

    Frames without a change show nothing about the attack; they only fill the remaining places.

    Args:
        difference: adversarial clip minus clip, (C, T, H, W).
        most: largest number of frames.

    Returns:
        Numbers of the frames, in order.
    """
    changed = np.flatnonzero(np.abs(difference).max((0, 2, 3)) > _VISIBLE)
    every = np.arange(difference.shape[1])
    candidates = np.concatenate([_spread_evenly(changed, most), _spread_evenly(every, most)])
    kept = list(dict.fromkeys(candidates.tolist()))[:most]
    return np.array(sorted(kept))


def _spread_evenly(numbers: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the numbers, spread evenly."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers)))
    return numbers[places.round().astype(int)]


def _draw_clip(path: Path, classes: list[str]) -> Path:
    """Draw a clip, its adversarial twin and their amplified difference, frame by frame.

    Args:
        path: the .npz file of the clip; the picture is written next to it.
        classes: names of the classes.

    Returns:
        Path of the picture.
    """
    with np.load(path) as saved:
        clip = saved["clip"] / 255.0
        twin = saved["adversarial"].astype(np.float64)
        clean_class = drawing.label(class_name(classes, int(saved["clean_pred"])))
        adv_class = drawing.label(class_name(classes, int(saved["adv_pred"])))
        uid = str(saved["uid"])
        threat = str(saved["threat"])
    difference = twin - clip
    frames = _frames_to_show(difference)
    # The largest difference is drawn as black or white, and none as gray.
    gain = 0.5 / max(float(np.abs(difference).max()), 1e-9)
    rows = [
        (f"clip\n{clean_class}", clip),
        (f"adversarial\n{adv_class}", twin),
        (f"difference\nx {gain:.3g}", 0.5 + gain * difference),
    ]

    figure = drawing.new_figure(1.3 * len(frames) + 1.2, 4.4, dpi=120)
    grid = figure.subplots(3, len(frames), squeeze=False)
    for line, (title, images) in zip(grid, rows, strict=True):
        for axes, t in zip(line, frames, strict=True):
            axes.imshow(images[:, t].transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=9)
    for axes, t in zip(grid[0], frames, strict=True):
        axes.set_title(f"frame {t}", fontsize=8)
    across = int(9 * figure.get_figwidth())  # characters that fit into a line
    heading = textwrap.wrap(visible(f"{uid}  ({threat})"), across)
    figure.suptitle("\n".join(drawing.label(line) for line in heading), fontsize=10)
    picture = path.with_suffix(".png")
    drawing.save(figure, picture)
    return picture

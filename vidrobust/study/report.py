"""Write study.md and study.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidrobust.evaluation.report import tables as markdown
from vidrobust.study.arm_table import Runs, summarise
from vidrobust.study.figures import draw_margins, draw_robust, draw_space
from vidrobust.study.plan import Study
from vidrobust.utils.atomic_files import replacing

_FIGURES = {"robust": draw_robust, "space": draw_space, "margins": draw_margins}
_GEOMETRY = (
    "alignment",
    "uniformity",
    "tolerance",
    "centroid_mean",
    "margin_mean",
    "radius",
    "fisher",
    "effective_rank",
)


def write_study(
    study: Study, runs: Runs, out: Path, missing: int = 0, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """out/study.json, study.md and the figures, of the runs there are; returns what `summarise`
    finds.

    Where the command line asks for another eval.name, it stands in each file's name
    (`report_name`). missing: runs of the study's page that are not there, which the report says.
    overrides: the command line's options. Raises UserError as `markdown.repeatable` does.
    """
    again = "the same command, which runs nothing again that is finished"
    with markdown.repeatable(out / f"{report_name(study, overrides)}.md", again):
        return _write_study(study, runs, out, missing, overrides)


def _write_study(
    study: Study, runs: Runs, out: Path, missing: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """Write the files of a study."""
    found = summarise(study, runs)
    out.mkdir(parents=True, exist_ok=True)
    name = report_name(study, overrides)
    tail = name.removeprefix("study")
    with replacing(out / f"{name}.json") as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())
    lines = [f"# {markdown.escape(study.page.stem)}: {len(runs)} runs", ""]
    lines += (
        [f"Not finished: {missing} of {missing + len(runs)} runs of the page.", ""]
        if missing
        else []
    )
    lines += _options(study, overrides)
    for dataset, table in found.items():
        here = [(arm, summary) for arm, summary in runs if arm.dataset == dataset]
        files = {
            kind: f"{dataset}_{kind}{tail}.png"
            for kind, draw in _FIGURES.items()
            if draw(out / f"{dataset}_{kind}{tail}.png", here, table)
        }
        lines += [
            *_heading(study, dataset, here, overrides),
            *_section(study, here, table),
            *(markdown.image(f"{dataset}: {kind}", file) + "\n" for kind, file in files.items()),
        ]
    markdown.write(out / f"{name}.md", lines)
    return found


def report_name(study: Study, overrides: Sequence[str]) -> str:
    """Of the files that `write_study` writes: study, or study_NAME where another eval.name is asked
    for.
    """
    asked = [
        word for word in overrides if word.startswith("eval.name=") and word not in study.common
    ]
    return f"study_{asked[-1].split('=', 1)[1]}" if asked else "study"


def _options(study: Study, overrides: Sequence[str]) -> list[str]:
    common = _kept(study.common, overrides)
    lines = [f"Options of all runs: {_code(common)}.", ""] if common else []
    lines += [f"Over all, from the command line: {_code(overrides)}.", ""] if overrides else []
    arms = ([name, _code(words) or "-"] for name, words in study.arms.items())
    return [*lines, *markdown.table(["arm", "its options"], *arms), ""]


def _kept(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    over = {word.split("=", 1)[0] for word in overrides}
    return [word for word in words if word.split("=", 1)[0] not in over]


def _code(words: Sequence[str]) -> markdown.Markup:
    return markdown.Markup(" ".join(markdown.code(word) for word in words))


def _heading(study: Study, dataset: str, runs: Runs, overrides: Sequence[str]) -> list[str]:
    """The data set, its options, what was attacked, and each warning of the evaluations, once, with
    its runs.
    """
    first = runs[0][1]
    attacked: dict[str, list[str]] = {}
    doubts: dict[str, list[str]] = {}
    for arm, summary in runs:
        attacked.setdefault(summary["classifier"], []).append(arm.name)
        for line in summary["warnings"]:
            doubts.setdefault(line, []).append(f"{arm.name} {arm.seed}")
    whose = "; ".join(
        f"the {what} of {', '.join(dict.fromkeys(names))}" for what, names in attacked.items()
    )
    own = _kept(study.options.get(dataset, ()), overrides)
    lines = [
        f"## {markdown.escape(dataset)}",
        "",
        *([f"Its own options: {_code(own)}.", ""] if own else []),
    ]
    suite = first["suite"] or "not attacked"
    verb = "Attacked" if first["suite"] else "Classified by"
    measured = f"{first['n']} test videos, {suite}; chance {100 * first['chance']:.1f} %."
    lines += [f"{measured} {verb}: {markdown.escape(whose)}.", ""]
    concerned = {
        line: "all runs" if len(names) == len(runs) else ", ".join(names)
        for line, names in doubts.items()
    }
    lines += (
        [
            "Warnings, and the runs (arm and seed) that they are of:",
            "",
            *(f"- {markdown.escape(f'{line}: {names}')}" for line, names in concerned.items()),
            "",
        ]
        if doubts
        else []
    )
    return lines


def _section(study: Study, runs: Runs, table: dict[str, Any]) -> list[str]:
    threats = [c["threat"] for c in runs[0][1]["curve"] if c["eps"] > 0]
    shares = {
        "probe": "probe",
        "clean": "clean",
        **{f"robust {t}": t for t in threats},
        "mpc": "mpc",
    }
    lines = [
        (
            "Accuracies, per cent: mean over seeds ± half of its 95 % interval (Student's t, which"
            " for two seeds is 9 times their standard deviation), [standard deviation]. probe:"
            " linear probe over all clips; clean: of what is attacked; then by budget; mpc: mean"
            " after corruptions."
        ),
        "",
        *_rows(table, {"n": "seeds"} | shares, 100, 1),
        "",
    ]
    apart = {name: row["difference"] for name, row in table.items() if row["difference"]}
    if apart:
        baseline = markdown.escape(study.baseline)
        lines += [
            f"Less {baseline}'s of the same seed, points:",
            "",
            *_rows(apart, shares, 100, 1),
            "",
        ]
    lines += (
        [
            "Of videos that are right, those that the attack breaks, per cent:",
            "",
            *_rows(table, {f"success {t}": t for t in threats}, 100, 1),
            "",
        ]
        if threats
        else []
    )
    lines += [
        (
            "Geometry of test features (docs/methods.md; a collapsed representation has a low rank"
            " and a uniformity near 0), and rpc, the share of clean accuracy that corruptions"
            " leave:"
        ),
        "",
        *_rows(table, {key: key for key in (*_GEOMETRY, "rpc")}, 1, 3),
        "",
    ]
    return lines + _looks(table) + _removal(table) + _gaps(study, table)


def _looks(table: dict[str, Any]) -> list[str]:
    """Accuracies where a cue is taken away, biases, and shift; none where none was measured."""
    names = dict.fromkeys(
        key for row in table.values() for key in row if key.startswith(("acc ", "bias "))
    )
    shift = {"shift": "shift"} if any("shift" in row for row in table.values()) else {}
    if not names and not shift:
        return []
    accs = {key: key.removeprefix("acc ") for key in names if key.startswith("acc ")}
    lines = [
        (
            "What it looks at (docs/methods.md): accuracy, per cent, on clips that lack a cue;"
            " shift: on another data set's videos of the same classes:"
        ),
        "",
        *_rows(table, shift | accs, 100, 1),
        "",
    ]
    biases = {key: key.removeprefix("bias ") for key in names if key.startswith("bias ")}
    return lines + (
        [
            (
                "Bias toward the first of two cues that disagree, 0 to 1, on the videos where they"
                " do (a run's report says how many):"
            ),
            "",
            *_rows(table, biases, 1, 2),
            "",
        ]
        if biases
        else []
    )


def _removal(table: dict[str, Any]) -> list[str]:
    removing = {name: row for name, row in table.items() if "fn_removed last" in row}
    keys = {
        f"fn_{what} {when}": f"{what}, {when} epoch"
        for what in ("removed", "precision", "recall")
        for when in ("first", "last")
    }
    return (
        [
            (
                "False negatives, per cent: share of negatives found, how many of these have the"
                " same label (precision), how many of those with the same label are found (recall):"
            ),
            "",
            *_rows(removing, keys, 100, 1),
            "",
        ]
        if removing
        else []
    )


def _gaps(study: Study, table: dict[str, Any]) -> list[str]:
    """Rows of arms that are neither baseline nor comparator, and a sentence for a comparator
    without a gap.
    """
    lines, rows = [], []
    for other in study.comparators:
        closed = {
            name: row["gap_closed"][other]
            for name, row in table.items()
            if other in row["gap_closed"]
        }
        if any(value is not None for gaps in closed.values() for value in gaps.values()):
            rows += [
                [
                    name,
                    other,
                    *(
                        _gap(value, table[other]["difference"][f"robust {key}"])
                        for key, value in gaps.items()
                    ),
                ]
                for name, gaps in closed.items()
                if name not in study.comparators
            ]
        elif closed:
            names = [markdown.escape(name) for name in (other, study.baseline)]
            lines += [
                (
                    f"The mean robust accuracy of {names[0]} is above {names[1]}'s at no budget: "
                    "it leaves no gap to "
                    "close."
                ),
                "",
            ]
    if not rows:
        return lines
    titles = next(closed for row in table.values() for closed in row["gap_closed"].values())
    return [
        *lines,
        (
            "Gap to the comparator's robust accuracy that is closed, per cent; - where the"
            " comparator is not above the baseline, in brackets where one seed or an interval that"
            " holds 0 leaves the gap in doubt:"
        ),
        "",
        *markdown.table(["arm", "comparator", *titles], *rows),
        "",
    ]


def _gap(closed: float | None, gap: dict[str, Any]) -> str:
    if closed is None:
        return "-"
    certain = gap["half"] is not None and gap["mean"] > gap["half"]
    return f"{closed:.0f}" if certain else f"({closed:.0f})"


def _rows(
    table: dict[str, dict[str, Any]], keys: dict[str, str], scale: float, digits: int
) -> list[str]:
    """A table of arm -> spreads by measure; keys: measure -> title of its column."""
    rows = (
        [name, *(_cell(row.get(key), scale, digits) for key in keys)] for name, row in table.items()
    )
    return markdown.table(["arm", *keys.values()], *rows)


def _cell(found: Any, scale: float, digits: int) -> str:
    """A spread, a count, or nothing."""
    if not isinstance(found, dict):
        return "-" if found is None else str(found)
    mean = f"{scale * found['mean']:.{digits}f}"
    if found["half"] is None:
        return mean
    return f"{mean} ± {scale * found['half']:.{digits}f} [{scale * found['std']:.{digits}f}]"

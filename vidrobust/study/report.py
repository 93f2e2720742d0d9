"""Write study.md, study.json, study.html and, if asked for, study.csv and study.tex."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from vidrobust.evaluation.report import tables as markdown
from vidrobust.study.arm_table import Spread, Table, summarise
from vidrobust.study.figures import (
    draw_dial,
    draw_distances,
    draw_margins,
    draw_robust,
    draw_space,
)
from vidrobust.study.plan import Study
from vidrobust.study.study_export import csv_text, latex_text
from vidrobust.study.study_page import write_study_page
from vidrobust.study.study_text import (
    Runs,
    accuracies,
    classifiers,
    gap_lines,
    warnings_of,
    without_overridden,
)
from vidrobust.study.tuned_runs import tuning_lines
from vidrobust.study.verdicts import verdict_lines, verdicts, write_verdicts
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.readable import percent

# Ending of a file that is written if asked for -> its text.
EXPORTS = {"csv": csv_text, "tex": latex_text}
_FIGURES = {
    "robust": draw_robust,
    "space": draw_space,
    "margins": draw_margins,
    "distances": draw_distances,
}
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

_PRECISION = " mAP: mean average precision of the linear probe, of videos with several labels each."

# Arm -> measure -> its spread over seeds.
Spreads = dict[str, dict[str, Spread]]


# --- Files ---


def write_study(
    study: Study,
    runs: Runs,
    out: Path,
    missing: int = 0,
    overrides: Sequence[str] = (),
    extra: Collection[str] = (),
) -> dict[str, Table]:
    """Write out/study.json, study.md, study.html and the figures of the finished runs.

    If the command line asks for another eval.name, the names of the files contain it
    (`report_name`).

    Args:
        study: the study.
        runs: the finished runs.
        out: folder of the study.
        missing: number of runs that are not finished; the report states it.
        overrides: options of the command line.
        extra: names of `EXPORTS`, the files that are written too.

    Returns:
        What `summarise` returns.

    Raises:
        UserError: as `markdown.repeatable` and `write_study_page` do.
    """
    command = "the same command, which repeats no finished run"
    name = report_name(study, overrides)
    found = verdicts(study, runs) if study.claims else []
    above = [*verdict_lines(found), *tuning_lines(out)]
    with markdown.repeatable(out / f"{name}.md", command):
        tables = _write_study(study, runs, out, missing, overrides, above)
        if study.claims:
            write_verdicts(out / f"verdicts{name.removeprefix('study')}.json", found)
    for suffix, text_of in EXPORTS.items():
        if suffix in extra:
            path = out / f"{name}.{suffix}"
            with markdown.repeatable(path, command), replacing(path) as file:
                file.write(text_of(study, runs, tables).encode("utf-8", "backslashreplace"))
    with markdown.repeatable(out / f"{name}.html", command):
        write_study_page(out / f"{name}.html", study, runs, tables, missing, overrides, above)
    return tables


def _write_study(
    study: Study,
    runs: Runs,
    out: Path,
    missing: int,
    overrides: Sequence[str],
    above: Sequence[str],
) -> dict[str, Table]:
    """Write study.json, study.md and its figures.

    Args:
        study: see `write_study`, and also for the other arguments.
        runs: the finished runs.
        out: folder of the study.
        missing: number of runs that are not finished.
        overrides: options of the command line.
        above: Markdown to show above the data sets.
    """
    tables = summarise(study, runs)
    out.mkdir(parents=True, exist_ok=True)
    name = report_name(study, overrides)
    suffix = name.removeprefix("study")
    # The numbers come first, so that a figure that fails loses none of them.
    numbers = {
        dataset: {arm: result.to_json() for arm, result in table.items()}
        for dataset, table in tables.items()
    }
    with replacing(out / f"{name}.json") as file:
        file.write((json.dumps(numbers, indent=2) + "\n").encode())
    lines = [f"# {markdown.escape(study.config_file.stem)}: {len(runs)} runs", ""]
    if missing:
        lines += [f"Not finished: {missing} of {missing + len(runs)} runs of the study.", ""]
    lines += _options(study, overrides)
    lines += above
    for number, claim in enumerate(study.claims):
        for place, measure in enumerate(claim.measures if claim.dial else ()):
            picture = f"dial_{number}_{place}{suffix}.png"
            if draw_dial(out / picture, claim, measure, tables):
                lines.append(markdown.image(f"{claim.name}: {measure}", picture) + "\n")
    for dataset, table in tables.items():
        dataset_runs = [run for run in runs if run.arm.dataset == dataset]
        lines += _heading(study, dataset, dataset_runs, overrides)
        lines += _section(study, dataset_runs, table)
        for kind, draw in _FIGURES.items():
            picture = f"{dataset}_{kind}{suffix}.png"
            if draw(out / picture, dataset_runs, table):
                lines.append(markdown.image(f"{dataset}: {kind}", picture) + "\n")
    markdown.write(out / f"{name}.md", lines)
    return tables


def report_name(study: Study, overrides: Sequence[str]) -> str:
    """Return the name of the files that `write_study` writes.

    It is "study", or "study_NAME" if the command line asks for another eval.name.
    """
    # An option that the study itself sets is no other name.
    asked = [
        option
        for option in overrides
        if option.startswith("eval.name=") and option not in study.common
    ]
    return f"study_{asked[-1].split('=', 1)[1]}" if asked else "study"


# --- Options, data set and warnings ---


def _options(study: Study, overrides: Sequence[str]) -> list[str]:
    """Return the options of all runs, and a table of those of each arm."""
    common = without_overridden(study.common, overrides)
    lines = [f"Options of all runs: {_code(common)}.", ""] if common else []
    if overrides:
        lines += [f"Overridden on the command line: {_code(overrides)}.", ""]
    arms = ([name, _code(options) or "-"] for name, options in study.arms.items())
    return [*lines, *markdown.table(["arm", "options of the arm"], *arms), ""]


def _code(options: Sequence[str]) -> markdown.Markup:
    """Return options as code spans."""
    return markdown.Markup(" ".join(markdown.code(option) for option in options))


def _heading(study: Study, dataset: str, runs: Runs, overrides: Sequence[str]) -> list[str]:
    """Return the heading of a data set: its options, what was attacked, and warnings.

    Args:
        study: the study.
        dataset: name of the data set.
        runs: its runs.
        overrides: options of the command line.
    """
    lines = [f"## {markdown.escape(dataset)}", ""]
    options = without_overridden(study.options.get(dataset, ()), overrides)
    if options:
        lines += [f"Options of this data set: {_code(options)}.", ""]
    first = runs[0].summary
    suite = first.suite or "not attacked"
    verb = "Attacked" if first.suite else "Classified by"
    lines += [
        (
            f"{first.n} test videos, {suite}; chance {percent(first.chance)}."
            f" {verb}: {markdown.escape(classifiers(runs))}."
        ),
        "",
    ]
    return lines + _warnings(runs)


def _warnings(runs: Runs) -> list[str]:
    """Return the list of the evaluations' warnings."""
    items = warnings_of(runs)
    if not items:
        return []
    lines = ["Warnings, each with its runs (arm and seed):", ""]
    return [*lines, *(f"- {markdown.escape(item)}" for item in items), ""]


# --- Tables of a data set ---


def _section(study: Study, runs: Runs, table: Table) -> list[str]:
    """Return the tables of a data set.

    Args:
        study: the study.
        runs: runs of the data set.
        table: arm -> its result.
    """
    measures = {name: result.measures for name, result in table.items()}
    columns = accuracies(runs)
    threats = [key.removeprefix("robust ") for key in columns if key.startswith("robust ")]
    # Accuracies, and their differences from the baseline.
    lines = [
        (
            "Accuracies, per cent: mean over seeds ± half of its 95 % interval [standard"
            " deviation]. The interval is by Student's t; for two seeds, half of it is 9 times"
            " their standard deviation. probe: linear probe over all clips; clean: the attacked"
            " classifier; then its robust accuracy by budget; mpc: mean under corruptions."
            f"{_PRECISION if 'mAP' in columns else ''}"
        ),
        "",
        *_rows(measures, columns, 100, 1, {name: result.n for name, result in table.items()}),
        "",
    ]
    differences = {name: result.difference for name, result in table.items() if result.difference}
    if differences:
        baseline = markdown.escape(study.baseline)
        lines += [
            f"Difference from {baseline} with the same seed, percentage points:",
            "",
            *_rows(differences, columns, 100, 1),
            "",
        ]
    # Success of the attacks.
    if threats:
        lines += [
            "Correctly classified videos that the attack breaks, per cent:",
            "",
            *_rows(measures, {f"success {t}": t for t in threats}, 100, 1),
            "",
        ]
    # Geometry, and what is left under corruptions.
    lines += [
        (
            "Geometry of test features (docs/measures.md; a collapsed representation has a low rank"
            " and a uniformity near 0). rpc: fraction of clean accuracy that is left under"
            " corruptions."
        ),
        "",
        *_rows(measures, {key: key for key in (*_GEOMETRY, "rpc")}, 1, 3),
        "",
    ]
    return lines + _cues(measures) + _removal(measures) + gap_lines(study, table)


def _cues(table: Spreads) -> list[str]:
    """Return the tables of cues, biases and shift; no lines if none was measured."""
    # Columns of all views that some arm was measured on, in the order of first appearance.
    names: dict[str, None] = {}
    for row in table.values():
        names |= dict.fromkeys(key for key in row if key.startswith(("acc ", "bias ")))
    shift = {"shift": "shift"} if any("shift" in row for row in table.values()) else {}
    if not names and not shift:
        return []
    accuracies = {key: key.removeprefix("acc ") for key in names if key.startswith("acc ")}
    lines = [
        (
            "Cues that the model uses (docs/measures.md): accuracy, per cent, on clips without a"
            " cue. shift: on another data set's videos of the same classes."
        ),
        "",
        *_rows(table, shift | accuracies, 100, 1),
        "",
    ]
    biases = {key: key.removeprefix("bias ") for key in names if key.startswith("bias ")}
    if biases:
        lines += [
            (
                "Bias toward the first of two cues that disagree, 0 to 1, on the videos where they"
                " do (the report of a run has their number):"
            ),
            "",
            *_rows(table, biases, 1, 2),
            "",
        ]
    return lines


def _removal(table: Spreads) -> list[str]:
    """Return the table of the removal of false negatives; no lines if no arm removes any."""
    removing = {name: row for name, row in table.items() if "fn_removed last" in row}
    if not removing:
        return []
    columns = {}
    for measure in ("removed", "precision", "recall"):
        for when in ("first", "last"):
            columns[f"fn_{measure} {when}"] = f"{measure}, {when} epoch"
    return [
        (
            "False negatives, per cent. removed: fraction of negatives that are detected as false;"
            " precision: fraction of these that have the same label; recall: fraction of the"
            " negatives with the same label that are detected."
        ),
        "",
        *_rows(removing, columns, 100, 1),
        "",
    ]


def _rows(
    table: Spreads,
    columns: dict[str, str],
    scale: float,
    digits: int,
    seeds: dict[str, int] | None = None,
) -> list[str]:
    """Return a table with a row per arm.

    Args:
        table: arm -> measure -> its spread.
        columns: measure -> title of its column.
        scale: factor of the numbers, such as 100 for per cent.
        digits: digits after the decimal point.
        seeds: arm -> number of seeds, for a column in front.
    """
    rows = []
    for name, spreads in table.items():
        cells = [_cell(spreads.get(key), scale, digits) for key in columns]
        rows.append([name, *([str(seeds[name])] if seeds else []), *cells])
    titles = ["arm", *(["seeds"] if seeds else []), *columns.values()]
    return markdown.table(titles, *rows)


def _cell(spread: Spread | None, scale: float, digits: int) -> str:
    """Format a spread, or a missing one.

    Args:
        spread: of a measure.
        scale: factor of its numbers.
        digits: digits after the decimal point.
    """
    if spread is None:
        return "-"
    mean = f"{scale * spread.mean:.{digits}f}"
    if spread.half is None or spread.std is None:
        return mean
    return f"{mean} ± {scale * spread.half:.{digits}f} [{scale * spread.std:.{digits}f}]"

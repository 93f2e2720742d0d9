"""Write study.html: a study in one file, with intervals, figures and links to its runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from vidrobust.evaluation.report.page import LARGEST, html_of, render, write_page
from vidrobust.study.arm_columns import ArmTable, SeedTable, arm_columns, seed_tables
from vidrobust.study.arm_figures import (
    Figure,
    margin_figure,
    palette,
    robust_figures,
    space_figure,
)
from vidrobust.study.arm_table import FinishedRun, Table, measures_by_seed
from vidrobust.study.plan import Study
from vidrobust.study.study_text import (
    Runs,
    accuracies,
    classifiers,
    gap_lines,
    warnings_of,
    without_overridden,
)
from vidrobust.study.study_verdict import MainMeasure, main_measure, study_verdict
from vidrobust.utils.errors import UserError
from vidrobust.utils.readable import percent

# Measures that are shown seed by seed for each data set; fewer if the page would be too large.
_DETAILS = (8, 3, 1, 0)


@dataclass(frozen=True)
class ArmRuns:
    """The options of an arm, and seed -> address of the report of its run, "" if there is none."""

    name: str
    options: Sequence[str]
    reports: Mapping[int, str]


@dataclass(frozen=True)
class DatasetPart:
    """The part of a page about one data set.

    Attributes:
        name: of the data set.
        options: of its runs.
        text: what was measured.
        main: the measure that decides.
        arms: the table of arms.
        seeds: tables seed by seed.
        left_out: measures that are not shown seed by seed.
        curves: robust accuracy by budget.
        figures: the others.
        gaps: the table of gaps that arms close.
        runs: the arms with links to the reports of their runs.
    """

    name: str
    options: Sequence[str]
    text: str
    main: MainMeasure
    arms: ArmTable
    seeds: Sequence[SeedTable]
    left_out: Sequence[str]
    curves: Sequence[Figure]
    figures: Sequence[Figure]
    gaps: Markup
    runs: Sequence[ArmRuns]


def write_study_page(
    path: Path,
    study: Study,
    runs: Runs,
    tables: Mapping[str, Table],
    missing: int = 0,
    overrides: Sequence[str] = (),
    above: Sequence[str] = (),
) -> None:
    """Write study.html.

    Args:
        path: the page; the reports of the runs are linked relative to its folder.
        study: the study.
        runs: the finished runs; without any, the page says so.
        tables: data set -> what `summarise` returns for it.
        missing: number of runs that are not finished.
        overrides: options of the command line.
        above: Markdown to show above the data sets: verdicts on claims, and options chosen.

    Raises:
        UserError: if the page would be too large even without tables seed by seed.
    """
    for details in _DETAILS:
        text = _page(path, study, runs, tables, missing, overrides, above, details)
        size = len(text.encode())
        if size <= LARGEST:
            write_page(path, text)
            return
    raise UserError(
        f"{path}: the page would have {size} bytes, above the limit of {LARGEST}; all numbers are"
        f" in {path.with_suffix('.json').name}; for pages, split the arms over several config files"
    )


def _page(
    path: Path,
    study: Study,
    runs: Runs,
    tables: Mapping[str, Table],
    missing: int,
    overrides: Sequence[str],
    above: Sequence[str],
    details: int,
) -> str:
    """Return the page; see `write_study_page`.

    Args:
        path: the page.
        study: the study.
        runs: the finished runs.
        tables: data set -> what `summarise` returns for it.
        missing: number of runs that are not finished.
        overrides: options of the command line.
        above: see `write_study_page`.
        details: number of measures that are shown seed by seed.
    """
    verdicts = []
    parts = []
    for dataset, table in tables.items():
        of_dataset = [run for run in runs if run.arm.dataset == dataset]
        main = main_measure(study, of_dataset)
        by_seed = measures_by_seed(of_dataset, dataset)
        verdicts.append(study_verdict(study, dataset, table, by_seed, main))
        options = without_overridden(study.options.get(dataset, ()), overrides)
        parts.append(_part(path, study, of_dataset, table, main, options, details))
    return render(
        "study.html",
        title=f"Study {study.config_file.stem}",
        heading=f"Study {study.config_file.stem}",
        verdicts=verdicts,
        many=max((len(table) for table in tables.values()), default=0),
        run_warnings=any(run.summary.warnings for run in runs),
        warnings=_warnings(runs, tables, missing),
        facts=_facts(path, study, runs, missing),
        common=without_overridden(study.common, overrides),
        overrides=overrides,
        baseline=study.baseline,
        above=html_of(list(above), path.parent),
        parts=parts,
    )


def _part(
    path: Path,
    study: Study,
    runs: Runs,
    table: Table,
    main: MainMeasure,
    options: Sequence[str],
    details: int,
) -> DatasetPart:
    """Return the part about one data set.

    Args:
        path: the page.
        study: the study.
        runs: runs of the data set.
        table: arm -> its result.
        main: the measure that decides.
        options: of the data set.
        details: number of measures that are shown seed by seed.
    """
    dataset = runs[0].arm.dataset
    by_seed = measures_by_seed(runs, dataset)
    colours = palette(study, table, main.key)
    measured = [
        key for key in accuracies(runs) if any(key in result.measures for result in table.values())
    ]
    by_weight = list(dict.fromkeys([main.key, *measured]))
    figures = [space_figure(by_seed, colours, main.key), margin_figure(runs, table, colours)]
    return DatasetPart(
        name=dataset,
        options=options,
        text=_measured(runs),
        main=main,
        arms=arm_columns(runs, table, by_seed),
        seeds=seed_tables(study.baseline, table, by_seed, by_weight[:details]),
        left_out=by_weight[details:],
        curves=robust_figures(runs, table, colours),
        figures=[figure for figure in figures if figure is not None],
        gaps=html_of(gap_lines(study, table), path.parent),
        runs=[_arm_runs(path.parent, study, runs, name) for name in table],
    )


def _measured(runs: Runs) -> str:
    """Return what was measured on a data set."""
    first = runs[0].summary
    attack = f"attacked by {first.suite}" if first.suite else "not attacked"
    return (
        f"{first.n} test videos, {attack}; chance {percent(first.chance)}. Classifier:"
        f" {classifiers(runs)}."
    )


def _arm_runs(folder: Path, study: Study, runs: Runs, name: str) -> ArmRuns:
    """Return the options of an arm, and the addresses of its reports.

    Args:
        folder: of the page.
        study: the study.
        runs: runs of one data set.
        name: of the arm.
    """
    reports = {run.arm.seed: _address(folder, run) for run in runs if run.arm.name == name}
    return ArmRuns(name, study.arms.get(name, ()), reports)


def _address(folder: Path, run: FinishedRun) -> str:
    """Return the address of a run's report relative to a folder, "" if it has none."""
    report = run.arm.folder / "eval" / run.arm.cfg.eval.name / "report.html"
    if not report.is_file():
        return ""
    return quote(Path(os.path.relpath(report, folder)).as_posix(), errors="surrogateescape")


def _warnings(runs: Runs, tables: Mapping[str, Table], missing: int) -> list[str]:
    """Return the reasons to doubt the study: too few runs, and what its evaluations warn of.

    Args:
        runs: the finished runs.
        tables: data set -> what `summarise` returns for it.
        missing: number of runs that are not finished.
    """
    warnings = []
    if missing:
        warnings.append(f"Not finished: {missing} of {missing + len(runs)} runs of the study.")
    for dataset, table in tables.items():
        alone = [name for name, result in table.items() if result.n == 1]
        if alone:
            who = "all arms" if len(alone) == len(table) else ", ".join(alone)
            warnings.append(f"{dataset}: one seed, hence no interval: {who}.")
        elif min(result.n for result in table.values()) == 2:
            warnings.append(
                f"{dataset}: arms with two seeds have wide intervals: half of one is 9 times their"
                " standard deviation."
            )
        of_dataset = [run for run in runs if run.arm.dataset == dataset]
        warnings += [f"{dataset}: {warning}" for warning in warnings_of(of_dataset)]
    return warnings


def _facts(path: Path, study: Study, runs: Runs, missing: int) -> list[tuple[str, str]]:
    """Return the line of facts: names and values.

    Args:
        path: the page.
        study: the study.
        runs: the finished runs.
        missing: number of runs that are not finished.
    """
    seeds = sorted({run.arm.seed for run in runs})
    facts = [
        ("Config file", study.config_file.name),
        ("Arms", str(len(study.arms))),
        ("Data sets", ", ".join(study.datasets)),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Runs", f"{len(runs)} of {len(runs) + missing} finished"),
        ("Baseline", study.baseline),
        ("Comparators", ", ".join(study.comparators)),
        ("Numbers", path.with_suffix(".json").name),
    ]
    return [(name, value) for name, value in facts if value]

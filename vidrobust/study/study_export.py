"""Write the numbers of a study for other programs: a CSV file and LaTeX tables."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from vidrobust import __version__
from vidrobust.study.arm_table import (
    BySeed,
    Measures,
    Spread,
    Table,
    differences,
    measures_by_seed,
    of_measure,
)
from vidrobust.study.best_arms import best_arms
from vidrobust.study.plan import Study
from vidrobust.study.study_text import Runs, accuracies, classifiers, number
from vidrobust.utils.latex import latex_escape
from vidrobust.utils.text import visible

# --- CSV ---


def csv_text(study: Study, runs: Runs, tables: Mapping[str, Table]) -> str:
    """Return study.csv: a row per data set, arm and measure, with a column per seed.

    The columns are dataset, arm, minus, measure, n, mean, std, half, and seed_N. `minus` is empty
    for values of the arm, and the name of the baseline for differences from it. Numbers have the
    unit and all digits of study.json. What does not exist is empty.

    Args:
        study: the study.
        runs: the finished runs.
        tables: data set -> what `summarise` returns for it.
    """
    seeds = sorted({run.arm.seed for run in runs})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = ["dataset", "arm", "minus", "measure", "n", "mean", "std", "half"]
    writer.writerow([*titles, *(f"seed_{seed}" for seed in seeds)])
    for dataset, table in tables.items():
        by_seed = measures_by_seed(runs, dataset)
        baseline = by_seed.get(study.baseline, {})
        for arm, result in table.items():
            own = by_seed[arm]
            for row in _csv_rows(result.measures, own, seeds):
                writer.writerow([dataset, arm, "", *row])
            for row in _csv_rows(result.difference, differences(own, baseline), seeds):
                writer.writerow([dataset, arm, study.baseline, *row])
    return text.getvalue()


def _csv_rows(
    spreads: Mapping[str, Spread], by_seed: Mapping[int, Measures], seeds: Sequence[int]
) -> Iterator[list[str]]:
    """Yield measure, n, mean, std, half and the value of each seed.

    Args:
        spreads: measure -> its spread.
        by_seed: seed -> the measures that are summarised.
        seeds: those that have a column.
    """
    for measure, spread in spreads.items():
        values = of_measure(by_seed, measure)
        numbers = [spread.mean, spread.std, spread.half, *(values.get(seed) for seed in seeds)]
        # repr has every digit
        cells = ["" if value is None else repr(value) for value in numbers]
        yield [measure, str(len(spread.values)), *cells]


# --- LaTeX ---

_RULE = """\
% Accuracies in per cent: mean over seeds, then half of its 95 % interval by Student's t.
% Bold: in each column the arm with the highest mean, and each arm whose difference from that arm
% is not decided: the 95 % interval of the difference, taken seed by seed over the seeds that both
% have, includes 0. With fewer than two common seeds there is no interval; then only an arm with
% the same mean is bold too. The best arm is chosen on the same seeds; differences are not
% corrected for the number of arms."""


def latex_text(study: Study, runs: Runs, tables: Mapping[str, Table]) -> str:
    """Return study.tex: tables of accuracies, and of differences from the baseline, by data set.

    They need the packages booktabs and graphicx. The rule for bold numbers stands in a comment of
    the file.

    Args:
        study: the study.
        runs: the finished runs.
        tables: data set -> what `summarise` returns for it.
    """
    lines = [
        f"% {visible(study.config_file.stem)}, by vidrobust {__version__}: the numbers of"
        " study.json.",
        r"% \usepackage{booktabs,graphicx}, and for names beyond ASCII a font that has them.",
        _RULE,
    ]
    for place, (dataset, table) in enumerate(tables.items(), 1):
        dataset_runs = [run for run in runs if run.arm.dataset == dataset]
        columns = {
            measure: title
            for measure, title in accuracies(dataset_runs).items()
            if any(measure in result.measures for result in table.values())
        }
        lines += _accuracy_table(dataset, table, dataset_runs, columns, place)
        lines += _difference_table(study, dataset, table, columns, place)
    return "\n".join(lines) + "\n"


def _accuracy_table(
    dataset: str, table: Table, runs: Runs, columns: Mapping[str, str], place: int
) -> list[str]:
    """Return the table of accuracies of a data set.

    Args:
        dataset: name of the data set.
        table: arm -> its result.
        runs: runs of the data set.
        columns: measure -> title of its column.
        place: number of the data set, for the label.
    """
    first = runs[0].summary
    attack = f"attacked by {first.suite}" if first.suite else "not attacked"
    caption = (
        f"{dataset}: accuracy, per cent, on {first.n} test videos, {attack}"
        f" ({classifiers(runs)}); mean and 95 % interval over seeds. Bold: best, or not decided"
        " from the best."
    )
    bold = _bold(measures_by_seed(runs, dataset), columns)
    rows = [
        [
            latex_escape(name),
            str(result.n),
            *(_latex_cell(result.measures.get(key), name in bold[key]) for key in columns),
        ]
        for name, result in table.items()
    ]
    return _latex_table(["arm", "seeds", *columns.values()], rows, caption, f"study-{place}")


def _bold(by_seed: BySeed, columns: Mapping[str, str]) -> dict[str, list[str]]:
    """Return measure -> arms that are bold."""
    return {measure: best_arms(by_seed, measure) for measure in columns}


def _difference_table(
    study: Study, dataset: str, table: Table, columns: Mapping[str, str], place: int
) -> list[str]:
    """Return the table of differences from the baseline; no lines if there are none.

    Args:
        study: the study, which names the baseline.
        dataset: name of the data set.
        table: arm -> its result.
        columns: measure -> title of its column.
        place: number of the data set, for the label.
    """
    rows = [
        [
            latex_escape(name),
            str(max(len(spread.values) for spread in result.difference.values())),
            *(_latex_cell(result.difference.get(key), False) for key in columns),
        ]
        for name, result in table.items()
        if result.difference
    ]
    if not rows:
        return []
    caption = (
        f"{dataset}: difference from {study.baseline} with the same seed, percentage points; mean"
        " and 95 % interval over seeds."
    )
    titles = ["arm", "seeds", *columns.values()]
    return _latex_table(titles, rows, caption, f"study-{place}-differences")


def _latex_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str
) -> list[str]:
    """Return the lines of a table.

    Args:
        titles: plain text.
        rows: cells in LaTeX.
        caption: plain text.
        label: letters, digits and hyphens.
    """
    return [
        "",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escape(caption)}}}",
        rf"\label{{tab:{label}}}",
        # a table that is wider than the text is scaled to it, and any other is left as it is
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
        r"\toprule",
        " & ".join(map(latex_escape, titles)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def _latex_cell(spread: Spread | None, is_bold: bool) -> str:
    """Return a cell in per cent; a missing one is a dash."""
    if spread is None:
        return "--"
    mean = number(100 * spread.mean, 1)
    half = "" if spread.half is None else rf" \pm {number(100 * spread.half, 1)}"
    return rf"$\mathbf{{{mean}}}{half}$" if is_bold else f"${mean}{half}$"

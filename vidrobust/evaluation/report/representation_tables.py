"""Tables about classifiers of the representation: accuracy, stages, classes."""

import csv
from pathlib import Path

from vidrobust.evaluation.report.tables import code, escape, table
from vidrobust.evaluation.representation.knn_and_probe import Accuracy
from vidrobust.evaluation.summary import Summary, classifier_key, classifier_name
from vidrobust.utils.readable import percent, with_interval

_SHOWN = 5  # classes with the lowest accuracy


def representation_lines(out: Path, summary: Summary) -> list[str]:
    """Return the tables of classifiers and stages, and the classes with the lowest accuracy.

    Args:
        out: folder of the evaluation.
        summary: of the evaluation.
    """
    if summary.average_precision:
        return _precision_lines(summary)
    accuracies = summary.representation
    titles = ["classifier", "trained", "random weights", "top-5", "mean of classes"]
    lines = table(titles, *(_row(accuracies, key) for key in _keys(accuracies)))
    if summary.fitted:
        settings = ", ".join(f"{key} {value:g}" for key, value in summary.fitted.items())
        chosen = f"; chosen on {summary.chosen_on}" if summary.chosen_on else ""
        lines += ["", f"{escape(summary.protocol)}: {escape(settings + chosen)}."]
    if summary.stages:
        rows = [[name, _cell(accuracy)] for name, accuracy in summary.stages.items()]
        lines += ["", *table(["stage, pooled", "linear probe"], *rows)]
    return [*lines, "", *_class_lines(out, summary)]


def _precision_lines(summary: Summary) -> list[str]:
    """Return the table of mean average precisions, for videos with several labels each."""
    rows = [
        [
            "linear probe",
            *(
                with_interval(
                    summary.average_precision[name].mean, summary.average_precision[name].ci95
                )
                for name in ("trained_probe", "random_probe")
                if name in summary.average_precision
            ),
        ]
    ]
    one = next(iter(summary.average_precision.values()))
    return [
        *table(["mean average precision", "trained", "random weights"][: len(rows[0])], *rows),
        "",
        f"Over {one.n} videos with labels and {one.classes} classes that some of them have.",
        "",
    ]


def _keys(accuracies: dict[str, Accuracy]) -> list[str]:
    """Return the keys of the classifiers on trained weights, in the order of the table."""
    keys = [key for key in accuracies if key.startswith("trained_")]
    return [*keys, *(["head"] if "head" in accuracies else [])]


def _row(accuracies: dict[str, Accuracy], key: str) -> list[str]:
    """Return the row of a classifier, with the one on random weights beside it if there is one."""
    trained = accuracies[key]
    return [
        classifier_name(key),
        _cell(trained),
        _cell(accuracies.get(f"random_{key.removeprefix('trained_')}")),
        with_interval(trained.top5, trained.top5_ci95, missing=""),
        with_interval(trained.mean_class, trained.mean_class_ci95, missing=""),
    ]


def _cell(accuracy: Accuracy | None) -> str:
    """Format an accuracy and its interval; empty for a classifier that was not measured."""
    return "" if accuracy is None else with_interval(accuracy.acc, accuracy.ci95)


def _class_lines(out: Path, summary: Summary) -> list[str]:
    """Return a line about the classes with the lowest accuracy; none without per_class.csv."""
    path = out / "per_class.csv"
    column = classifier_key(summary.classifier)
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if row.get(column)]
    lowest = sorted(rows, key=lambda row: float(row[column]))[:_SHOWN]
    if not lowest:
        return []
    cells = "; ".join(
        f"{escape(row['class'])} {percent(float(row[column]))} of {row['videos']}" for row in lowest
    )
    return [
        f"Classes with the lowest accuracy ({escape(summary.classifier)}): {cells}. All classes:"
        f" [per_class.csv](per_class.csv), {code(f'confusion_{column}.csv')}.",
        "",
    ]

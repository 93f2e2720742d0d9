"""Tables of attacks that transfer between models: in report.md, and of a matrix of models."""

import csv
import io
from collections.abc import Sequence

from vidrobust.evaluation.adversarial.transfer_rows import Transfer
from vidrobust.evaluation.report.tables import escape, table
from vidrobust.evaluation.transfer_matrix import MatrixCell, ThreatMatrix, TransferMatrix
from vidrobust.utils.readable import percent, with_interval

_SMALLER = (
    "A clip that a smaller budget of the same kind of threat broke keeps that smaller change."
)
_CSV = (
    *("threat", "attacked", "measured", "n", "accuracy", "accuracy_low", "accuracy_high"),
    *("clean_right", "success", "success_low", "success_high"),
)


def transfer_lines(transfer: Sequence[Transfer]) -> list[str]:
    """Return the section of report.md; no lines without results."""
    if not transfer:
        return []
    titles = ["attacked model", "threat", "n", "accuracy", "attack success", "of"]
    rows = [
        [
            f"{each.source} ({each.checkpoint})" if each.checkpoint else each.source,
            each.threat,
            str(each.n),
            with_interval(each.acc, each.ci95),
            with_interval(each.success, each.success_ci95),
            str(each.clean_right),
        ]
        for each in transfer
    ]
    return [
        "## Adversarial clips of other models",
        "",
        (
            "Accuracy of this model on clips that attacks on other models made. Attack success: of"
            " the videos that both models classify rightly without an attack, the fraction whose"
            " adversarial clip this model classifies wrongly; `of` is their number. Other videos"
            f" are not attacked, and their clip is the clean one. {_SMALLER} 95 % intervals"
            " (Wilson)."
        ),
        "",
        *table(titles, *rows),
        "",
    ]


def in_short(matrix: TransferMatrix) -> str:
    """Return the sentence that a reader of a matrix needs first, on its last threat."""
    last = matrix.threats[-1]
    cells = [cell for row in last.cells for cell in row if cell.success is not None]
    own = [cell.success for cell in cells if cell.attacked == cell.measured]
    others = [cell.success for cell in cells if cell.attacked != cell.measured]
    if not own or not others:
        return f"No clean clip is classified rightly, so that no attack under {last.threat} counts."
    return (
        f"Under {last.threat} attacks on the model itself succeed on {_mean(own)} of the videos"
        " that it classifies rightly, attacks on another model on"
        f" {_mean(others)} of those that both classify rightly, on average."
    )


def _mean(fractions: Sequence[float | None]) -> str:
    """Return the mean of fractions, in per cent."""
    return percent(sum(each or 0 for each in fractions) / len(fractions))


def matrix_lines(matrix: TransferMatrix) -> list[str]:
    """Return transfer.md."""
    lines = [
        f"# Transfer of attacks: {escape(matrix.dataset)}, {escape(matrix.split)}",
        "",
        escape(in_short(matrix)),
        "",
        (
            f"{matrix.n} videos, {escape(matrix.suite)}. A row is the model that was attacked, a"
            " column the model that is measured on its adversarial clips. The diagonal is each"
            f" model under its own attack. {_SMALLER} 95 % intervals (Wilson)."
        ),
        "",
        *table(
            ["model", "weights", "classifier", "clean accuracy"],
            *[
                [model.name, model.checkpoint, model.classifier, percent(model.clean_acc)]
                for model in matrix.models
            ],
        ),
        "",
    ]
    for each in matrix.threats:
        lines += _threat_lines(each, [model.name for model in matrix.models])
    if matrix.warnings:
        lines += ["## Warnings", "", *(f"- {escape(line)}" for line in matrix.warnings)]
    return lines


def _threat_lines(matrix: ThreatMatrix, names: Sequence[str]) -> list[str]:
    """Return the two tables of a threat.

    Args:
        matrix: of the threat.
        names: of the models.
    """
    titles = ["attacked / measured", *names]
    accuracy = [_line(name, cells, False) for name, cells in zip(names, matrix.cells, strict=True)]
    success = [_line(name, cells, True) for name, cells in zip(names, matrix.cells, strict=True)]
    return [
        f"## {escape(matrix.threat)}",
        "",
        "Accuracy:",
        "",
        *table(titles, *accuracy),
        "",
        (
            "Attack success: of the videos that both models classify rightly without an attack,"
            " the fraction whose adversarial clip the measured model classifies wrongly. Other"
            " videos are not attacked."
        ),
        "",
        *table(titles, *success),
        "",
    ]


def _line(name: str, cells: Sequence[MatrixCell], success: bool) -> list[str]:
    """Return a row of a table: the attacked model, and a number for each measured model."""
    if success:
        return [name, *(with_interval(cell.success, cell.success_ci95) for cell in cells)]
    return [name, *(with_interval(cell.acc, cell.ci95) for cell in cells)]


def matrix_csv(matrix: TransferMatrix) -> str:
    """Return transfer.csv: a line per threat, attacked and measured model; fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for each in matrix.threats:
        for cell in (cell for cells in each.cells for cell in cells):
            names = (each.threat, cell.attacked, cell.measured)
            success = "" if cell.success is None else cell.success
            numbers = (cell.n, cell.acc, *cell.ci95, cell.clean_right, success, *cell.success_ci95)
            writer.writerow([*names, *numbers])
    return text.getvalue()

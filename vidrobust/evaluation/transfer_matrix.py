"""Read a matrix of models from their evaluations: who is attacked, and who is measured.

It needs the folders of finished evaluations, and no model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from vidrobust.attacks import parse_threat
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.rows import carry_breaks
from vidrobust.evaluation.adversarial.suites import families
from vidrobust.evaluation.adversarial.transfer_rows import Outcome, Transfer, outcome_of
from vidrobust.evaluation.summary import Summary, read_summary
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.readable import percent


@dataclass(frozen=True)
class MatrixModel:
    """A model of the matrix.

    Attributes:
        name: in the tables.
        checkpoint: name of its weights.
        classifier: what is attacked and measured.
        clean_acc: accuracy on the clean clips of the attacks.
        folder: of its evaluation under attack.
    """

    name: str
    checkpoint: str
    classifier: str
    clean_acc: float
    folder: str


@dataclass(frozen=True)
class MatrixCell(Outcome):
    """Outcome of one model on the adversarial clips of another, or on its own.

    Attributes:
        attacked: name of the model that was attacked.
        measured: name of the model that is measured.
    """

    attacked: str
    measured: str


@dataclass(frozen=True)
class ThreatMatrix:
    """The matrix of a threat; `cells[i][j]`: model i was attacked, model j is measured."""

    threat: str
    cells: list[list[MatrixCell]]


@dataclass(frozen=True)
class TransferMatrix:
    """All models attacked and measured, the content of transfer.json.

    Attributes:
        dataset: name of the data set.
        split: which of its videos.
        suite: attacks.
        n: number of attacked videos.
        models: in the order of rows and columns.
        threats: a matrix per threat.
        warnings: reasons to doubt the numbers.
    """

    dataset: str
    split: str
    suite: str
    n: int
    models: list[MatrixModel]
    threats: list[ThreatMatrix]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MatrixFolders:
    """Folders of the two evaluations of a model.

    Attributes:
        name: of the model.
        attacked: evaluation with eval.save=all.
        measured: evaluation with eval.transfer of all models' clips, its own included.
    """

    name: str
    attacked: Path
    measured: Path


def read_matrix(models: Sequence[MatrixFolders]) -> TransferMatrix:
    """Read the matrix of some models.

    The diagonal comes from each model's own rows. Its own clips were measured again with those of
    the others: a warning says where that gives another accuracy.

    Args:
        models: their evaluations, which are finished.
    """
    summaries = [read_summary(model.attacked / "summary.json") for model in models]
    again = [read_summary(model.measured / "summary.json") for model in models]
    first = summaries[0]
    threats = []
    warnings = []
    for threat in first.threats:
        cells = []
        for i, attacked in enumerate(models):
            row = []
            for j, measured in enumerate(models):
                result = _result(again[j], attacked.attacked, threat)
                cell = _cell(attacked.name, measured.name, result)
                if i == j:
                    own = own_cell(attacked, threat)
                    warnings += _unlike(own, cell, threat)
                    cell = own
                row.append(cell)
            cells.append(row)
        threats.append(ThreatMatrix(threat, cells))
    return TransferMatrix(
        dataset=first.dataset,
        split=first.split,
        suite=first.suite or "",
        n=first.n,
        models=[
            MatrixModel(
                model.name,
                summary.checkpoint,
                summary.classifier,
                summary.clean_acc or 0.0,
                str(model.attacked),
            )
            for model, summary in zip(models, summaries, strict=True)
        ],
        threats=threats,
        warnings=warnings + _doubts(models, [*zip(summaries, again, strict=True)]),
    )


def own_cell(model: MatrixFolders, threat: str) -> MatrixCell:
    """Return the result of a model under its own attack, from the rows of results.jsonl.

    Args:
        model: the model.
        threat: name of the threat.
    """
    rows = [AttackRow.from_json(row) for row in read_rows(model.attacked / "results.jsonl")]
    names = dict.fromkeys(row.threat for row in rows)
    carried = carry_breaks(rows, families([parse_threat(name) for name in names]))
    rows = [row for row in carried if row.threat == threat]
    outcome = outcome_of([row.robust for row in rows], [row.clean_right for row in rows])
    return MatrixCell(**asdict(outcome), attacked=model.name, measured=model.name)


def _result(summary: Summary, source: Path, threat: str) -> Transfer:
    """Return the result for the clips of a source under a threat."""
    return next(
        each for each in summary.transfer if (each.source, each.threat) == (str(source), threat)
    )


def _cell(attacked: str, measured: str, result: Transfer) -> MatrixCell:
    """Return a cell of the matrix.

    Args:
        attacked: name of the model that was attacked.
        measured: name of the model that is measured.
        result: of the measured model.
    """
    outcome = {item.name: getattr(result, item.name) for item in fields(Outcome)}
    return MatrixCell(**outcome, attacked=attacked, measured=measured)


def _unlike(own: MatrixCell, again: MatrixCell, threat: str) -> list[str]:
    """Return a warning, or none, of another accuracy on the own clips when measured again."""
    if (own.acc, own.clean_right) == (again.acc, again.clean_right):
        return []
    return [
        f"{own.measured} under {threat}: {percent(own.acc)} in its own rows, and"
        f" {percent(again.acc)} when its clips are measured again: its outputs depend on the"
        " batch, the device or random numbers"
    ]


def _doubts(
    models: Sequence[MatrixFolders], summaries: Sequence[tuple[Summary, Summary]]
) -> list[str]:
    """Return the warnings of all evaluations, each with the name of its model."""
    doubts = []
    for model, both in zip(models, summaries, strict=True):
        lines = dict.fromkeys(line for summary in both for line in summary.warnings)
        doubts += [f"{model.name}: {line}" for line in lines]
    return doubts

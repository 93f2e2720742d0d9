"""Attack several models, and measure every model on the adversarial clips of every other one.

    vidrobust transfer outputs/one outputs/two outputs/three --output outputs/matrix [key=value ...]

A model is a run's folder, a checkpoint file, or SOURCE:NAME. Each is attacked with eval.save=all in
eval/matrix of its folder (eval.name), then measured on all clips in eval/matrix_measured. The
matrix is written as transfer.md, .html, .csv and .json. The same command continues where it was
stopped; with more models, those that were attacked are not attacked again.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path

from vidrobust import checkpoint, config
from vidrobust.cli import common
from vidrobust.cli.subject import check_protocol_options, subject_of
from vidrobust.data import Record, records_sha
from vidrobust.evaluation import build_lists, check_suite
from vidrobust.evaluation.adversarial.transfer_rows import check_transfer
from vidrobust.evaluation.measured_model import checkpoint_name
from vidrobust.evaluation.report.page import write_page
from vidrobust.evaluation.report.tables import write
from vidrobust.evaluation.report.transfer_page import matrix_page
from vidrobust.evaluation.report.transfer_tables import matrix_csv, matrix_lines
from vidrobust.evaluation.transfer_matrix import MatrixFolders, read_matrix
from vidrobust.protocols import Subject, report_folder, run_protocol
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UndecodedVideos, UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.text import visible

# what all models must have in common: the clips, and the attack on them
_ALIKE = (
    *("data.frames", "data.size", "eval.unit", "eval.threats", "eval.suite", "eval.steps"),
    *("eval.step", "eval.restarts", "eval.queries", "eval.effort", "eval.limit"),
)
# other measurements, which a matrix does not need
_OFF = (
    *("eval.corruption.names", "eval.bias", "eval.shift.name", "eval.open_set.name"),
    "eval.sensitivity",
)
_OURS = ("eval.save", "eval.transfer")


@dataclass(frozen=True)
class _Model:
    """A model of the matrix.

    Attributes:
        given: how the command line names it.
        cfg: configuration of its evaluation under attack.
        subject: the model.
        weights: name of its weights.
    """

    given: str
    cfg: config.Config
    subject: Subject
    weights: str

    @property
    def attacked(self) -> Path:
        """Folder of the evaluation under attack."""
        return report_folder(self.cfg, self.subject, None)

    @property
    def measured(self) -> Path:
        """Folder of the evaluation on the clips of all models."""
        return self.attacked.with_name(f"{self.cfg.eval.name}_measured")


def main() -> None:
    """Attack all models, measure all of them on all clips, and write the matrix."""
    args, names = _arguments()
    start_logging(None, quiet=not common.is_main())
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output}: is a file; name a folder")
    models = [_model(args, name) for name in names]
    if args.dry_run:
        for model in models:
            print(config.to_yaml(model.cfg), end="---\n")
        return
    _check(models)
    problems = [_evaluate(each, each.cfg, each.attacked, args.overwrite) for each in models]
    clips = [str(model.attacked) for model in models]
    for model in models:
        # replaced when the models of the matrix change, which costs little
        cfg = _edited(model.cfg, save="none", threats=[], transfer=clips, name=model.measured.name)
        problems.append(_evaluate(model, cfg, model.measured, overwrite=True))
    with distributed.together():
        if common.is_main():
            _write(models, args.output)
    log.info(f"matrix: {args.output / 'transfer.md'}")
    if failed := [problem for problem in problems if problem]:
        raise UserError(failed[0])


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments, and the names of the models."""
    parser = common.parser(__doc__)
    parser.usage = "%(prog)s MODEL MODEL ... --output FOLDER [key=value ...]"
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the files")
    parser.add_argument(
        "--cfg", help="config file whose options override those of every run's configuration"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace other evaluations of the same eval.name"
    )
    args = parser.parse_intermixed_args()
    keys = {key for key, _ in config.options()}
    names = list(
        takewhile(
            lambda word: Path(word).exists() or ("=" not in word and word not in keys),
            args.overrides,
        )
    )
    args.overrides = args.overrides[len(names) :]
    if len(names) < 2:
        found = f"only {names[0]}" if names else "no model"
        raise UserError(f"transfer: {found} is named; name two or more runs, then options")
    given = config.keys_given(args.overrides, args.cfg)
    if wrong := [key for key in (*_OURS, *_OFF) if key in given]:
        raise UserError(
            f"{wrong[0]}: transfer attacks models and measures them on all clips, and nothing else;"
            " remove it, and measure other things with vidrobust evaluate"
        )
    return args, names


def _model(args: argparse.Namespace, name: str) -> _Model:
    """Return a model with the configuration of its evaluation under attack.

    Args:
        args: of the command line.
        name: a run's folder, a checkpoint file, or SOURCE:NAME.

    Raises:
        UserError: if there is no such model, and for a protocol that trains.
    """
    one = copy.copy(args)
    is_source = ":" in name and not Path(name).exists()
    one.checkpoint = None if is_source else Path(name)
    one.model = name if is_source else None
    one.weights = ""
    cfg, subject = subject_of(one)
    common.check_names(cfg)
    if subject.finetuned or cfg.protocol.splits:
        option = "protocol.splits" if cfg.protocol.splits else "protocol.name"
        raise UserError(
            f"{option}={config.get(cfg, option)}: transfer measures models as they are, on one"
            " split; finetune them first (vidrobust evaluate), and name the finetuned runs"
        )
    check_protocol_options(one, cfg)
    if "eval.name" not in config.keys_given(args.overrides, args.cfg):
        cfg = _edited(cfg, name="matrix")
    weights = name
    if not is_source:
        weights = checkpoint_name(cfg, checkpoint.read_checkpoint(one.checkpoint))
    return _Model(name, _edited(cfg, save="all", transfer=[]), subject, weights)


def _edited(cfg: config.Config, **options: object) -> config.Config:
    """Return a configuration with some options of eval.*, and without other measurements."""
    e = cfg.eval
    off = {
        "corruption": replace(e.corruption, names=[]),
        "shift": replace(e.shift, name=""),
        "open_set": replace(e.open_set, name=""),
        "bias": [],
        "sensitivity": 0,
    }
    changes: dict[str, object] = off | options
    return replace(cfg, eval=replace(e, **changes))  # type: ignore[arg-type]


# --- Checks before hours of attack ---


def _check(models: Sequence[_Model]) -> None:
    """Refuse models that make no matrix, before anything is attacked.

    Raises:
        UserError: for one model twice, and for other clips, attacks, videos or classes.
    """
    for number, model in enumerate(models):
        for other in models[:number]:
            if model.subject.folder.resolve() == other.subject.folder.resolve():
                raise UserError(
                    f"{other.given} and {model.given} are one run, and their results would share a"
                    " folder; name each run once"
                )
            if model.weights == other.weights:
                raise UserError(
                    f"{other.given} and {model.given} have the same weights ({model.weights}); name"
                    " each model once"
                )
    for one, other in pairwise(models):
        for key in _ALIKE:
            ours, theirs = (config.get(each.cfg, key) for each in (one, other))
            if ours != theirs:
                raise UserError(
                    f"{key}: {one.given} has {ours}, and {other.given} has {theirs}; models of one"
                    f" matrix need the same clips and attacks, set {key}=VALUE for all"
                )
    lists = [_lists(model) for model in models]
    for (one, ours), (other, theirs) in pairwise(zip(models, lists, strict=True)):
        pair = f"{one.given} and {other.given}"
        if ours[1] != theirs[1]:
            differing = sorted(set(ours[1]) ^ set(theirs[1])) or ["their order"]
            raise UserError(
                f"{pair} have other classes ({len(ours[1])} and {len(theirs[1])}; first"
                f" {differing[0]}); a matrix needs one data set, set data.name and data.root"
            )
        if records_sha(ours[0]) != records_sha(theirs[0]):
            raise UserError(
                f"{pair} have other test videos ({one.cfg.data.root}: {len(ours[0])},"
                f" {other.cfg.data.root}: {len(theirs[0])}); set data.name, data.root and data.fold"
                " for all"
            )


def _lists(model: _Model) -> tuple[list[Record], list[str]]:
    """Return the test videos and the classes of a model, with its options checked."""
    check_suite(model.cfg)
    needs_train = model.cfg.eval.classifier != "head"
    _, test, classes = build_lists(model.cfg.data, needs_train=needs_train)
    check_transfer(model.cfg, test)
    return test, classes


# --- Evaluations and results ---


def _evaluate(model: _Model, cfg: config.Config, out: Path, overwrite: bool) -> str:
    """Evaluate a model; return what its evaluation complains about when it is finished, or "".

    Args:
        model: the model.
        cfg: configuration of the evaluation.
        out: its folder.
        overwrite: replace another evaluation in the folder.
    """
    log.info(f"{model.given}: {out}")
    try:
        run_protocol(cfg, model.subject, out, overwrite=overwrite)
    except UndecodedVideos as error:  # they count as wrong
        log.error(f"{model.given}: {error}")
        return f"{model.given}: {error}"
    return ""


def _write(models: Sequence[_Model], folder: Path) -> None:
    """Write the files of the matrix.

    Args:
        models: of the matrix, all evaluated.
        folder: of the files.
    """
    names = [visible(model.subject.folder.name) for model in models]
    if len(set(names)) < len(names):
        names = [visible(model.given) for model in models]
    folders = [
        MatrixFolders(name, model.attacked, model.measured)
        for name, model in zip(names, models, strict=True)
    ]
    matrix = read_matrix(folders)
    folder.mkdir(parents=True, exist_ok=True)
    for line in matrix.warnings:
        log.warning(line)
    write(folder / "transfer.md", matrix_lines(matrix))
    write_page(folder / "transfer.html", matrix_page(matrix))
    files = {
        "transfer.csv": matrix_csv(matrix),
        "transfer.json": json.dumps(asdict(matrix), indent=2) + "\n",
    }
    for name, text in files.items():
        with replacing(folder / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))

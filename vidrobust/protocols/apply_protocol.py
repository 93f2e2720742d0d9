"""Apply a protocol to a model: measure it as it is, or finetune it and measure the result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vidrobust import config
from vidrobust.data import build_records
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.evaluation.summary import Summary
from vidrobust.study.plan import Arm
from vidrobust.study.run import run_arm
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log


@dataclass(frozen=True)
class Subject:
    """A trained model that a protocol is applied to.

    Attributes:
        folder: of its run, or where the results of a model of another package go.
        measure: (configuration, folder of the results, overwrite) -> what was measured.
        trained: configuration of its run; None for a model of another package.
        finetuned: a training run of the protocol comes first. A run that a protocol has trained
            names it too, and is measured as it is.
    """

    folder: Path
    measure: Callable[[config.Config, Path, bool], Summary]
    trained: config.Config | None = None
    finetuned: bool = False


def run_protocol(
    cfg: config.Config, subject: Subject, out: Path | None = None, *, overwrite: bool = False
) -> tuple[Summary, Path]:
    """Apply the protocol `protocol.name` to a model. A call that was killed can be repeated.

    A protocol that trains writes a run of its own, which can be measured again as any run.

    Args:
        cfg: the configuration; for a protocol that trains, that of the run.
        subject: the model.
        out: folder of the results; None: `eval/<eval.name>` or `finetuned/<eval.name>` in the
            folder of the model.
        overwrite: replace another evaluation or run in the folder.

    Returns:
        (what was measured, folder of the report).

    Raises:
        UserError: as training and evaluation do, and for data that does not suit the protocol.
    """
    spec = PROTOCOLS[cfg.protocol.name]
    if reason := spec.refusal(cfg, subject.trained):
        raise UserError(f"protocol.name={cfg.protocol.name}: {reason}")
    _warn_of_seen(cfg, subject.trained)
    report = report_folder(cfg, subject, out)
    if not subject.finetuned:
        return subject.measure(cfg, report, overwrite), report
    arm = Arm(cfg.data.name, cfg.protocol.name, cfg.seed, cfg, report.parents[1])
    remedy = (
        "repeat all options of its command, attack the finished run by --checkpoint"
        f" {arm.folder} eval.name=OTHER, or set --output-dir"
    )
    return run_arm(arm, overwrite=overwrite, remedy=remedy), report


def report_folder(cfg: config.Config, subject: Subject, out: Path | None) -> Path:
    """Return the folder of the report.

    Args:
        cfg: the configuration.
        subject: the model.
        out: as in `run_protocol`.
    """
    if subject.finetuned:
        run = out or subject.folder / "finetuned" / cfg.eval.name
        return run / "eval" / cfg.eval.name
    return out or subject.folder / "eval" / cfg.eval.name


def _warn_of_seen(cfg: config.Config, trained: config.Config | None) -> None:
    """Warn of test videos that the model was trained on, as those of another official split are.

    Args:
        cfg: the configuration.
        trained: that of the model's run; None: unknown.
    """
    if trained is None or trained.data.name != cfg.data.name or trained.data.fold == cfg.data.fold:
        return
    there = replace(cfg.data, fold=trained.data.fold, validation=trained.data.validation, labels="")
    try:
        learned = {record.uid for record in build_records(there, "train")[0]}
        test, _ = build_records(cfg.data, "test")
    except UserError:  # the evaluation says what is missing
        return
    seen = sum(record.uid in learned for record in test)
    if seen:
        log.warning(
            f"{seen} of {len(test)} test videos of split {cfg.data.fold} are training videos of"
            f" split {trained.data.fold}, on which the model was trained: accuracies may be too"
            " high; train a model per split"
        )

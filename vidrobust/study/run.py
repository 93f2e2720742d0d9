"""Train and evaluate one run of a study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidrobust import checkpoint, config
from vidrobust.evaluation import check_evaluation, evaluate
from vidrobust.evaluation.report.markdown import read_summary
from vidrobust.study.plan import Arm
from vidrobust.training.loop import train
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, read_metrics

# what may differ between two commands of the same study
_FREE = (
    "data.root=",
    "data.twins=",
    "eval.shift.root=",
    "data.workers=",
    "data.timeout_s=",
    "train.checkpoint_every=",
    "train.log_every=",
    "device=",
)


def require_same(arm: Arm) -> None:
    """Raises UserError where the folder of a run holds one with other options.

    What is evaluated may differ where its name does, eval.name: a trained run can be measured
    again.
    """
    page = arm.folder / "config.yaml"
    if page.is_file():
        there = config.load(page)
        free = _FREE if there.eval.name == arm.cfg.eval.name else (*_FREE, "eval.")
        changed = [line for line in config.differences(there, arm.cfg) if not line.startswith(free)]
        if changed:
            raise UserError(
                f"{arm.folder} holds a run with other options (in brackets): {', '.join(changed)};"
                " set --output-dir"
            )


def finished(arms: Sequence[Arm]) -> list[tuple[Arm, dict[str, Any]]]:
    """Those that are measured, with their summaries, and in them `removal`, an epoch's log of false
    negatives each.
    """
    return [
        (arm, read_summary(_summary(arm)) | {"removal": _removal(arm)})
        for arm in arms
        if _summary(arm).is_file()
    ]


def run_arm(arm: Arm) -> dict[str, Any]:
    """Its summary. What is there already is not done again: a finished run is read, one that was
    killed goes on.

    Raises UserError as `require_same` does, and what training and evaluation raise.
    """
    with distributed.together():
        require_same(arm)
    done = _summary(arm)
    if not done.is_file():
        log.info(f"{arm.dataset}, {arm.name}, seed {arm.seed}: {arm.folder}")
        if not (arm.folder / "backbone.pt").is_file():  # which training leaves at its end
            distributed.start(arm.cfg.device)
            with distributed.main_first():
                check_evaluation(arm.cfg)
            with distributed.together():
                sound = checkpoint.newest_sound(arm.folder / "checkpoints")
            train(arm.cfg, arm.folder, sound[0] if sound else None, overwrite=sound is None)
        evaluate(arm.cfg, checkpoint.read_checkpoint(arm.folder), done.parent)
    return read_summary(done)


def _summary(arm: Arm) -> Path:
    return arm.folder / "eval" / arm.cfg.eval.name / "summary.json"


def _removal(arm: Arm) -> list[dict[str, float]]:
    return [row for row in read_metrics(arm.folder) if row.get("split") == "train_epoch"]

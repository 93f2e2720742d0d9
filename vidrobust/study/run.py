"""Train and evaluate one run of a study."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidrobust import checkpoint, config
from vidrobust.evaluation import check_evaluation, evaluate
from vidrobust.evaluation.results import options_that_differ
from vidrobust.evaluation.summary import Summary, read_summary
from vidrobust.study.arm_table import FinishedRun
from vidrobust.study.outcomes import OUTCOMES
from vidrobust.study.plan import Arm
from vidrobust.study.until import UNTIL, Checks, Until, read_checks, write_checks
from vidrobust.training.loop import train
from vidrobust.training.run_folder import check_output
from vidrobust.training.weights_options import with_weights_options
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, read_metrics
from vidrobust.utils.readable import percent

# Options that may differ between two commands of the same study: they change no result, or its
# rounding alone.
FREE = (
    "data.root=",
    "data.twins=",
    "data.archive=",
    "eval.shift.root=",
    "eval.open_set.root=",
    "protocol.splits=",
    "data.workers=",
    "data.timeout_s=",
    "data.in_memory=",
    "eval.pictures=",
    "eval.card.",
    "train.checkpoint_every=",
    "train.log_every=",
    "train.shown_clips=",
    "eval.embeddings=",
    "device=",
)


def require_same(arm: Arm, remedy: str = "set --output-dir") -> None:
    """Refuse a folder that holds a run with other options.

    Options of the evaluation may differ if eval.name does: a trained run can be measured again
    under another name.

    Args:
        arm: the run.
        remedy: for the message.

    Raises:
        UserError: with the options that differ.
    """
    config_file = arm.folder / "config.yaml"
    if not config_file.is_file():
        return
    existing = config.load(config_file)
    # Under another eval.name the evaluation is another one, and may have other options.
    free = FREE if existing.eval.name == arm.cfg.eval.name else (*FREE, "eval.")
    asked = arm.cfg
    # With amp=auto an order of memory that is asked for also decides the precision, else rounding
    # alone. Runs that began with an earlier default may go on.
    if asked.train.amp != "auto" or asked.train.channels_last == "auto":
        free = (*free, "train.channels_last=")
    checks = None if arm.until is None else read_checks(arm.folder)
    if arm.until is not None and checks is not None and checks.target != arm.until.accuracy:
        raise UserError(
            f"{arm.folder} holds a run until an accuracy of {checks.target:g}, not"
            f" {arm.until.accuracy:g}; {remedy}"
        )
    if Path(asked.model.weights).exists():
        asked = with_weights_options(asked)
    changed = [line for line in config.differences(existing, asked) if not line.startswith(free)]
    if changed:
        raise UserError(
            f"{arm.folder} holds a run with other options (its values in brackets):"
            f" {', '.join(changed)}; {remedy}"
        )
    _require_same_evaluations(arm)


def _require_same_evaluations(arm: Arm) -> None:
    """Refuse further evaluations of a run that were made with other options.

    Raises:
        UserError: with the options that differ.
    """
    for further in arm.further:
        folder = _summary_of(arm, further).parent
        # the model is that of the run
        names = [
            name
            for name in options_that_differ(folder, _as_evaluated(further, arm))
            if not f"{name}=".startswith((*FREE, "model."))
        ]
        if names:
            raise UserError(
                f"{folder} holds an evaluation with other options ({', '.join(names)}); give the"
                " new one another name under `evaluations`"
            )


def _as_evaluated(cfg: config.Config, arm: Arm) -> config.Config:
    """Return the configuration of an evaluation on the test split.

    Args:
        cfg: the configuration of the study.
        arm: the run.
    """
    if arm.until is None:
        return cfg
    # held-out videos have decided when to stop
    return replace(cfg, data=replace(cfg.data, validation=0.0))


def finished(arms: Sequence[Arm]) -> list[FinishedRun]:
    """Return the runs that have been measured, also where further evaluations are missing."""
    return [
        FinishedRun(arm, read_summary(_summary_of(arm)), _removal(arm), _shortfalls(arm))
        for arm in arms
        if _summary_of(arm).is_file()
    ]


def is_finished(arm: Arm) -> bool:
    """Return whether nothing of a run is left to be done."""
    return not _evaluations_left(arm)


def evaluations_of(arm: Arm) -> list[config.Config]:
    """Return the configurations of the evaluations that measure a run here.

    A run that was measured elsewhere and came without its weights can have no further ones.
    """
    came_without_weights = _summary_of(arm).is_file() and not (arm.folder / "backbone.pt").is_file()
    return [arm.cfg, *(() if came_without_weights else arm.further)]


def _evaluations_left(arm: Arm) -> list[config.Config]:
    """Return the evaluations that a run still needs."""
    return [cfg for cfg in evaluations_of(arm) if not _summary_of(arm, cfg).is_file()]


def _require_weights(folder: Path) -> None:
    """Refuse the folder of a run that was measured elsewhere, and came without its weights.

    Raises:
        UserError: for such a folder.
    """
    if any(folder.glob(f"eval/*/{OUTCOMES}")) and not (folder / "backbone.pt").is_file():
        raise UserError(
            f"{folder} was measured on another machine, and its weights are not here; to train the"
            " run here, delete the folder and run it once without --records"
        )


def validated(arm: Arm) -> float | None:
    """Return the accuracy of the linear probe of a run; None if it is not measured."""
    if not _summary_of(arm).is_file():
        return None
    probe = read_summary(_summary_of(arm)).representation.get("trained_probe")
    return None if probe is None else probe.acc


def run_arm(arm: Arm, *, overwrite: bool = False, remedy: str = "set --output-dir") -> Summary:
    """Train and evaluate a run, and return its summary.

    Finished work is not repeated: a finished run is read, and a killed one continues.

    Args:
        arm: the run.
        overwrite: delete what another run has written to its folder, and begin anew.
        remedy: see `require_same`.

    Raises:
        UserError: as `require_same`, training and evaluation do.
    """
    with distributed.together():
        if overwrite and distributed.rank() == 0:
            check_output(arm.folder, resume=False, overwrite=True, cfg=arm.cfg)
        if not overwrite:
            require_same(arm, remedy)
    if overwrite:
        distributed.start(arm.cfg.device)
        with distributed.main_first():
            check_evaluation(arm.cfg)
        train(arm.cfg, arm.folder, overwrite=True)
    left = _evaluations_left(arm)
    if left:
        log.info(f"{arm.label}: {arm.folder}")
        for folder in (arm.folder, *arm.needs):
            _require_weights(folder)
        if arm.until is not None:
            _train_until(arm, arm.until)
        # Training writes backbone.pt last.
        elif not (arm.folder / "backbone.pt").is_file():
            _train(arm)
        state = checkpoint.read_checkpoint(arm.folder)
        for each in left:
            cfg = _with_model_of(state, arm.folder, _as_evaluated(each, arm))
            evaluate(cfg, state, _summary_of(arm, each).parent)
    return read_summary(_summary_of(arm))


def _with_model_of(state: dict[str, Any], folder: Path, cfg: config.Config) -> config.Config:
    """Return a configuration with the model's options that model.weights may have set."""
    return replace(cfg, model=checkpoint.configuration(state, str(folder)).model)


def _train_until(arm: Arm, until: Until) -> None:
    """Train a run until its linear probe is right on enough held-out videos.

    A run that was killed goes on from its newest checkpoint, and repeats no check.

    Args:
        arm: the run.
        until: when to stop.
    """
    assert arm.check is not None
    checks = read_checks(arm.folder) or Checks(until.accuracy, {}, False)
    while not checks.is_over:
        stop = until.next_check(max(checks.accuracies, default=0))
        _train(arm, stop)
        state = checkpoint.read_checkpoint(arm.folder)
        step = int(state["step"])
        cfg = _with_model_of(state, arm.folder, arm.check)
        summary = evaluate(cfg, state, arm.folder / "eval" / f"{UNTIL}{step}")
        acc = summary.representation["trained_probe"].acc
        log.info(f"{arm.label}: {percent(acc)} on held-out videos after {step} steps")
        is_over = acc >= until.accuracy or step < stop
        checks = Checks(until.accuracy, {**checks.accuracies, step: acc}, is_over)
        with distributed.together():
            if distributed.rank() == 0:
                write_checks(arm.folder, checks)


def _shortfalls(arm: Arm) -> tuple[str, ...]:
    """Return what a run was to reach and did not."""
    checks = None if arm.until is None else read_checks(arm.folder)
    return (checks.shortfall,) if checks is not None and checks.shortfall else ()


def _train(arm: Arm, stop: int = 0) -> None:
    """Train a run, from its newest sound checkpoint if there is one.

    Args:
        arm: the run.
        stop: see `train`.
    """
    distributed.start(arm.cfg.device)
    # What the evaluation would refuse is refused before the training, which may take days.
    with distributed.main_first():
        for cfg in (arm.cfg, *arm.further):
            check_evaluation(cfg)
    with distributed.together():
        newest = checkpoint.newest_sound(arm.folder / "checkpoints")
    resume = newest[0] if newest else None
    train(arm.cfg, arm.folder, resume, overwrite=newest is None, stop=stop)


def _summary_of(arm: Arm, cfg: config.Config | None = None) -> Path:
    """Return the path of summary.json of one evaluation of a run; by default of its own."""
    return arm.folder / "eval" / (cfg or arm.cfg).eval.name / "summary.json"


def _removal(arm: Arm) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl that summarise an epoch."""
    return [row for row in read_metrics(arm.folder) if row.get("split") == "train_epoch"]

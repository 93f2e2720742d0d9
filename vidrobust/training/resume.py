"""Resume a run from its checkpoint."""

from pathlib import Path
from typing import Any

import torch

from vidrobust import checkpoint, config
from vidrobust.data import records_sha
from vidrobust.methods.registry import fixed_options
from vidrobust.methods.revisions import changed_since
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

# options of the model and the optimizer that decide what is in a checkpoint
_FIXED = (
    "model.backbone",
    "model.width",
    "model.stem",
    "model.hidden",
    "model.dim",
    "model.head_norm",
    "model.head_layers",
    "model.head_norm_out",
    "model.head",
    "model.head_blocks",
    "model.head_stage",
    "model.head_heads",
    "model.head_mlp_ratio",
    "optim.name",
    "optim.layer_decay",
)
# options that decide on what optim.schedule=auto measures: it compares accuracies of all epochs
_FIXED_BY_AUTO = ("train.measured", "optim.auto_threats")


def restore(run: TrainingRun, path: Path) -> None:
    """Put a run back into the state in which a checkpoint was written.

    Raises:
        UserError: for a checkpoint of other videos, of an earlier form of the method, of options
            that a resume cannot change, of damaged content, or beyond the run's last step.
    """
    state = checkpoint.read_checkpoint(path)
    # refusals first: nothing of the run is changed by a checkpoint that does not fit
    _require_same_run(run, state, path)
    changed = _changed_options(run, state, path)
    try:
        _load_state(run, state, path)
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: the content of the checkpoint is damaged ({type(error).__name__}: {reason});"
            " use another one"
        ) from None
    if run.start > run.total:
        raise UserError(
            f"{path} is at step {run.start}, beyond the {run.total} asked for: nothing to train; "
            "tools/test_net.py measures it"
        )
    # checkpoints of earlier revisions do not say it: theirs was bf16 on GPUs
    before = state.get("bf16", run.device.type == "cuda")
    if before != run.bf16:
        names = ["fp32", "bf16"]
        run.notes.append(
            f"{path} was trained in {names[before]}, and this computes in {names[run.bf16]};"
            f" train.amp={names[before]} is as before"
        )
    ranks = int(state.get("ranks", distributed.world()))
    if ranks != distributed.world():
        run.notes.append(
            f"resuming with {distributed.world()} ranks, the checkpoint is of {ranks}: batches and"
            " augmentations stay the same, but batch norms see the videos of one rank, and sums"
            " have another order"
        )
    if changed:
        run.notes.append(
            f"options that differ from the checkpoint's, in brackets: {', '.join(changed)}"
        )


def _require_same_run(run: TrainingRun, state: dict[str, Any], path: Path) -> None:
    if state["manifest_sha"] != records_sha(run.records):
        raise UserError(
            f"{path} was trained on another list of videos; train anew in another --output-dir"
        )
    if what := changed_since(run.cfg.method, int(state.get("method_revision", 1))):
        raise UserError(f"{path} is of an earlier revision: {what}")


def _changed_options(run: TrainingRun, state: dict[str, Any], path: Path) -> list[str]:
    """Return the options that differ from the checkpoint's; refuse those that must not."""
    before = checkpoint.configuration(state, str(path))
    changed = config.differences(before, run.cfg)
    prefixes = tuple(f"{key}=" for key in _fixed_options(before, run.cfg))
    fixed = [line for line in changed if line.startswith(prefixes)]
    if fixed:
        raise UserError(
            f"{path}: a resume cannot change {fixed[0]}; train anew in another --output-dir, from"
            " its backbone.pt by model.weights where the architecture is the same"
        )
    return changed


def _fixed_options(before: config.Config, now: config.Config) -> list[str]:
    """Return the keys of options that a resume may not change.

    Args:
        before: configuration of the checkpoint.
        now: configuration of the resumed run.
    """
    keys = [*_FIXED, *fixed_options()]
    if "auto" in (before.optim.schedule, now.optim.schedule):
        # a checkpoint holds accuracies and best weights of this schedule alone
        keys += ["optim.schedule", *_FIXED_BY_AUTO]
        if not now.optim.auto_threats:
            keys.append("method.adversary.threats")  # they are those that are measured
    return keys


def _load_state(run: TrainingRun, state: dict[str, Any], path: Path) -> None:
    """Load weights, optimizer, generators and the list of bad videos."""
    saved = {f"model.{key}": value for key, value in state["model"].items()} | state["method"]
    current = run.method.state_dict()
    # earlier revisions had no watch for overfitting; it begins anew
    saved = {key: value for key, value in current.items() if key.startswith("watch.")} | saved
    for key, value in saved.items():
        same = key not in current or torch.equal(current[key].cpu(), value)
        if key.startswith("teacher.") and not same:
            raise UserError(
                f"{path}: a resume cannot change the teacher, and method.teacher="
                f"{run.cfg.method.teacher} has other weights; set the one that it was trained with"
            )
    checkpoint.load_state(run.method, saved, str(path))
    if run.average is not None:
        if "average" not in state:
            raise UserError(f"{path} was trained without train.average; set it to 0, or start anew")
        run.average.load(state["average"])
    if run.auto is not None:
        run.auto.load_state_dict(state["auto_rate"])
    _load_optimizer(run.optimizer, state["optimizer"])
    checkpoint.set_rng_state(state["rng"])
    run.start = int(state["step"])
    # a bad video whose file has changed since may be good now
    run.bad = {
        index: reason
        for index, (reason, changed_ns) in state.get("bad_videos", {}).items()
        if run.changed_ns(index) == changed_ns
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the optimizer's state, but keep the configured options such as weight decay."""
    configured = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        group.update(options)

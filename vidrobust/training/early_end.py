"""End a run before its last step without losing any steps."""

import hashlib
import json
import math
from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from vidrobust import checkpoint
from vidrobust.checkpoint import NonFinite
from vidrobust.data import Batch
from vidrobust.training.step_guard import StepGuard
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

_NAMED = 3  # videos of a batch in a message


class Stopped(Exception):
    """A stop signal has ended the run, and a checkpoint is written."""


def save_completed_steps(
    run: TrainingRun, guard: StepGuard, *, all_ranks_alive: bool = False
) -> Path | None:
    """Write the state after the last completed step, if that is new.

    Args:
        run: whose state it is.
        guard: undoes the step that has begun.
        all_ranks_alive: no rank was lost. Work on the GPU may wait for a lost rank forever, and
            reading the weights would wait too.

    Returns:
        The checkpoint, or None.
    """
    if distributed.world() > 1 and run.device.type == "cuda" and not all_ranks_alive:
        return None
    distributed.main_ends()
    # the newest checkpoint of this run, or the one it was resumed from, may hold this state already
    if not guard.undo() or not run.main or guard.done <= max(run.saved, run.start):
        return None
    try:
        return run.save(guard.done)
    except (OSError, UserError) as error:
        log.warning(f"the state after step {guard.done} could not be written: {error}")
        return None


def leave(run: TrainingRun, guard: StepGuard, batch: Batch | None, loader_error: str) -> NoReturn:
    """Save the completed steps, on all ranks at once, and end the run.

    Args:
        run: the run.
        guard: knows how many steps are done.
        batch: the batch that was read last, or None.
        loader_error: why the loader of this rank has ended, or "".

    Raises:
        UserError: for the error of a loader, a video that cannot be replaced, or too many bad ones.
        Stopped: otherwise.
    """
    step = guard.done
    # nothing is written twice: the last regular checkpoint may be of this step
    with distributed.together():  # a full disk ends the run on all ranks
        if run.main and step > max(run.saved, run.start):
            run.save(step)
    reasons = distributed.merged({distributed.rank(): loader_error} if loader_error else {})
    distributed.barrier()
    path = run.out / "checkpoints" / f"step_{step:08d}.pt"
    is_new = step > run.start and path.is_file()
    written = f"{path} is written, --resume continues from it" if is_new else "nothing new to write"
    if reasons:
        reason = next(iter(reasons.values()))
        raise UserError(f"{reason}; after step {step} of {run.total}; {written}")
    if batch is not None and batch.failed:
        raise UserError(
            f"{batch.failed[0].reason}; the videos that should take its place are bad as well"
        )
    if run.too_many_bad:
        twins = ""
        if run.cfg.data.twins:
            twins = ", and `texture` makes deleted files of data.twins anew"
        raise UserError(
            f"{len(run.bad)} of {len(run.records)} training videos are bad"
            f" (train.max_bad={run.cfg.train.max_bad:g}); the last: {list(run.bad.values())[-1]};"
            " `python datasets/prepare.py scan` writes a data.manifest without files that do not"
            f" decode{twins}; or raise train.max_bad"
        )
    raise Stopped(f"after step {step} of {run.total}; {written}")


def refuse_non_finite(
    run: TrainingRun, guard: StepGuard, loss: Tensor, norm: Tensor, batch: Batch
) -> NoReturn:
    """Undo the step on all ranks, write the state before it and what repeats it, and end the run.

    Args:
        run: the run.
        guard: undoes the step.
        loss: of the batch.
        norm: of its gradient.
        batch: the batch of this rank.

    Raises:
        NonFinite: always.
    """
    step = guard.done
    loss_value = float(loss.detach())
    norm_value = float(norm)
    kernels = broken_kernels(run) if math.isfinite(loss_value) else []
    if not math.isfinite(loss_value):
        event = f"loss is {loss_value}"
    elif not math.isfinite(norm_value):
        event = f"gradient norm is {norm_value}"
    else:
        event = "loss of another rank is not finite"
    save_completed_steps(run, guard, all_ranks_alive=True)
    distributed.barrier()
    _write_event(run, step, event, batch)
    remedy = "lower optim.lr or set optim.clip_norm"
    if kernels:
        remedy = (
            f"only the weight gradient of {', '.join(kernels)} is not finite, which is a fault of "
            "torch's bf16 kernel on CPUs; set train.amp=fp32"
        )
    last_good = checkpoint.newest_step(run.out / "checkpoints") or "none yet"
    raise NonFinite(
        f"{event} at step {step}; {remedy}; `train_net.py --replay {run.out}` names the module;"
        f" last good checkpoint: {last_good}; batch: {_some_names(batch.uids)}"
    )


def _some_names(uids: list[str]) -> str:
    """Return the first names of a batch, and how many more there are; metrics.jsonl has all."""
    more = len(uids) - _NAMED
    return ", ".join(uids[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _write_event(run: TrainingRun, step: int, event: str, batch: Batch) -> None:
    """Append a row to metrics.jsonl from which the step can be repeated.

    A step is a function of the state before it and of the data: --resume repeats it, and --replay
    runs it alone and compares its batch with this row. Every rank writes a row, as every rank has
    its own batch.
    """
    before = run.out / "checkpoints" / f"step_{step:08d}.pt"
    if before.is_file():
        state_before = str(before)
    else:
        state_before = "not written" if step else "the start of the run"
    row = {
        "step": step,
        "epoch": step // run.per_epoch,
        "split": "train",
        "event": event,
        "uids": batch.uids,
        "index": batch.index.tolist(),
        "seed": run.cfg.seed,
        "rank": distributed.rank(),
        "clips_sha": clips_sha(batch),
        "device": run.device.type,
        "bf16": run.bf16,
        "state_before": state_before,
    }
    with open(run.out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def clips_sha(batch: Batch) -> str:
    """Return a hash of the pixels of a batch and of the random parameters of its views."""
    digest = hashlib.sha256()
    for tensor in (batch.clips, batch.draws, batch.numbers):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def broken_kernels(run: TrainingRun) -> list[str]:
    """Return the convolutions whose weight gradient bf16 has spoilt, if nothing else is wrong.

    A gradient that is not finite at the output of a layer spoils everything before it as well. If
    only weights of convolutions have such gradients, their kernels made them of finite numbers.
    """
    if run.device.type != "cpu" or not run.bf16:
        return []
    modules = dict(run.method.named_modules())
    kernels = []
    for name, parameter in run.method.named_parameters():
        if parameter.grad is None or bool(parameter.grad.isfinite().all()):
            continue
        layer, _, kind = name.rpartition(".")
        module = modules[layer]
        if kind != "weight" or not isinstance(module, nn.Conv3d):
            return []
        size = ",".join(str(side) for side in module.kernel_size)
        kernels.append(f"{layer} (Conv3d, kernel ({size}))")
    return kernels

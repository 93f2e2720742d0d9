"""The training loop: one page for every method."""

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.corruptions import OVER_TIME, expand
from vidrobust.data import (
    Batch,
    ClipDataset,
    Failure,
    Record,
    TrainBatches,
    build_records,
    eval_dataset,
    loader,
    records_sha,
    require_labels,
    train_dataset,
    worker_deaths,
)
from vidrobust.data.scan import stamp
from vidrobust.engine import checkpoint, distributed
from vidrobust.engine.log import log, start_logging
from vidrobust.engine.optim import build_optimizer, learning_rate
from vidrobust.engine.passes import PassCounter
from vidrobust.engine.progress import Progress
from vidrobust.engine.run import open_output, seed_everything
from vidrobust.engine.teacher import read_teacher
from vidrobust.errors import UserError
from vidrobust.evaluation.predict import evaluation_mode, extract
from vidrobust.methods import SUPERVISED, AdvCL, Distill, Method, build_method
from vidrobust.models import single_branch_state
from vidrobust.views import apply_draws, to_float

# options that decide what is in a checkpoint; "name=" as in config.differences
_FIXED = ("model.backbone=", "model.width=", "model.stem=", "model.hidden=", "model.dim=", "method.name=",
          "method.queue=", "method.predictor=", "method.clusters=", "method.adversary.name=",
          "method.adversary.combine=", "method.adversary.selector=", "method.adversary.clusters=",
          "method.false_negatives.rule=", "method.false_negatives.encoder=", "method.false_negatives.clusters=",
          "optim.name=")  # fmt: skip


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has written a checkpoint."""


class NonFinite(UserError):
    """The loss or its gradient is not a number any more."""


@dataclass
class _Run:
    """What the loop works on; `start` and `total` are steps of the whole run."""

    cfg: config.Config
    out: Path
    device: torch.device
    records: list[Record]
    dataset: ClipDataset
    method: Method
    optimizer: torch.optim.Optimizer
    start: int
    total: int
    bad: dict[int, str] = field(default_factory=dict)  # videos that did not decode, and why, on any rank
    notes: list[str] = field(default_factory=list)  # what the log says once it is open

    @property
    def per_epoch(self) -> int:
        return len(self.records) // self.cfg.train.batch_size

    @property
    def too_many_bad(self) -> bool:
        return len(self.bad) > self.cfg.train.max_bad * len(self.records)

    def changed_ns(self, index: int) -> int:
        """When the file of a video was last changed."""
        return stamp(self.records[index].path)[1]

    def save(self, step: int) -> Path:
        """Write a checkpoint after `step` steps."""
        method = {key: value for key, value in self.method.state_dict().items() if not key.startswith("model.")}
        state = {
            "format": checkpoint.FORMAT,
            "step": step,
            "epoch": step // self.per_epoch,
            "model": self.method.model.state_dict(),
            "method": method,
            "optimizer": self.optimizer.state_dict(),
            "rng": checkpoint.rng_state(),
            "config": config.to_yaml(self.cfg),
            "manifest_sha": records_sha(self.records),
            "bad_videos": {index: [reason, self.changed_ns(index)] for index, reason in self.bad.items()},
        }
        return checkpoint.save(self.out / "checkpoints", state, self.cfg.train.keep)


def train(cfg: config.Config, out: Path, resume: Path | None = None, *, overwrite: bool = False) -> Path:
    """Train the configured method into the folder `out`, from the checkpoint `resume` if given.

    Writes what DESIGN section 6 lists and returns the last checkpoint. On CPU, a run that was interrupted and
    resumed ends with the same bits as one that was not. Nothing is written, or deleted by `overwrite`, before data,
    model and checkpoint have proved good. Raises UserError, or Stopped after Ctrl-C or SIGTERM.
    """
    device = distributed.start(cfg.device)
    main = distributed.rank() == 0
    start_logging(None, quiet=not main)
    run = _build(cfg, out, device, resume)
    if main:
        open_output(out, cfg, overwrite=overwrite)
        start_logging(out)
        size = sum(p.numel() for p in run.method.parameters() if p.requires_grad) / 1e6
        log.info(
            f"{cfg.method.name} on {cfg.data.name}: {len(run.records)} videos, {cfg.model.backbone} ({size:.2f} M "
            f"parameters) on {device}, steps {run.start} to {run.total}"
        )
        for note in run.notes:
            log.warning(note)
        if run.start:
            checkpoint.drop_after(out / "checkpoints", run.start)
            run.save(run.start)  # last.pt is of this run, whatever it was before
    with _stop_signals() as stopping:
        _steps(run, stopping, main)
    if main:
        if run.start >= run.total:
            log.info(f"training was complete at step {run.total}")
        checkpoint.write_atomic(out / "backbone.pt", single_branch_state(run.method.model.backbone.trunk))
    distributed.barrier()  # every rank finds the last checkpoint
    return out / "checkpoints" / "last.pt"


def _steps(run: _Run, stopping: list[int], main: bool) -> None:
    """Steps `start` to `total`; on rank 0 also the log and the checkpoints."""
    cfg, method, optimizer, device = run.cfg, run.method, run.optimizer, run.device
    dataset = run.dataset
    batches = TrainBatches(
        len(run.records), cfg.train.batch_size, cfg.seed, run.start, run.total, distributed.rank(), distributed.world()
    )
    forward = distributed.parallel(method, method.alike, method.skips)
    amp = use_bf16(cfg.train.amp, device)
    method.train()
    passes = PassCounter(method)
    clock = Progress(run.out, run.start, run.total, run.per_epoch, cfg.train.log_every, device, main)
    with clock as progress, worker_deaths(dataset):
        for step, batch in enumerate(loader(dataset, batches, cfg.data.workers), run.start):
            progress.data_arrived()
            _count_bad(run, batch.replaced, main)
            if distributed.any_rank(bool(batch.failed or stopping or run.too_many_bad), device):
                _leave(run, step, batch, main)
            views, ids, labels = _to_device(batch, device)
            method.progress = step / run.total
            if step % run.per_epoch == 0:
                method.start_epoch()
            rate = learning_rate(step, run.total, cfg.optim)
            for group in optimizer.param_groups:
                group["lr"] = rate
            passes.take()
            for _ in range(method.replays):
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    parts = {name: value.mean() for name, value in forward(views, ids, labels).items()}
                optimizer.zero_grad(set_to_none=True)
                parts["loss"].backward()
                norm = nn.utils.clip_grad_norm_(method.parameters(), cfg.optim.clip_norm or math.inf)
                _refuse_non_finite(parts["loss"], norm, step, batch, run.out)
                optimizer.step()
            progress.passed(len(ids), passes.take())
            progress.step_done(step, rate, parts, norm, len(batch.replaced), len(run.bad))
            if (step + 1) % run.per_epoch == 0 or step + 1 == run.total:
                progress.epoch_done(step, method.report(last=step + 1 == run.total))
            if main and (step + 1 == run.total or (step + 1) % cfg.train.checkpoint_every == 0):
                run.save(step + 1)


def _count_bad(run: _Run, replaced: list[Failure], main: bool) -> None:
    """Note videos that were found bad on any rank; each is told once."""
    new = {failure.index: failure.reason for failure in replaced if failure.index not in run.bad}
    if distributed.any_rank(bool(new), run.device):
        for index, reason in sorted(distributed.merged(new).items()):
            run.bad[index] = reason
            if main:
                log.warning(f"bad video, another takes its place: {reason}")


def _leave(run: _Run, step: int, batch: Batch, main: bool) -> NoReturn:
    """Save what `step` finished steps have reached, on all ranks at once, then say why the run stops."""
    where = run.save(step) if main and step > run.start else None
    distributed.barrier()
    if batch.failed:
        raise UserError(f"{batch.failed[0].reason}; the videos that were to take its place are bad as well")
    if run.too_many_bad:
        raise UserError(
            f"{len(run.bad)} of {len(run.records)} training videos are bad (train.max_bad={run.cfg.train.max_bad:g}); "
            f"the last: {list(run.bad.values())[-1]}; python datasets/prepare.py scan makes a "
            "data.manifest without files that do not decode; or raise train.max_bad"
        )
    written = f"{where} is written, --resume goes on" if where else "nothing new to write"
    raise Stopped(f"after step {step} of {run.total}; {written}")


def total_steps(cfg: config.Config, videos: int) -> int:
    """Steps of the whole run. Raises UserError when a batch is larger than the data set, or uneven over ranks."""
    size, world = cfg.train.batch_size, distributed.world()
    if size > videos:
        raise UserError(f"train.batch_size={size} is larger than the data set ({videos} videos)")
    if size % world:
        raise UserError(f"train.batch_size={size} is global: it must be a multiple of the {world} ranks")
    if size < 2 * world:
        raise UserError(f"train.batch_size={size}: batch norms and contrastive losses need two videos on each rank")
    steps = cfg.train.epochs * (videos // size)
    return min(steps, cfg.train.max_steps) if cfg.train.max_steps else steps


def _build(cfg: config.Config, out: Path, device: torch.device, resume: Path | None) -> _Run:
    """Data, model and optimizer as the first step, or the step after the checkpoint, finds them.

    `total_steps` and `learning_rate` are asked here so that what they refuse is refused before anything is written.
    """
    with distributed.main_first():  # it may have to draw the data set
        records, classes = build_records(cfg.data, "train")
    seed_everything(cfg.seed, cfg.deterministic)
    total = total_steps(cfg, len(records))
    learning_rate(0, total, cfg.optim)
    if cfg.method.name in SUPERVISED and not cfg.method.clusters:
        require_labels(records, f"method.name={cfg.method.name}")
    if cfg.method.norm == "sync" and distributed.world() > 1 and device.type != "cuda":
        raise UserError(f"method.norm=sync needs GPUs, and this is {device}; use shuffle or own")
    if cfg.method.false_negatives.rule == "oracle":
        require_labels(records, "method.false_negatives.rule=oracle")
    method = build_method(cfg, len(classes))
    if cfg.model.weights:
        trunk = checkpoint.trunk_state(cfg.model.weights)
        checkpoint.load_state(method.model.backbone.trunk, trunk, cfg.model.weights)
    if cfg.method.teacher and isinstance(method, Distill | AdvCL):
        method.learn_from(read_teacher(cfg.method.teacher, cfg))
    method.to(device).prepare(records)
    if resume is None:  # a checkpoint holds what was found
        _look(cfg, method, records, device)
    epochs = -(-total // (len(records) // cfg.train.batch_size))
    dataset = train_dataset(cfg.data, cfg.augment, records, method.views, cfg.seed, epochs)
    run = _Run(cfg, out, device, records, dataset, method, build_optimizer(method, cfg.optim), 0, total)
    idle = [name for name in expand(cfg.augment.corruptions) if name in OVER_TIME and cfg.data.frames == 1]
    if idle:
        run.notes.append(f"augment.corruptions: nothing changes of clips of one frame under {', '.join(idle)}")
    if resume:
        _restore(run, resume)
    return run


def _look(cfg: config.Config, method: Method, records: list[Record], device: torch.device) -> None:
    """Give a method that wants pseudo-labels the features of the centre clip of each video; rank 0 looks for all."""
    trunk = method.looks_with()
    if trunk is None or method.pseudo is None:
        return
    if distributed.rank() == 0:
        log.info(f"features of {len(records)} videos, to be clustered into {list(method.pseudo.counts)}")
        with evaluation_mode(trunk):
            (found,) = extract([trunk], eval_dataset(cfg.data, records, 1), device, batch_size=cfg.eval.batch_size,
                               workers=cfg.data.workers)  # fmt: skip
        if found.failed:
            log.warning(f"{len(found.failed)} videos do not decode and get no pseudo-label: {found.failed[0].reason}")
        method.pseudo.cluster(found.features[:, 0], found.index)
    distributed.broadcast([method.pseudo.labels])


def _restore(run: _Run, path: Path) -> None:
    """Put everything back as it was when the checkpoint was written."""
    state = checkpoint.read_checkpoint(path)
    if state["manifest_sha"] != records_sha(run.records):
        raise UserError(f"{path} was trained on another list of videos; train anew in another --output-dir")
    changed = config.differences(config.loads(state["config"], source=str(path)), run.cfg)
    fixed = [line for line in changed if line.startswith(_FIXED)]
    if fixed:
        raise UserError(f"{path}: a resume cannot change {fixed[0]}; start anew from its backbone.pt by model.weights")
    whole = {f"model.{key}": value for key, value in state["model"].items()} | state["method"]
    checkpoint.load_state(run.method, whole, str(path))
    asked = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    run.optimizer.load_state_dict(state["optimizer"])
    for group, options in zip(run.optimizer.param_groups, asked, strict=True):
        group.update(options)  # decay and momentum are the configuration's, as the rate is
    checkpoint.set_rng_state(state["rng"])
    run.start = int(state["step"])
    known = state.get("bad_videos", {}).items()  # but for those that were mended
    run.bad = {index: reason for index, (reason, changed_ns) in known if run.changed_ns(index) == changed_ns}
    if run.start > run.total:
        raise UserError(
            f"{path} is at step {run.start}, beyond the {run.total} asked for: nothing to train; "
            "tools/test_net.py measures it"
        )
    if changed:
        run.notes.append(f"resuming with options that differ from the checkpoint's, in brackets: {', '.join(changed)}")


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """views (B, V, C, T, H, W) float32 in [0, 1], ids (B,), labels (B,) on the device."""
    clips = to_float(batch.clips.to(device))
    views = apply_draws(clips.flatten(0, 1), batch.draws.flatten(0, 1)).view(clips.shape)
    return views, batch.index.to(device), batch.labels.to(device)


def _refuse_non_finite(loss: Tensor, norm: Tensor, step: int, batch: Batch, out: Path) -> None:
    value, slope = float(loss.detach()), float(norm)
    if math.isfinite(value) and math.isfinite(slope):
        return
    what = f"gradient norm is {slope}" if math.isfinite(value) else f"loss is {value}"
    row = {"step": step, "split": "train", "event": what, "uids": batch.uids}
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")  # one of each rank: every rank has its own batch
    kept = sorted((out / "checkpoints").glob("step_*.pt"))
    raise NonFinite(
        f"{what} at step {step}; batch: {', '.join(batch.uids)}; last good checkpoint: "
        f"{kept[-1] if kept else 'none yet'}; lower optim.lr or set optim.clip_norm"
    )


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether `train.amp` asks for bf16 autocast there."""
    if amp == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return amp == "bf16"


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM asks the run to stop; the step at hand is finished first."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])  # a second one does not wait for the step

    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, before[number])

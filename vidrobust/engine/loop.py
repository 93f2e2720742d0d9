"""The training loop: one page for every method."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from vidrobust import config
from vidrobust.data import Batch, Record, TrainBatches, build_records, loader, records_sha, train_dataset
from vidrobust.engine import checkpoint, distributed
from vidrobust.engine.log import Metrics, duration, log, start_logging, to_file
from vidrobust.engine.optim import build_optimizer, learning_rate
from vidrobust.engine.run import describe_run, seed_everything
from vidrobust.errors import UserError
from vidrobust.methods import build_method
from vidrobust.models import single_branch_state
from vidrobust.views import apply_color


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has written a checkpoint."""


def train(cfg: config.Config, out: Path, resume: Path | None = None) -> Path:
    """Train the configured method into the claimed folder `out`, from `resume` if given.

    Writes what DESIGN section 6 lists and returns the last checkpoint. On CPU, a run that was interrupted and
    resumed ends with the same bits as one that was not. Raises UserError, or Stopped after Ctrl-C or SIGTERM.
    """
    device = distributed.start(cfg.device)
    main = distributed.rank() == 0
    start_logging(out if main else None, quiet=not main)
    seed_everything(cfg.seed, cfg.deterministic)
    records, classes = _records(cfg)
    method = build_method(cfg, len(classes))
    if cfg.model.weights:
        checkpoint.load_state(
            method.model.backbone.trunk, checkpoint.trunk_state(cfg.model.weights), cfg.model.weights
        )
    method.to(device)
    optimizer = build_optimizer(method, cfg.optim)
    total = total_steps(cfg, len(records))
    start = _restore(cfg, resume, method, optimizer, records) if resume else 0
    if main:
        describe_run(out, cfg)
        log.info(
            f"{cfg.method.name} on {cfg.data.name}: {len(records)} videos, {len(classes)} classes, {cfg.model.backbone} "
            f"({sum(p.numel() for p in method.parameters()) / 1e6:.2f} M parameters) on {device}, "
            f"steps {start} to {total}"
        )

    dataset = train_dataset(cfg.data, cfg.augment, records, method.views, cfg.seed)
    batches = TrainBatches(
        len(records), cfg.train.batch_size, cfg.seed, start, total, distributed.rank(), distributed.world()
    )
    forward = DistributedDataParallel(method) if distributed.world() > 1 else method
    amp = _use_bf16(cfg.train.amp, device)
    metrics = Metrics(out, start) if main else None
    bar = tqdm(total=total, initial=start, disable=not (main and sys.stderr.isatty()), file=sys.stderr)

    def save(step: int) -> Path:
        state = _state(cfg, method, optimizer, records, step, batches.per_epoch)
        return checkpoint.save(out / "checkpoints", state, cfg.train.keep)

    method.train()
    began = clock = time.perf_counter()
    step = start
    with _stop_signals() as stopping:
        try:
            for step, batch in enumerate(loader(dataset, batches, cfg.data.workers), start):
                data_s = time.perf_counter() - clock
                _refuse_failures(batch)
                views, ids, labels = _to_device(batch, device)
                rate = learning_rate(step, total, cfg.optim)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    parts = {name: value.mean() for name, value in forward(views, ids, labels).items()}
                optimizer.zero_grad(set_to_none=True)
                parts["loss"].backward()
                norm = nn.utils.clip_grad_norm_(method.parameters(), cfg.optim.clip_norm or math.inf)
                _refuse_non_finite(parts["loss"], norm, step, batch, out)
                optimizer.step()

                done, now = step + 1, time.perf_counter()
                bar.update()
                if main and (done % cfg.train.log_every == 0 or done == total):
                    assert metrics is not None
                    row = {
                        "step": step, "epoch": step // batches.per_epoch, "split": "train",
                        **{name: float(value.detach()) for name, value in parts.items()},
                        "lr": rate, "grad_norm": float(norm), "data_s": data_s, "step_s": now - clock,
                        "mem_gb": _memory_gb(device), "fallbacks": batch.fallbacks,
                    }  # fmt: skip
                    metrics.write(row)
                    _progress(row, done, total, (now - began) / (done - start) * (total - done), bar)
                clock = time.perf_counter()
                if main and (done % cfg.train.checkpoint_every == 0 or done == total):
                    save(done)
                if stopping and done < total:
                    where = save(done) if main else out
                    raise Stopped(f"stopped after step {done} of {total}; {where} is written, --resume goes on")
        except UserError:
            # nothing is lost: the weights are those of the last finished step
            if main and step > start and not isinstance(sys.exc_info()[1], NonFinite):
                save(step)
            raise
        finally:
            bar.close()
            if metrics:
                metrics.close()
    if main:
        if start >= total:
            log.info(f"training was complete at step {total}")
        checkpoint.write_atomic(out / "backbone.pt", single_branch_state(method.model.backbone.trunk))
    return out / "checkpoints" / "last.pt"


class NonFinite(UserError):
    """The loss or its gradient is not a number any more."""


def total_steps(cfg: config.Config, videos: int) -> int:
    """Steps of the whole run. Raises UserError when a batch is larger than the data set."""
    size, world = cfg.train.batch_size, distributed.world()
    if size > videos:
        raise UserError(f"train.batch_size={size} is larger than the data set ({videos} videos)")
    if size % world:
        raise UserError(f"train.batch_size={size} is global: it must be a multiple of the {world} ranks")
    steps = cfg.train.epochs * (videos // size)
    return min(steps, cfg.train.max_steps) if cfg.train.max_steps else steps


def _records(cfg: config.Config) -> tuple[list[Record], list[str]]:
    """The training records; rank 0 goes first, as it may have to draw the data set."""
    if distributed.rank() > 0:
        distributed.barrier()
    parsed = build_records(cfg.data, "train")
    if distributed.rank() == 0:
        distributed.barrier()
    return parsed


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """views (B, V, C, T, H, W) float32 in [0, 1], ids (B,), labels (B,) on the device."""
    clips = batch.clips.to(device, non_blocking=True)
    shape = clips.shape
    views = apply_color(clips.flatten(0, 1).float() / 255, batch.color.flatten(0, 1)).view(shape)
    return views, batch.index.to(device), batch.labels.to(device)


def _refuse_failures(batch: Batch) -> None:
    if batch.failed:
        raise UserError(f"{batch.failed[0].reason}; replace the file or take its line out of the training list")


def _refuse_non_finite(loss: Tensor, norm: Tensor, step: int, batch: Batch, out: Path) -> None:
    value, slope = float(loss.detach()), float(norm)
    if math.isfinite(value) and math.isfinite(slope):
        return
    what = f"gradient norm is {slope}" if math.isfinite(value) else f"loss is {value}"
    row = {"step": step, "split": "train", "event": what, "uids": batch.uids}
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    kept = sorted((out / "checkpoints").glob("step_*.pt"))
    raise NonFinite(
        f"{what} at step {step}; batch: {', '.join(batch.uids)}; last good checkpoint: "
        f"{kept[-1] if kept else 'none yet'}; lower optim.lr or set optim.clip_norm"
    )


def _state(
    cfg: config.Config, method: nn.Module, optimizer: torch.optim.Optimizer, records: list[Record], step: int,
    per_epoch: int,
) -> dict[str, Any]:  # fmt: skip
    own = {key: value for key, value in method.state_dict().items() if not key.startswith("model.")}
    return {
        "format": checkpoint.FORMAT,
        "step": step,
        "epoch": step // per_epoch,
        "model": method.model.state_dict(),
        "method": own,
        "optimizer": optimizer.state_dict(),
        "rng": checkpoint.rng_state(),
        "config": config.to_yaml(cfg),
        "manifest_sha": records_sha(records),
    }


def _restore(
    cfg: config.Config, path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, records: list[Record]
) -> int:
    """Put everything back as it was; returns the step to go on with."""
    state = checkpoint.read_checkpoint(path)
    if state["manifest_sha"] != records_sha(records):
        raise UserError(f"{path} was trained on another list of videos; train anew in another --output-dir")
    whole = {f"model.{key}": value for key, value in state["model"].items()} | state["method"]
    checkpoint.load_state(method, whole, str(path))
    optimizer.load_state_dict(state["optimizer"])
    checkpoint.set_rng_state(state["rng"])
    changed = config.differences(config.loads(state["config"]), cfg)
    if changed:
        log.warning(f"resuming with options that differ from the checkpoint's, in brackets: {', '.join(changed)}")
    return int(state["step"])


def _use_bf16(amp: str, device: torch.device) -> bool:
    if amp == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return amp == "bf16"


def _memory_gb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _progress(row: dict[str, Any], done: int, total: int, left_s: float, bar: tqdm) -> None:
    text = (
        f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  data {row['data_s']:.3f} s  step {row['step_s']:.3f} s"
    )
    bar.set_postfix_str(text)
    to_file.info(f"step {done}/{total}  {text}  left {duration(left_s)}")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM asks the run to stop; the step at hand is finished first."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

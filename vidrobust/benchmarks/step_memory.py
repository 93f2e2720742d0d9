"""Measure the memory of a training step by batch and micro-batch."""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch

from vidrobust import config
from vidrobust.benchmarks.timing import peak_mib
from vidrobust.methods import build_method
from vidrobust.training.setup import arrange


@dataclass(frozen=True)
class StepMemory:
    """Hold what a step takes, in MiB and seconds.

    Attributes:
        start: memory with model and clips, before the step.
        peak: largest memory of the step.
        seconds: of the second of two steps.
    """

    start: float
    peak: float
    seconds: float


def print_step_memory(cfg: config.Config, *, batches: Sequence[int], micro_batch: int) -> None:
    """Print the peak memory of a step on the CPU, with whole batches and with micro-batches.

    Args:
        cfg: method, model and clips; its batch size and micro-batch are replaced.
        batches: videos per batch.
        micro_batch: clips at a time.
    """
    views = cfg.method.clips_per_video
    print(
        f"{cfg.method.name}, {cfg.model.backbone} of width {cfg.model.width}, {views} clips of"
        f" {cfg.data.frames} x {cfg.data.size}, random; one step in a process of its own"
    )
    print("| videos | clips at a time | before, MiB | peak of the step, MiB | step, s |")
    print("|---|---|---|---|---|")
    for batch in batches:
        for size in (0, micro_batch):
            found = measure_step(cfg, batch, size)
            print(
                f"| {batch} | {size or 'all'} | {found.start:.0f} | {found.peak - found.start:.0f}"
                f" | {found.seconds:.2f} |",
                flush=True,
            )


def measure_step(cfg: config.Config, batch: int, micro_batch: int) -> StepMemory:
    """Measure a step in a new process, whose memory nothing else has grown.

    Args:
        cfg: method, model and clips.
        batch: videos.
        micro_batch: clips at a time; 0: all.
    """
    train = replace(cfg.train, batch_size=batch, micro_batch=micro_batch)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_step, args=(replace(cfg, train=train), sender))
    child.start()
    sender.close()  # without this process's copy, a child that dies ends recv()
    try:
        found: StepMemory = receiver.recv()
    finally:
        child.join()
    return found


def _step(cfg: config.Config, sender: Connection) -> None:
    """Take two steps on random clips, and send what they took."""
    torch.manual_seed(0)
    batch = cfg.train.batch_size
    method = build_method(cfg, 10).train()
    bf16 = arrange(method, cfg.train)
    views = torch.rand(batch, method.views, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
    ids = torch.arange(batch)
    start = peak_mib()
    seconds = 0.0
    for _ in range(2):
        method.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = method(views, ids, ids % 10, 0.5)["loss"].mean()
        loss.backward()
        seconds = time.perf_counter() - begin
    sender.send(StepMemory(start, peak_mib(), seconds))

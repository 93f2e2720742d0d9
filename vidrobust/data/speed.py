"""Clips a second: the bare decoder, our loader, pytorchvideo's, side by side, and what the loader's time is made of."""

import dataclasses
import functools
import itertools
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from vidrobust import config
from vidrobust.data import ClipDataset, EvalBatches, build_records, loader, train_dataset
from vidrobust.data.decode import open_video, resize
from vidrobust.data.decoders import PyAV
from vidrobust.data.records import Record
from vidrobust.data.sampling import random_clips
from vidrobust.views import AugmentSpec, draw_view

VIEWS = 2
Row = tuple[str, Callable[[], float]]  # a name, and a function that measures seconds a video


@contextmanager
def one_core() -> Iterator[None]:
    """This process, and those it starts, on one core, where the system has such a thing."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_data(cfg: config.Config, *, videos: int, rounds: int, prepared: str = "") -> list[dict[str, Any]]:
    """Rows {name, cores, videos_s, clips_s, spread}: medians over `rounds`, every row once a round.

    Random clips of the training list, two views of a video, as `cfg` says. prepared: the root of the same data set,
    re-encoded, for a row more. A video that does not decode raises DecodeError.
    """
    records, _ = build_records(cfg.data, "train")
    chosen = list(itertools.islice(itertools.cycle(records), videos))
    rows: list[tuple[str, int, Callable[[], float]]] = [
        (f"{name}, {backend}", 1, functools.partial(measure, chosen, cfg, backend))
        for name, measure in (("bare decoder", _bare), ("vidrobust", _ours), ("pytorchvideo", _theirs))
        for backend in ("pyav", "decord")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows.append((f"vidrobust, {cores} workers", cores, functools.partial(_ours, chosen, cfg, "pyav", cores)))
    if prepared:
        found, _ = build_records(dataclasses.replace(cfg.data, root=prepared, manifest=""), "train")
        shrunk = list(itertools.islice(itertools.cycle(found), videos))
        rows.append(("vidrobust, re-encoded files", 1, functools.partial(_ours, shrunk, cfg, "pyav")))
    times: dict[str, list[float]] = {name: [] for name, _, _ in rows}
    for _ in range(rounds):
        for name, wanted, measure in rows:
            if wanted == 1:
                with one_core():
                    times[name].append(measure())
            else:
                times[name].append(measure())
    return [
        {
            "name": name, "cores": wanted, "videos_s": 1 / statistics.median(times[name]),
            "clips_s": VIEWS / statistics.median(times[name]),
            "spread": [VIEWS / max(times[name]), VIEWS / min(times[name])],
        }
        for name, wanted, _ in rows
    ]  # fmt: skip


def _bare(records: list[Record], cfg: config.Config, backend: str) -> float:
    """The frames of two random clips of each video, at their own size, and nothing else."""
    spec = _dataset(records, cfg, backend).spec
    start = time.perf_counter()
    for index, record in enumerate(records):
        rng = np.random.default_rng([cfg.seed, index])
        with open_video(record.path, backend=backend, frames=record.frames) as video:
            indices = np.unique(random_clips(video.num_frames, spec, rng))
            for _ in video.frames(indices):
                pass
    return (time.perf_counter() - start) / len(records)


def _ours(records: list[Record], cfg: config.Config, backend: str, workers: int = 1) -> float:
    size = 8
    batches = loader(_dataset(records, cfg, backend), EvalBatches(list(range(len(records))), size), workers)
    return _steady(iter(batches), lambda batch: len(batch.uids))


def _theirs(records: list[Record], cfg: config.Config, backend: str) -> float:
    """pytorchvideo's LabeledVideoDataset: two random clips of each video, 16 of their frames, a random resized crop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.data import LabeledVideoDataset
        from pytorchvideo.data.clip_sampling import RandomMultiClipSampler
    from torchvision.transforms import v2

    scale = (cfg.augment.scale[0], cfg.augment.scale[1])
    crop = v2.RandomResizedCrop(cfg.data.size, scale=scale, antialias=True)

    def transform(sample: dict[str, Any]) -> torch.Tensor:
        views = []
        for video in sample["video"]:  # (3, frames, H, W) float
            chosen = torch.linspace(0, video.shape[1] - 1, cfg.data.frames).long()
            views.append(crop(video[:, chosen].transpose(0, 1)).transpose(0, 1))
        return torch.stack(views)

    seconds = cfg.data.frames * cfg.data.stride / 25
    dataset = LabeledVideoDataset(
        [(record.path, {"label": record.label}) for record in records],
        RandomMultiClipSampler(clip_duration=seconds, num_clips=VIEWS),
        video_sampler=torch.utils.data.SequentialSampler, transform=transform, decode_audio=False, decoder=backend,
    )  # fmt: skip
    batches = torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=1)
    return _steady(iter(batches), len)


def _steady(batches: Iterator[Any], count: Callable[[Any], int]) -> float:
    """Seconds a video from the first batch to the last: starting and ending processes is not loading."""
    next(batches)
    start, last, seen = time.perf_counter(), 0.0, 0
    for batch in batches:
        seen += count(batch)
        last = time.perf_counter()
    return (last - start) / seen


def _dataset(records: list[Record], cfg: config.Config, backend: str) -> ClipDataset:
    return train_dataset(dataclasses.replace(cfg.data, backend=backend), cfg.augment, records, VIEWS, cfg.seed)


def floor(cfg: config.Config, *, videos: int, rounds: int) -> dict[str, float]:
    """Milliseconds a video of what the loader does with PyAV, on one core: medians over `rounds`."""
    records, _ = build_records(cfg.data, "train")
    chosen = list(itertools.islice(itertools.cycle(records), videos))
    stages: dict[str, Callable[[], None]] = {
        "open": lambda: _stage(chosen, cfg, 0),
        "decode": lambda: _stage(chosen, cfg, 1),
        "colour": lambda: _stage(chosen, cfg, 2),
        "crop, resize": lambda: _stage(chosen, cfg, 3),
    }
    found: dict[str, list[float]] = {name: [] for name in [*stages, "child, collate, transport"]}
    with one_core():
        for _ in range(rounds):
            before = 0.0
            for name, run in stages.items():
                start = time.perf_counter()
                run()
                spent = (time.perf_counter() - start) / videos * 1e3
                found[name].append(spent - before)
                before = spent
            found["child, collate, transport"].append(1e3 * _ours(chosen, cfg, "pyav", 1) - before)
    return {name: statistics.median(values) for name, values in found.items()}


def _stage(records: list[Record], cfg: config.Config, depth: int) -> None:
    """Open; decode; convert to RGB; crop and resize: each stage with those before it."""
    spec = _dataset(records, cfg, "pyav").spec
    view = AugmentSpec(size=cfg.data.size, scale=(cfg.augment.scale[0], cfg.augment.scale[1]))
    for index, record in enumerate(records):
        rng = np.random.default_rng([cfg.seed, index])
        with open_video(record.path, backend="pyav", frames=record.frames) as video:
            assert isinstance(video, PyAV)
            clips = random_clips(video.num_frames, spec, rng)
            if depth == 0:
                continue
            if depth == 1:
                video._upright = lambda frame: frame  # type: ignore[method-assign, assignment, return-value]
            frames = list(video.frames(np.unique(clips)))
            if depth == 3:
                for _ in range(VIEWS):
                    height, width = frames[0].shape[:2]
                    box = draw_view(view, height, width, rng)
                    cut = [f[box.top : box.top + box.height, box.left : box.left + box.width] for f in frames]
                    resize(np.stack(cut[: spec.frames]), view.size, view.size)

"""Time loading in clips per second, compared with the bare decoder and pytorchvideo."""

import dataclasses
import functools
import itertools
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vidrobust import config
from vidrobust.data import (
    Batch,
    ClipDataset,
    DecodeError,
    EvalBatches,
    Failure,
    batch_loader,
    build_records,
    eval_dataset,
    train_dataset,
)
from vidrobust.data.decoding.pyav import PyAV, require_backend
from vidrobust.data.decoding.read_frames import open_record, open_video, resize
from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError
from vidrobust.views import AugmentSpec, draw_view

VIEWS = 2
log = logging.getLogger("vidrobust")


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


@dataclass
class Row:
    """A loader and what it reached: seconds a video of each round, or the reason why it does not
    read this data set.
    """

    name: str
    cores: int
    measure: Callable[[], float]
    videos_s: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def clips_s(self) -> tuple[float, float, float]:
        """(median, lowest, highest) clips a second."""
        rates = [VIEWS / seconds for seconds in self.videos_s]
        return statistics.median(rates), min(rates), max(rates)


def measure_data(
    cfg: config.Config, chosen: list[Record], *, rounds: int, prepared: str = ""
) -> list[Row]:
    """Random clips of the `chosen` videos, two views of each, as `cfg` says; every row once a
    round.

    prepared: the root of the same data set, re-encoded, for a row more. Images and folders of
    frames have one decoder, and pytorchvideo does not read them.
    """
    with open_video(chosen[0].path) as first:
        backends = _video_backends() if first.backend == "pyav" else ("auto",)
    kinds = {"bare decoder": _bare, "vidrobust": _ours, "pytorchvideo": _theirs}
    rows = [
        Row(f"{name}, {backend}", 1, functools.partial(measure, chosen, cfg, backend))
        for name, measure in kinds.items()
        for backend in backends
        if measure is not _theirs or backend in ("pyav", "decord")
    ]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    rows.append(
        Row(
            f"vidrobust, {cores} workers",
            cores,
            functools.partial(_ours, chosen, cfg, "auto", cores),
        )
    )
    if prepared:
        small = readable(_at(cfg, prepared), len(chosen))
        rows.append(
            Row("vidrobust, re-encoded files", 1, functools.partial(_ours, small, cfg, "auto"))
        )
    for _ in range(rounds):
        for row in rows:
            if row.reason:
                continue
            try:
                with one_core() if row.cores == 1 else nullcontext():
                    row.videos_s.append(row.measure())
            except DecodeError as error:
                row.reason = str(error)
    return rows


def readable(cfg: config.Config, videos: int) -> list[Record]:
    """The first `videos` of the training list that decode, over again when there are fewer; says
    what it left out.
    """
    records, _ = build_records(cfg.data, "train")
    good: list[Record] = []
    dataset = eval_dataset(cfg.data, records, 1)
    for index, record in enumerate(records):
        if len(good) == videos:
            break
        sample = dataset[0, index]
        if isinstance(sample, Failure):
            log.warning(f"left out: {sample.reason}")
        else:
            good.append(record)
    if not good:
        raise UserError("no training video decodes: nothing to measure")
    return list(itertools.islice(itertools.cycle(good), videos))


def _at(cfg: config.Config, root: str) -> config.Config:
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, root=root, manifest=""))


def _video_backends() -> tuple[str, ...]:
    try:
        require_backend("torchcodec")
    except UserError:
        return "pyav", "decord"
    return "pyav", "decord", "torchcodec"


def _bare(records: list[Record], cfg: config.Config, backend: str) -> float:
    """The frames that our loader reads of each video, at their own size, and nothing else."""
    ours = _dataset(records, cfg, backend)
    start = time.perf_counter()
    for index, record in enumerate(records):
        with open_record(record, backend) as video:
            for _ in video.frames(np.unique(ours.draw_clips(0, index, video.num_frames)[0])):
                pass
    return (time.perf_counter() - start) / len(records)


def _ours(records: list[Record], cfg: config.Config, backend: str, workers: int = 1) -> float:
    size = 8
    batches = batch_loader(
        _dataset(records, cfg, backend), EvalBatches(list(range(len(records))), size), workers
    )
    return _steady(iter(batches), _all_read)


def _all_read(batch: Batch) -> int:
    if bad := [*batch.failed, *batch.replaced]:
        raise DecodeError(bad[0].reason)
    return len(batch.uids)


def _theirs(records: list[Record], cfg: config.Config, backend: str) -> float:
    """pytorchvideo's LabeledVideoDataset: two random clips of each video, 16 of their frames, a
    random resized crop.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.data import LabeledVideoDataset
        from pytorchvideo.data.clip_sampling import RandomMultiClipSampler
    from torchvision.transforms import v2

    scale = (cfg.augment.scale[0], cfg.augment.scale[1])
    crop = v2.RandomResizedCrop(cfg.data.size, scale=scale, antialias=True)

    seconds = cfg.data.frames * cfg.data.stride / 25
    dataset = LabeledVideoDataset(
        [(record.path, {"label": record.label}) for record in records],
        RandomMultiClipSampler(clip_duration=seconds, num_clips=VIEWS),
        video_sampler=torch.utils.data.SequentialSampler,
        decode_audio=False,
        decoder=backend,
        transform=functools.partial(_their_views, crop=crop, frames=cfg.data.frames),
    )
    # FFmpeg's threads are not copied with a process that has decoded, and PyAV 19 waits for them
    context = "spawn" if backend == "pyav" else None
    batches = torch.utils.data.DataLoader(
        dataset, batch_size=8, num_workers=1, multiprocessing_context=context
    )
    return _steady(iter(batches), len)


def _their_views(
    sample: dict[str, Any], crop: Callable[[torch.Tensor], torch.Tensor], frames: int
) -> torch.Tensor:
    views = []
    for video in sample["video"]:  # (3, frames, H, W) float
        chosen = torch.linspace(0, video.shape[1] - 1, frames).long()
        views.append(crop(video[:, chosen].transpose(0, 1)).transpose(0, 1))
    return torch.stack(views)


def _steady(batches: Iterator[Any], count: Callable[[Any], int]) -> float:
    """Seconds a video from the first batch to the last: starting and ending processes is not
    loading.
    """
    next(batches)
    start, last, seen = time.perf_counter(), 0.0, 0
    for batch in batches:
        seen += count(batch)
        last = time.perf_counter()
    return (last - start) / seen


def _dataset(records: list[Record], cfg: config.Config, backend: str) -> ClipDataset:
    return train_dataset(
        dataclasses.replace(cfg.data, backend=backend), cfg.augment, records, VIEWS, cfg.seed
    )


def floor(cfg: config.Config, chosen: list[Record], *, rounds: int) -> dict[str, float]:
    """Milliseconds a video of what the loader does with its own decoder, on one core: medians over
    `rounds`.
    """
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
                spent = (time.perf_counter() - start) / len(chosen) * 1e3
                found[name].append(spent - before)
                before = spent
            found["child, collate, transport"].append(1e3 * _ours(chosen, cfg, "auto") - before)
    return {name: statistics.median(values) for name, values in found.items()}


def _stage(records: list[Record], cfg: config.Config, depth: int) -> None:
    """Open; decode; convert to RGB; crop and resize: each stage with those before it."""
    ours = _dataset(records, cfg, "auto")
    view = AugmentSpec(size=cfg.data.size, scale=(cfg.augment.scale[0], cfg.augment.scale[1]))
    for index, record in enumerate(records):
        with open_record(record) as video:
            clips, rng = ours.draw_clips(0, index, video.num_frames)
            if depth == 0:
                continue
            if depth == 1 and isinstance(video, PyAV):
                video._upright = lambda frame: frame  # type: ignore[method-assign, assignment, return-value]
            frames = list(video.frames(np.unique(clips)))
            if depth == 3:
                for _ in range(VIEWS):
                    height, width = frames[0].shape[:2]
                    box = draw_view(view, height, width, rng)
                    cut = [
                        f[box.top : box.top + box.height, box.left : box.left + box.width]
                        for f in frames
                    ]
                    resize(np.stack(cut[: ours.spec.frames]), view.size, view.size)

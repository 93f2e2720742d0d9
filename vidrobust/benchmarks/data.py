"""Time data loading in clips per second, compared with the bare decoder and pytorchvideo."""

import dataclasses
import functools
import itertools
import multiprocessing
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
from vidrobust.utils.logging import log
from vidrobust.views import AugmentSpec, draw_view

VIEWS = 2  # clips per video, as most contrastive methods need

# parts of the lower bound, in the order in which the loader does them
_STAGES = ("open", "decode", "colour", "crop, resize")
_REST = "child, collate, transport"  # all that the loader does beyond these parts


@contextmanager
def one_core() -> Iterator[None]:
    """Restrict this process, and those it starts, to one core, if the system supports it."""
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
    """Measurements of one loader.

    Attributes:
        name: name of the loader, and of its decoder.
        cores: number of cores that it may use.
        measure: runs the loader once; returns seconds per video.
        videos_s: seconds per video of each round.
        reason: why the loader cannot read this data set; "" if it can.
    """

    name: str
    cores: int
    measure: Callable[[], float]
    videos_s: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def clips_s(self) -> tuple[float, float, float]:
        """(median, lowest, highest) clips per second."""
        rates = [VIEWS / seconds for seconds in self.videos_s]
        return statistics.median(rates), min(rates), max(rates)


def print_data(
    cfg: config.Config, *, videos: int, rounds: int, prepared: str, archive: str = ""
) -> None:
    """Print the rate of each loader, and the parts of our loader's time.

    Args:
        cfg: data set and clips.
        videos: number of videos per round and loader.
        rounds: rounds to measure.
        prepared: root of the same data set with re-encoded files; "" for none.
        archive: data.archive of the same data set; "" for none.
    """
    chosen = readable(cfg, videos)
    rows = measure_data(cfg, chosen, rounds=rounds, prepared=prepared, archive=archive)
    print(
        f"{rounds} rounds of {videos} videos, {cfg.data.frames} frames at stride"
        f" {cfg.data.stride}, two views"
    )
    print(f"| {'loader':<28} | cores | clips/s | lowest to highest |\n|---|---|---|---|")
    for row in rows:
        if row.reason:
            print(f"| {row.name:<28} | {row.cores} | - | {row.reason} |")
        else:
            median, low, high = row.clips_s
            print(f"| {row.name:<28} | {row.cores} | {median:.1f} | {low:.1f} to {high:.1f} |")
    parts = lower_bound(cfg, chosen, rounds=rounds)
    print(
        "ms per video, one core: "
        + ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    )


def measure_data(
    cfg: config.Config,
    chosen: list[Record],
    *,
    rounds: int,
    prepared: str = "",
    archive: str = "",
) -> list[Row]:
    """Time every loader once per round, on random clips: two views of each video.

    Images and folders of frames have a single decoder, and pytorchvideo cannot read them.

    Args:
        cfg: data set and clips.
        chosen: videos to load.
        rounds: rounds to measure.
        prepared: root of the same data set with re-encoded files, for an additional row.
        archive: data.archive of the same data set, for an additional row.
    """
    with open_video(chosen[0].path) as first:
        backends = _video_backends() if first.backend == "pyav" else ("auto",)
    # one core, with each decoder
    loaders = {"bare decoder": _bare, "vidrobust": _ours, "pytorchvideo": _theirs}
    rows = []
    for name, loader in loaders.items():
        for backend in backends:
            # pytorchvideo reads loose files, with one of two decoders
            theirs = backend in ("pyav", "decord") and not cfg.data.archive
            if loader is not _theirs or theirs:
                measure = functools.partial(loader, chosen, cfg, backend)
                rows.append(Row(f"{name}, {backend}", 1, measure))
    # all cores
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    on_all_cores = functools.partial(_ours, chosen, cfg, "auto", cores)
    rows.append(Row(f"vidrobust, {cores} workers", cores, on_all_cores))
    if prepared:
        small = readable(_with_root(cfg, prepared), len(chosen))
        reencoded = functools.partial(_ours, small, cfg, "auto")
        rows.append(Row("vidrobust, re-encoded files", 1, reencoded))
    if archive:
        packed = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, archive=archive))
        members = readable(packed, len(chosen))
        rows.append(
            Row("vidrobust, tar archive", 1, functools.partial(_ours, members, cfg, "auto"))
        )
    # in turn, so that a change in the machine's load affects all loaders
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
    """Return videos of the training split that can be decoded; log those that cannot.

    Args:
        cfg: data set.
        videos: how many to return; they are repeated if there are fewer.

    Raises:
        UserError: if no training video can be decoded.
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
        raise UserError("no training video can be decoded: nothing to measure; check data.root")
    return list(itertools.islice(itertools.cycle(good), videos))


def _with_root(cfg: config.Config, root: str) -> config.Config:
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, root=root, manifest=""))


def _video_backends() -> tuple[str, ...]:
    try:
        require_backend("torchcodec")
    except UserError:
        return "pyav", "decord"
    return "pyav", "decord", "torchcodec"


def _bare(records: list[Record], cfg: config.Config, backend: str) -> float:
    """Decode only the frames that our loader needs, at their original size."""
    ours = _dataset(records, cfg, backend)
    start = time.perf_counter()
    for index, record in enumerate(records):
        with open_record(record, backend) as video:
            for _ in video.frames(
                np.unique(ours.draw_clips(0, index, video.num_frames, video.fps)[0])
            ):
                pass
    return (time.perf_counter() - start) / len(records)


def _ours(records: list[Record], cfg: config.Config, backend: str, workers: int = 1) -> float:
    """Load batches of 8 videos with our loader.

    Args:
        records: videos.
        cfg: clips.
        backend: decoder.
        workers: number of data-loading processes.
    """
    batches = batch_loader(
        _dataset(records, cfg, backend), EvalBatches(list(range(len(records))), 8), workers
    )
    return _seconds_per_video(iter(batches), _count_read)


def _count_read(batch: Batch) -> int:
    """Return the number of videos in a batch; a video that failed makes the measurement void."""
    if bad := [*batch.failed, *batch.replaced]:
        raise DecodeError(bad[0].reason)
    return len(batch.uids)


def _theirs(records: list[Record], cfg: config.Config, backend: str) -> float:
    """Load batches of 8 videos with pytorchvideo's LabeledVideoDataset.

    It reads two random clips of each video; a random resized crop follows, as in our loader.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.data import LabeledVideoDataset
        from pytorchvideo.data.clip_sampling import RandomMultiClipSampler
    from torchvision.transforms import v2

    scale = (cfg.augment.scale[0], cfg.augment.scale[1])
    crop = v2.RandomResizedCrop(cfg.data.size, scale=scale, antialias=True)

    seconds = cfg.data.frames * cfg.data.stride / 25  # of a clip at 25 frames per second
    dataset = LabeledVideoDataset(
        [(record.path, {"label": record.label}) for record in records],
        RandomMultiClipSampler(clip_duration=seconds, num_clips=VIEWS),
        video_sampler=torch.utils.data.SequentialSampler,
        decode_audio=False,
        decoder=backend,
        transform=functools.partial(_their_views, crop=crop, frames=cfg.data.frames),
    )
    context = _clean_start() if backend == "pyav" else None
    batches = torch.utils.data.DataLoader(
        dataset, batch_size=8, num_workers=1, multiprocessing_context=context
    )
    return _seconds_per_video(iter(batches), len)


def _clean_start() -> str:
    """Return a start method whose processes are not forks of this one.

    A forked process does not have the threads of FFmpeg that its parent started, and PyAV 19 waits
    for them forever. A fork server decodes nothing, and imports packages once for all processes.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(["pytorchvideo.data", __name__])
    return "forkserver"


def _their_views(
    sample: dict[str, Any], crop: Callable[[torch.Tensor], torch.Tensor], frames: int
) -> torch.Tensor:
    """Return the crops (views, 3, T, H, W) of a sample of LabeledVideoDataset."""
    views = []
    for video in sample["video"]:  # (3, frames, H, W) float
        indices = torch.linspace(0, video.shape[1] - 1, frames).long()
        views.append(crop(video[:, indices].transpose(0, 1)).transpose(0, 1))
    return torch.stack(views)


def _seconds_per_video(batches: Iterator[Any], count: Callable[[Any], int]) -> float:
    """Return the seconds per video from the first batch to the last.

    The time to start and to end processes is left out.

    Args:
        batches: batches of a loader.
        count: returns the number of videos in a batch.
    """
    next(batches)  # includes the start of the processes
    start = time.perf_counter()
    last = 0.0
    videos = 0
    for batch in batches:
        videos += count(batch)
        last = time.perf_counter()
    return (last - start) / videos


def _dataset(records: list[Record], cfg: config.Config, backend: str) -> ClipDataset:
    return train_dataset(
        dataclasses.replace(cfg.data, backend=backend), cfg.augment, records, VIEWS, cfg.seed
    )


def lower_bound(cfg: config.Config, chosen: list[Record], *, rounds: int) -> dict[str, float]:
    """Measure the parts of our loader's time, on one core.

    Each part is the difference between two measurements, so noise can make it negative.

    Args:
        cfg: data set and clips.
        chosen: videos to load.
        rounds: rounds to measure.

    Returns:
        Milliseconds per video of each part, medians over rounds.
    """
    parts_ms: dict[str, list[float]] = {name: [] for name in (*_STAGES, _REST)}
    with one_core():
        for _ in range(rounds):
            previous = 0.0
            # stages one by one, each together with those before it
            for last_stage, name in enumerate(_STAGES):
                start = time.perf_counter()
                _run_stages(chosen, cfg, last_stage)
                total = (time.perf_counter() - start) / len(chosen) * 1e3
                parts_ms[name].append(total - previous)
                previous = total
            parts_ms[_REST].append(1e3 * _ours(chosen, cfg, "auto") - previous)
    return {name: statistics.median(values) for name, values in parts_ms.items()}


def _run_stages(records: list[Record], cfg: config.Config, last_stage: int) -> None:
    """Run the stages of loading up to and including a stage.

    Args:
        records: videos.
        cfg: clips and crops.
        last_stage: index in _STAGES: open, decode, convert to RGB, crop and resize.
    """
    ours = _dataset(records, cfg, "auto")
    view = AugmentSpec(size=cfg.data.size, scale=(cfg.augment.scale[0], cfg.augment.scale[1]))
    for index, record in enumerate(records):
        with open_record(record) as video:
            clips, rng = ours.draw_clips(0, index, video.num_frames, video.fps)
            if last_stage == 0:
                continue
            if last_stage == 1 and isinstance(video, PyAV):
                # replaces the conversion to RGB
                video._upright = lambda frame: frame  # type: ignore[method-assign, assignment, return-value]
            frames = list(video.frames(np.unique(clips)))
            if last_stage == 3:
                for _ in range(VIEWS):
                    height, width = frames[0].shape[:2]
                    box = draw_view(view, height, width, rng)
                    rows = slice(box.top, box.top + box.height)
                    columns = slice(box.left, box.left + box.width)
                    crops = [frame[rows, columns] for frame in frames]
                    resize(np.stack(crops[: ours.spec.frames]), view.size, view.size)

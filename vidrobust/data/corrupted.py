"""Decode each video once and corrupt it under many conditions."""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vidrobust.corruptions import CONSECUTIVE, INDEX_MAPS, corrupt, map_frames
from vidrobust.data.decoding.images import in_memory
from vidrobust.data.decoding.read_frames import DecodeError, checked_frames, open_record, resize
from vidrobust.data.isolation import Child, ChildDied, start_nursery
from vidrobust.data.loader import BatchLoader
from vidrobust.data.records import Failure, Record
from vidrobust.data.sampling import ClipSpec, Sampler
from vidrobust.views import AugmentSpec, draw_view

Condition = tuple[str, int]  # a name of CORRUPTIONS and a severity; CLEAN
CLEAN: Condition = ("clean", 0)
Place = Literal["source", "view"]
_LARGEST = (
    256  # pixels of the shorter side: larger frames are shrunk first, as Mini-Kinetics-C does
)
_CORRUPT = 3  # a stream of the run's seed (clip_reader.py has the others)


@dataclass(frozen=True)
class Corrupted:
    """A video under some conditions: of each its clips (K, T, size, size, 3) uint8, or why there
    are none.
    """

    index: int
    conditions: list[Condition]
    clips: list[Tensor | Failure]


@dataclass(frozen=True)
class _Read:
    """What the conditions show of a video: frames (F, H, W, 3); of clip k, clips[k] (T,) are frames
    of the video.

    reason: why the frames end before the last that was asked for. Indexing raises DecodeError for
    those.
    """

    frames: np.ndarray
    numbers: np.ndarray  # (F,), of the frames in the video
    clips: np.ndarray
    count: int
    fps: float
    reason: str = ""

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        if self.reason and numbers.max() > self.numbers[-1]:
            raise DecodeError(self.reason)
        return self.frames[np.searchsorted(self.numbers, numbers)]


class _ConditionReader:
    """Read a video once, and corrupt its clips condition by condition; it travels to a child.

    Encoders run there as well: they crash and hang as decoders do, and use FFmpeg, whose threads a
    forked worker of the loader would wait for (isolation.py).
    """

    def __init__(
        self,
        spec: ClipSpec,
        sample_clips: Sampler,
        view: AugmentSpec,
        place: Place,
        seed: int,
        backend: str,
    ) -> None:
        self.spec = spec
        self.sample_clips = sample_clips
        self.view = view
        self.place = place
        self.seed = seed
        self.backend = backend
        self._kept: tuple[int, _Read | Failure] | None = None  # the last video

    def conditions(
        self, record: Record, index: int, wanted: list[Condition], group: list[Condition]
    ) -> list[np.ndarray | Failure]:
        """Return the clips (K, T, size, size, 3) of each condition of a group, or why there are
        none.

        Args:
            record: the video.
            index: of the record, which its random numbers depend on.
            wanted: all conditions that will be asked for of it: it is decoded once for them.
            group: those that are asked for now.
        """
        if self._kept is None or self._kept[0] != index:
            self._kept = None  # two videos at once may be too many
            self._kept = index, self._read_or_fail(record, index, wanted)
        found = self._kept[1]
        if isinstance(found, Failure):
            return [found for _ in group]
        return [self._condition(found, record, index, condition) for condition in group]

    def _read_or_fail(
        self, record: Record, index: int, wanted: list[Condition]
    ) -> "_Read | Failure":
        try:
            return self.read(record, index, wanted)
        except (DecodeError, ValueError) as error:
            reason = str(error) if isinstance(error, DecodeError) else f"{record.path}: {error}"
            return Failure(index, record.uid, record.label, reason)

    def read(self, record: Record, index: int, wanted: list[Condition]) -> _Read:
        """Decode what some conditions show of a video."""
        with open_record(record, self.backend) as video:
            count, fps = video.num_frames, float(video.fps)
            clips = self.sample_clips(count, self.spec, np.random.default_rng(0))
            shown = [clips.ravel()]
            for name, severity in wanted:
                if name in CONSECUTIVE:
                    shown += [np.arange(clip.min(), clip.max() + 1) for clip in clips]
                elif name in INDEX_MAPS:
                    shown.append(self._mapped(index, (name, severity), count, fps)[clips].ravel())
            numbers = np.unique(np.concatenate(shown))
            frames, reason = [], ""
            try:
                for frame in checked_frames(video, record.path, numbers):
                    frames.append(self._prepared(frame))
            except DecodeError as error:
                reason = str(error)  # what comes before is there
        if not frames:
            raise DecodeError(reason)
        return _Read(np.stack(frames), numbers[: len(frames)], clips, count, fps, reason)

    def _condition(
        self, found: _Read, record: Record, index: int, condition: Condition
    ) -> np.ndarray | Failure:
        """Return the clips of one condition; it fails alone: by a frame that only it needs, or an
        encoder.
        """
        try:
            return self._clips(found, index, condition)
        except Exception as error:  # encoders raise whatever they like
            reason = (
                str(error)
                if isinstance(error, DecodeError)
                else f"{record.path}: {condition[0]}: {error!r}"
            )
            return Failure(index, record.uid, record.label, reason)

    def _prepared(self, frame: np.ndarray) -> np.ndarray:
        """One frame as the corruptions get it."""
        if self.place == "view":
            return self._cut(frame[None])[0]
        height, width = frame.shape[:2]
        shrink = _LARGEST / min(height, width)
        return (
            resize(frame[None], round(height * shrink), round(width * shrink)).numpy()[0]
            if shrink < 1
            else frame
        )

    def _cut(self, frames: np.ndarray) -> np.ndarray:
        """The centre crop that the model sees, as `eval_dataset` cuts it."""
        draw = draw_view(self.view, frames.shape[1], frames.shape[2], np.random.default_rng(0))
        box = frames[:, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
        return resize(np.ascontiguousarray(box), self.view.size, self.view.size).numpy()

    def _rng(self, index: int, condition: Condition) -> np.random.Generator:
        name, severity = condition
        return np.random.default_rng(
            [self.seed, _CORRUPT, index, zlib.crc32(name.encode()), severity]
        )

    def _mapped(self, index: int, condition: Condition, count: int, fps: float) -> np.ndarray:
        return map_frames(*condition, count, self._rng(index, condition), fps)

    def _clips(self, found: _Read, index: int, condition: Condition) -> np.ndarray:
        """(K, T, size, size, 3) of a video under one condition."""
        name, severity = condition
        made = []
        chosen = (
            self._mapped(index, condition, found.count, found.fps) if name in INDEX_MAPS else None
        )
        for clip in found.clips:
            if condition == CLEAN:
                frames = found[clip]
            elif chosen is not None:
                frames = found[chosen[clip]]
            elif name in CONSECUTIVE:
                span = found[np.arange(clip.min(), clip.max() + 1)]
                frames = corrupt(span, name, severity, self._rng(index, condition), found.fps)[
                    clip - clip.min()
                ]
            else:
                frames = corrupt(
                    found[clip], name, severity, self._rng(index, condition), found.fps
                )
            made.append(frames if self.place == "view" else self._cut(frames))
        return np.stack(made)


class CorruptedVideos(IterableDataset):
    """Yields `Corrupted` of each (index of a record, conditions) in `work`; loop over it by
    `corrupted_loader`.

    A worker gets whole videos, and decodes each once for all that `work` asks of it. place:
    "source", corruptions change the frames as they are in the file, before crop and resize (256
    pixels at most); "view": the crop that the model sees. Index maps (INDEX_MAPS) choose among all
    frames of the video, codecs and blurs over time get the consecutive frames that a clip spans,
    all others the frames that it shows. One seed a video, corruption and severity: clips of a video
    share its draw. timeout_s: seconds that reading, and each condition, may take.
    """

    def __init__(
        self,
        records: Sequence[Record],
        work: Sequence[tuple[int, list[Condition]]],
        spec: ClipSpec,
        sample_clips: Sampler,
        view: AugmentSpec,
        *,
        place: Place = "source",
        seed: int = 0,
        backend: str = "auto",
        timeout_s: float = 0.0,
    ) -> None:
        self.records = records
        self.work = work
        self.spec = spec
        self.reader = _ConditionReader(spec, sample_clips, view, place, seed, backend)
        self.timeout_s = timeout_s
        self.reading = torch.full((0, 2), -1)  # as ClipDataset has it

    def __iter__(self) -> Iterator[Corrupted]:
        worker = get_worker_info()
        videos = list(dict.fromkeys(index for index, _ in self.work))
        mine = set(videos if worker is None else videos[worker.id :: worker.num_workers])
        conditions: dict[int, list[list[Condition]]] = {}
        for index, group in self.work:
            if index in mine:
                conditions.setdefault(index, []).append(group)
        most = max((len(group) for groups in conditions.values() for group in groups), default=0)
        watched = self.timeout_s and hasattr(os, "fork")
        child = Child(self.reader.conditions, self.timeout_s * (1 + most)) if watched else None
        for index, groups in conditions.items():
            if worker is not None:
                self.reading[worker.id] = torch.tensor([os.getpid(), index])
            yield from self._video(child, index, groups)

    def _video(
        self, child: Child | None, index: int, groups: list[list[Condition]]
    ) -> Iterator[Corrupted]:
        record = self.records[index]
        read = self.reader.conditions if child is None or in_memory(record.path) else child
        wanted = [condition for group in groups for condition in group]
        unreadable: Failure | None = None
        for number, group in enumerate(groups):
            found: list[np.ndarray | Failure] = [unreadable for _ in group if unreadable]
            if not unreadable:
                try:
                    found = read(record, index, wanted, group)
                except ChildDied as death:
                    failure = Failure(index, record.uid, record.label, f"{record.path}: {death}")
                    found = [failure for _ in group]
                    # the first call reads the video: what ends it would end those that follow
                    unreadable = None if number else failure
            clips = [
                part if isinstance(part, Failure) else torch.from_numpy(part) for part in found
            ]
            yield Corrupted(index, group, clips)


def corrupted_loader(dataset: CorruptedVideos, workers: int) -> BatchLoader:
    """A DataLoader that yields `Corrupted`. Loop over it inside `worker_deaths`."""
    dataset.reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
    if dataset.timeout_s:
        start_nursery()  # which workers then share
    conditions = max((len(group) for _, group in dataset.work), default=0)
    clip_bytes = dataset.spec.frames * dataset.reader.view.size**2 * 3
    return BatchLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
        batch_bytes=conditions * dataset.spec.clips * clip_bytes,
    )

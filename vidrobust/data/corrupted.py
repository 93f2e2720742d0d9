"""Decode each video once and corrupt it under many conditions."""

import itertools
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
from vidrobust.data.sampling import ClipSpec, Sampler, sampled
from vidrobust.utils.seeds import SeedStream
from vidrobust.views import AugmentSpec, draw_view

Condition = tuple[str, int]  # (a name of CORRUPTIONS, severity 1 to 5), or CLEAN
CLEAN: Condition = ("clean", 0)
Place = Literal["source", "view"]
# Pixels of the shorter side; larger frames are shrunk before they are corrupted, as in
# Mini-Kinetics-C.
_LARGEST = 256


@dataclass(frozen=True)
class Corrupted:
    """A video under some conditions.

    Attributes:
        index: position of the record in its list.
        conditions: the conditions.
        clips: for each condition, clips (K, T, size, size, 3) uint8, or why there are none.
    """

    index: int
    conditions: list[Condition]
    clips: list[Tensor | Failure]


@dataclass(frozen=True)
class _Read:
    """The frames of a video that some conditions need; indexing by frame numbers of the video.

    Attributes:
        frames: (F, H, W, 3) uint8, each frame once.
        numbers: (F,) the frames' numbers in the video, sorted.
        clips: (K, T) frame numbers of the video in each clip.
        count: number of frames of the video.
        fps: frames per second of the video.
        reason: why the frames end before the last one asked for; empty: they do not. Indexing a
            later frame raises DecodeError with it.
    """

    frames: np.ndarray
    numbers: np.ndarray
    clips: np.ndarray
    count: int
    fps: float
    reason: str = ""

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the frames (n, H, W, 3) with some frame numbers of the video."""
        if self.reason and numbers.max() > self.numbers[-1]:
            raise DecodeError(self.reason)
        return self.frames[np.searchsorted(self.numbers, numbers)]


class _ConditionReader:
    """Read a video once and corrupt its clips, one condition at a time; runs in a child process.

    Encoders run in that process, too. They may crash and hang as decoders do, and use FFmpeg, whose
    threads a forked worker of the loader would wait for (isolation.py).

    Args:
        spec: the clips of a video, K of them.
        sample_clips: (num_frames, spec, rng) -> (K, T) frame indices.
        view: the centre crop of an evaluation.
        place: where corruptions are applied; see `CorruptedVideos`.
        seed: seed of the corruptions.
        backend: a name of BACKENDS.
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
        # (index, frames) of the last video: its conditions come in several calls.
        self._kept: tuple[int, _Read | Failure] | None = None

    def conditions(
        self, record: Record, index: int, all_conditions: list[Condition], group: list[Condition]
    ) -> list[np.ndarray | Failure]:
        """Return clips (K, T, size, size, 3) for each condition of a group, or why there are none.

        Args:
            record: the video.
            index: index of the record; the random numbers depend on it.
            all_conditions: every condition that will be asked of this video, which is decoded once
                for all.
            group: the conditions asked for in this call.
        """
        if self._kept is None or self._kept[0] != index:
            self._kept = None  # free the memory of the last video first
            self._kept = index, self._read_or_fail(record, index, all_conditions)
        video = self._kept[1]
        if isinstance(video, Failure):
            return [video for _ in group]
        return [self._condition(video, record, index, condition) for condition in group]

    def _read_or_fail(
        self, record: Record, index: int, all_conditions: list[Condition]
    ) -> _Read | Failure:
        """Decode what some conditions need of a video; return a Failure if it does not decode.

        Args:
            record: the video.
            index: index of the record.
            all_conditions: the conditions.
        """
        try:
            return self.read(record, index, all_conditions)
        except (DecodeError, ValueError) as error:
            reason = str(error) if isinstance(error, DecodeError) else f"{record.path}: {error}"
            return Failure(index, record.uid, record.label, reason)

    def read(self, record: Record, index: int, all_conditions: list[Condition]) -> _Read:
        """Decode what some conditions need of a video.

        Args:
            record: the video.
            index: index of the record.
            all_conditions: the conditions.

        Raises:
            DecodeError: no frame decodes.
        """
        with open_record(record, self.backend) as video:
            count = video.num_frames
            fps = float(video.fps)
            # Samplers of evaluations do not use the generator.
            clips = sampled(self.sample_clips, count, fps, self.spec, np.random.default_rng(0))
            # Collect the frames that the clips show, and others that some corruptions need.
            needed = [clips.ravel()]
            for name, severity in all_conditions:
                if name in CONSECUTIVE:
                    needed += [np.arange(clip.min(), clip.max() + 1) for clip in clips]
                elif name in INDEX_MAPS:
                    needed.append(self._mapped(index, (name, severity), count, fps)[clips].ravel())
            numbers = np.unique(np.concatenate(needed))
            frames = []
            reason = ""
            try:
                for frame in checked_frames(video, record.path, numbers):
                    frames.append(self._prepared(frame))
            except DecodeError as error:
                reason = str(error)  # conditions that need only earlier frames still work
        if not frames:
            raise DecodeError(reason)
        return _Read(np.stack(frames), numbers[: len(frames)], clips, count, fps, reason)

    def _condition(
        self, video: _Read, record: Record, index: int, condition: Condition
    ) -> np.ndarray | Failure:
        """Return the clips of one condition, or why there are none.

        A condition may fail alone: a frame that only it needs does not decode, or an encoder fails.

        Args:
            video: the decoded frames.
            record: the video.
            index: index of the record.
            condition: the corruption and its severity.
        """
        try:
            return self._clips(video, index, condition)
        except Exception as error:  # encoders raise errors of any type
            reason = f"{record.path}: {condition[0]}: {error!r}"
            if isinstance(error, DecodeError):
                reason = str(error)
            return Failure(index, record.uid, record.label, reason)

    def _prepared(self, frame: np.ndarray) -> np.ndarray:
        """Return a frame as the corruptions receive it."""
        if self.place == "view":
            return self._cut(frame[None])[0]
        height, width = frame.shape[:2]
        shrink = _LARGEST / min(height, width)
        if shrink >= 1:
            return frame
        return resize(frame[None], round(height * shrink), round(width * shrink)).numpy()[0]

    def _cut(self, frames: np.ndarray) -> np.ndarray:
        """Return the centre crop that the model receives, cut as `eval_dataset` cuts it."""
        # A centre crop does not use the generator.
        draw = draw_view(self.view, frames.shape[1], frames.shape[2], np.random.default_rng(0))
        box = frames[:, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
        size = self.view.size
        return resize(np.ascontiguousarray(box), size, size, self.view.interpolation).numpy()

    def _rng(self, index: int, condition: Condition) -> np.random.Generator:
        """Return the generator of a video and condition, whatever the order of calls."""
        name, severity = condition
        return np.random.default_rng(
            [self.seed, SeedStream.CORRUPTION, index, zlib.crc32(name.encode()), severity]
        )

    def _mapped(self, index: int, condition: Condition, count: int, fps: float) -> np.ndarray:
        """Return the frame that is shown in place of each frame of a video, (count,).

        Args:
            index: index of the record.
            condition: a corruption of INDEX_MAPS and its severity.
            count: number of frames of the video.
            fps: frames per second of the video.
        """
        return map_frames(*condition, count, self._rng(index, condition), fps)

    def _clips(self, video: _Read, index: int, condition: Condition) -> np.ndarray:
        """Return the clips (K, T, size, size, 3) of a video under one condition.

        Args:
            video: the decoded frames.
            index: index of the record.
            condition: the corruption and its severity.
        """
        name, severity = condition
        clips = []
        index_map = (
            self._mapped(index, condition, video.count, video.fps) if name in INDEX_MAPS else None
        )
        for clip in video.clips:
            if condition == CLEAN:
                frames = video[clip]
            elif index_map is not None:
                frames = video[index_map[clip]]
            # Codecs and blurs over time need the consecutive frames that the clip spans.
            elif name in CONSECUTIVE:
                span = video[np.arange(clip.min(), clip.max() + 1)]
                rng = self._rng(index, condition)
                span = corrupt(span, name, severity, rng, video.fps)
                frames = span[clip - clip.min()]
            else:
                rng = self._rng(index, condition)
                frames = corrupt(video[clip], name, severity, rng, video.fps)
            clips.append(frames if self.place == "view" else self._cut(frames))
        return np.stack(clips)


class CorruptedVideos(IterableDataset):
    """Iterable data set that yields a `Corrupted` for each entry of `work`.

    A worker receives whole videos, and decodes each once for all that `work` asks of it. Index maps
    (INDEX_MAPS) choose among all frames of the video. Codecs and blurs over time receive the
    consecutive frames that a clip spans. All other corruptions receive the frames that the clip
    shows. There is one seed per video, corruption and severity, so that the clips of a video share
    random parameters. Loop over it through `corrupted_loader`.

    Args:
        records: the videos.
        work: (index of a record, conditions), in any order; one video may occur several times.
        spec: the clips of a video, K of them.
        sample_clips: (num_frames, spec, rng) -> (K, T) frame indices.
        view: the centre crop of an evaluation.
        place: "source" corrupts the frames of the file (at most 256 pixels on the shorter side)
            before crop and resize; "view" corrupts the crop that the model receives.
        seed: seed of the corruptions.
        backend: a name of BACKENDS.
        timeout_s: seconds that reading, and each condition, may take; 0: no limit.
    """

    def __init__(  # noqa: PLR0913  (public class, whose signature stays)
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
        self.reading = torch.full((0, 2), -1)  # as in ClipDataset

    def __iter__(self) -> Iterator[Corrupted]:
        worker = get_worker_info()
        # Each worker takes every n-th video, with all of its conditions.
        videos = list(dict.fromkeys(index for index, _ in self.work))
        assigned = set(videos if worker is None else videos[worker.id :: worker.num_workers])
        conditions: dict[int, list[list[Condition]]] = {}
        for index, group in self.work:
            if index in assigned:
                conditions.setdefault(index, []).append(group)
        group_sizes = [len(group) for index, group in self.work if index in assigned]
        child = None
        if self.timeout_s and hasattr(os, "fork"):
            # One call reads the video and corrupts it under one group of conditions.
            limit_s = self.timeout_s * (1 + max(group_sizes, default=0))
            child = Child(self.reader.conditions, limit_s)
        for index, groups in conditions.items():
            if worker is not None:
                self.reading[worker.id] = torch.tensor([os.getpid(), index])
            yield from self._video(child, index, groups)

    def _video(
        self, child: Child | None, index: int, groups: list[list[Condition]]
    ) -> Iterator[Corrupted]:
        """Yield the results of one video.

        Args:
            child: the process that reads, or None to read in this one.
            index: index of the record.
            groups: groups of conditions; each becomes one `Corrupted`.
        """
        record = self.records[index]
        read = self.reader.conditions if child is None or in_memory(record.path) else child
        all_conditions = list(itertools.chain.from_iterable(groups))
        unreadable: Failure | None = None
        for number, group in enumerate(groups):
            results: list[np.ndarray | Failure]
            if unreadable is not None:
                results = [unreadable for _ in group]
            else:
                try:
                    results = read(record, index, all_conditions, group)
                except ChildDied as death:
                    failure = Failure(index, record.uid, record.label, f"{record.path}: {death}")
                    results = [failure for _ in group]
                    # The first call reads the video. If that ends the child, so would the others.
                    unreadable = None if number else failure
            clips = [
                result if isinstance(result, Failure) else torch.from_numpy(result)
                for result in results
            ]
            yield Corrupted(index, group, clips)


def corrupted_loader(dataset: CorruptedVideos, workers: int) -> BatchLoader:
    """Return a DataLoader that yields `Corrupted`. Loop over it inside `worker_deaths`."""
    dataset.reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
    if dataset.timeout_s:
        start_nursery()  # before the workers are forked, so that they share it
    return BatchLoader(dataset, batch_size=None, num_workers=workers, generator=torch.Generator())

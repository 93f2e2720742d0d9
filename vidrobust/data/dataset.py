"""ClipDataset and its batches: a sample is a pure function of (seed, epoch, index).

The loader's keys are (epoch, index), so workers need no state. The same sample results from 0 or 8
workers, before or after a resume, on one rank or four.

Files are read in a child process, because decoders may crash or hang (`isolation.py`). A file that
does not decode becomes a `Failure`. The reader of the batch decides what follows: training counts
the video that replaced it, evaluation writes a failed row.
"""

import functools
import itertools
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from vidrobust.corruptions import Corrupt
from vidrobust.data.batch_slots import BatchSlots, InSlot, Slot, room
from vidrobust.data.clip_reader import ClipReader, Sample
from vidrobust.data.decoding.images import ImageInMemory, in_memory
from vidrobust.data.image_memory import ImageMemory, read_into_memory
from vidrobust.data.isolation import Child, ChildDied, SharedMemory, start_nursery
from vidrobust.data.loader import BatchLoader
from vidrobust.data.places import is_folder
from vidrobust.data.prepare.texture_twins import Twins
from vidrobust.data.records import Failure, Record
from vidrobust.data.sampling import ASSUMED_FPS, ClipSpec
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.utils.errors import UserError
from vidrobust.utils.seeds import SeedStream
from vidrobust.views import AugmentSpec, make_views

Key = tuple[int, int]  # epoch, index
# After this many bad videos in a row the fault is not in the videos, and the failure is returned.
_REPLACEMENTS = 100
_FLOAT_BYTES = 4  # of a number of a view, whose clips have one byte


@dataclass
class Batch:
    """B videos with V clips each; with twins, V + 1 clips and random view parameters each.

    Attributes:
        clips: (B, V, T, H, W, 3) uint8; `to_float` converts them on the device.
        views: (B, V, 3, T, H, W) float32 in [0, 1], what `make_views` makes of the clips; None: the
            device is to make them.
        draws: (B, V, DRAW_COLUMNS) float32, random parameters of the views, for `apply_draws`.
        numbers: (B, n) float32, random numbers in [0, 1) for `negatives`.
        labels: (B,) int64 class labels.
        index: (B,) int64 positions in the records.
        start: (B, V) first source frame of each clip.
        end: (B, V) source frame after the last one of each clip.
        fps: (B,) float32 frames per second.
        uids: names of the B videos.
        failed: videos that did not decode and have no place in the batch.
        replaced: videos that did not decode and whose place another video took, which `index` and
            `uids` name.
        repeats: indices of videos that are shorter than a clip, so that a clip shows a frame twice.
        resized: indices of videos whose frames have several sizes.
    """

    clips: Tensor
    views: Tensor | None
    draws: Tensor
    numbers: Tensor
    labels: Tensor
    index: Tensor
    start: Tensor
    end: Tensor
    fps: Tensor
    uids: list[str]
    failed: list[Failure]
    replaced: list[Failure]
    repeats: list[int]
    resized: list[int]


class ClipDataset(Dataset):
    """Map-style data set: `dataset[epoch, index]` is a sample, or a Failure.

    Args:
        records: the videos.
        spec: number, length and stride of the clips of a video.
        sample_clips: (num_frames, spec, rng) -> (V, T) frame indices.
        view: how a clip is cropped and augmented.
        seed: seed of the run.
        backend: a name of BACKENDS.
        timeout_s: seconds that reading a file may take, in a child process; 0 reads in this
            process, without a time limit.
        replace: whether a video that fails is replaced by another one, chosen at random from (seed,
            epoch, index), and reported in "replaced".
        views: whether batches bring their views, so that the workers make them.
        in_memory: whether small images are read into memory before they are needed; see
            `DataConfig`.
        corrupt: see `ClipReader`, and also for fade, original, twins, numbers and crops.
    """

    def __init__(  # noqa: PLR0913  (public class, whose signature stays)
        self,
        records: Sequence[Record],
        spec: ClipSpec,
        sample_clips: ClipSampler,
        view: AugmentSpec,
        *,
        seed: int = 0,
        backend: str = "auto",
        timeout_s: float = 0.0,
        replace: bool = False,
        views: bool = False,
        in_memory: str = "false",
        corrupt: Corrupt | None = None,
        fade: int = 0,
        original: AugmentSpec | None = None,
        twins: Twins | None = None,
        numbers: int = 0,
        crops: int = 1,
    ) -> None:
        if timeout_s and not hasattr(os, "fork"):
            raise UserError(
                f"data.timeout_s={timeout_s:g}: this system cannot fork the process that a time"
                " limit needs; set data.timeout_s=0"
            )
        self.records = _Packed(records)
        self.reader = ClipReader(
            spec,
            sample_clips,
            view,
            seed=seed,
            backend=backend,
            corrupt=corrupt,
            fade=fade,
            original=original,
            twins=twins,
            numbers=numbers,
            crops=crops,
        )
        self.timeout_s = timeout_s
        self.replace = replace
        self.views = views
        self.in_memory = in_memory
        # One row per worker: the id of its process, and the index of the record that it reads.
        self.reading = torch.full((0, 2), -1)
        # Where a worker leaves the pixels of its batches; the loader sets it while it forks them.
        self.slots: BatchSlots | None = None
        # Images and their texture twins that are in memory; see `keep_in_memory`.
        self.images: ImageMemory | None = None
        self.twin_images: ImageMemory | None = None
        self._child: _ReadingChild | None = None
        # Videos that ended a child process: they are not tried again.
        self._hopeless: dict[int, Failure] = {}

    @property
    def spec(self) -> ClipSpec:
        """Return which clips are taken from a video."""
        return self.reader.spec

    @property
    def twins(self) -> Twins | None:
        """Return where the texture twins are, or None."""
        return self.reader.twins

    def keep_in_memory(self, reads: int, workers: int) -> None:
        """Read small images, and their texture twins, into memory, if `in_memory` says so.

        Samples stay the same. Workers that are forked later share the images. Many files are read
        per call of a child process, which is faster even where each is read once.

        Args:
            reads: number of samples that will be read.
            workers: number of processes that read at the same time, if any do.

        Raises:
            UserError: see `read_into_memory`.
        """
        few = self.in_memory == "auto" and 2 * reads <= len(self)
        if self.in_memory == "false" or few or self.images is not None:
            return
        read = functools.partial(
            read_into_memory,
            wanted=self.in_memory,
            backend=self.reader.backend,
            timeout_s=self.timeout_s,
            workers=max(1, workers),
        )
        self.images = read(self.records)
        if self.images is not None and self.twins is not None:
            # a manifest describes the images, and not their twins
            twins = [Record(record.uid, self.twins(record.path), -1) for record in self.records]
            self.twin_images = read(twins)

    def notes(self, repeats: int, resized: int, videos: int) -> list[str]:
        """Return lines about videos shorter than a clip, of several sizes, or of unknown rate.

        Args:
            repeats: number of videos whose clips show a frame twice.
            resized: number of videos whose frames have several sizes.
            videos: number of videos among which these were counted.
        """
        lines = []
        first = self.records[0].path if len(self.records) else ""
        has_no_rate = is_folder(first) or first.endswith(".npy")
        if self.spec.fps and self.spec.frames > 1 and has_no_rate:
            lines.append(
                f"frames per second of {first} and others are unknown: {ASSUMED_FPS} are assumed"
                f" for data.fps={self.spec.fps:g}"
            )
        if repeats:
            lines.append(
                f"{repeats} of {videos} videos are shorter than a clip ({self.spec.span} frames)"
                f" and show frames twice (data.policy={self.spec.policy}); lower data.frames or"
                " data.stride"
            )
        if resized:
            lines.append(
                f"{resized} of {videos} videos have frames of several sizes, resized to the first"
                " of each clip"
            )
        return lines

    def draw_clips(
        self, epoch: int, index: int, num_frames: int, fps: float = 0.0
    ) -> tuple[np.ndarray, np.random.Generator]:
        """Return the random frame indices of a sample; see `ClipReader.draw_clips`.

        Args:
            epoch: epoch of the run.
            index: index of the record.
            num_frames: number of frames of its video.
            fps: frames per second of its video, which only data.fps needs.

        Returns:
            (frame indices (V, T), the generator from which the views are sampled next).
        """
        return self.reader.draw_clips(epoch, index, num_frames, fps)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample | Failure:
        """Return the sample of a key, or a Failure if it and its replacements do not decode."""
        memory = np.empty(self.reader.bytes, np.uint8)
        sample = self._sample(key, memory, None)
        if isinstance(sample, Failure):
            return sample
        arrays = {"clips": memory.reshape(self.reader.shape)}
        arrays |= {name: sample[name] for name in ("draws", "numbers", "start", "end")}
        return sample | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of some keys.

        In a worker, its pixels are in a slot, unless all are taken.
        """
        size = self.reader.bytes
        slot = self._take_slot(self.batch_bytes(len(keys)))
        memory = np.empty(len(keys) * size, np.uint8) if slot is None else slot.bytes
        samples: list[Sample | Failure] = []
        end = 0  # of the clips so far; a failure leaves no gap
        for key in keys:
            start = None if slot is None else slot.start + end
            sample = self._sample(key, memory[end : end + size], start)
            samples.append(sample)
            end += size * isinstance(sample, dict)
        batch = collate(samples, torch.from_numpy(memory[:end].reshape(-1, *self.reader.shape)))
        if self.views and end:
            batch.views = make_views(batch.clips, batch.draws)
        return batch if slot is None or self.slots is None else _in_slot(batch, slot, self.slots)

    def batch_bytes(self, videos: int) -> int:
        """Return the room that the pixels of a batch take, in bytes."""
        clips = videos * self.reader.bytes
        return room(clips) + clips * _FLOAT_BYTES if self.views else clips

    def _take_slot(self, size: int) -> Slot | None:
        """Return a slot for a batch of some bytes; None outside of workers, or if none is free."""
        worker = get_worker_info()
        return None if worker is None or self.slots is None else self.slots.take(worker.id, size)

    def _sample(self, key: Key, memory: np.ndarray, start: int | None) -> Sample | Failure:
        """Read the sample of a key, or of its replacement.

        Args:
            key: epoch and index.
            memory: (bytes,) uint8; the clips are written here.
            start: where that is in the memory of `slots`; None: elsewhere.
        """
        epoch, index = key
        worker = get_worker_info()
        # If this worker dies, its parent reads here which file was being read.
        if worker is not None:
            self.reading[worker.id] = torch.tensor([os.getpid(), index])
        sample = self._read(epoch, index, memory, start)
        if isinstance(sample, dict) or not self.replace:
            return sample
        # The replacement is random, but a function of the key: any worker finds the same one.
        rng = np.random.default_rng([self.reader.seed, SeedStream.REPLACEMENT, epoch, index])
        replaced = [sample]
        others = (other for other in rng.permutation(len(self)).tolist() if other != index)
        for other in itertools.islice(others, _REPLACEMENTS):
            sample = self._read(epoch, other, memory, start)
            if isinstance(sample, dict):
                return sample | {"replaced": replaced}
            replaced.append(sample)
        return replaced[0]

    def __getstate__(self) -> dict[str, Any]:
        # A child process belongs to the process that started it.
        return self.__dict__ | {
            "_child": None,
            "slots": None,
            "images": None,
            "twin_images": None,
        }

    def _read(
        self, epoch: int, index: int, memory: np.ndarray, start: int | None
    ) -> Sample | Failure:
        """Read a sample: in the child process, unless there is no time limit or no file to read.

        Args:
            epoch: epoch of the run.
            index: index of the record.
            memory: (bytes,) uint8; the clips are written here.
            start: see `_sample`.
        """
        record = self.records[index]
        image, twin = _image(self.images, index), _image(self.twin_images, index)
        # with a twin both must be in memory, or a file is read
        if image is not None and (twin is not None or self.twins is None):
            return self.reader.read(memory, 0, record, epoch, index, (image, twin))
        if not self.timeout_s or in_memory(record.path):
            return self.reader.read(memory, 0, record, epoch, index)
        if index in self._hopeless:
            return self._hopeless[index]
        reading = self._reading_child()
        try:
            return reading.read(memory, start, record, epoch, index)
        except ChildDied as death:
            self._hopeless[index] = Failure(
                index, record.uid, record.label, f"{record.path}: {death}"
            )
            return self._hopeless[index]

    def _reading_child(self) -> "_ReadingChild":
        """Return the child of this process."""
        # A forked worker has a copy of its parent's child, and needs one of its own.
        if self._child is None or self._child.owner != os.getpid():
            self._child = _ReadingChild(self.reader, self.timeout_s, self.slots)
        return self._child


def _image(images: ImageMemory | None, index: int) -> ImageInMemory | None:
    """Return an image that is in memory; None for any other."""
    return None if images is None else images.image(index)


class _ReadingChild:
    """A child process that reads samples.

    Args:
        reader: reads a sample.
        timeout_s: seconds that reading a file may take.
        slots: where a worker's clips may be written directly; None: nowhere.
    """

    def __init__(self, reader: ClipReader, timeout_s: float, slots: BatchSlots | None) -> None:
        self.owner = os.getpid()
        worker = get_worker_info()
        # The memory has room for one sample beside the slots, for batches without a slot.
        self.memory = SharedMemory(reader.bytes) if slots is None else slots.memory
        self.spare = 0 if slots is None or worker is None else slots.spare(worker.id)
        self.child = Child(reader.read, timeout_s, self.memory)

    def read(
        self, memory: np.ndarray, start: int | None, record: Record, epoch: int, index: int
    ) -> Sample | Failure:
        """Return the sample of a record, with its clips in `memory`.

        Args:
            memory: see `ClipDataset._read`.
            start: see `ClipDataset._sample`.
            record: the video.
            epoch: epoch of the run.
            index: index of the record.

        Raises:
            ChildDied: the call took too long, or ended the process.
        """
        if start is not None:
            return self.child(start, record, epoch, index)
        sample = self.child(self.spare, record, epoch, index)
        # The next call overwrites the memory that is shared with the child.
        memory[:] = self.memory.bytes[self.spare : self.spare + len(memory)]
        return sample


def _in_slot(batch: Batch, slot: Slot, slots: BatchSlots) -> Batch:
    """Return a batch that says where in its slot its pixels are.

    Args:
        batch: its clips are at the beginning of the slot.
        slot: the slot, which is freed if the batch is empty.
        slots: all slots.
    """
    if not len(batch.clips):
        slots.free(slot.number)
        return batch
    # `BatchLoader` replaces the places by the tensors before anyone sees the batch
    places: dict[str, Any] = {"clips": InSlot(slot.number, tuple(batch.clips.shape))}
    if batch.views is not None:
        places["views"] = slots.add(slot, batch.views.numpy(), used=batch.clips.numel())
    return replace(batch, **places)


class _Packed(Sequence[Record]):
    """Records as one array of bytes.

    Workers share the array with their parent. A list of objects would gradually be copied into
    every worker, because counting references writes to the objects.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        # into one buffer: a list of the parts would double the memory while it is joined
        packed = bytearray()
        self.ends = np.empty(len(records), np.int64)
        for index, record in enumerate(records):
            packed += pickle.dumps(record)
            self.ends[index] = len(packed)
        self.bytes = np.frombuffer(packed, np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        start = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[start : self.ends[index]].tobytes())


def collate(samples: list[Sample | Failure], clips: Tensor) -> Batch:
    """Return the Batch of some samples and failures, without views; with failures only, B = 0.

    Args:
        samples: samples and Failures of a ClipDataset.
        clips: the clips of the samples.
    """
    failed = [s for s in samples if isinstance(s, Failure)]
    good = [s for s in samples if not isinstance(s, Failure)]

    return Batch(
        clips=clips,
        views=None,
        draws=_stacked(good, "draws"),
        numbers=_stacked(good, "numbers"),
        labels=torch.tensor([s["label"] for s in good], dtype=torch.long),
        index=torch.tensor([s["index"] for s in good], dtype=torch.long),
        start=_stacked(good, "start"),
        end=_stacked(good, "end"),
        fps=torch.tensor([s["fps"] for s in good], dtype=torch.float32),
        uids=[s["uid"] for s in good],
        failed=failed,
        replaced=list(itertools.chain.from_iterable(s["replaced"] for s in good)),
        repeats=[s["index"] for s in good if s["repeats"]],
        resized=[s["index"] for s in good if s["resized"]],
    )


def _stacked(samples: list[Sample], name: str) -> Tensor:
    """Return one field of some samples as one tensor; an empty one without samples."""
    if not samples:
        return torch.empty(0)
    return torch.from_numpy(np.stack([sample[name] for sample in samples]))


class TrainBatches(Sampler[list[Key]]):
    """Keys of the training batches from step `start` to step `stop`, for one rank.

    Every epoch has its own random order, a function of (seed, epoch). Videos at its end that do not
    fill a batch are dropped.

    Args:
        size: number of videos.
        batch_size: number of videos in a batch over all ranks; divisible by `world`.
        seed: seed of the run.
        start: first step.
        stop: step after the last one.
        rank: rank of this process.
        world: number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.world = world
        self.per_epoch = size // batch_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        per_rank = self.batch_size // self.world
        order = np.empty(0, np.int64)
        order_epoch = -1  # the epoch whose order that is
        for step in range(self.start, self.stop):
            epoch, batch = divmod(step, self.per_epoch)
            if epoch != order_epoch:
                rng = np.random.default_rng([self.seed, SeedStream.ORDER, epoch])
                order = rng.permutation(self.size)
                order_epoch = epoch
            first = batch * self.batch_size + self.rank * per_rank
            yield [(epoch, int(i)) for i in order[first : first + per_rank]]


class EvalBatches(Sampler[list[Key]]):
    """Keys of evaluation batches in the order of the records; nothing is padded or dropped.

    Args:
        indices: indices of the records.
        batch_size: number of videos in a batch.
    """

    def __init__(self, indices: list[int], batch_size: int) -> None:
        self.batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter([(0, i) for i in batch] for batch in self.batches)


def batch_loader(
    dataset: ClipDataset, batches: Sampler[list[Key]] | list[list[Key]], workers: int
) -> BatchLoader:
    """Return a DataLoader that yields a `Batch` for each list of keys.

    It uses no random number of torch's global generator, which a resumed run must find unchanged.
    Its workers leave stop signals to the process that owns them. Loop over it inside
    `worker_deaths`.

    Args:
        dataset: the data set.
        batches: the keys of each batch.
        workers: number of worker processes; 0 reads in this process.
    """
    per_batch = len(next(iter(batches), []))  # the last batch may be smaller
    reads = len(batches) * per_batch  # type: ignore[arg-type]
    dataset.keep_in_memory(reads, workers)
    dataset.reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
    if dataset.timeout_s:
        start_nursery()  # before the workers are forked, so that they share it
    size = dataset.reader.bytes
    largest = dataset.batch_bytes(per_batch)
    return BatchLoader(
        dataset,
        make_slots=functools.partial(BatchSlots, workers, largest, size) if largest else None,
        batch_sampler=batches,
        num_workers=workers,
        generator=torch.Generator(),
    )

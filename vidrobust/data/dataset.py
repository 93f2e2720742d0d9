"""Records become batches. A sample is a pure function of (seed, epoch, index).

The loader's keys are (epoch, index), so workers need no state: 0 or 8 of them, before or after a resume, on one
rank or four, the same sample comes out. Files are read in a child process that may crash or hang (`child.py`). A file
that does not decode becomes a `Failure`; whoever reads the batch decides what that means (training counts the video
that replaced it, evaluation writes a failed row).
"""

import copy
import itertools
import math
import mmap
import os
import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from vidrobust.corruptions import Corrupt
from vidrobust.data.child import Child, ChildDied
from vidrobust.data.decode import DecodeError, Video, checked_frames, open_video, resize
from vidrobust.data.images import in_memory
from vidrobust.data.records import Record
from vidrobust.data.sampling import ClipSpec
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.data.twins import Twins, twin_draw
from vidrobust.data.workers import BatchLoader
from vidrobust.errors import UserError
from vidrobust.views import AugmentSpec, ViewDraw, draw_view, faded

Key = tuple[int, int]  # epoch, index
_SAMPLE, _ORDER, _REPLACE, _NEGATIVE = (
    0,
    1,
    2,
    3,
)  # streams of the run's seed, so that none draws what another has drawn
_REPLACEMENTS = 100  # bad videos in a row, after which it is not the video's fault


@dataclass(frozen=True)
class Failure:
    """A record that did not decode, and why (one line that names the file)."""

    index: int
    uid: str
    label: int
    reason: str


@dataclass
class Batch:
    """B videos, V clips of each; with twins, V + 1 clips and draws.

    clips (B, V, T, H, W, 3) uint8 for `to_float`, draws (B, V, DRAW_COLUMNS) for `apply_draws`, numbers (B, n) for
    `negatives`, labels (B,), index (B,) into the records, start (B, V) first source frame of each clip, fps (B,).
    `failed` are videos that have no place in the batch; `replaced` are those whose place another video has taken, which
    `index` and `uids` name.
    """

    clips: Tensor
    draws: Tensor
    numbers: Tensor
    labels: Tensor
    index: Tensor
    start: Tensor
    fps: Tensor
    uids: list[str]
    failed: list[Failure]
    replaced: list[Failure]


class ClipDataset(Dataset):
    """Map-style: `dataset[epoch, index]` -> a sample, or a Failure.

    sample_clips: (num_frames, spec, rng) -> (V, T) frame indices. view: how a clip is cropped and coloured.
    timeout_s: seconds that reading a file may take, in a child process; 0 reads in this one, without a watchdog.
    replace: a video that fails is replaced by another one, drawn from (seed, epoch, index), and told in "replaced".
    corrupt: what a clip may become of natural corruptions, drawn after everything else. fade: epochs over which the
    view's augmentations weaken (`faded`); 0: they stay. original: the last of the V clips shows the frames of the first
    as this says, neither augmented nor corrupted. twins: where the files' texture twins lie; the first clip's, at the
    same frames under the same draw, then comes behind the V clips. numbers: how many come with each sample, which
    decide its negatives (`negatives`).
    """

    def __init__(
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
        corrupt: Corrupt | None = None,
        fade: int = 0,
        original: AugmentSpec | None = None,
        twins: Twins | None = None,
        numbers: int = 0,
    ) -> None:
        if timeout_s and not hasattr(os, "fork"):
            raise UserError("data.timeout_s: this system cannot fork a process to watch; set data.timeout_s=0")
        self.records, self.spec, self.sample_clips, self.view = _Packed(records), spec, sample_clips, view
        self.seed, self.backend, self.timeout_s, self.replace = seed, backend, timeout_s, replace
        self.corrupt, self.fade, self.original, self.twins, self.numbers = corrupt, fade, original, twins, numbers
        self.reading = torch.full((0, 2), -1)  # a row a worker: its process, and the record it reads
        self._reader: tuple[int, Child, np.ndarray] | None = None
        self._hopeless: dict[int, Failure] = {}  # those that cost a child, so that they do it once

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> dict[str, Any] | Failure:
        epoch, index = key
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id] = torch.tensor([os.getpid(), index])
        sample = self._read(epoch, index)
        if isinstance(sample, dict) or not self.replace:
            return sample
        rng, replaced = np.random.default_rng([self.seed, _REPLACE, epoch, index]), [sample]
        others = (other for other in rng.permutation(len(self)).tolist() if other != index)
        for other in itertools.islice(others, _REPLACEMENTS):
            sample = self._read(epoch, other)
            if isinstance(sample, dict):
                return sample | {"replaced": replaced}
            replaced.append(sample)
        return replaced[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def _read(self, epoch: int, index: int) -> dict[str, Any] | Failure:
        """A sample, by way of the child unless there is no time limit, or no file."""
        if not self.timeout_s or in_memory(self.records[index].path):
            memory = np.empty(self._shape, np.uint8)
            return _with_clips(self._sample(epoch, index, memory), memory)
        if index in self._hopeless:
            return self._hopeless[index]
        if self._reader is None or self._reader[0] != os.getpid():  # a fork copies the reader of its parent
            memory = np.frombuffer(mmap.mmap(-1, int(np.prod(self._shape))), np.uint8).reshape(self._shape)
            this = weakref.proxy(self)  # so that the child ends with the data set, not with a collection of cycles
            child = Child(lambda epoch, index: this._sample(epoch, index, memory), self.timeout_s)
            self._reader = os.getpid(), child, memory
        _, child, memory = self._reader
        try:
            sample = child(epoch, index)
        except ChildDied as death:
            record = self.records[index]
            self._hopeless[index] = Failure(index, record.uid, record.label, f"{record.path}: {death}")
            return self._hopeless[index]
        return _with_clips(sample, memory.copy())

    def draw_clips(self, epoch: int, index: int, num_frames: int) -> tuple[np.ndarray, np.random.Generator]:
        """(frame indices (V, T) of a sample whose video has `num_frames`, the generator that then draws its views)."""
        rng = np.random.default_rng([self.seed, _SAMPLE, epoch, index])
        if self.original is None:
            return self.sample_clips(num_frames, self.spec, rng), rng
        clips = self.sample_clips(num_frames, replace(self.spec, clips=self.spec.clips - 1), rng)
        return np.concatenate([clips, clips[:1]]), rng

    def _draw_views(self, epoch: int, height: int, width: int, rng: np.random.Generator) -> list[ViewDraw]:
        """Of the V clips, from frames of `height` x `width` pixels."""
        view = faded(self.view, epoch, self.fade) if self.fade else self.view
        drawn = [draw_view(view, height, width, rng) for _ in range(self.spec.clips - (self.original is not None))]
        return drawn if self.original is None else [*drawn, draw_view(self.original, height, width, rng)]

    @property
    def _shape(self) -> tuple[int, ...]:
        clips = self.spec.clips + (self.twins is not None)
        return (clips, self.spec.frames, self.view.size, self.view.size, 3)

    def _sample(self, epoch: int, index: int, out: np.ndarray) -> dict[str, Any] | Failure:
        """Read, crop and resize into `out`. What it returns holds no tensor: torch sends those by way of files."""
        record = self.records[index]
        backend = record.backend if self.backend == "auto" else self.backend
        try:
            if record.bad:
                raise DecodeError(f"{record.path}: {record.bad} (manifest)")
            with open_video(record.path, backend=backend, frames=record.frames) as video:
                indices, rng = self.draw_clips(epoch, index, video.num_frames)
                draws, size = _take_views(
                    video, record.path, indices, lambda h, w: self._draw_views(epoch, h, w, rng), out
                )
                fps, frames = video.fps, video.num_frames
            if self.twins is not None:
                path, first = self.twins(record.path), draws[0]
                with open_video(path, backend=self.backend) as twin:
                    if (
                        os.path.isdir(path) and twin.num_frames != frames
                    ):  # a frame that is missing shifts those behind it
                        raise DecodeError(f"{path}: a texture of {twin.num_frames} frames, of {frames}")
                    found, _ = _take_views(twin, path, indices[:1], lambda h, w: [twin_draw(first, size, (h, w))],
                                           out[len(indices) :])  # fmt: skip
                draws = draws + found
            if self.corrupt:
                twins_rng = copy.deepcopy(rng)  # a twin gets what the first clip gets
                drawn = len(indices) - (self.original is not None)
                for v in (*range(drawn), *range(len(indices), len(out))):
                    out[v] = self.corrupt(out[v], rng if v < drawn else twins_rng, fps / self.spec.stride)
        except DecodeError as error:
            return Failure(index, record.uid, record.label, str(error))
        return {
            "draws": np.array([draw.columns for draw in draws], np.float32),
            "numbers": np.random.default_rng([self.seed, _NEGATIVE, epoch, index]).random(self.numbers, np.float32),
            "label": record.label,
            "index": index,
            "start": indices[:, 0].copy(),
            "fps": fps,
            "uid": record.uid,
            "replaced": [],
        }


def _with_clips(sample: dict[str, Any] | Failure, clips: np.ndarray) -> dict[str, Any] | Failure:
    if isinstance(sample, Failure):
        return sample
    arrays = {"clips": clips} | {name: sample[name] for name in ("draws", "numbers", "start")}
    return sample | {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Packed(Sequence[Record]):
    """Records as one array of bytes.

    Workers share it with their parent; a list of objects they would copy bit by bit, by counting references.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        packed = [pickle.dumps(record) for record in records]
        self.ends = np.cumsum([len(p) for p in packed], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(packed), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        start = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[start : self.ends[index]].tobytes())


def _take_views(
    video: Video, path: str, indices: np.ndarray, draw: Callable[[int, int], list[ViewDraw]], out: np.ndarray
) -> tuple[list[ViewDraw], tuple[int, int]]:
    """Decode frames (V, T), cut out and resize each clip's box into `out` (V, T, size, size, 3).

    draw: (height, width) of the frames -> a draw a clip. Returns the draws and that size. A frame is decoded once, in
    order, however many clips show it, and only boxes are kept of it.
    """
    unique, position = np.unique(indices, return_inverse=True)
    order = np.argsort(position, axis=None, kind="stable")
    places = np.split(order, np.cumsum(np.bincount(position.ravel()))[:-1])
    frames = checked_frames(video, path, unique)
    first = next(frames)
    height, width = first.shape[:2]
    draws = draw(height, width)
    boxes = [np.empty((indices.shape[1], draw.height, draw.width, 3), np.uint8) for draw in draws]
    for frame, shown in zip(itertools.chain([first], frames), places, strict=True):
        for place in shown.tolist():
            v, t = divmod(place, indices.shape[1])
            d = draws[v]
            boxes[v][t] = frame[d.top : d.top + d.height, d.left : d.left + d.width]
    for v, box in enumerate(boxes):
        out[v] = resize(box, *out.shape[2:4])
    return draws, (height, width)


def collate(samples: list[Any], join: Callable[[list[Tensor]], Tensor] = default_collate) -> Batch:
    """Samples and failures -> Batch. A batch of failures only has B = 0. join: stacks tensors."""
    failed = [s for s in samples if isinstance(s, Failure)]
    good = [s for s in samples if not isinstance(s, Failure)]

    def stack(name: str) -> Tensor:
        # default_collate, and not stack: in a worker it writes to shared memory at once
        return join([s[name] for s in good]) if good else torch.empty(0)

    return Batch(
        clips=stack("clips"),
        draws=stack("draws"),
        numbers=stack("numbers"),
        labels=torch.tensor([s["label"] for s in good], dtype=torch.long),
        index=torch.tensor([s["index"] for s in good], dtype=torch.long),
        start=stack("start"),
        fps=torch.tensor([s["fps"] for s in good], dtype=torch.float32),
        uids=[s["uid"] for s in good],
        failed=failed,
        replaced=[failure for s in good for failure in s["replaced"]],
    )


class TrainBatches(Sampler[list[Key]]):
    """Keys of the training batches from step `start` to step `stop`, this rank's share of each.

    Every epoch is its own permutation, drawn from (seed, epoch), and drops the remainder that fills no batch.
    `batch_size` is global and must divide by `world`.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.per_epoch = size // batch_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world
        order, drawn = np.empty(0, np.int64), -1
        for step in range(self.start, self.stop):
            epoch, batch = divmod(step, self.per_epoch)
            if epoch != drawn:
                rng = np.random.default_rng([self.seed, _ORDER, epoch])
                order, drawn = rng.permutation(self.size), epoch
            first = batch * self.batch_size + self.rank * share
            yield [(epoch, int(i)) for i in order[first : first + share]]


class EvalBatches(Sampler[list[Key]]):
    """Keys of evaluation batches in the order of the records, nothing padded, nothing dropped."""

    def __init__(self, indices: list[int], batch_size: int) -> None:
        self.batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter([(0, i) for i in batch] for batch in self.batches)


def loader(
    dataset: ClipDataset, batches: Sampler[list[Key]] | list[list[Key]], workers: int
) -> BatchLoader:
    """A DataLoader over keys; it yields `Batch`.

    It draws nothing from torch's global generator, which a resumed run must find as it was, and its workers leave
    stop signals to the process that owns them. Loop over it inside `worker_deaths`.
    """
    dataset.reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
    videos = len(next(iter(batches), []))
    return BatchLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers,
        generator=torch.Generator(), batch_bytes=videos * math.prod(dataset._shape),
    )  # fmt: skip

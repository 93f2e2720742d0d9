"""ClipDataset and its batches. A sample is a function of (seed, epoch, index).

The loader's keys are (epoch, index), so workers need no state: 0 or 8 of them, before or after a
resume, on one rank or four, the same sample comes out. Files are read in a child process that may
crash or hang (`isolation.py`). A file that does not decode becomes a `Failure`; whoever reads the
batch decides what that means (training counts the video that replaced it, evaluation writes a
failed row).
"""

import itertools
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from vidrobust.corruptions import Corrupt
from vidrobust.data.clip_reader import ORDER_STREAM, REPLACE_STREAM, ClipReader, Sample
from vidrobust.data.decoding.images import in_memory
from vidrobust.data.isolation import Child, ChildDied, start_nursery
from vidrobust.data.loader import BatchLoader
from vidrobust.data.prepare.texture_twins import Twins
from vidrobust.data.records import Failure, Record
from vidrobust.data.sampling import ClipSpec
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.utils.errors import UserError
from vidrobust.views import AugmentSpec

Key = tuple[int, int]  # epoch, index
_REPLACEMENTS = 100  # bad videos in a row, after which it is not the video's fault


@dataclass
class Batch:
    """B videos, V clips of each; with twins, V + 1 clips and draws.

    clips (B, V, T, H, W, 3) uint8 for `to_float`, draws (B, V, DRAW_COLUMNS) for `apply_draws`,
    numbers (B, n) for `negatives`, labels (B,), index (B,) into the records, start (B, V) first
    source frame of each clip, fps (B,). `failed` are videos that have no place in the batch;
    `replaced` are those whose place another video has taken, which `index` and `uids` name.
    `repeats` and `resized` are videos (their index) whose clips show a frame twice, as they are too
    short, and whose frames had several sizes.
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
    repeats: list[int]
    resized: list[int]


class ClipDataset(Dataset):
    """Map-style: `dataset[epoch, index]` -> a sample, or a Failure.

    sample_clips, view, corrupt, fade, original, twins, numbers: as in `ClipReader`. timeout_s:
    seconds that reading a file may take, in a child process; 0 reads in this one, without a
    watchdog. replace: a video that fails is replaced by another one, drawn from (seed, epoch,
    index), and told in "replaced".
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
            raise UserError(
                "data.timeout_s: this system cannot fork a process to watch; set data.timeout_s=0"
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
        )
        self.timeout_s = timeout_s
        self.replace = replace
        self.reading = torch.full(
            (0, 2), -1
        )  # a row a worker: its process, and the record it reads
        self._reader: tuple[int, Child] | None = None
        self._hopeless: dict[int, Failure] = {}  # those that cost a child, so that they do it once

    @property
    def spec(self) -> ClipSpec:
        """The clips of a video."""
        return self.reader.spec

    @property
    def twins(self) -> Twins | None:
        """Where the texture twins lie."""
        return self.reader.twins

    def notes(self, repeats: int, resized: int, videos: int) -> list[str]:
        """Return a line about videos that are too short for a clip, and one about frames of several
        sizes.

        Args:
            repeats: videos whose clips show a frame twice.
            resized: videos whose frames had several sizes.
            videos: of which these are counted.
        """
        found = []
        if repeats:
            found.append(
                f"{repeats} of {videos} videos are shorter than a clip ({self.spec.span} frames)"
                f" and show frames twice (data.policy={self.spec.policy}); lower data.frames or"
                " data.stride"
            )
        if resized:
            found.append(
                f"{resized} of {videos} videos have frames of several sizes, resized to the first"
                " of each clip"
            )
        return found

    def draw_clips(
        self, epoch: int, index: int, num_frames: int
    ) -> tuple[np.ndarray, np.random.Generator]:
        """As `ClipReader.draw_clips`."""
        return self.reader.draw_clips(epoch, index, num_frames)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample | Failure:
        epoch, index = key
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id] = torch.tensor([os.getpid(), index])
        sample = self._read(epoch, index)
        if isinstance(sample, dict) or not self.replace:
            return sample
        rng, replaced = (
            np.random.default_rng([self.reader.seed, REPLACE_STREAM, epoch, index]),
            [sample],
        )
        others = (other for other in rng.permutation(len(self)).tolist() if other != index)
        for other in itertools.islice(others, _REPLACEMENTS):
            sample = self._read(epoch, other)
            if isinstance(sample, dict):
                return sample | {"replaced": replaced}
            replaced.append(sample)
        return replaced[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def _read(self, epoch: int, index: int) -> Sample | Failure:
        """Read a sample, by way of the child unless there is no time limit, or no file."""
        record = self.records[index]
        size = int(np.prod(self.reader.shape))
        if not self.timeout_s or in_memory(record.path):
            memory = np.empty(size, np.uint8)
            return self._with_clips(self.reader.read(memory, record, epoch, index), memory)
        if index in self._hopeless:
            return self._hopeless[index]
        if (
            self._reader is None or self._reader[0] != os.getpid()
        ):  # a fork copies the reader of its parent
            self._reader = os.getpid(), Child(self.reader.read, self.timeout_s, size)
        child = self._reader[1]
        try:
            sample = child(record, epoch, index)
        except ChildDied as death:
            self._hopeless[index] = Failure(
                index, record.uid, record.label, f"{record.path}: {death}"
            )
            return self._hopeless[index]
        assert child.memory is not None
        return self._with_clips(sample, child.memory.copy())

    def _with_clips(self, sample: Sample | Failure, memory: np.ndarray) -> Sample | Failure:
        if isinstance(sample, Failure):
            return sample
        arrays = {"clips": memory.reshape(self.reader.shape)}
        arrays |= {name: sample[name] for name in ("draws", "numbers", "start")}
        return sample | {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Packed(Sequence[Record]):
    """Records as one array of bytes.

    Workers share it with their parent; a list of objects they would copy bit by bit, by counting
    references.
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
        repeats=[s["index"] for s in good if s["repeats"]],
        resized=[s["index"] for s in good if s["resized"]],
    )


class TrainBatches(Sampler[list[Key]]):
    """Keys of the training batches from step `start` to step `stop`, this rank's share of each.

    Every epoch is its own permutation, drawn from (seed, epoch), and drops the remainder that fills
    no batch. `batch_size` is global and must divide by `world`.
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
                rng = np.random.default_rng([self.seed, ORDER_STREAM, epoch])
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


def batch_loader(
    dataset: ClipDataset, batches: Sampler[list[Key]] | list[list[Key]], workers: int
) -> BatchLoader:
    """A DataLoader over keys; it yields `Batch`.

    It draws nothing from torch's global generator, which a resumed run must find as it was, and its
    workers leave stop signals to the process that owns them. Loop over it inside `worker_deaths`.
    """
    dataset.reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
    if dataset.timeout_s:
        start_nursery()  # which workers then share
    videos = len(next(iter(batches), []))
    return BatchLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),
        batch_bytes=videos * math.prod(dataset.reader.shape),
    )

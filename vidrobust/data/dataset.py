"""Records become batches. A sample is a pure function of (seed, epoch, index).

The loader's keys are (epoch, index), so workers need no state: 0 or 8 of them, before or after a resume, on one
rank or four, the same sample comes out. A file that does not decode becomes a `Failure`; whoever reads the
batch decides what that means (training stops, evaluation writes a failed row).
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vidrobust.data.decode import DecodeError, open_video
from vidrobust.data.records import Record
from vidrobust.data.sampling import ClipSpec
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.views import AugmentSpec, draw_view, take_view

Key = tuple[int, int]  # epoch, index
_SAMPLE, _ORDER = 0, 1  # streams of the run's seed, so that none draws what another has drawn


@dataclass(frozen=True)
class Failure:
    """A record that did not decode, and why (one line that names the file)."""

    index: int
    uid: str
    label: int
    reason: str


@dataclass
class Batch:
    """B videos, V clips of each.

    clips (B, V, 3, T, H, W) uint8, color (B, V, COLOR_COLUMNS) for `apply_color`, labels (B,), index (B,) into
    the records, start (B, V) first source frame of each clip, fps (B,). `fallbacks` counts videos that decord
    could not read and PyAV could.
    """

    clips: Tensor
    color: Tensor
    labels: Tensor
    index: Tensor
    start: Tensor
    fps: Tensor
    uids: list[str]
    failed: list[Failure]
    fallbacks: int


class ClipDataset(Dataset):
    """Map-style: `dataset[epoch, index]` -> a sample, or a Failure.

    sample_clips: (num_frames, spec, rng) -> (V, T) frame indices. view: how a clip is cropped and coloured.
    """

    def __init__(
        self,
        records: list[Record],
        spec: ClipSpec,
        sample_clips: ClipSampler,
        view: AugmentSpec,
        *,
        short_side: int = 128,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        self.records, self.spec, self.sample_clips, self.view = records, spec, sample_clips, view
        self.short_side, self.seed, self.backend = short_side, seed, backend

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> dict[str, Any] | Failure:
        epoch, index = key
        record = self.records[index]
        rng = np.random.default_rng([self.seed, _SAMPLE, epoch, index])
        try:
            with open_video(record.path, short_side=self.short_side, backend=self.backend) as video:
                indices = self.sample_clips(video.num_frames, self.spec, rng)
                frames = video.read(indices.ravel())
        except DecodeError as error:
            return Failure(index, record.uid, record.label, str(error))
        frames = frames.reshape(*indices.shape, *frames.shape[1:])
        height, width = frames.shape[2:4]
        draws = [draw_view(self.view, height, width, rng) for _ in range(len(frames))]
        size = self.view.size
        return {
            "clips": torch.stack([take_view(f, d, size) for f, d in zip(frames, draws, strict=True)]),
            "color": torch.tensor([d.color for d in draws], dtype=torch.float32),
            "label": record.label,
            "index": index,
            "start": torch.from_numpy(indices[:, 0].copy()),
            "fps": video.fps,
            "uid": record.uid,
            "fallback": self.backend == "auto" and video.backend == "pyav",
        }


def collate(samples: list[Any]) -> Batch:
    """Samples and failures -> Batch. A batch of failures only has B = 0."""
    failed = [s for s in samples if isinstance(s, Failure)]
    good = [s for s in samples if not isinstance(s, Failure)]

    def stack(name: str) -> Tensor:
        return torch.stack([s[name] for s in good]) if good else torch.empty(0)

    return Batch(
        clips=stack("clips"),
        color=stack("color"),
        labels=torch.tensor([s["label"] for s in good], dtype=torch.long),
        index=torch.tensor([s["index"] for s in good], dtype=torch.long),
        start=stack("start"),
        fps=torch.tensor([s["fps"] for s in good], dtype=torch.float32),
        uids=[s["uid"] for s in good],
        failed=failed,
        fallbacks=sum(s["fallback"] for s in good),
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


def loader(dataset: ClipDataset, batches: Sampler[list[Key]], workers: int) -> DataLoader:
    """A DataLoader over keys; it yields `Batch`.

    It draws nothing from torch's global generator, which a resumed run must find as it was, and its workers leave
    Ctrl-C to the process that owns them.
    """
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, worker_init_fn=_ignore_ctrl_c,
        generator=torch.Generator(),
    )  # fmt: skip


def _ignore_ctrl_c(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""The source frames of a video as one tensor, from which all its clips are cut."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidrobust.data.decoding.images import in_memory
from vidrobust.data.decoding.read_frames import DecodeError, frames_of, open_record
from vidrobust.data.isolation import Child, ChildDied
from vidrobust.data.records import Failure, Record
from vidrobust.data.sampling import ClipSpec, Sampler


@dataclass(frozen=True)
class Source:
    """The frames that a video's clips show, each once: frames (F, H, W, 3) uint8, the shorter side
    `short_side`.

    clips: (K, T), which of them each clip takes. Clips that overlap share frames.
    """

    record: Record
    index: int
    frames: np.ndarray
    clips: np.ndarray
    fps: float


@dataclass(frozen=True)
class _SourceReader:
    """What a child needs to read any record's frames."""

    spec: ClipSpec
    sample_clips: Sampler
    short_side: int
    backend: str

    def read(self, record: Record) -> tuple[np.ndarray, np.ndarray, float]:
        """Return (frames (F, H, W, 3), which of them each clip takes (K, T), fps)."""
        with open_record(record, self.backend) as video:
            indices = self.sample_clips(video.num_frames, self.spec, np.random.default_rng(0))
            unique, position = np.unique(indices, return_inverse=True)
            found = frames_of(video, record.path, unique, short_side=self.short_side)
            return found, position.reshape(indices.shape), float(video.fps)


class SourceVideos:
    """`videos[index]` -> a Source, or a Failure.

    spec: the clips of a video, placed by `sample_clips`. timeout_s: as `ClipDataset` has it.
    """

    def __init__(
        self,
        records: Sequence[Record],
        spec: ClipSpec,
        sample_clips: Sampler,
        *,
        short_side: int,
        size: int,
        backend: str = "auto",
        timeout_s: float = 0.0,
    ) -> None:
        self.records = records
        self.spec = spec
        self.short_side = short_side
        self.size = size
        self.reader = _SourceReader(spec, sample_clips, short_side, backend)
        self._child = (
            Child(self.reader.read, timeout_s) if timeout_s and hasattr(os, "fork") else None
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Source | Failure:
        record = self.records[index]
        alone = self._child is None or in_memory(record.path)
        try:
            frames, clips, fps = (
                self.reader.read(record) if alone or self._child is None else self._child(record)
            )
        except (DecodeError, ChildDied, ValueError) as error:
            reason = str(error) if isinstance(error, DecodeError) else f"{record.path}: {error}"
            return Failure(index, record.uid, record.label, reason)
        return Source(record, index, frames, clips, fps)

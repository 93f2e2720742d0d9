"""A video as one tensor that all its clips are cut from: what a perturbation of the source is laid on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidrobust.data.child import Child, ChildDied
from vidrobust.data.dataset import Failure
from vidrobust.data.decode import DecodeError, open_video, read_frames
from vidrobust.data.images import in_memory
from vidrobust.data.records import Record
from vidrobust.data.sampling import ClipSpec, Sampler


@dataclass(frozen=True)
class Source:
    """The frames that a video's clips show, each once: frames (F, H, W, 3) uint8, the shorter side `short_side`.

    clips: (K, T), which of them each clip takes. Clips that overlap share frames.
    """

    record: Record
    index: int
    frames: np.ndarray
    clips: np.ndarray
    fps: float


class SourceVideos:
    """`videos[index]` -> a Source, or a Failure.

    spec: the clips of a video, placed by `sample_clips`. timeout_s: as `ClipDataset` has it.
    """

    def __init__(
        self, records: Sequence[Record], spec: ClipSpec, sample_clips: Sampler, *, short_side: int, size: int,
        backend: str = "auto", timeout_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.records, self.spec, self.sample_clips = records, spec, sample_clips
        self.short_side, self.size, self.backend = short_side, size, backend
        self._child = Child(self._read, timeout_s) if timeout_s and hasattr(os, "fork") else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Source | Failure:
        record = self.records[index]
        try:
            in_child = self._child is not None and not in_memory(record.path)
            frames, clips, fps = self._child(index) if in_child and self._child else self._read(index)
        except (DecodeError, ChildDied, ValueError) as error:
            reason = str(error) if isinstance(error, DecodeError) else f"{record.path}: {error}"
            return Failure(index, record.uid, record.label, reason)
        return Source(record, index, frames, clips, fps)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        record = self.records[index]
        if record.bad:
            raise DecodeError(f"{record.path}: {record.bad} (manifest)")
        backend = record.backend if self.backend == "auto" else self.backend
        with open_video(record.path, backend=backend, frames=record.frames) as video:
            indices = self.sample_clips(video.num_frames, self.spec, np.random.default_rng(0))
            fps = video.fps
        unique, position = np.unique(indices, return_inverse=True)
        found = read_frames(record.path, unique, short_side=self.short_side, backend=backend, frames=record.frames)
        return found, position.reshape(indices.shape), float(fps)

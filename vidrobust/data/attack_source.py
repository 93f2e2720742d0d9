"""Read the source frames of a video, from which all its clips are cut, as one array."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidrobust.data.decoding.images import in_memory
from vidrobust.data.decoding.read_frames import DecodeError, frames_of, open_record
from vidrobust.data.isolation import Child, ChildDied
from vidrobust.data.records import Failure, Record
from vidrobust.data.sampling import ClipSpec, Sampler, sampled


@dataclass(frozen=True)
class Source:
    """The frames that the clips of a video show, each frame once. Clips that overlap share frames.

    Attributes:
        record: the video.
        index: its position in the records.
        frames: (F, H, W, 3) uint8; the shorter side has `short_side` pixels.
        clips: (K, T) positions in `frames` of the frames of each clip.
        fps: frames per second of the video.
    """

    record: Record
    index: int
    frames: np.ndarray
    clips: np.ndarray
    fps: float


@dataclass(frozen=True)
class _SourceReader:
    """Settings that a child process needs to read the frames of any record.

    Attributes:
        spec: the clips of a video.
        sample_clips: (num_frames, spec, rng) -> (K, T) frame indices.
        short_side: pixels of the shorter side of the frames.
        resize: height and width of the frames, in place of short_side; None: see short_side.
        interpolation: of the resize.
        backend: a name of BACKENDS.
    """

    spec: ClipSpec
    sample_clips: Sampler
    short_side: int
    resize: tuple[int, int] | None
    interpolation: str
    backend: str

    def read(self, record: Record) -> tuple[np.ndarray, np.ndarray, float]:
        """Return (frames (F, H, W, 3), positions of each clip in them (K, T), fps)."""
        with open_record(record, self.backend) as video:
            # Samplers of evaluations do not use the generator.
            indices = sampled(
                self.sample_clips,
                video.num_frames,
                float(video.fps),
                self.spec,
                np.random.default_rng(0),
            )
            # A frame that several clips show is decoded once.
            unique, position = np.unique(indices, return_inverse=True)
            frames = frames_of(
                video,
                record.path,
                unique,
                short_side=self.short_side,
                size=self.resize,
                interpolation=self.interpolation,
            )
            return frames, position.reshape(indices.shape), float(video.fps)


class SourceVideos:
    """Map-style data set: `videos[index]` is a Source, or a Failure.

    Args:
        records: the videos.
        spec: number, length and stride of the clips of a video.
        sample_clips: (num_frames, spec, rng) -> (K, T) frame indices.
        short_side: pixels of the shorter side of the frames.
        size: height and width of the crop that the model receives, in pixels.
        resize: height and width of the frames, whatever their shape; None: see short_side.
        interpolation: of the resize.
        backend: a name of BACKENDS.
        timeout_s: seconds that reading a video may take, in a child process; 0: no limit.
    """

    def __init__(  # noqa: PLR0913  (public class, whose signature stays)
        self,
        records: Sequence[Record],
        spec: ClipSpec,
        sample_clips: Sampler,
        *,
        short_side: int,
        size: int,
        resize: tuple[int, int] | None = None,
        interpolation: str = "bilinear",
        backend: str = "auto",
        timeout_s: float = 0.0,
    ) -> None:
        self.records = records
        self.spec = spec
        self.short_side = short_side
        self.size = size
        self.resize = resize
        self.reader = _SourceReader(spec, sample_clips, short_side, resize, interpolation, backend)
        self._child = (
            Child(self.reader.read, timeout_s) if timeout_s and hasattr(os, "fork") else None
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Source | Failure:
        record = self.records[index]
        # Images in memory need no child process: nothing is decoded that could crash.
        read: Callable[[Record], Any] | None = self._child
        if read is None or in_memory(record.path):
            read = self.reader.read
        try:
            frames, clips, fps = read(record)
        except (DecodeError, ChildDied, ValueError) as error:
            reason = str(error) if isinstance(error, DecodeError) else f"{record.path}: {error}"
            return Failure(index, record.uid, record.label, reason)
        return Source(record, index, frames, clips, fps)

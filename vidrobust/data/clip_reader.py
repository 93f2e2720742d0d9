"""Read one sample: decode, crop, resize and corrupt the clips of a video."""

import copy
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vidrobust.corruptions import Corrupt
from vidrobust.data.decoding.pyav import DecodeError, Video
from vidrobust.data.decoding.read_frames import checked_frames, open_record, open_video, resize
from vidrobust.data.prepare.texture_twins import Twins, twin_draw
from vidrobust.data.records import Failure, Record
from vidrobust.data.sampling import ClipSpec
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.views import AugmentSpec, ViewDraw, draw_view, faded

# Streams of the run's seed, so that none draws what another has drawn.
SAMPLE_STREAM, ORDER_STREAM, REPLACE_STREAM, NEGATIVE_STREAM = 0, 1, 2, 3
# Whole frames wait to be resized in at most so many bytes: 16 frames of 8K video are 1.6 GB.
_WAITING_BYTES = 2**25

Sample = dict[str, Any]


@dataclass(frozen=True)
class ClipReader:
    """Read the clips of records; a sample is a pure function of (seed, epoch, index).

    It holds no record, so that it travels to the process that reads.

    Args:
        spec: the clips of a video, V of them.
        sample_clips: (num_frames, spec, rng) -> (V, T) frame indices.
        view: how a clip is cropped and coloured.
        seed: of the run.
        backend: a name of BACKENDS.
        corrupt: what a clip may become of natural corruptions, drawn after everything else.
        fade: epochs over which the view's augmentations weaken (`faded`); 0: they stay.
        original: how the last of the V clips shows the frames of the first, neither augmented nor
            corrupted; None: it is a clip like the others.
        twins: where texture twins lie; the first clip's, at the same frames under the same draw,
            then comes behind the V clips.
        numbers: how many random numbers come with each sample, which decide its negatives.
    """

    spec: ClipSpec
    sample_clips: ClipSampler
    view: AugmentSpec
    seed: int = 0
    backend: str = "auto"
    corrupt: Corrupt | None = None
    fade: int = 0
    original: AugmentSpec | None = None
    twins: Twins | None = None
    numbers: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The shape of a sample's clips: (V, T, S, S, 3), and one clip more with twins."""
        clips = self.spec.clips + (self.twins is not None)
        return clips, self.spec.frames, self.view.size, self.view.size, 3

    def draw_clips(
        self, epoch: int, index: int, num_frames: int
    ) -> tuple[np.ndarray, np.random.Generator]:
        """Return (frame indices (V, T), the generator that then draws the views) of a sample."""
        rng = np.random.default_rng([self.seed, SAMPLE_STREAM, epoch, index])
        if self.original is None:
            return self.sample_clips(num_frames, self.spec, rng), rng
        clips = self.sample_clips(num_frames, replace(self.spec, clips=self.spec.clips - 1), rng)
        return np.concatenate([clips, clips[:1]]), rng

    def read(self, memory: np.ndarray, record: Record, epoch: int, index: int) -> Sample | Failure:
        """Read the sample of a record.

        Args:
            memory: bytes that the clips are written to, as many as `shape` has or more.
            record: the video.
            epoch: of the run.
            index: of the record in its list.

        Returns:
            The sample without its clips, as arrays: torch would send tensors by way of files.
        """
        out = memory[: int(np.prod(self.shape))].reshape(self.shape)
        try:
            with open_record(record, self.backend) as video:
                indices, rng = self.draw_clips(epoch, index, video.num_frames)
                draws, size = _take_views(
                    video,
                    record.path,
                    indices,
                    lambda h, w: self._draw_views(epoch, h, w, rng),
                    out,
                )
                fps, frames, resized = video.fps, video.num_frames, video.resized
            if self.twins is not None:
                twin = self._read_twin(
                    self.twins(record.path), indices, draws[0], size, frames, out
                )
                draws = [*draws, twin]
            self._corrupt(out, len(indices), rng, fps)
        except DecodeError as error:
            return Failure(index, record.uid, record.label, str(error))
        numbers = np.random.default_rng([self.seed, NEGATIVE_STREAM, epoch, index])
        return {
            "draws": np.array([draw.columns for draw in draws], np.float32),
            "numbers": numbers.random(self.numbers, np.float32),
            "label": record.label,
            "index": index,
            "start": indices[:, 0].copy(),
            "fps": fps,
            "uid": record.uid,
            "repeats": repeats_frames(indices),
            "resized": resized > 0,
            "replaced": [],
        }

    def _draw_views(
        self, epoch: int, height: int, width: int, rng: np.random.Generator
    ) -> list[ViewDraw]:
        """Draw the views of the V clips, of frames of `height` x `width` pixels."""
        view = faded(self.view, epoch, self.fade) if self.fade else self.view
        drawn = [
            draw_view(view, height, width, rng)
            for _ in range(self.spec.clips - (self.original is not None))
        ]
        return (
            drawn
            if self.original is None
            else [*drawn, draw_view(self.original, height, width, rng)]
        )

    def _read_twin(
        self,
        path: str,
        indices: np.ndarray,
        first: ViewDraw,
        size: tuple[int, int],
        frames: int,
        out: np.ndarray,
    ) -> ViewDraw:
        """Read the texture of the first clip into the last place of `out`; return its draw."""
        with open_video(path, backend=self.backend) as twin:
            # a frame that is missing shifts those behind it
            if os.path.isdir(path) and twin.num_frames != frames:
                raise DecodeError(f"{path}: a texture of {twin.num_frames} frames, of {frames}")
            (draw,), _ = _take_views(
                twin,
                path,
                indices[:1],
                lambda h, w: [twin_draw(first, size, (h, w))],
                out[len(indices) :],
            )
        return draw

    def _corrupt(self, out: np.ndarray, clips: int, rng: np.random.Generator, fps: float) -> None:
        """Corrupt the clips in place, but for an original; a twin gets what the first clip gets."""
        if self.corrupt is None:
            return
        twins_rng = copy.deepcopy(rng)
        drawn = clips - (self.original is not None)
        for v in (*range(drawn), *range(clips, len(out))):
            out[v] = self.corrupt(out[v], rng if v < drawn else twins_rng, fps / self.spec.stride)


def repeats_frames(indices: np.ndarray) -> bool:
    """Return whether a clip of (V, T) frame indices shows a frame twice: its video is too short."""
    return any(len(np.unique(clip)) < len(clip) for clip in indices)


def _take_views(
    video: Video,
    path: str,
    indices: np.ndarray,
    draw: Callable[[int, int], list[ViewDraw]],
    out: np.ndarray,
) -> tuple[list[ViewDraw], tuple[int, int]]:
    """Decode frames (V, T), cut out and resize each clip's box into `out` (V, T, size, size, 3).

    A frame is decoded once, in order, however many clips show it, and only boxes are kept of it, a
    bounded number of bytes at a time.

    Args:
        video: an open file.
        path: its path, for messages.
        indices: (V, T) frame indices.
        draw: (height, width) of the frames -> a draw per clip.
        out: where the clips go.

    Returns:
        The draws, and (height, width).
    """
    unique, position = np.unique(indices, return_inverse=True)
    order = np.argsort(position, axis=None, kind="stable")
    places = np.split(order, np.cumsum(np.bincount(position.ravel()))[:-1])
    frames = checked_frames(video, path, unique)
    first = next(frames)
    height, width = first.shape[:2]
    draws = draw(height, width)
    boxes = [_Boxes(one, out[v], _WAITING_BYTES // len(draws)) for v, one in enumerate(draws)]
    for frame, shown in zip(itertools.chain([first], frames), places, strict=True):
        for place in shown.tolist():
            v, t = divmod(place, indices.shape[1])
            boxes[v].add(frame, t)
    for box in boxes:
        box.resize()
    return draws, (height, width)


class _Boxes:
    """The boxes of one clip's frames, resized together: a call per frame costs more."""

    def __init__(self, draw: ViewDraw, out: np.ndarray, most_bytes: int) -> None:
        self.draw = draw
        self.out = out
        count = max(1, min(len(out), most_bytes // (draw.height * draw.width * 3)))
        self.waiting = np.empty((count, draw.height, draw.width, 3), np.uint8)
        self.times: list[int] = []

    def add(self, frame: np.ndarray, time: int) -> None:
        """Cut the box out of a frame (H, W, 3), which is number `time` of the clip."""
        if len(self.times) == len(self.waiting):
            self.resize()
        d, into = self.draw, self.waiting[len(self.times)]
        top, left = max(d.top, 0), max(d.left, 0)
        inside = frame[top : d.top + d.height, left : d.left + d.width]
        if inside.shape != into.shape:
            into[:] = 0
            into = into[top - d.top :, left - d.left :][: inside.shape[0], : inside.shape[1]]
        into[:] = inside
        self.times.append(time)

    def resize(self) -> None:
        """Resize the boxes that wait into the clip."""
        times: list[int] | slice = self.times
        if self.times == list(range(self.times[0], self.times[-1] + 1)):  # the faster way to write
            times = slice(self.times[0], self.times[-1] + 1)
        self.out[times] = resize(self.waiting[: len(self.times)], *self.out.shape[1:3])
        self.times = []

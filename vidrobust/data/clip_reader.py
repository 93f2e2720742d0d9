"""Read one sample: decode, crop, resize and corrupt the clips of a video."""

import contextlib
import copy
import itertools
import math
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vidrobust.corruptions import Corrupt
from vidrobust.data.decoding.pyav import DecodeError, Video
from vidrobust.data.decoding.read_frames import checked_frames, open_record, open_video, resize
from vidrobust.data.prepare.texture_twins import Twins, twin_draw
from vidrobust.data.records import Failure, Record
from vidrobust.data.sampling import ClipSpec, sampled
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.utils.seeds import SeedStream
from vidrobust.views import AugmentSpec, ViewDraw, crops_along, draw_view, faded

# Bytes of crops that wait to be resized: 16 frames of 8K video would be 1.6 GB.
_WAITING_BYTES = 2**25
_of_thread = threading.local()  # threads that read at the same time must not share such memory

Sample = dict[str, Any]
# A video and its texture twin, each None where it is in a file and not in memory.
Held = tuple[Video | None, Video | None]

_FIRST = np.zeros(1, np.int64)
_NO_NUMBERS = np.empty(0, np.float32)


@dataclass(frozen=True)
class ClipReader:
    """Read the clips of records; a sample is a pure function of (seed, epoch, index).

    The reader holds no record, so that it is cheap to send to the process that reads.

    Attributes:
        spec: the clips of a video, V of them.
        sample_clips: (num_frames, spec, rng) -> (V, T) frame indices.
        view: how a clip is cropped and augmented.
        seed: seed of the run.
        backend: a name of BACKENDS.
        corrupt: natural corruptions of training clips, sampled after everything else; None: none.
        fade: number of epochs over which the view's augmentations weaken (`faded`); 0: they do not.
        original: view of the last of the V clips, which shows the frames of the first one, neither
            augmented nor corrupted; None: the last clip is like the others.
        twins: where texture twins are. The twin of the first clip, with the same frames and the
            same view parameters, then follows the V clips.
        numbers: how many random numbers come with each sample; they decide its negatives.
        crops: views of the same frames that follow each other among the V clips, in evaluation: 1,
            the central crop, or 3 along the longer side of the frame.
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
    crops: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Return the shape of the clips of a sample: (V, T, S, S, 3), with twins (V + 1, ...)."""
        clips = self.spec.clips + (self.twins is not None)
        return clips, self.spec.frames, self.view.size, self.view.size, 3

    @property
    def bytes(self) -> int:
        """Return the size of the clips of a sample, in bytes."""
        return math.prod(self.shape)

    def draw_clips(
        self, epoch: int, index: int, num_frames: int, fps: float
    ) -> tuple[np.ndarray, np.random.Generator]:
        """Return the random frame indices of a sample.

        Args:
            epoch: epoch of the run.
            index: index of the record.
            num_frames: number of frames of its video.
            fps: frames per second of its video.

        Returns:
            (frame indices (V, T), the generator from which the views are sampled next).
        """
        rng = np.random.default_rng([self.seed, SeedStream.SAMPLE, epoch, index])
        if self.crops > 1:
            spec = replace(self.spec, clips=self.spec.clips // self.crops)
            clips = sampled(self.sample_clips, num_frames, fps, spec, rng)
            return clips.repeat(self.crops, 0), rng
        if self.original is None:
            return sampled(self.sample_clips, num_frames, fps, self.spec, rng), rng
        # The original shows the frames of the first clip, so one clip less is sampled.
        spec = replace(self.spec, clips=self.spec.clips - 1)
        clips = sampled(self.sample_clips, num_frames, fps, spec, rng)
        return np.concatenate([clips, clips[:1]]), rng

    def read(
        self,
        memory: np.ndarray,
        start: int,
        record: Record,
        epoch: int,
        index: int,
        held: Held = (None, None),
    ) -> Sample | Failure:
        """Read the sample of a record.

        Args:
            memory: (n,) uint8; the clips are written here.
            start: where in the memory they begin.
            record: the video.
            epoch: epoch of the run.
            index: index of the record in its list.
            held: the video and its texture twin, where they are in memory and not in files.

        Returns:
            The sample without its clips, or a Failure. Values are arrays, because torch would send
            tensors to the parent process by way of files.
        """
        out = memory[start : start + self.bytes].reshape(self.shape)
        try:
            with _held_or_opened(held[0], open_record, record, self.backend) as video:
                indices, rng = self.draw_clips(epoch, index, video.num_frames, video.fps)
                draws, size = _take_views(
                    video,
                    record.path,
                    indices,
                    lambda h, w: self._draw_views(epoch, h, w, rng),
                    out,
                    self.view.interpolation,
                )
                fps = video.fps
                frames = video.num_frames
                resized = video.resized
            if self.twins is not None:
                path = self.twins(record.path)
                with _held_or_opened(held[1], open_video, path, backend=self.backend) as twin:
                    draw = self._read_twin(twin, path, indices, draws[0], size, frames, out)
                draws = [*draws, draw]
            # Corruptions come last, so that their random numbers change neither frames nor views.
            self._corrupt(out, len(indices), rng, fps)
        except DecodeError as error:
            return Failure(index, record.uid, record.label, str(error))
        return {
            "draws": np.array([draw.columns for draw in draws], np.float32),
            "numbers": self._negative_numbers(epoch, index),
            "label": record.label,
            "index": index,
            "start": indices[:, 0].copy(),
            "end": indices.max(1) + 1,
            "fps": fps,
            "uid": record.uid,
            "repeats": repeats_frames(indices),
            "resized": resized > 0,
            "replaced": [],
        }

    def _negative_numbers(self, epoch: int, index: int) -> np.ndarray:
        """Return the random numbers (numbers,) that decide the negatives of a sample."""
        if not self.numbers:
            return _NO_NUMBERS
        rng = np.random.default_rng([self.seed, SeedStream.NEGATIVE, epoch, index])
        return rng.random(self.numbers, np.float32)

    def _draw_views(
        self, epoch: int, height: int, width: int, rng: np.random.Generator
    ) -> list[ViewDraw]:
        """Return random view parameters of the V clips.

        Args:
            epoch: epoch of the run.
            height: height of the frames, in pixels.
            width: width of the frames, in pixels.
            rng: source of randomness.
        """
        view = faded(self.view, epoch, self.fade) if self.fade else self.view
        if self.crops > 1:
            return crops_along(view, height, width, self.crops) * (self.spec.clips // self.crops)
        if self.original is None:
            return [draw_view(view, height, width, rng) for _ in range(self.spec.clips)]
        augmented = [draw_view(view, height, width, rng) for _ in range(self.spec.clips - 1)]
        return [*augmented, draw_view(self.original, height, width, rng)]

    def _read_twin(
        self,
        twin: Video,
        path: str,
        indices: np.ndarray,
        first: ViewDraw,
        size: tuple[int, int],
        frames: int,
        out: np.ndarray,
    ) -> ViewDraw:
        """Read the texture twin of the first clip into the last place of `out`.

        Args:
            twin: the twin, opened.
            path: its file.
            indices: (V, T) frame indices of the sample.
            first: view parameters of the first clip.
            size: (height, width) of the video's frames.
            frames: number of frames of the video.
            out: (V + 1, T, S, S, 3) clips of the sample.

        Returns:
            The view parameters of the twin.
        """
        # In a folder, a missing frame shifts all that follow.
        if os.path.isdir(path) and twin.num_frames != frames:
            raise DecodeError(
                f"{path}: the texture has {twin.num_frames} frames, the video {frames}"
            )
        (draw,), _ = _take_views(
            twin,
            path,
            indices[:1],
            lambda h, w: [twin_draw(first, size, (h, w))],
            out[len(indices) :],
            self.view.interpolation,
        )
        return draw

    def _corrupt(self, out: np.ndarray, clips: int, rng: np.random.Generator, fps: float) -> None:
        """Corrupt the clips in place, except an original; a twin is corrupted as the first clip.

        Args:
            out: (V, T, S, S, 3) uint8, or V + 1 clips with a twin.
            clips: number of clips without the twin, V.
            rng: source of randomness.
            fps: frames per second of the video.
        """
        if self.corrupt is None:
            return
        # A copy of the generator gives the twin the same corruption as the first clip.
        twin_rng = copy.deepcopy(rng)
        num_augmented = clips - (self.original is not None)
        clip_fps = (self.spec.fps or fps) / self.spec.stride
        for v in range(num_augmented):
            out[v] = self.corrupt(out[v], rng, clip_fps)
        for v in range(clips, len(out)):
            out[v] = self.corrupt(out[v], twin_rng, clip_fps)


def repeats_frames(indices: np.ndarray) -> bool:
    """Return whether a clip of (V, T) indices shows a frame twice: the video is too short."""
    return indices.shape[1] > 1 and any(len(np.unique(clip)) < len(clip) for clip in indices)


def _held_or_opened(
    held: Video | None,
    opened: Callable[..., AbstractContextManager[Video]],
    *args: Any,
    **kwargs: Any,
) -> AbstractContextManager[Video]:
    """Return a video that is in memory, or otherwise opened(*args, **kwargs)."""
    return opened(*args, **kwargs) if held is None else contextlib.nullcontext(held)


def _take_views(
    video: Video,
    path: str,
    indices: np.ndarray,
    draw: Callable[[int, int], list[ViewDraw]],
    out: np.ndarray,
    interpolation: str,
) -> tuple[list[ViewDraw], tuple[int, int]]:
    """Decode the frames of clips, and cut out and resize the box of each clip.

    A frame is decoded once, in order, however many clips show it. Only boxes are kept, a bounded
    number of bytes at a time.

    Args:
        video: an open file.
        path: its path, for messages.
        indices: (V, T) frame indices.
        draw: (height, width) of the frames -> view parameters of each clip.
        out: (V, T, S, S, 3) uint8; the clips are written here.
        interpolation: see `resize`.

    Returns:
        The view parameters, and (height, width) of the frames.
    """
    if video.num_frames == 1:
        return _take_image(video, path, draw, out, interpolation)
    unique, position = np.unique(indices, return_inverse=True)
    # For each unique frame, the positions v * T + t in the clips that show it.
    order = np.argsort(position, axis=None, kind="stable")
    places = np.split(order, np.cumsum(np.bincount(position.ravel()))[:-1])
    frames = checked_frames(video, path, unique)
    # The parameters of the views depend on the size of the frames, known only now.
    first = next(frames)
    height, width = first.shape[:2]
    draws = draw(height, width)
    room = _waiting_room()
    share = len(room) // len(draws)
    rooms = room[: share * len(draws)].reshape(len(draws), share)
    # not strict: `out` may have one more place, for the twin
    boxes = [
        _Boxes(draw, clip, room, interpolation)
        for draw, clip, room in zip(draws, out, rooms, strict=False)
    ]
    for frame, frame_places in zip(itertools.chain([first], frames), places, strict=True):
        for place in frame_places.tolist():
            v, t = divmod(place, indices.shape[1])
            boxes[v].add(frame, t)
    for box in boxes:
        box.resize()
    return draws, (height, width)


def _take_image(
    video: Video,
    path: str,
    draw: Callable[[int, int], list[ViewDraw]],
    out: np.ndarray,
    interpolation: str,
) -> tuple[list[ViewDraw], tuple[int, int]]:
    """Do the same as `_take_views` with a single frame, which all clips show, in less time."""
    (frame,) = checked_frames(video, path, _FIRST)
    height, width = frame.shape[:2]
    draws = draw(height, width)
    for view, clip in zip(draws, out, strict=False):
        box = np.empty((1, view.height, view.width, 3), np.uint8)
        _cut_out(frame, view, box[0])
        _, out_height, out_width, _ = clip.shape
        clip[:] = resize(box, out_height, out_width, interpolation)
    return draws, (height, width)


def _cut_out(frame: np.ndarray, draw: ViewDraw, box: np.ndarray) -> None:
    """Write the box of a view to `box`, in which what is beyond the frame is black.

    Args:
        frame: (H, W, 3) uint8.
        draw: has the box, of h x w pixels.
        box: (h, w, 3) uint8.
    """
    top = max(draw.top, 0)
    left = max(draw.left, 0)
    inside = frame[top : draw.top + draw.height, left : draw.left + draw.width]
    if inside.shape != box.shape:
        box[:] = 0
        box = box[top - draw.top :, left - draw.left :][: inside.shape[0], : inside.shape[1]]
    box[:] = inside


def _waiting_room() -> np.ndarray:
    """Return memory (_WAITING_BYTES,) for boxes, which lasts as long as the thread.

    Its pages are there already; the system would have to clear new ones for each sample.
    """
    if not hasattr(_of_thread, "room"):
        _of_thread.room = np.empty(_WAITING_BYTES, np.uint8)
    return _of_thread.room


class _Boxes:
    """The boxes cut from the frames of one clip.

    Several are resized at a time, because one call per frame is slower.

    Args:
        draw: view parameters of the clip.
        out: (T, S, S, 3) uint8; the resized boxes are written here.
        room: (n,) uint8, memory for the boxes that wait to be resized.
        interpolation: see `resize`.
    """

    def __init__(
        self, draw: ViewDraw, out: np.ndarray, room: np.ndarray, interpolation: str
    ) -> None:
        self.draw = draw
        self.interpolation = interpolation
        self.out = out
        box_bytes = draw.height * draw.width * 3
        count = min(len(out), len(room) // box_bytes)
        if not count:  # one box is larger than the room
            room = np.empty(box_bytes, np.uint8)
            count = 1
        self.waiting = room[: count * box_bytes].reshape(count, draw.height, draw.width, 3)
        self.times: list[int] = []

    def add(self, frame: np.ndarray, time: int) -> None:
        """Cut the box out of a frame.

        Args:
            frame: (H, W, 3) uint8.
            time: its position in the clip.
        """
        if len(self.times) == len(self.waiting):
            self.resize()
        _cut_out(frame, self.draw, self.waiting[len(self.times)])
        self.times.append(time)

    def resize(self) -> None:
        """Resize the boxes that wait, and write them to the clip."""
        times: list[int] | slice = self.times
        # Writing to a slice is faster than to a list of indices.
        if self.times == list(range(self.times[0], self.times[-1] + 1)):
            times = slice(self.times[0], self.times[-1] + 1)
        boxes = self.waiting[: len(self.times)]
        _, height, width, _ = self.out.shape
        self.out[times] = resize(boxes, height, width, self.interpolation)
        self.times = []

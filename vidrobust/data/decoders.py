"""The decoders of video files: PyAV, decord, torchcodec.

All give the same upright frames. PyAV is the default: it opens and decodes faster than decord (docs/data.md), and
fails where decord hangs (its issues 269, 373). decord is imported where it is used, after torch: the other order
crashes (its issues 293, 324).
"""

import contextlib
import functools
import importlib
import itertools
import re
from collections.abc import Iterator
from typing import Any, Protocol

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from vidrobust.errors import UserError

# A container that declares more frames than it holds by a larger share is a truncated file. Below that it is
# bookkeeping: MPEG-4 in AVI counts dropped frames.
TRUNCATED = 0.9
# Containers that say when every frame is shown; in others frames are counted from the first.
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_TIMED = {"avi", _MP4, "matroska,webm"}
# Seek when at least so many frames need not be decoded for it; flushing a decoder costs about as much.
_WORTH_A_SEEK = 8


class DecodeError(RuntimeError):
    """A file that cannot be decoded. The message names the file and the reason, in one line."""


class Video(Protocol):
    """An open file. `num_frames` counts the frames that are in the file, not what its header claims; 0 fps: none."""

    backend: str
    num_frames: int
    fps: float

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Sorted, unique indices (T,) in [0, num_frames) -> T frames (H, W, 3) uint8 RGB, in that order."""

    def close(self) -> None:
        """Let go of the file."""


def one_line(error: Exception) -> str:
    """What a native error says, in one line without source positions."""
    if isinstance(error, av.error.FFmpegError):
        return f"not a video file, or cut short ({error.strerror})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return reason.split("Check failed: ")[-1].split(": ", 1)[-1] if "/workspace/" in reason else reason


def _check_count(path: str, present: int, declared: int) -> int:
    if present == 0:
        raise DecodeError(f"{path}: cut short: no frame is left in it")
    if present < TRUNCATED * declared:
        raise DecodeError(f"{path}: cut short: its header declares {declared} frames, {present} are left")
    return present


def open_container(path: str) -> av.container.InputContainer:
    """A container whose first video stream is decoded in one thread: parallelism comes from the loader's workers."""
    container = av.open(path)
    if not container.streams.video:
        raise DecodeError(f"{path}: holds no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    if stream.codec_context is not None:
        stream.codec_context.thread_count = 1
    return container


def declared_frames(container: av.container.InputContainer) -> int:
    """How many frames the header promises to show; 0 where it does not say."""
    stream = container.streams.video[0]
    if container.format.name == _MP4 and stream.frames:  # not in fragments; an edit list may cut some off
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


class PyAV:
    """A frame's number is its rank in the order in which the decoder shows frames, counted from the first.

    Counting from the first frame is exact for every file. A seek skips frames where the container says when each is
    shown, the first frame has the first time, the first one after the seek is intra-coded, and each that follows has
    the time that its number has; otherwise counting begins anew.
    """

    backend = "pyav"

    def __init__(self, path: str, frames: int = 0) -> None:
        self.path = path
        self.container, self.used = open_container(path), False
        stream = self.container.streams.video[0]
        codec = stream.codec_context
        if codec is None or codec.width < 1 or codec.height < 1:
            raise DecodeError(f"{path}: not a video file, or cut short (no frame size in its header)")
        self.fps = float(stream.average_rate or 0)
        self.in_order = not codec.has_b_frames
        declared = declared_frames(self.container)
        # an index that is whole costs nothing to count: Matroska's has key frames alone, a cut AVI's has what is lost
        self.indexed = sum(not entry.is_discard for entry in stream.index_entries) == declared > 0
        self.num_frames = frames or _check_count(path, declared if self.indexed else len(self._packets), declared)
        self.size = codec.height, codec.width
        self.convert = VideoReformatter().reformat  # one for all frames: setting one up costs as much as a frame

    def close(self) -> None:
        self.container.close()

    @functools.cached_property
    def _packets(self) -> list[tuple[int | None, bool]]:
        """(presentation time, whether it is a key frame) of each packet that is shown, in the file's order."""
        with av.open(self.path) as container:
            packets = container.demux(container.streams.video[0])
            return [(packet.pts, packet.is_keyframe) for packet in packets if packet.size and not packet.is_discard]

    @functools.cached_property
    def _timeline(self) -> tuple[list[int], list[int]] | None:
        """(time stamp of each frame, numbers of key frames), or None where time stamps are no guide.

        AVI has no presentation times: where frames are reordered, what FFmpeg guesses for them is wrong.
        """
        name, index = self.container.format.name, self.container.streams.video[0].index_entries
        avi = name == "avi"
        if name not in _TIMED or (avi and not self.in_order):
            return None
        if self.in_order and self.indexed:  # an index has decoding times, which then are presentation times
            entries: list[Any] = [(entry.timestamp, entry.is_keyframe) for entry in index if not entry.is_discard]
        else:
            entries = self._packets
        stamps = sorted(stamp for stamp, _ in entries if stamp is not None)
        if len(set(stamps)) < len(entries) or (avi and stamps != [stamp for stamp, _ in entries]):
            return None
        rank = {stamp: number for number, stamp in enumerate(stamps)}
        return stamps, sorted(rank[stamp] for stamp, key in entries if key)

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        wanted = indices.tolist()
        done = 0
        if wanted[-1] >= _WORTH_A_SEEK:
            with contextlib.suppress(av.error.FFmpegError):  # a damaged file may seek wrongly, or not at all
                for frame in self._after_seeks(wanted):
                    pixels = self._upright(frame)
                    done += 1
                    yield pixels
        if done < len(wanted):
            for frame in self._counted(wanted[done:]):
                yield self._upright(frame)

    def _counted(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Decode from the first frame on and count."""
        left = iter(wanted)
        following = next(left)
        for number, frame in enumerate(self._from_the_start()):
            if number == following:
                yield frame
                if (following := next(left, -1)) < 0:
                    return

    def _from_the_start(self) -> Iterator[av.VideoFrame]:
        if self.used:
            self.container.close()
            self.container = open_container(self.path)
        self.used = True
        return self.container.decode(self.container.streams.video[0])

    def _after_seeks(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """The frames up to the first that is not where its time stamp says; seeks where that saves decoding."""
        if self._timeline is None:
            return
        stamps, keys = self._timeline
        rank = {stamp: number for number, stamp in enumerate(stamps)}
        decoded = self._from_the_start()
        first = next(decoded, None)
        if first is None or first.pts is None or rank.get(first.pts) != 0:  # its times are not the container's
            return
        position, decoded = 0, itertools.chain([first], decoded)
        for number in wanted:
            key = max((k for k in keys if k <= number), default=0)
            fresh = key >= position + _WORTH_A_SEEK
            if fresh:
                stream = self.container.streams.video[0]
                self.container.seek(stamps[key], stream=stream)
                decoded = self.container.decode(stream)
            while True:
                frame = next(decoded, None)
                if frame is None or frame.pts not in rank or frame.is_corrupt:
                    return
                at = rank[frame.pts]
                if at > number or (frame.pict_type != PictureType.I if fresh else at != position):
                    return
                position, fresh = at + 1, False
                if at == number:
                    break
            yield frame

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB, turned as the file says, all frames of the size that its header gives."""
        height, width = self.size
        if deep := re.fullmatch(r"(yuvj?4\d\dp)1[0-6](le|be)", frame.format.name):
            # first to 8 bits: FFmpeg's direct way blurs the colours, and is three grey levels off
            frame = frame.reformat(format=deep[1], threads=1)
        pixels = self.convert(frame, width=width, height=height, format="rgb24", threads=1).to_ndarray()
        return np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels


def require_backend(name: str) -> None:
    """Raises UserError when the package of a decoder does not import."""
    package = {"decord": "decord", "torchcodec": "torchcodec.decoders"}.get(name)
    try:
        if package:
            importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        needs = "install it, and an FFmpeg that it finds," if name == "torchcodec" else "install it"
        raise UserError(
            f"data.backend={name}: {name} does not import ({one_line(error)}); {needs} or set data.backend=pyav"
        ) from None


def _misleads(container: av.container.InputContainer) -> str:
    """What about a file makes decoders that trust seeks read other frames; empty: nothing that is known."""
    stream = container.streams.video[0]
    if container.format.name not in _TIMED:
        return f"container {container.format.name}"
    if any(entry.is_discard for entry in stream.index_entries):
        return "trimmed by an edit list"
    return "AVI with B-frames" if container.format.name == "avi" and stream.codec_context.has_b_frames else ""


class Decord:
    """One thread a reader: parallelism comes from the loader's workers."""

    backend = "decord"

    def __init__(self, path: str, frames: int = 0) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        with open_container(path) as container:  # refuses what is no video, at which decord may hang
            declared, codec = declared_frames(container), container.streams.video[0].codec_context
            wrong = _misleads(container) or (codec.name == "hevc" and codec.has_b_frames and "HEVC")
            unsafe = container.format.name == "avi" and codec.name not in ("mpeg4", "mjpeg")
            wrong = wrong or (unsafe and f"{codec.name} in AVI")
        self.path = path
        self.reader = decord.VideoReader(path, num_threads=1)
        if wrong and len(self.reader.get_key_indices()) > 1:
            raise DecodeError(f"{path}: decord reads other frames of such a file ({wrong}); use PyAV")
        self.fps = float(self.reader.get_avg_fps())
        self.num_frames = min(frames, len(self.reader)) if frames else _check_count(path, len(self.reader), declared)

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        import decord

        try:
            return iter(self.reader.get_batch(indices).asnumpy())
        except decord.DECORDError as error:
            if "size must exactly match" not in str(error):
                raise
            # it guesses the number of channels from the padded length of a row (its issue 336)
            raise DecodeError(f"{self.path}: decord cannot read frames so narrow; use PyAV") from None

    def close(self) -> None:
        self.reader.seek(0)  # lets go of the frames it has buffered (its issue 197)
        del self.reader


class TorchCodec:
    """Needs the `torchcodec` of this torch, and an FFmpeg that it finds."""

    backend = "torchcodec"

    def __init__(self, path: str, frames: int = 0) -> None:
        from torchcodec.decoders import VideoDecoder

        with open_container(path) as container:
            declared = declared_frames(container)
            if wrong := _misleads(container):
                raise DecodeError(f"{path}: torchcodec reads other frames of such a file ({wrong}); use PyAV")
        self.decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        self.fps = float(self.decoder.metadata.average_fps or 0)
        self.num_frames = min(frames, len(self.decoder)) if frames else _check_count(path, len(self.decoder), declared)

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        return iter(self.decoder.get_frames_at(indices.tolist()).data.numpy())

    def close(self) -> None:
        del self.decoder

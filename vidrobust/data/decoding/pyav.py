"""Decode video files with PyAV, decord or torchcodec.

A frame number is the rank of a frame in the order in which a player shows frames, from 0. Every
backend gives that frame, upright, or refuses the file. PyAV is the default: it opens and decodes
faster than decord (docs/data.md), and fails where decord hangs (its issues 269, 373). decord is
imported where it is used, after torch: the other order crashes (its issues 293, 324).
"""

import contextlib
import functools
import importlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from vidrobust.utils import versions
from vidrobust.utils.errors import UserError

versions.require()

# A container that declares more frames than it holds by a larger fraction is a truncated file.
# Below that it is bookkeeping: MPEG-4 in AVI counts dropped frames.
TRUNCATED = 0.9
# Frames above 16K x 8K are refused: a damaged header may ask for all of the memory.
MAX_PIXELS = 2**27
# Containers that say when every frame is shown; in others frames are counted from the first.
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_TIMED = {"avi", _MP4, "matroska,webm"}
# Seek when at least so many frames need not be decoded for it; flushing a decoder costs as much.
_WORTH_A_SEEK = 8
# MPEG-4 part 2: where a picture begins, and sizes in bytes. FFmpeg itself takes packets of up to
# 19 bytes for pictures that are not coded; one of up to 7 has no room for a single macroblock.
_PICTURE = re.compile(b"\x00\x00\x01\xb6")
_NOT_CODED, _MAY_BE_EMPTY = 7, 19

_AV = tuple(int(part) for part in av.__version__.split(".")[:2])
# Older versions convert colours in one thread, and have no word for it.
ONE_THREAD: dict[str, Any] = {"threads": 1} if _AV >= (17, 0) else {}


class DecodeError(RuntimeError):
    """A file that cannot be decoded. The message names the file and the reason, in one line."""


class EncodeError(RuntimeError):
    """An encoder that fails while frames are read, which is not the source's fault."""


class Video(Protocol):
    """An open file.

    `num_frames` counts the frames that a player shows, not what the header claims. `fps` is 0 where
    there is none. `resized` counts the frames that had another size than the first one.
    """

    backend: str
    num_frames: int
    fps: float
    resized: int

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of sorted, unique indices (T,) in [0, num_frames), in that order.

        Each is (H, W, 3) uint8 RGB, contiguous, all of one size.
        """

    def close(self) -> None:
        """Close the file."""


def one_line(error: Exception) -> str:
    """Return the text of a native error in one line without source positions."""
    if isinstance(error, av.error.FFmpegError):
        return f"not a video file, or cut short ({error.strerror})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return (
        reason.split("Check failed: ")[-1].split(": ", 1)[-1] if "/workspace/" in reason else reason
    )


def _check_count(path: str, present: int, declared: int) -> int:
    if present == 0:
        raise DecodeError(f"{path}: cut short: no frame is left in it")
    if present < TRUNCATED * declared:
        raise DecodeError(
            f"{path}: cut short: its header declares {declared} frames, {present} are left"
        )
    return present


def _as_file(path: str) -> str:
    """Return a spelling of a path that no decoder takes for a protocol, as `a:b.avi` is."""
    return path if os.path.isabs(path) else os.path.join(os.curdir, path)


def _is_picture(stream: Any) -> bool:
    """Return whether a video stream is an attached picture, such as the cover of an album."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def video_streams(container: Any) -> list[Any]:
    """Return the video streams of an open container without attached pictures."""
    return [stream for stream in container.streams.video if not _is_picture(stream)]


def video_stream(container: Any, path: str = "") -> Any:
    """Return the video stream that a player shows.

    That is FFmpeg's choice: the default one, then the one with the most data. Raises DecodeError
    where there is none, or nothing but attached pictures.
    """
    streams = video_streams(container)
    if not streams:
        pictures = (
            "only an attached picture, which is no video"
            if container.streams.video
            else "no video stream"
        )
        raise DecodeError(f"{path or container.name}: holds {pictures}")
    best = container.streams.best("video")
    return best if any(stream.index == best.index for stream in streams) else streams[0]


def open_container(path: str) -> Any:
    """Open a file whose video is decoded in one thread: the loader's workers are the
    parallelism.
    """
    container = av.open(_as_file(path))
    try:
        stream = video_stream(container, path)
    except DecodeError:
        container.close()
        raise
    stream.thread_type = "NONE"
    if stream.codec_context is not None:
        stream.codec_context.thread_count = 1
    return container


def decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    """Yield the frames of a stream from where its container is.

    A packet of no bytes repeats a frame, and players drop it; PyAV would take it for the end.
    """
    for packet in container.demux(stream):
        if packet.size or packet.dts is None:  # the last one has neither, and empties the decoder
            yield from packet.decode()


Decode = Callable[[Any, Any], Iterator[av.VideoFrame]]


def _index(stream: Any) -> list[Any]:
    """Return the entries of a container's index that are shown; none where PyAV has no access."""
    return [entry for entry in getattr(stream, "index_entries", ()) if not entry.is_discard]


def declared_frames(container: Any, index: list[Any] | None = None) -> int:
    """Return how many frames the header promises to show; 0 where it does not say.

    index: of the container, where it was read already.
    """
    stream = video_stream(container)
    # not in fragments; an edit list may cut some off
    if container.format.name != _MP4 or not stream.frames:
        return stream.frames
    if hasattr(stream, "index_entries"):
        return len(_index(stream) if index is None else index)
    kept = _kept(container)
    return stream.frames if all(kept) else sum(kept)


def _kept(container: Any) -> list[bool]:
    """Return of each frame of an MP4 whether an edit list keeps it; far before the first one none
    is read.
    """
    stream = video_stream(container)
    if hasattr(stream, "index_entries"):
        return [not entry.is_discard for entry in stream.index_entries]
    with av.open(container.name) as again:  # PyAV below 17 has no index
        return [not packet.is_discard for packet in again.demux(video_stream(again)) if packet.size]


class _Packet(NamedTuple):
    """A packet: presentation time, whether it is a key frame, and how many frames it shows.

    shows is None where that cannot be read from its bytes.
    """

    time: int | None
    key: bool
    shows: int | None


def _shows(codec: str, packet: Any) -> int | None:
    """Return how many frames a packet shows, None where its bytes do not decide it."""
    if codec not in ("mpeg4", "vp8", "vp9"):
        return 1
    data = bytes(packet)
    if codec == "mpeg4":  # "not coded" pictures repeat the last one, and players drop them
        starts = [match.start() for match in _PICTURE.finditer(data)]
        ends = [*starts[1:], len(data)]  # one more than starts where there is none
        sizes = [end - start for start, end in zip(starts, ends, strict=False)]
        if not sizes or any(_NOT_CODED < size <= _MAY_BE_EMPTY for size in sizes):
            return None
        return sum(size > _MAY_BE_EMPTY for size in sizes)
    if codec == "vp8":  # RFC 6386, section 9.1: show_frame
        return data[0] >> 4 & 1
    if data[-1] & 0xE0 == 0xC0:  # VP9: a superframe shows one frame
        return 1
    # VP9 bitstream, section 6.2: marker (2 bits), profile (2), for profile 3 a reserved bit, then
    # show_existing_frame, frame_type, show_frame
    after_profile = 5 if data[0] >> 4 & 3 == 3 else 4
    existing = data[0] >> (7 - after_profile) & 1
    shown = data[0] >> (5 - after_profile) & 1
    return int(existing or shown)


class PyAV:
    """Read a video file by PyAV.

    Counting from the first frame is exact for every file. A seek skips frames where the container
    says when each is shown, every packet shows one frame, the first frame has the first time, the
    first one after the seek is intra-coded, and each that follows has the time that its number has;
    otherwise counting begins anew.

    Args:
        path: the file.
        frames: how many frames decode, from a manifest; 0 counts them.
        seekable: what a scan found: whether times say which frame is which. None: not scanned,
            and the packets are looked at.
    """

    backend = "pyav"
    resized = 0

    def __init__(self, path: str, frames: int = 0, seekable: bool | None = None) -> None:
        self.path = path
        self.container = open_container(path)
        self.used = False
        stream = self.stream = video_stream(self.container)
        codec = stream.codec_context
        if codec is None or codec.width < 1 or codec.height < 1:
            raise DecodeError(
                f"{path}: not a video file, or cut short (no frame size in its header)"
            )
        if codec.width * codec.height > MAX_PIXELS:
            raise DecodeError(
                f"{path}: frames of {codec.width} x {codec.height} pixels, and at most "
                f"{MAX_PIXELS} are read; re-encode it smaller"
            )
        self.codec = codec.name
        self.fps = float(stream.average_rate or 0)
        self.in_order = not codec.has_b_frames
        self.may_seek = self._is_plain() if seekable is None else seekable
        self.num_frames = frames or self._count()
        self.size = codec.height, codec.width
        # one for all frames: setting one up costs as much as a frame
        self.convert = VideoReformatter().reformat

    def close(self) -> None:
        self.container.close()

    @functools.cached_property
    def index(self) -> list[Any]:
        """The container's index; an object for each frame, so only where it is needed."""
        return _index(self.stream)

    @functools.cached_property
    def indexed(self) -> bool:
        """Return whether the index is whole, which then costs nothing to count.

        Matroska's has key frames alone, a cut AVI's has what is lost.
        """
        declared = declared_frames(self.container, self.index)
        return len(self.index) == declared > 0 and all(entry.size for entry in self.index)

    @functools.cached_property
    def _packets(self) -> list[_Packet]:
        """The packets that are not discarded, in the file's order."""
        with av.open(_as_file(self.path)) as container:
            packets = container.demux(video_stream(container))
            return [
                _Packet(packet.pts, packet.is_keyframe, _shows(self.codec, packet))
                for packet in packets
                if packet.size and not packet.is_discard
            ]

    def _is_plain(self) -> bool:
        """Return whether each packet shows one frame, in order of their times, from the first on.

        What speaks against it: pictures that are not coded or hidden, and pictures before the first
        key frame, which a decoder cannot show.
        """
        if self.container.format.name not in _TIMED:
            return False
        if self.indexed and not self.index[0].is_keyframe:
            return False
        sizes = [entry.size for entry in self.index] if self.indexed else []
        if self.codec == "mpeg4" and sizes:
            if min(sizes) > _MAY_BE_EMPTY:
                return True
        elif self.in_order and sizes:
            return self.codec not in ("vp8", "vp9") or all(
                packet.shows == 1 for packet in self._packets
            )
        times = [packet.time for packet in self._packets]
        first = times[0] if times else None
        return (
            all(packet.shows == 1 for packet in self._packets)
            and first is not None
            and self._packets[0].key
            and all(time is not None and time >= first for time in times)
        )

    def _count(self) -> int:
        """Return how many frames are shown: by the index, the packets, or by decoding all."""
        if self.indexed and self.may_seek:
            return len(self.index)
        declared = declared_frames(self.container, self.index)
        _check_count(self.path, len(self._packets), declared - self.repeated)
        if self.may_seek:
            return len(self._packets)
        if self.codec == "mpeg4" and (shown := self.shown_packets):
            return shown
        return _check_count(self.path, _decoded_frames(self.path, *_version(self.path)), 0)

    @property
    def repeated(self) -> int:
        """How many frames that the header counts repeat another one, and have no bytes of their
        own.

        An AVI of variable rate, and of screen recorders, has such; its times are frame numbers.
        """
        if self.container.format.name != "avi":
            return sum(not entry.size for entry in self.index)
        declared = declared_frames(self.container, self.index)
        times = [entry.timestamp for entry in self.index if entry.size]
        times = sorted(times or [p.time for p in self._packets if p.time is not None])
        gaps = [after - before for before, after in itertools.pairwise(times)]
        tail = declared - times[-1] if times else declared
        whole = tail <= max(gaps, default=1)  # the last frame may be repeated as others are
        return declared - len(times) if whole else sum(gap - 1 for gap in gaps)

    @property
    def hidden_packets(self) -> int:
        """How many packets show nothing, more than are made up for by packets that show several."""
        shown = self.shown_packets
        return 0 if shown is None else max(len(self._packets) - shown, 0)

    @property
    def shown_packets(self) -> int | None:
        """How many frames the packets show by their own account; None where they do not say.

        Of MPEG-4 a packet may hold two pictures ("packed"). One that holds none follows, and a
        decoder shows a frame per packet at most: what is left at the end of the file is lost.
        """
        shown = [packet.shows for packet in self._packets]
        if None in shown:
            return None
        return min(sum(count or 0 for count in shown), len(shown))

    @functools.cached_property
    def timeline(self) -> tuple[list[int], list[int]] | None:
        """(time of each frame, numbers of key frames), or None where times are no guide.

        AVI has no presentation times: where frames are reordered, what FFmpeg guesses is wrong.
        """
        name, avi = self.container.format.name, self.container.format.name == "avi"
        if name not in _TIMED or (avi and not self.in_order):
            return None
        # an index has decoding times, which are presentation times where nothing is reordered
        if self.in_order and self.indexed:
            entries = [(entry.timestamp, entry.is_keyframe) for entry in self.index]
        else:
            entries = [(packet.time, packet.key) for packet in self._packets]
        stamps = sorted(stamp for stamp, _ in entries if stamp is not None)
        if len(set(stamps)) < len(entries) or (avi and stamps != [stamp for stamp, _ in entries]):
            return None
        rank = {stamp: number for number, stamp in enumerate(stamps)}
        return stamps, sorted(rank[stamp] for stamp, key in entries if key)

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        wanted = indices.tolist()
        done = 0
        if self.may_seek and wanted[-1] >= _WORTH_A_SEEK:
            # a damaged file may seek wrongly, or not at all
            with contextlib.suppress(av.error.FFmpegError):
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

    def _from_the_start(self, decode: Decode = decoded) -> Iterator[av.VideoFrame]:
        if self.used:
            self.container.close()
            self.container = open_container(self.path)
            self.stream = video_stream(self.container)
        self.used = True
        frames = decode(self.container, self.stream)
        first = next(frames, None)
        if first is None:
            return iter(())
        self.size = first.height, first.width  # the header's may be another
        return itertools.chain([first], frames)

    def _after_seeks(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Yield the frames up to the first that is not where its time says; seek where it saves."""
        if self.timeline is None or len(self.timeline[0]) < self.num_frames:
            return
        stamps, keys = self.timeline
        rank = {stamp: number for number, stamp in enumerate(stamps)}
        # PyAV's own loop is faster, where the index says that no packet is empty
        decode: Decode = type(self.container).decode if self.indexed else decoded
        shown = self._from_the_start(decode)
        first = next(shown, None)
        # its times are not the container's
        if first is None or first.pts is None or rank.get(first.pts) != 0:
            return
        position, shown = 0, itertools.chain([first], shown)
        for number in wanted:
            key = max((k for k in keys if k <= number), default=0)
            fresh = key >= position + _WORTH_A_SEEK
            if fresh:
                self.container.seek(stamps[key], stream=self.stream)
                shown = decode(self.container, self.stream)
            while True:
                frame = next(shown, None)
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
        """Return RGB, turned as the file says, all frames of the size of the file's first one."""
        height, width = self.size
        if (frame.height, frame.width) != self.size:
            self.resized += 1
        if deep := re.fullmatch(r"(yuvj?4\d\dp)1[0-6](le|be)", frame.format.name):
            # first to 8 bits: FFmpeg's direct way blurs the colours, and is three grey levels off
            frame = frame.reformat(format=deep[1], **ONE_THREAD)
        pixels = self.convert(
            frame, width=width, height=height, format="rgb24", **ONE_THREAD
        ).to_ndarray()
        return turned(pixels, orientation(frame))


class Orientation(NamedTuple):
    """How stored pixels are shown: transposed, then mirrored left-right, then up-down."""

    transpose: bool = False
    mirror: bool = False
    flip: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether it is no rotation alone."""
        return self.transpose == (self.mirror == self.flip)

    @property
    def degrees(self) -> int:
        """The angle of the rotation, counter-clockwise, -90 to 180; a mirror comes on top."""
        if not self.transpose:
            return 180 if self.flip else 0
        return 90 if self.flip else -90


UPRIGHT = Orientation()
# by FFmpeg's angle, in quarter turns counter-clockwise: it does not say what is mirrored
_QUARTERS = {
    -2: Orientation(False, True, True),
    -1: Orientation(True, True, False),
    1: Orientation(True, False, True),
    2: Orientation(False, True, True),
}


def orientation(frame: Any) -> Orientation:
    """Return how a decoded frame asks to be shown.

    A display matrix maps a stored pixel (x, y) to (a x + c y, b x + d y) on the screen (ISO/IEC
    14496-12, section 6.2.2). The nearest of the eight ways without resampling is taken; a matrix of
    zeros says nothing, and players show such a video as it is stored.
    """
    try:
        # frame.side_data would be kept on the frame, in a cycle: hundreds of frames, 12 MB each at
        # 4K, would wait for a garbage collection
        found = SideDataContainer(frame)  # type: ignore[call-arg]  # its stub has no constructor
    except ValueError:  # PyAV does not know one of its kinds, such as the EXIF of Motion JPEG
        return _QUARTERS.get(round(frame.rotation / 90), UPRIGHT)
    if Type.DISPLAYMATRIX not in found:
        return UPRIGHT
    matrix = found[Type.DISPLAYMATRIX]
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(int).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def turned(pixels: np.ndarray, how: Orientation) -> np.ndarray:
    """Return (H, W, 3) pixels as they are shown, contiguous: views of negative strides break
    torch.
    """
    if how == UPRIGHT:
        return pixels
    if how.transpose:
        pixels = pixels.transpose(1, 0, 2)
    if how.mirror:
        pixels = pixels[:, ::-1]
    if how.flip:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _version(path: str) -> tuple[int, int]:
    """Return what changes when a file does, for caches: its size and the time of its last
    change.
    """
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _decoded_frames(path: str, size: int, changed_ns: int) -> int:
    """Return how many frames decode, by decoding them: exact, and kept as long as the file
    stays.
    """
    count = 0
    with open_container(path) as container, contextlib.suppress(av.error.FFmpegError):
        for _ in decoded(container, video_stream(container)):
            count += 1
    return count


def require_backend(name: str) -> None:
    """Raise UserError when the package of a decoder does not load, before a run begins.

    torchcodec loads FFmpeg's libraries at its first use: without them every video would look bad.
    """
    try:
        if name == "decord":
            importlib.import_module("decord")
        elif name == "torchcodec":
            decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
            try:
                decoder(b"no video")
            except Exception as error:  # of bytes that are none, unless its libraries are missing
                if "libtorchcodec" in str(error):
                    raise
    except (ImportError, OSError, RuntimeError) as error:
        libraries = "libtorchcodec" in str(error)
        reason = (
            "it finds no FFmpeg libraries of a version that it takes"
            if libraries
            else one_line(error)
        )
        needs = ", and an FFmpeg that it finds" if name == "torchcodec" else ""
        remedy = "install an FFmpeg that it finds" if libraries else f"install {name}{needs}"
        raise UserError(
            f"data.backend={name}: {name} does not import ({reason}); {remedy}, or set"
            " data.backend=pyav"
        ) from None


def misleads(container: Any, backend: str) -> str:
    """Return what about a file is known to make a decoder show other frames; "" for nothing.

    Some of these go wrong in one read of a hundred (decord's issue 195), which trying does not
    find.

    Args:
        container: the open file.
        backend: "decord" or "torchcodec".
    """
    stream = video_stream(container)
    codec, name = stream.codec_context, container.format.name
    if name not in _TIMED:
        return f"container {name}"
    if name == _MP4 and not all(_kept(container)):
        return "trimmed by an edit list"
    if name == "avi" and codec.has_b_frames:
        return "AVI with B-frames"
    if backend == "decord" and name == "avi" and codec.name not in ("mpeg4", "mjpeg"):
        return f"{codec.name} in AVI"
    if backend == "decord" and codec.name == "hevc" and codec.has_b_frames:
        return "HEVC"
    return ""


class Decord:
    """Read by decord, in one thread: the loader's workers are the parallelism.

    Args:
        path: the file.
        frames: how many frames decode, from a manifest; 0 counts what PyAV shows.
        seekable: without meaning here; `verified` says which files decord reads right.
    """

    backend = "decord"
    resized = 0

    def __init__(self, path: str, frames: int = 0, seekable: bool | None = None) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        with contextlib.closing(
            PyAV(path, frames, seekable)
        ) as reference:  # refuses what is no video
            self.num_frames = reference.num_frames
        self.path = path
        self.reader = decord.VideoReader(_as_file(path), num_threads=1)
        self.fps = float(self.reader.get_avg_fps())
        if len(self.reader) < self.num_frames:
            raise DecodeError(
                f"{path}: decord finds {len(self.reader)} of {self.num_frames} frames; use PyAV"
            )

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        import decord

        try:
            return iter(self.reader.get_batch(indices).asnumpy())
        except decord.DECORDError as error:
            if "size must exactly match" not in str(error):
                raise
            # it guesses the number of channels from the padded length of a row (its issue 336)
            raise DecodeError(
                f"{self.path}: decord cannot read frames so narrow; use PyAV"
            ) from None

    def close(self) -> None:
        self.reader.seek(0)  # lets go of the frames it has buffered (its issue 197)
        del self.reader


class TorchCodec:
    """Read by torchcodec, which needs the version for this torch and an FFmpeg that it finds.

    Args: as `Decord`.
    """

    backend = "torchcodec"
    resized = 0

    def __init__(self, path: str, frames: int = 0, seekable: bool | None = None) -> None:
        from torchcodec.decoders import VideoDecoder

        with contextlib.closing(PyAV(path, frames, seekable)) as reference:
            self.num_frames = reference.num_frames
        self.decoder = VideoDecoder(_as_file(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        self.fps = float(self.decoder.metadata.average_fps or 0)
        if len(self.decoder) < self.num_frames:
            raise DecodeError(
                f"{path}: torchcodec finds {len(self.decoder)} of {self.num_frames} frames; use"
                " PyAV"
            )

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        return iter(self.decoder.get_frames_at(indices.tolist()).data.numpy())

    def close(self) -> None:
        del self.decoder

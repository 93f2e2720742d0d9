"""Decode video files with PyAV, decord or torchcodec.

A frame number is the rank of a frame in the order in which a player shows frames, counted from 0.
Every backend returns that frame, upright, or refuses the file.

PyAV is the default. It opens and decodes faster than decord (docs/benchmarks_loading.md), and it
raises an error where decord hangs (decord issues 269 and 373). decord is imported where it is used,
after torch: the other order crashes (decord issues 293 and 324).
"""

import contextlib
import functools
import importlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from vidrobust.data.places import ffmpeg_url, stamp
from vidrobust.utils import versions
from vidrobust.utils.errors import UserError

versions.require()

# A file that holds less than this fraction of the frames that its header declares is truncated.
# Smaller differences are normal: MPEG-4 in AVI counts dropped frames, for example.
TRUNCATED = 0.9
# Larger frames than 16K x 8K are refused: a damaged header may ask for all of the memory.
MAX_PIXELS = 2**27
# Containers that store the time of every frame. In other containers, frames are found by counting
# from the first one.
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_TIMED = {"avi", _MP4, "matroska,webm"}
# Seek only when it saves decoding at least this many frames: flushing a decoder costs as much.
_WORTH_A_SEEK = 8
# MPEG-4 part 2: the start code of a picture, and picture sizes in bytes. FFmpeg treats packets of
# up to 19 bytes as "not coded" pictures. A picture of up to 7 bytes cannot hold one macroblock, so
# it is certainly not coded; between the two limits the size does not decide it.
_PICTURE = re.compile(b"\x00\x00\x01\xb6")
_NOT_CODED, _MAY_BE_EMPTY = 7, 19

_AV = tuple(int(part) for part in av.__version__.split(".")[:2])
# Older versions always convert colours in one thread, and have no option for it.
ONE_THREAD: dict[str, Any] = {"threads": 1} if _AV >= (17, 0) else {}


class DecodeError(RuntimeError):
    """Report a file that cannot be decoded.

    The message names the file and the reason, in one line.
    """


class EncodeError(RuntimeError):
    """Report an encoder that fails while frames are read, which is not the source file's fault."""


class Video(Protocol):
    """An open video file.

    Attributes:
        backend: name of the decoder.
        num_frames: number of frames that a player shows, which may differ from what the header
            claims.
        fps: frames per second; 0 where the file does not say.
        resized: number of frames read so far whose size differed from the first frame's.
    """

    backend: str
    num_frames: int
    fps: float
    resized: int

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of some indices, in the order of the indices.

        Args:
            indices: (T,) int, sorted and unique, each in [0, num_frames).

        Yields:
            Contiguous arrays (H, W, 3) uint8 RGB, all of one size.
        """

    def close(self) -> None:
        """Close the file."""


def one_line(error: Exception) -> str:
    """Return the text of an error of a native library in one line, without source positions."""
    if isinstance(error, av.error.FFmpegError):
        return f"not a video file, or cut short ({error.strerror})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    # decord prefixes its errors with "[time] /workspace/...: Check failed: "
    if "/workspace/" in reason:
        return reason.split("Check failed: ")[-1].split(": ", 1)[-1]
    return reason


def _check_count(path: str, present: int, declared: int) -> int:
    """Return the number of frames present; raise DecodeError if the file is cut short."""
    if present == 0:
        raise DecodeError(f"{path}: cut short: it holds no frame")
    if present < TRUNCATED * declared:
        raise DecodeError(
            f"{path}: cut short: its header declares {declared} frames, the file holds {present}"
        )
    return present


def _is_picture(stream: Any) -> bool:
    """Return whether a video stream is an attached picture, such as an album cover."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def video_streams(container: Any) -> list[Any]:
    """Return the video streams of an open container without attached pictures."""
    return [stream for stream in container.streams.video if not _is_picture(stream)]


def video_stream(container: Any, path: str = "") -> Any:
    """Return the video stream that a player shows.

    FFmpeg chooses it: the default stream if one is marked, otherwise the one with the most data.

    Args:
        container: an open container.
        path: its path, for the message; empty: the container's own name.

    Raises:
        DecodeError: there is no video stream, or nothing but attached pictures.
    """
    streams = video_streams(container)
    if not streams:
        contents = (
            "only an attached picture, which is no video"
            if container.streams.video
            else "no video stream"
        )
        raise DecodeError(f"{path or container.name}: holds {contents}")
    best = container.streams.best("video")
    return best if any(stream.index == best.index for stream in streams) else streams[0]


def open_container(path: str) -> Any:
    """Open a file whose video is decoded in one thread.

    The loader's worker processes already provide the parallelism.
    """
    container = av.open(ffmpeg_url(path))
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
    """Yield the frames of a stream from the container's current position.

    A packet of zero bytes repeats the previous frame, and players drop it. PyAV would treat it as
    the end of the stream, so it is skipped here.
    """
    for packet in container.demux(stream):
        # The last packet has neither size nor time; it makes the decoder return its last frames.
        if packet.size or packet.dts is None:
            yield from packet.decode()


Decode = Callable[[Any, Any], Iterator[av.VideoFrame]]


def _index(stream: Any) -> list[Any]:
    """Return the entries of a container's index whose frames are shown.

    The list is empty where this version of PyAV gives no access to the index.
    """
    return [entry for entry in getattr(stream, "index_entries", ()) if not entry.is_discard]


def declared_frames(container: Any, index: list[Any] | None = None) -> int:
    """Return how many frames the header promises to show; 0 where it does not say.

    Args:
        container: an open container.
        index: the entries of its index, if they were read already.
    """
    stream = video_stream(container)
    # A fragmented MP4 declares no count; an edit list may hide some of the declared frames.
    if container.format.name != _MP4 or not stream.frames:
        return stream.frames
    if hasattr(stream, "index_entries"):
        return len(_index(stream) if index is None else index)
    kept = _kept(container)
    return stream.frames if all(kept) else sum(kept)


def _kept(container: Any) -> list[bool]:
    """Return for each frame of an MP4 file whether its edit list keeps it.

    FFmpeg does not list frames far before the first kept one.
    """
    stream = video_stream(container)
    if hasattr(stream, "index_entries"):
        return [not entry.is_discard for entry in stream.index_entries]
    with av.open(container.name) as again:  # PyAV below 17 has no index
        return [not packet.is_discard for packet in again.demux(video_stream(again)) if packet.size]


class _Packet(NamedTuple):
    """A packet of a stream.

    Attributes:
        time: presentation time in units of the stream's time base, or None.
        key: whether it is a key frame.
        shows: how many frames it shows; None where its bytes do not decide it.
    """

    time: int | None
    key: bool
    shows: int | None


def _shows(codec: str, packet: Any) -> int | None:
    """Return how many frames a packet shows; None where its bytes do not decide it."""
    if codec not in ("mpeg4", "vp8", "vp9"):
        return 1
    data = bytes(packet)
    # MPEG-4: "not coded" pictures repeat the previous one, and players drop them.
    if codec == "mpeg4":
        starts = [match.start() for match in _PICTURE.finditer(data)]
        # Without a start code there is one end too many, hence strict=False below.
        ends = [*starts[1:], len(data)]
        sizes = [end - start for start, end in zip(starts, ends, strict=False)]
        if not sizes or any(_NOT_CODED < size <= _MAY_BE_EMPTY for size in sizes):
            return None
        return sum(size > _MAY_BE_EMPTY for size in sizes)
    # VP8: the flag show_frame (RFC 6386, section 9.1).
    if codec == "vp8":
        return data[0] >> 4 & 1
    # VP9: a superframe, marked by its last byte, shows one frame.
    if data[-1] & 0xE0 == 0xC0:
        return 1
    # VP9 bitstream, section 6.2: marker (2 bits), profile (2 bits), one reserved bit for profile 3,
    # then show_existing_frame, frame_type and show_frame (1 bit each).
    after_profile = 5 if data[0] >> 4 & 3 == 3 else 4
    show_existing = data[0] >> (7 - after_profile) & 1
    show_frame = data[0] >> (5 - after_profile) & 1
    return int(show_existing or show_frame)


class PyAV:
    """Read a video file with PyAV.

    Counting from the first frame is exact for every file. A seek saves decoding, and is trusted if
    all of the following hold. Otherwise frames are counted from the first one.

    - The container stores the time of every frame, and every packet shows one frame.
    - The first decoded frame has the first time.
    - The first frame after a seek is intra-coded.
    - Every frame that follows has the time that belongs to its number.

    Args:
        path: the file.
        frames: number of frames that decode, from a manifest; 0 counts them.
        seekable: whether times identify frames, according to a scan; None: not scanned, and the
            packets are inspected.

    Raises:
        DecodeError: the file is not a video, or its frames are too large.
    """

    backend = "pyav"
    resized = 0

    def __init__(self, path: str, frames: int = 0, seekable: bool | None = None) -> None:
        self.path = path
        self.container = open_container(path)
        self.used = False  # whether frames have been read from it
        stream = video_stream(self.container)
        self.stream = stream
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
        # One converter for all frames: creating one costs as much as converting a frame.
        self.convert = VideoReformatter().reformat

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    @functools.cached_property
    def index(self) -> list[Any]:
        """Return the entries of the container's index.

        It is built only on demand, because it holds one object per frame.
        """
        return _index(self.stream)

    @functools.cached_property
    def indexed(self) -> bool:
        """Return whether the index lists every frame of the file, and no other.

        Matroska's index lists key frames only. The index of a truncated AVI also lists frames that
        are lost.
        """
        declared = declared_frames(self.container, self.index)
        return len(self.index) == declared > 0 and all(entry.size for entry in self.index)

    @functools.cached_property
    def _packets(self) -> list[_Packet]:
        """Return the packets that are not discarded, in the order of the file."""
        with av.open(ffmpeg_url(self.path)) as container:
            packets = container.demux(video_stream(container))
            return [
                _Packet(packet.pts, packet.is_keyframe, _shows(self.codec, packet))
                for packet in packets
                if packet.size and not packet.is_discard
            ]

    def _is_plain(self) -> bool:
        """Return whether every packet shows one frame and times say which frame is which.

        This is false for pictures that are hidden or not coded. It is also false for files that
        begin with pictures before the first key frame, which a decoder cannot show.
        """
        if self.container.format.name not in _TIMED:
            return False
        if self.indexed and not self.index[0].is_keyframe:
            return False
        # The index alone decides it for most files. Otherwise all packets are read.
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
        """Return how many frames are shown: from the index, the packets, or by decoding all."""
        # From the cheapest to the most expensive way.
        if self.indexed and self.may_seek:
            return len(self.index)
        declared = declared_frames(self.container, self.index)
        _check_count(self.path, len(self._packets), declared - self.repeated)
        if self.may_seek:
            return len(self._packets)
        if self.codec == "mpeg4" and self.shown_packets:
            return self.shown_packets
        return _check_count(self.path, _decoded_frames(self.path, *stamp(self.path)), 0)

    @property
    def repeated(self) -> int:
        """Return how many of the declared frames only repeat another frame.

        Such frames have no bytes of their own. AVI files of variable rate and of screen recorders
        have them. In AVI, times are frame numbers, so that gaps between times reveal them.
        """
        if self.container.format.name != "avi":
            return sum(not entry.size for entry in self.index)
        declared = declared_frames(self.container, self.index)
        times = [entry.timestamp for entry in self.index if entry.size]
        times = sorted(times or [p.time for p in self._packets if p.time is not None])
        gaps = [after - before for before, after in itertools.pairwise(times)]
        tail = declared - times[-1] if times else declared
        # The last frame may be repeated as often as others are; a longer tail was cut off.
        is_whole = tail <= max(gaps, default=1)
        return declared - len(times) if is_whole else sum(gap - 1 for gap in gaps)

    @property
    def hidden_packets(self) -> int:
        """Return how many more packets there are than frames that they show; at least 0."""
        shown = self.shown_packets
        return 0 if shown is None else max(len(self._packets) - shown, 0)

    @property
    def shown_packets(self) -> int | None:
        """Return how many frames the packets show; None where their bytes do not say.

        A packet of MPEG-4 may hold two pictures ("packed"), and is followed by one that holds none.
        A decoder shows at most one frame per packet. Pictures that remain at the end of the file
        are lost.
        """
        counts = [packet.shows for packet in self._packets]
        if None in counts:
            return None
        return min(sum(count or 0 for count in counts), len(counts))

    @functools.cached_property
    def timeline(self) -> tuple[list[int], list[int]] | None:
        """Return (time of each frame, numbers of the key frames); None if times are unreliable.

        AVI stores no presentation times. Where its frames are reordered, FFmpeg's guess is wrong.
        """
        name = self.container.format.name
        is_avi = name == "avi"
        if name not in _TIMED or (is_avi and not self.in_order):
            return None
        # An index holds decoding times, which equal presentation times if nothing is reordered.
        if self.in_order and self.indexed:
            entries = [(entry.timestamp, entry.is_keyframe) for entry in self.index]
        else:
            entries = [(packet.time, packet.key) for packet in self._packets]
        stamps = sorted(stamp for stamp, _ in entries if stamp is not None)
        # Missing or repeated times, or times out of order in AVI, do not identify frames.
        if len(set(stamps)) < len(entries):
            return None
        if is_avi and stamps != [stamp for stamp, _ in entries]:
            return None
        rank = {stamp: number for number, stamp in enumerate(stamps)}
        return stamps, sorted(rank[stamp] for stamp, key in entries if key)

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of some indices; see `Video.frames`.

        Frames are read with seeks as long as their times are right; the rest are found by counting.
        """
        numbers = indices.tolist()
        num_yielded = 0
        if self.may_seek and numbers[-1] >= _WORTH_A_SEEK:
            # In a damaged file a seek may fail, or find the wrong place.
            with contextlib.suppress(av.error.FFmpegError):
                for frame in self._after_seeks(numbers):
                    pixels = self._upright(frame)
                    num_yielded += 1
                    yield pixels
        if num_yielded < len(numbers):
            for frame in self._counted(numbers[num_yielded:]):
                yield self._upright(frame)

    def _counted(self, numbers: list[int]) -> Iterator[av.VideoFrame]:
        """Yield frames by decoding from the first frame on and counting."""
        remaining = iter(numbers)
        next_number = next(remaining)
        for number, frame in enumerate(self._from_the_start()):
            if number == next_number:
                yield frame
                if (next_number := next(remaining, -1)) < 0:
                    return

    def _from_the_start(self, decode: Decode = decoded) -> Iterator[av.VideoFrame]:
        """Yield all frames from the first one on; the file is opened anew if it was read before.

        Args:
            decode: (container, stream) -> frames from the current position.
        """
        if self.used:
            self.container.close()
            self.container = open_container(self.path)
            self.stream = video_stream(self.container)
        self.used = True
        frames = decode(self.container, self.stream)
        first = next(frames, None)
        if first is None:
            return iter(())
        # The size in the header may be wrong.
        self.size = first.height, first.width
        return itertools.chain([first], frames)

    def _after_seeks(self, numbers: list[int]) -> Iterator[av.VideoFrame]:
        """Yield frames, seeking where that saves decoding, until a frame has an unexpected time.

        The caller finds the remaining frames by counting.

        Args:
            numbers: frame numbers, sorted and unique.
        """
        if self.timeline is None or len(self.timeline[0]) < self.num_frames:
            return
        stamps, keys = self.timeline
        rank = {stamp: number for number, stamp in enumerate(stamps)}
        # PyAV's own loop is faster. It is safe where the index says that no packet is empty.
        decode: Decode = type(self.container).decode if self.indexed else decoded
        frames = self._from_the_start(decode)
        first = next(frames, None)
        # The decoder's times must be the container's: the first frame has the first time.
        if first is None or first.pts is None or rank.get(first.pts) != 0:
            return
        frames = itertools.chain([first], frames)
        position = 0  # number of the frame that comes next without a seek
        for number in numbers:
            # Seek to the last key frame up to the frame, if that skips enough frames.
            key = max((k for k in keys if k <= number), default=0)
            after_seek = key >= position + _WORTH_A_SEEK
            if after_seek:
                self.container.seek(stamps[key], stream=self.stream)
                frames = decode(self.container, self.stream)
            # Decode up to the frame, and check that every frame on the way is where it should be.
            while True:
                frame = next(frames, None)
                if frame is None or frame.pts not in rank or frame.is_corrupt:
                    return
                current = rank[frame.pts]
                if current > number:
                    return
                # After a seek any intra-coded frame may come first; otherwise the next frame comes.
                if after_seek and frame.pict_type != PictureType.I:
                    return
                if not after_seek and current != position:
                    return
                position = current + 1
                after_seek = False
                if current == number:
                    break
            yield frame

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as (H, W, 3) uint8 RGB, turned as the file says.

        All frames get the size of the first frame of the file.
        """
        height, width = self.size
        if (frame.height, frame.width) != self.size:
            self.resized += 1
        if deep := re.fullmatch(r"(yuvj?4\d\dp)1[0-6](le|be)", frame.format.name):
            # Convert to 8 bits first: FFmpeg's direct conversion blurs the colours, and is off by
            # three grey levels.
            frame = frame.reformat(format=deep[1], **ONE_THREAD)
        pixels = self.convert(
            frame, width=width, height=height, format="rgb24", **ONE_THREAD
        ).to_ndarray()
        return turned(pixels, orientation(frame))


class Orientation(NamedTuple):
    """The way to show stored pixels: transpose, then mirror left-right, then flip up-down.

    Attributes:
        transpose: whether rows and columns are swapped.
        mirror: whether left and right are swapped, after the transposition.
        flip: whether top and bottom are swapped, after the transposition.
    """

    transpose: bool = False
    mirror: bool = False
    flip: bool = False

    @property
    def mirrored(self) -> bool:
        """Return whether the orientation is more than a rotation."""
        return self.transpose == (self.mirror == self.flip)

    @property
    def degrees(self) -> int:
        """Return the angle of the rotation in degrees, counter-clockwise: -90, 0, 90 or 180.

        A mirrored orientation has the mirroring in addition.
        """
        # A transposition followed by a flip is a quarter turn counter-clockwise.
        if not self.transpose:
            return 180 if self.flip else 0
        return 90 if self.flip else -90


UPRIGHT = Orientation()
# Orientations by FFmpeg's angle, in quarter turns counter-clockwise. The angle does not say whether
# the picture is mirrored.
_QUARTERS = {
    -2: Orientation(False, True, True),
    -1: Orientation(True, True, False),
    1: Orientation(True, False, True),
    2: Orientation(False, True, True),
}


def orientation(frame: Any) -> Orientation:
    """Return how a decoded frame asks to be shown.

    A display matrix maps a stored pixel (x, y) to (a x + c y, b x + d y) on the screen (ISO/IEC
    14496-12, section 6.2.2). The nearest of the eight orientations that need no resampling is
    taken. A matrix of zeros has no meaning, and players show such a video as it is stored.
    """
    try:
        # frame.side_data would be kept on the frame, in a reference cycle. Hundreds of frames, of
        # 12 MB each at 4K, would then wait for a garbage collection.
        # The stub of the class declares no constructor.
        side_data = SideDataContainer(frame)  # type: ignore[call-arg]
    except ValueError:  # a kind of side data unknown to PyAV, such as the EXIF of Motion JPEG
        return _QUARTERS.get(round(frame.rotation / 90), UPRIGHT)
    if Type.DISPLAYMATRIX not in side_data:
        return UPRIGHT
    matrix = side_data[Type.DISPLAYMATRIX]
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(int).tolist()
    # Mostly diagonal: x stays x. Otherwise x and y are swapped.
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def turned(pixels: np.ndarray, how: Orientation) -> np.ndarray:
    """Return pixels as they are shown.

    The result is contiguous, because views with negative strides break torch.

    Args:
        pixels: (H, W, 3) stored pixels.
        how: the orientation to apply.
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


@functools.lru_cache(maxsize=4096)
def _decoded_frames(path: str, size: int, changed_ns: int) -> int:
    """Return how many frames decode, by decoding all of them.

    The count is exact, and cached as long as the file does not change.
    """
    count = 0
    with open_container(path) as container, contextlib.suppress(av.error.FFmpegError):
        for _ in decoded(container, video_stream(container)):
            count += 1
    return count


def require_backend(name: str) -> None:
    """Raise UserError if a decoder's package does not load, before a run begins.

    torchcodec loads FFmpeg's libraries at its first use. Without this check, missing libraries
    would make every video look bad.
    """
    try:
        if name == "decord":
            importlib.import_module("decord")
        elif name == "torchcodec":
            decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
            try:
                decoder(b"no video")
            except Exception as error:
                # These bytes are no video, so an error is expected; missing libraries are not.
                if "libtorchcodec" in str(error):
                    raise
    except (ImportError, OSError, RuntimeError) as error:
        libraries_missing = "libtorchcodec" in str(error)
        reason = (
            "it finds no FFmpeg libraries of a supported version"
            if libraries_missing
            else one_line(error)
        )
        needs = ", and an FFmpeg that it finds" if name == "torchcodec" else ""
        remedy = (
            "install an FFmpeg that it finds" if libraries_missing else f"install {name}{needs}"
        )
        raise UserError(
            f"data.backend={name}: {name} does not import ({reason}); {remedy}, or set"
            " data.backend=pyav"
        ) from None


def misleads(container: Any, backend: str) -> str:
    """Return the feature of a file that is known to make a decoder show wrong frames; "" for none.

    Some of these features cause one wrong read in a hundred (decord issue 195), so that trying a
    few reads does not detect them.

    Args:
        container: the open file.
        backend: "decord" or "torchcodec".
    """
    stream = video_stream(container)
    codec = stream.codec_context
    name = container.format.name
    if name not in _TIMED:
        return f"container {name}"
    if name == _MP4 and not all(_kept(container)):
        return "trimmed by an edit list"
    # AVI stores no presentation times, and FFmpeg guesses those of reordered frames wrongly.
    if name == "avi" and codec.has_b_frames:
        return "AVI with B-frames"
    if backend == "decord" and name == "avi" and codec.name not in ("mpeg4", "mjpeg"):
        return f"{codec.name} in AVI"
    if backend == "decord" and codec.name == "hevc" and codec.has_b_frames:
        return "HEVC"
    return ""


class Decord:
    """Read a video file with decord, in one thread.

    The loader's worker processes already provide the parallelism.

    Args:
        path: the file.
        frames: number of frames that decode, from a manifest; 0 counts the frames that PyAV shows.
        seekable: passed to PyAV. A record's `verified` says which files decord reads correctly.
    """

    backend = "decord"
    resized = 0

    def __init__(self, path: str, frames: int = 0, seekable: bool | None = None) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        # PyAV counts the frames, and refuses files that are not videos.
        with contextlib.closing(PyAV(path, frames, seekable)) as reference:
            self.num_frames = reference.num_frames
        self.path = path
        self.reader = decord.VideoReader(ffmpeg_url(path), num_threads=1)
        self.fps = float(self.reader.get_avg_fps())
        if len(self.reader) < self.num_frames:
            raise DecodeError(
                f"{path}: decord finds {len(self.reader)} of {self.num_frames} frames; use PyAV"
            )

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of some indices; see `Video.frames`."""
        import decord

        try:
            return iter(self.reader.get_batch(indices).asnumpy())
        except decord.DECORDError as error:
            if "size must exactly match" not in str(error):
                raise
            # decord infers the number of channels from the padded length of a row (issue 336).
            raise DecodeError(
                f"{self.path}: decord cannot read frames so narrow; use PyAV"
            ) from None

    def close(self) -> None:
        """Close the file."""
        # A seek frees the buffered frames, which decord would otherwise leak (issue 197).
        self.reader.seek(0)
        del self.reader


class TorchCodec:
    """Read a video file with torchcodec.

    It needs the version that fits the installed torch, and an FFmpeg that it can find.

    Args:
        path: the file.
        frames: number of frames that decode, from a manifest; 0 counts the frames that PyAV shows.
        seekable: passed to PyAV.
    """

    backend = "torchcodec"
    resized = 0

    def __init__(self, path: str, frames: int = 0, seekable: bool | None = None) -> None:
        from torchcodec.decoders import VideoDecoder

        with contextlib.closing(PyAV(path, frames, seekable)) as reference:
            self.num_frames = reference.num_frames
        self.decoder = VideoDecoder(ffmpeg_url(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        self.fps = float(self.decoder.metadata.average_fps or 0)
        if len(self.decoder) < self.num_frames:
            raise DecodeError(
                f"{path}: torchcodec finds {len(self.decoder)} of {self.num_frames} frames; use"
                " PyAV"
            )

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of some indices; see `Video.frames`."""
        return iter(self.decoder.get_frames_at(indices.tolist()).data.numpy())

    def close(self) -> None:
        """Close the file."""
        del self.decoder

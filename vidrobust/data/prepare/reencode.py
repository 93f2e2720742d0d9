"""Re-encode a data set so that clips decode fast, or write it corrupted or as textures."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from vidrobust.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vidrobust.data.decoding.images import IMAGE_SUFFIXES, TORCHVISION, frame_files
from vidrobust.data.decoding.pyav import ONE_THREAD, DecodeError, EncodeError, one_line
from vidrobust.data.decoding.read_frames import open_video
from vidrobust.data.isolation import ChildDied, in_children
from vidrobust.data.places import stamp
from vidrobust.data.prepare.provenance import MARK, claim
from vidrobust.data.prepare.texture_twins import KINDS, texture_frames
from vidrobust.data.records import Record, files_below
from vidrobust.data.scan import probe
from vidrobust.utils.errors import UserError

log = logging.getLogger("vidrobust")
CODECS = ("mpeg4", "libx264", "mjpeg")


@dataclass(frozen=True)
class Encoding:
    """The options with which copies of files are made.

    Raises UserError for a value out of range.

    Attributes:
        short_side: pixels of the shorter side, never enlarged; of a texture, its side.
        gop: frames from one key frame to the next.
        codec: a name of CODECS.
        quality: quantiser of mpeg4 and mjpeg (1 best, 31 worst), or CRF of libx264 (0 best, 51
            worst).
        corruption: a name of CORRUPTIONS, applied to each video as a whole; empty: none. Its random
            parameters depend on `seed` and the name of the file.
        severity: severity of the corruption, 1 to 5; 0 without one.
        seed: seed of corruptions and textures.
        texture: a kind of `texture_frames`; empty: none.
        patch_px: side in pixels of the patches from which a texture is made.
    """

    short_side: int = 128
    gop: int = 8
    codec: str = "mpeg4"
    quality: int = 3
    corruption: str = ""
    severity: int = 0
    seed: int = 0
    texture: str = ""
    patch_px: int = 96

    def __post_init__(self) -> None:
        best, worst = (0, 51) if self.codec == "libx264" else (1, 31)
        for name, low, high in (
            ("short_side", 9 if self.texture else 8, 4096),
            ("gop", 1, 10_000),
            ("quality", best, worst),
            ("patch_px", 9, 4096),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                # options of datasets/prepare.py
                option = "--patch" if name == "patch_px" else f"--{name.replace('_', '-')}"
                condition = f" with {self.codec}" if name == "quality" else ""
                raise UserError(f"{option} {value}: must be from {low} to {high}{condition}")
        if self.codec not in CODECS:
            raise UserError(f"codec={self.codec}: must be one of {', '.join(CODECS)}")
        if self.corruption and (
            self.corruption not in CORRUPTIONS or self.severity not in SEVERITIES
        ):
            raise UserError(
                f"corruption={self.corruption} at severity {self.severity}: must be a name of"
                " docs/corruptions.md, at severity 1 to 5"
            )
        if self.texture not in ("", *KINDS):
            raise UserError(f"texture={self.texture}: must be one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        """Return, as JSON, the options that all calls that fill one folder must share."""
        fields = asdict(self)
        # Options without effect are left out, so that they may differ.
        unused = [] if self.corruption else ["corruption", "severity"]
        unused += [] if self.texture else ["texture", "patch_px"]
        unused += [] if self.corruption or self.texture else ["seed"]
        return json.dumps({name: value for name, value in fields.items() if name not in unused})

    def change(self, frames: np.ndarray, name: str, fps: float = 25.0) -> np.ndarray:
        """Return the frames of a video under the corruption; there must be one.

        Args:
            frames: (T, H, W, 3) uint8, the whole video.
            name: name of the file, which the random parameters depend on.
            fps: frames per second of the video.
        """
        return corrupt(frames, self.corruption, self.severity, self._rng(name), fps)

    def texture_of(
        self, frames: Iterator[np.ndarray], count: int, name: str
    ) -> Iterator[np.ndarray]:
        """Yield the texture of a file; there must be a kind of texture.

        Args:
            frames: the `count` frames of the file, (H, W, 3) uint8 each.
            count: number of frames.
            name: name of the file, which the random parameters depend on.
        """
        return texture_frames(
            frames,
            count,
            self._rng(name),
            kind=self.texture,
            patch_px=self.patch_px,
            size=self.short_side,
        )

    def _rng(self, name: str) -> np.random.Generator:
        """Return the generator of a file; it does not depend on the order of the files."""
        words = (zlib.crc32(part.encode()) for part in (name, self.corruption or self.texture))
        return np.random.default_rng([self.seed, *words, self.severity])


def reencode(
    records: list[Record],
    root: Path,
    output: Path,
    encoding: Encoding,
    *,
    workers: int = 2,
    timeout_s: float = 600,
) -> list[tuple[str, str]]:
    """Write a small copy of every record's file under `output`, with the same relative path.

    Lists are copied. A result is decoded before it counts: it must have as many frames as the
    source decodes. Copies that exist and are not older than their source are not made again, so
    that an interrupted call can be continued. The source is only read.

    If a copy cannot be made, an empty file takes its place, so that the lists still fit: what is
    bad in the source is bad in the result.

    Args:
        records: the videos and images.
        root: root of the data set.
        output: root of the copies.
        encoding: how copies are made.
        workers: number of files encoded at a time.
        timeout_s: seconds that a file may take.

    Returns:
        (path, reason) of each file that could not be copied.

    Raises:
        UserError: nothing is written. Either a file cannot have the same relative path (absolute
            paths in a list, files outside `root`), or `output` holds copies of other files, or
            another process is writing to it.
    """
    root = Path(os.path.abspath(root))
    output = Path(os.path.abspath(output))
    places = _places(records, root, output)
    # Options that copies in one folder must share: the encoding, and the series of images read.
    series_names = sorted({record.series for record in records if record.series})
    options = json.loads(str(encoding)) | ({"series": series_names} if series_names else {})
    with claim(output, options, {places[record.path]: record.path for record in records}):
        _copy_lists(root, output)
        series = {record.path: (record.series, record.frames) for record in records}
        jobs = [
            (path, str(output / place), encoding, place, *series[path])
            for path, place in places.items()
            if _is_due(path, output / place)
        ]
        return _encode_all(jobs, encoding, workers, timeout_s)


def _places(records: list[Record], root: Path, output: Path) -> dict[str, str]:
    """Return the relative path of each record's file, by its path; raise UserError if it has none.

    Args:
        records: the videos and images.
        root: root of the data set.
        output: root of the copies; neither folder may contain the other.
    """
    real = root.resolve()
    target = output.resolve()
    if real == target or real in target.parents or target in real.parents:
        raise UserError(f"--output {output}: it and {root} lie in each other; write somewhere else")
    places = {
        record.path: os.path.relpath(os.path.abspath(record.path), root) for record in records
    }
    for record in records:
        if record.path.startswith(TORCHVISION):
            raise UserError(
                "torchvision's data sets are arrays in memory: there is nothing to re-encode"
            )
        if os.path.isabs(record.uid) or places[record.path].startswith(".."):
            raise UserError(
                f"{record.uid}: a copy cannot have this name; list files relative to {root}, and"
                " inside it"
            )
    return places


# files of this package that describe the source itself: a copy has its own, or needs none
_NOT_LISTS = (MARK, "motionshapes.json")


def _copy_lists(root: Path, output: Path) -> None:
    """Copy the lists of a data set, but not those that a scan has written."""
    for file in files_below(root):
        is_list = file.suffix.lower() in (".txt", ".csv", ".json")
        if is_list and not file.name.endswith(".bad.txt") and file.name not in _NOT_LISTS:
            place = output / file.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


# (source, target, encoding, name of the file, and for a folder of images its series and how many
# images a list promises)
Job = tuple[str, str, Encoding, str, str, int]


def _encode_all(
    jobs: list[Job], encoding: Encoding, workers: int, timeout_s: float
) -> list[tuple[str, str]]:
    """Make copies in child processes; return (path, reason) of each that could not be made.

    Args:
        jobs: the copies to make.
        encoding: how copies are made.
        workers: number of child processes.
        timeout_s: seconds that a copy may take.
    """
    failed = []
    tqdm.monitor_interval = 0  # tqdm must start no thread, because children are forked
    title = "texture" if encoding.texture else encoding.corruption or "re-encode"
    interval_s = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=len(jobs), desc=title, unit="file", mininterval=interval_s) as bar:
        for (path, target, *_), answer in in_children(_encode, jobs, workers, timeout_s):
            bar.update()
            done, reason = (False, str(answer)) if isinstance(answer, ChildDied) else answer
            if not done:
                failed.append((path, reason))
                _stand_in(path, Path(target))
            elif reason:
                log.warning(f"used as far as it decodes: {path}: {reason}")
    return failed


def _is_due(source: str, target: Path) -> bool:
    """Return whether a copy is missing, empty (it failed before), or older than its source."""
    size, made_ns = stamp(str(target))
    return size < 1 or made_ns < stamp(source)[1]


def _encode(job: Job) -> tuple[bool, str]:
    """Write one copy under a temporary name, verify it, and rename it; runs in a child process.

    Args:
        job: see `Job`.

    Returns:
        (whether the copy exists, what is wrong with the source or why there is no copy).
    """
    source, target, encoding, name, series, count = job
    reason = ""
    partial = _partial(Path(target))
    try:
        _remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        # A folder of frames, an image, or a video, which is decoded again to verify it.
        if Path(source).is_dir():
            _shrink_folder(frame_files(Path(source), series, count), partial, encoding, name)
        elif Path(source).suffix.lower() in IMAGE_SUFFIXES:
            _shrink_images([Path(source)], [partial], encoding, name)
        else:
            written, reason = _encode_video(source, partial, encoding, name)
            # The copy must decode completely before it takes its place.
            decoded = probe(str(partial))["frames"]
            if decoded != written:
                return False, f"{decoded} frames of the result decode, the source has {written}"
        _remove(Path(target))
        os.replace(partial, target)
    except Exception as error:  # encoders and decoders raise errors of any type
        with contextlib.suppress(OSError):  # a full disk needs the room
            _remove(partial)
        return False, _reason(error, source)
    return True, reason


def _reason(error: Exception, source: str) -> str:
    """Return in one line why a file could not be copied."""
    if isinstance(error, DecodeError):
        return str(error).removeprefix(f"{source}: ")
    if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
        return f"the copy cannot be written ({error.strerror})"
    return str(error) if isinstance(error, EncodeError) else one_line(error)


def _partial(target: Path) -> Path:
    """Return the temporary path of a file while it is made.

    It is hidden, so that no format reads it. It is a hash, so that it is never too long.
    """
    return target.with_name(
        f".partial-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}{target.suffix}"
    )


def _stand_in(source: str, target: Path) -> None:
    """Put an empty file or folder in the place of a copy that could not be made.

    Nothing partial is left. Errors are ignored: the reason has been reported already.
    """
    with contextlib.suppress(OSError):
        _remove(_partial(target))
        _remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir() if Path(source).is_dir() else target.touch()


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _encode_video(source: str, target: Path, encoding: Encoding, name: str) -> tuple[int, str]:
    """Write all frames of a video that decode, upright and evenly spaced at the mean frame rate.

    Args:
        source: path of the video.
        target: path of the copy.
        encoding: how the copy is made.
        name: name of the file, which random parameters depend on.

    Returns:
        (number of frames written, what is wrong with the source).
    """
    row = probe(source)
    if row["backend"] != "pyav" or not row["frames"]:
        raise DecodeError(row["reason"] or f"only {row['backend']} decodes it")
    rate = _rate(row["fps"])
    with open_video(source, frames=row["frames"], seekable=row["seekable"]) as video:
        frames = video.frames(np.arange(row["frames"]))
        if encoding.texture:
            frames = encoding.texture_of(frames, int(row["frames"]), name)
        elif encoding.corruption:
            frames = iter(encoding.change(_shrunk(frames, encoding.short_side), name, float(rate)))
        with _Writer(target, _container(source), encoding, rate) as writer:
            for pixels in frames:
                writer.add(pixels)
    return int(row["frames"]), row["reason"]


def _rate(fps: float) -> Fraction:
    """Return a frame rate that encoders accept; 25 for a source without one.

    MPEG-4 stores the numerator of the time base in 16 bits.
    """
    return 1 / (1 / Fraction(min(fps or 25, 65535))).limit_denominator(65535)


class _Writer:
    """A video file that is written frame by frame; its failures are EncodeErrors.

    Args:
        target: path of the file.
        container: FFmpeg's name of the container.
        encoding: codec, quality and key frames.
        rate: frames per second.
    """

    def __init__(self, target: Path, container: str, encoding: Encoding, rate: Fraction) -> None:
        self.encoding = encoding
        self.rate = rate
        self.count = 0
        with self._errors():
            self.out: Any = av.open(str(target), "w", format=container)
            stream: Any = self.out.add_stream(encoding.codec, rate=rate)
        codec: Any = stream.codec_context
        codec.thread_count = 1
        codec.gop_size = encoding.gop
        codec.max_b_frames = 0  # time stamps then identify every frame
        stream.pix_fmt = "yuvj420p" if encoding.codec == "mjpeg" else "yuv420p"
        if encoding.codec == "libx264":
            # key frames at every `gop`-th frame only, none at cuts between scenes
            stream.options = {"crf": str(encoding.quality), "sc_threshold": "0"}
        else:
            codec.qmin = encoding.quality
            codec.qmax = encoding.quality
        self.stream = stream

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            with self._errors():
                self.out.mux(self.stream.encode())
                self.out.close()
        else:
            with contextlib.suppress(Exception):  # the first error is the one that is reported
                self.out.close()

    def add(self, pixels: np.ndarray) -> None:
        """Write a frame (H, W, 3) uint8; the first one decides the size."""
        stream = self.stream
        if self.count == 0:
            height, width = _size(
                pixels.shape[0], pixels.shape[1], self.encoding.short_side, even=True
            )
            stream.height = height
            stream.width = width
        frame = _resized(pixels, stream.width, stream.height, stream.pix_fmt)
        frame.pts = self.count
        frame.time_base = 1 / self.rate
        self.count += 1
        with self._errors():
            self.out.mux(stream.encode(frame))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of the encoder in the context into EncodeErrors."""
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            raise EncodeError(
                f"{self.encoding.codec} cannot write the copy at {float(self.rate):g} frames/s"
                f" ({text})"
            ) from error


def _resized(pixels: np.ndarray, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    """Return a frame resized and in another pixel format.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        width: new width, in pixels.
        height: new height, in pixels.
        pix_fmt: FFmpeg's name of the pixel format.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(width, height, pix_fmt, interpolation="AREA", **ONE_THREAD)


def _shrunk(frames: Iterator[np.ndarray], short_side: int) -> np.ndarray:
    """Return all frames at the size at which they are written, for corruptions of whole videos."""
    first = next(frames)
    height, width = _size(first.shape[0], first.shape[1], short_side, even=True)
    return np.stack(
        [_resized(frame, width, height, "rgb24").to_ndarray() for frame in (first, *frames)]
    )


def _container(source: str) -> str:
    """Return FFmpeg's name of the container of a copy."""
    return {".avi": "avi", ".mkv": "matroska", ".webm": "matroska"}.get(
        Path(source).suffix.lower(), "mp4"
    )


def _size(height: int, width: int, short_side: int, *, even: bool) -> tuple[int, int]:
    """Return the (height, width) of a copy.

    Args:
        height: height of the source, in pixels.
        width: width of the source, in pixels.
        short_side: largest shorter side, in pixels.
        even: whether height and width must be even.
    """
    scale = min(1.0, short_side / min(height, width))
    step = 2 if even else 1
    new_height = max(step, step * round(height * scale / step))
    new_width = max(step, step * round(width * scale / step))
    return new_height, new_width


def _shrink_images(
    sources: Sequence[Path], targets: Sequence[Path], encoding: Encoding, name: str
) -> None:
    """Write copies of images that are the frames of one clip.

    A corruption or a texture needs images of one size.

    Args:
        sources: the images.
        targets: paths of the copies.
        encoding: how the copies are made.
        name: name of the clip, which random parameters depend on.
    """
    small = []
    formats = []
    for source in sources:
        with open_video(source) as image, Image.open(source) as original:
            pixels = Image.fromarray(next(iter(image.frames(np.array([0])))))
            formats.append(original.format)
        # A texture is made of patches at full resolution.
        if not encoding.texture:
            height, width = _size(pixels.height, pixels.width, encoding.short_side, even=False)
            pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
        small.append(np.asarray(pixels))
    changed: Iterable[np.ndarray] = small
    if encoding.texture:
        changed = encoding.texture_of(iter(small), len(small), name)
    elif encoding.corruption:
        changed = encoding.change(np.stack(small), name)
    # Each copy keeps the file format of its source, whatever its suffix.
    for copy, target, file_format in zip(changed, targets, formats, strict=True):
        options = {"quality": 95} if file_format in ("JPEG", "WEBP") else {}
        Image.fromarray(copy).save(target, format=file_format, **options)


def _shrink_folder(files: Sequence[Path], target: Path, encoding: Encoding, name: str) -> None:
    """Write copies of the images of a folder.

    Args:
        files: the images.
        target: the folder of the copies.
        encoding: how the copies are made.
        name: name of the folder, which random parameters depend on.
    """
    target.mkdir()
    if encoding.corruption or encoding.texture:
        _shrink_images(files, [target / file.name for file in files], encoding, name)
    else:  # one at a time: without a corruption they need not all be in memory
        for file in files:
            _shrink_images([file], [target / file.name], encoding, name)

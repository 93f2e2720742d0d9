"""Re-encode a data set so that clips decode fast."""

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
from vidrobust.data.prepare.provenance import claim
from vidrobust.data.prepare.texture_twins import KINDS, texture_frames
from vidrobust.data.records import Record, files_below
from vidrobust.data.scan import probe, stamp
from vidrobust.utils.errors import UserError

log = logging.getLogger("vidrobust")
CODECS = ("mpeg4", "libx264", "mjpeg")


@dataclass(frozen=True)
class Encoding:
    """short_side: pixels, never enlarged. gop: frames from one key frame to the next.

    quality: the quantiser of mpeg4 and mjpeg (1 best, 31 worst), the CRF of libx264 (0 best, 51
    worst). corruption: a name of CORRUPTIONS, which changes each video as a whole, at `severity`,
    drawn from `seed` and the file's name; empty: none. texture: a kind of `texture_frames`, made of
    patches of `patch_px`, `short_side` then being the side of the texture; empty: none. Raises
    UserError for a value out of range.
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
            if not low <= getattr(self, name) <= high:
                option = "--patch" if name == "patch_px" else f"--{name.replace('_', '-')}"
                of = f" with {self.codec}" if name == "quality" else ""
                raise UserError(f"{option} {getattr(self, name)}: from {low} to {high}{of}")
        if self.codec not in CODECS:
            raise UserError(f"codec={self.codec}: one of {', '.join(CODECS)}")
        if self.corruption and (
            self.corruption not in CORRUPTIONS or self.severity not in SEVERITIES
        ):
            raise UserError(
                f"corruption={self.corruption} at severity {self.severity}: a known one, 1 to 5"
            )
        if self.texture not in ("", *KINDS):
            raise UserError(f"texture={self.texture}: one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        """What two calls that fill one folder must share."""
        fields = asdict(self)
        unused = [] if self.corruption else ["corruption", "severity"]
        unused += [] if self.texture else ["texture", "patch_px"]
        unused += [] if self.corruption or self.texture else ["seed"]
        return json.dumps({name: value for name, value in fields.items() if name not in unused})

    def change(self, frames: np.ndarray, name: str, fps: float = 25.0) -> np.ndarray:
        """The corruption, which there must be, of a video's frames (T, H, W, 3) uint8. name: the
        file's.
        """
        return corrupt(frames, self.corruption, self.severity, self._rng(name), fps)

    def texture_of(
        self, frames: Iterator[np.ndarray], count: int, name: str
    ) -> Iterator[np.ndarray]:
        """The texture, which there must be, of the `count` frames of the file of that name."""
        return texture_frames(
            frames,
            count,
            self._rng(name),
            kind=self.texture,
            patch_px=self.patch_px,
            size=self.short_side,
        )

    def _rng(self, name: str) -> np.random.Generator:
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
    """Write every record's file small under `output`, where its name is what it is under `root`;
    lists are copied.

    A result is decoded before it counts: it has as many frames as the source decodes. Files that
    are there, and not older than their source, are not made again, so that an interrupted call goes
    on. The source is only read. Returns (path, reason) of what cannot be made; an empty file stands
    in its place, so that the lists still fit: what is bad in the source is bad in the result.
    Raises UserError, before anything is written, for files that a copy could not name (absolute
    paths in a list, files outside `root`), where `output` holds copies of other files, and where
    another process writes it.
    """
    root, output = Path(os.path.abspath(root)), Path(os.path.abspath(output))
    real, target = root.resolve(), output.resolve()
    if real == target or real in target.parents or target in real.parents:
        raise UserError(f"{output} and {root} lie in each other; write somewhere else")
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
    failed = []
    chosen = sorted({record.series for record in records if record.series})
    options = json.loads(str(encoding)) | ({"series": chosen} if chosen else {})
    with claim(output, options, {places[record.path]: record.path for record in records}):
        for file in files_below(root):
            if file.suffix.lower() in (".txt", ".csv") and not file.name.endswith(".bad.txt"):
                place = output / file.relative_to(root)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
        series = {record.path: (record.series, record.frames) for record in records}
        jobs = [
            (path, str(output / place), encoding, place, *series[path])
            for path, place in places.items()
            if _is_due(path, output / place)
        ]
        tqdm.monitor_interval = 0  # no thread of tqdm's own: children are forked
        title = "texture" if encoding.texture else encoding.corruption or "re-encode"
        with tqdm(
            total=len(jobs), desc=title, unit="file", mininterval=0.1 if sys.stderr.isatty() else 30
        ) as bar:
            for (path, made, *_), answer in in_children(_encode, jobs, workers, timeout_s):
                bar.update()
                done, reason = (False, str(answer)) if isinstance(answer, ChildDied) else answer
                if not done:
                    failed.append((path, reason))
                    _stand_in(path, Path(made))
                elif reason:
                    log.warning(f"used as far as it decodes: {path}: {reason}")
    return failed


def _is_due(source: str, target: Path) -> bool:
    """Whether a result is missing, empty as one that failed, or older than its source."""
    size, made_ns = stamp(str(target))
    return size < 1 or made_ns < stamp(source)[1]


def _encode(job: tuple[str, str, Encoding, str, str, int]) -> tuple[bool, str]:
    """Write one file beside its target, in a child, verify it and rename it.

    Args:
        job: (source, target, encoding, name of the file, and of a folder of images its series and
            how many a list promises).

    Returns:
        (whether it is there, what is wrong).
    """
    source, target, encoding, name, series, count = job
    reason = ""
    partial = _partial(Path(target))
    try:
        _remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            _shrink_folder(frame_files(Path(source), series, count), partial, encoding, name)
        elif Path(source).suffix.lower() in IMAGE_SUFFIXES:
            _shrink_images([Path(source)], [partial], encoding, name)
        else:
            written, reason = _encode_video(source, partial, encoding, name)
            decoded = probe(str(partial))["frames"]
            if decoded != written:
                return False, f"{decoded} frames of the result decode, the source has {written}"
        _remove(Path(target))
        os.replace(partial, target)
    except Exception as error:  # encoders and decoders raise whatever they like
        with contextlib.suppress(OSError):  # a full disk needs the room
            _remove(partial)
        return False, _reason(error, source)
    return True, reason


def _reason(error: Exception, source: str) -> str:
    """Return why a file could not be made, in one line."""
    if isinstance(error, DecodeError):
        return str(error).removeprefix(f"{source}: ")
    if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
        return f"the copy cannot be written ({error.strerror})"
    return str(error) if isinstance(error, EncodeError) else one_line(error)


def _partial(target: Path) -> Path:
    """What a file is called while it is made: hidden, so that no format reads it, and never too
    long.
    """
    return target.with_name(
        f".partial-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}{target.suffix}"
    )


def _stand_in(source: str, target: Path) -> None:
    """An empty file, or folder, for one that could not be made; nothing of it is left."""
    with contextlib.suppress(OSError):  # where even that cannot be written the reason has said so
        _remove(_partial(target))
        _remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir() if Path(source).is_dir() else target.touch()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _encode_video(source: str, target: Path, encoding: Encoding, name: str) -> tuple[int, str]:
    """All frames that decode, upright, evenly spaced at the mean rate -> (how many, what is wrong
    with the source).
    """
    found = probe(source)
    if found["backend"] != "pyav" or not found["frames"]:
        raise DecodeError(found["reason"] or f"{found['backend']} alone decodes it")
    rate = _rate(found["fps"])
    with open_video(source, frames=found["frames"], seekable=found["seekable"]) as video:
        frames = video.frames(np.arange(found["frames"]))
        if encoding.texture:
            frames = encoding.texture_of(frames, int(found["frames"]), name)
        elif encoding.corruption:
            frames = iter(encoding.change(_shrunk(frames, encoding.short_side), name, float(rate)))
        with _Writer(target, _container(source), encoding, rate) as writer:
            for pixels in frames:
                writer.add(pixels)
    return int(found["frames"]), found["reason"]


def _rate(fps: float) -> Fraction:
    """Return a frame rate that encoders take, 25 for none: MPEG-4 holds its numerator in 16
    bits.
    """
    return 1 / (1 / Fraction(min(fps or 25, 65535))).limit_denominator(65535)


class _Writer:
    """A video file that is written frame by frame; what fails is an EncodeError."""

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
        codec.max_b_frames = 0  # the container's time stamps then say where every frame is
        stream.pix_fmt = "yuvj420p" if encoding.codec == "mjpeg" else "yuv420p"
        if encoding.codec == "libx264":
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
        """Write a frame (H, W, 3) uint8; the first one gives the size."""
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
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise EncodeError(
                f"{self.encoding.codec} cannot write the copy at {float(self.rate):g} frames/s"
                f" ({said})"
            ) from error


def _resized(pixels: np.ndarray, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(width, height, pix_fmt, interpolation="AREA", **ONE_THREAD)


def _shrunk(frames: Iterator[np.ndarray], short_side: int) -> np.ndarray:
    """All frames at the size they are written in: a corruption sees a video as a whole."""
    first = next(frames)
    height, width = _size(first.shape[0], first.shape[1], short_side, even=True)
    return np.stack(
        [_resized(frame, width, height, "rgb24").to_ndarray() for frame in (first, *frames)]
    )


def _container(source: str) -> str:
    return {".avi": "avi", ".mkv": "matroska", ".webm": "matroska"}.get(
        Path(source).suffix.lower(), "mp4"
    )


def _size(height: int, width: int, short_side: int, *, even: bool) -> tuple[int, int]:
    scale, step = min(1.0, short_side / min(height, width)), 2 if even else 1
    return max(step, step * round(height * scale / step)), max(
        step, step * round(width * scale / step)
    )


def _shrink_images(
    sources: Sequence[Path], targets: Sequence[Path], encoding: Encoding, name: str
) -> None:
    """Images that are the frames of one clip; a corruption and a texture need them to be of one
    size.
    """
    small, formats = [], []
    for source in sources:
        with open_video(source) as image, Image.open(source) as original:
            pixels = Image.fromarray(next(iter(image.frames(np.array([0])))))
            formats.append(original.format)
        height, width = _size(pixels.height, pixels.width, encoding.short_side, even=False)
        small.append(
            np.asarray(
                pixels
                if encoding.texture
                else pixels.resize((width, height), Image.Resampling.BICUBIC)
            )
        )
    changed: Iterable[np.ndarray] = small
    if encoding.texture:
        changed = encoding.texture_of(iter(small), len(small), name)
    elif encoding.corruption:
        changed = encoding.change(np.stack(small), name)
    for made, target, kind in zip(changed, targets, formats, strict=True):
        options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
        Image.fromarray(made).save(target, format=kind, **options)


def _shrink_folder(files: Sequence[Path], target: Path, encoding: Encoding, name: str) -> None:
    target.mkdir()
    if encoding.corruption or encoding.texture:
        _shrink_images(files, [target / file.name for file in files], encoding, name)
    else:  # one by one: without a corruption nothing needs them all in memory
        for file in files:
            _shrink_images([file], [target / file.name], encoding, name)

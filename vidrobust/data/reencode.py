"""Re-encode a data set for training: small frames, short groups of pictures, so that a clip costs little to decode."""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from vidrobust.data.child import ChildDied, in_children
from vidrobust.data.decode import open_video
from vidrobust.data.decoders import DecodeError, PyAV, one_line
from vidrobust.data.images import IMAGE_SUFFIXES, frame_files
from vidrobust.data.records import Record
from vidrobust.data.scan import probe
from vidrobust.errors import UserError

_MARK = "prepared.json"
CODECS = ("mpeg4", "libx264", "mjpeg")


@dataclass(frozen=True)
class Encoding:
    """short_side: pixels, never enlarged. gop: frames from one key frame to the next.

    quality: the quantiser of mpeg4 and mjpeg (1 best, 31 worst), the CRF of libx264 (0 best, 51 worst). Raises
    UserError for a value out of range.
    """

    short_side: int = 128
    gop: int = 8
    codec: str = "mpeg4"
    quality: int = 3

    def __post_init__(self) -> None:
        best, worst = (0, 51) if self.codec == "libx264" else (1, 31)
        for name, low, high in (("short_side", 8, 4096), ("gop", 1, 10_000), ("quality", best, worst)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}={getattr(self, name)}: from {low} to {high} with {self.codec}")
        if self.codec not in CODECS:
            raise UserError(f"codec={self.codec}: one of {', '.join(CODECS)}")


def reencode(
    records: list[Record], root: Path, output: Path, encoding: Encoding, *, workers: int = 2, timeout_s: float = 600
) -> list[tuple[str, str]]:
    """Write every record's file small under `output`, where its name is what it is under `root`; lists are copied.

    A result is decoded before it counts: it has as many frames as the source decodes. Files that are there are not made
    again, so that an interrupted call goes on. The source is only read. Returns (path, reason) of what is not made:
    files that do not decode, or whose encoding failed.
    """
    root, output = root.resolve(), output.resolve()
    if root == output or root in output.parents or output in root.parents:
        raise UserError(f"{output} and {root} lie in each other; write somewhere else")
    _claim(output, encoding)
    jobs, failed = [], []
    for path in dict.fromkeys(record.path for record in records):
        inside = os.path.relpath(Path(path).resolve(), root)
        if not Path(path).exists() or inside.startswith(".."):
            failed.append((path, f"is not a file under {root}: not re-encoded"))
        elif not (output / inside).exists():
            jobs.append((path, str(output / inside), encoding))
    _copy_lists(root, output)
    tqdm.monitor_interval = 0  # no thread of tqdm's own: children are forked
    with tqdm(total=len(jobs), desc="re-encode", unit="file", mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        for (path, _, _), answer in in_children(_encode, jobs, workers, timeout_s):
            bar.update()
            if answer:
                failed.append((path, str(answer) if isinstance(answer, ChildDied) else answer))
    return failed


def _encode(job: tuple[str, str, Encoding]) -> str:
    """One file, in a child: writes beside the target, verifies, renames. Returns why it failed, or nothing."""
    source, target, encoding = job
    partial = Path(target).with_name(f".partial-{Path(target).name}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        if Path(source).is_dir():
            _shrink_folder(Path(source), partial, encoding)
        elif Path(source).suffix.lower() in IMAGE_SUFFIXES:
            _shrink_image(Path(source), partial, encoding)
        else:
            written = _encode_video(source, partial, encoding)
            decoded = probe(str(partial))["frames"]
            if decoded != written:
                return f"{decoded} frames of the result decode, the source has {written}"
        os.replace(partial, target)
    except Exception as error:  # encoders and decoders raise whatever they like
        return str(error) if isinstance(error, DecodeError) else one_line(error)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
    return ""


def _encode_video(source: str, target: Path, encoding: Encoding) -> int:
    """All frames that decode, upright, at their times; returns how many."""
    found = probe(source)
    if found["backend"] != "pyav" or not found["frames"]:
        raise DecodeError(found["reason"] or f"{found['backend']} alone decodes it")
    with (
        open_video(source, frames=found["frames"]) as video,
        av.open(str(target), "w", format=_container(source)) as out,
    ):
        assert isinstance(video, PyAV)
        rate = Fraction(found["fps"] or 25).limit_denominator(1001)
        stream: Any = out.add_stream(encoding.codec, rate=rate)
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = encoding.gop
        stream.codec_context.max_b_frames = 0  # the container's time stamps then say where every frame is
        stream.pix_fmt = "yuvj420p" if encoding.codec == "mjpeg" else "yuv420p"
        if encoding.codec == "libx264":
            stream.options = {"crf": str(encoding.quality), "sc_threshold": "0"}
        else:
            stream.codec_context.qmin = stream.codec_context.qmax = encoding.quality
        for number, pixels in enumerate(video.frames(np.arange(found["frames"]))):
            if number == 0:
                stream.height, stream.width = _size(pixels.shape[0], pixels.shape[1], encoding.short_side, even=True)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(stream.width, stream.height, stream.pix_fmt, interpolation="AREA", threads=1)
            frame.pts, frame.time_base = number, 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return int(found["frames"])


def _container(source: str) -> str:
    return {".avi": "avi", ".mkv": "matroska", ".webm": "matroska"}.get(Path(source).suffix.lower(), "mp4")


def _size(height: int, width: int, short_side: int, *, even: bool) -> tuple[int, int]:
    scale, step = min(1.0, short_side / min(height, width)), 2 if even else 1
    return max(step, step * round(height * scale / step)), max(step, step * round(width * scale / step))


def _shrink_image(source: Path, target: Path, encoding: Encoding) -> None:
    with open_video(source) as image, Image.open(source) as original:
        pixels = Image.fromarray(next(iter(image.frames(np.array([0])))))
        height, width = _size(pixels.height, pixels.width, encoding.short_side, even=False)
        options = {"quality": 95} if original.format in ("JPEG", "WEBP") else {}
        pixels.resize((width, height), Image.Resampling.BICUBIC).save(target, format=original.format, **options)


def _shrink_folder(source: Path, target: Path, encoding: Encoding) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in frame_files(source):
        _shrink_image(file, target / file.name, encoding)


def _claim(output: Path, encoding: Encoding) -> None:
    """The folder is empty, or holds files of the same encoding."""
    mark = output / _MARK
    if mark.is_file():
        held = json.loads(mark.read_text())
        if held != asdict(encoding):
            raise UserError(f"{output} holds files of another encoding ({held}); give another --output, or delete it")
    elif output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} holds other files; give an empty folder as --output")
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(asdict(encoding)))


def _copy_lists(root: Path, output: Path) -> None:
    """Lists and class names: the small text files beside the videos."""
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in (".txt", ".csv") and file.is_file() and not file.name.endswith(".bad.txt"):
            place = output / file.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)

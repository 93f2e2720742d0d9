"""Read frames by number from a video, an image or a folder of frames.

A file is opened, read and closed for every sample, because readers that are kept open leak memory
(decord issues 157 and 208). A decoder yields frames one by one, so that cropping never holds more
than one whole frame.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from vidrobust.data.decoding.agreement import disagreement
from vidrobust.data.decoding.images import (
    TORCHVISION,
    ArrayFile,
    FrameFolder,
    Image,
    TorchvisionImage,
    is_image,
)
from vidrobust.data.decoding.pyav import (
    DecodeError,
    Decord,
    EncodeError,
    PyAV,
    TorchCodec,
    Video,
    one_line,
)
from vidrobust.data.places import file_size, is_folder
from vidrobust.data.records import Record
from vidrobust.utils.errors import lookup

__all__ = ["BACKENDS", "DecodeError", "Video", "open_record", "open_video", "read_frames", "resize"]

# Decoders of video files: (path, number of decodable frames or 0, seekable or None) -> Video.
# "auto" is the one that the manifest names, otherwise PyAV.
BACKENDS: dict[str, Callable[[str, int, bool | None], Video]] = {
    "auto": PyAV,
    "pyav": PyAV,
    "decord": Decord,
    "torchcodec": TorchCodec,
}
# Whether torchvision resizes uint8 without a detour by floats on this CPU.
_RESIZES_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
# Decoders whose frame numbers are compared with PyAV's before they are used for a file.
CHECKED = ("decord", "torchcodec")


def read_frames(
    path: str | Path,
    indices: np.ndarray,
    *,
    short_side: int | None = None,
    backend: str = "auto",
    frames: int = 0,
) -> np.ndarray:
    """Read frames of a video, upright.

    Args:
        path: a video, an image or a folder of frames.
        indices: (T,) int, each in [0, number of frames), in any order, repeats allowed.
        short_side: pixels of the shorter side after decoding, aspect ratio kept; None keeps the
            size.
        backend: a name of BACKENDS; images, folders of frames and GIFs have readers of their own.
        frames: number of frames that decode, from a manifest; 0 counts the frames that a player
            shows.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        DecodeError: the file cannot be read; no other exception is raised.
    """
    with open_video(path, backend=backend, frames=frames) as video:
        return frames_of(video, path, indices, short_side=short_side)


def frames_of(
    video: Video,
    path: str | Path,
    indices: np.ndarray,
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Read frames of an open video.

    Args:
        video: an open file.
        path: its path, for messages.
        indices: (T,) int, each in [0, number of frames), in any order, repeats allowed.
        short_side: pixels of the shorter side, aspect ratio kept; None keeps the size.
        size: height and width of the frames, whatever their shape, in place of short_side.
        interpolation: see `resize`.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        DecodeError: an index is outside the video, or a frame does not decode.
    """
    unique, position = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    # Shrink one frame at a time: all frames of a large video at full size would take gigabytes.
    small = [
        _resized(frame, short_side, size, interpolation)
        for frame in checked_frames(video, path, unique)
    ]
    return np.stack(small)[position]


def _resized(
    frame: np.ndarray, short_side: int | None, size: tuple[int, int] | None, interpolation: str
) -> np.ndarray:
    """Return a frame (H, W, 3) resized; see `frames_of`."""
    if not short_side and not size:
        return frame
    height, width = frame.shape[:2]
    scale = (short_side or 0) / min(height, width)
    size = size or (round(height * scale), round(width * scale))
    return resize(frame[None], *size, interpolation).numpy()[0]


@contextmanager
def open_video(
    path: str | Path,
    *,
    backend: str = "auto",
    frames: int = 0,
    seekable: bool | None = None,
    verified: tuple[str, ...] = (),
    series: str = "",
) -> Iterator[Video]:
    """Open a file for one sample: `with open_video(path) as video: video.frames(indices)`.

    Args:
        path: see `read_frames`, and also for backend and frames.
        seekable: whether the times in the file identify its frames; None: unknown.
        verified: decoders that, according to a scan, show the same frames as PyAV.
        series: for a folder of frames, the beginning of the names that are the video.

    Raises:
        DecodeError: the file cannot be read; no other exception is raised, except those of
            encoders.
    """
    path = str(path)
    try:
        video = _open(path, backend, frames, seekable, verified, series)
        try:
            yield video
        finally:
            video.close()
    except (DecodeError, EncodeError):
        raise
    except Exception as error:  # native decoders raise errors of any type
        raise DecodeError(f"{path}: {one_line(error)}") from error


@contextmanager
def open_record(record: Record, backend: str = "auto") -> Iterator[Video]:
    """Open the file of a record, with what its manifest says about it.

    Args:
        record: the video; a bad one is refused.
        backend: a name of BACKENDS; "auto" is the one that the manifest names.

    Raises:
        DecodeError: the file cannot be read, or is bad according to the manifest.
    """
    if record.bad:
        raise DecodeError(f"{record.path}: {record.bad} (manifest)")
    with open_video(
        record.path,
        backend=record.backend if backend == "auto" else backend,
        frames=record.frames,
        seekable=record.seekable,
        verified=record.verified,
        series=record.series,
    ) as video:
        yield video


def checked_frames(video: Video, path: str | Path, unique: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of some indices, exactly one for each.

    Args:
        video: an open file.
        path: its path, for messages.
        unique: (n,) int, sorted and unique.

    Raises:
        DecodeError: an index is outside the video, or a frame is missing.
    """
    if unique.size == 0 or unique[0] < 0 or unique[-1] >= video.num_frames:
        requested = f"{unique[0]} to {unique[-1]}" if unique.size else "none"
        raise DecodeError(
            f"{path}: the frames asked for, {requested}, are not all within its {video.num_frames}"
            " frames"
        )
    # A decoder that stops early must not pass for one that has read everything.
    count = 0
    for frame in video.frames(unique):
        count += 1
        yield frame
    if count < len(unique):
        raise DecodeError(
            f"{path}: frame {unique[count]} of {video.num_frames} cannot be decoded: the file is"
            " damaged"
        )


def resize(frames: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> Tensor:
    """Resize frames, with antialiasing.

    Args:
        frames: (T, H, W, 3) uint8.
        height: new height, in pixels.
        width: new width, in pixels.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (T, height, width, 3) uint8.
    """
    if frames.shape[1:3] == (height, width):
        return torch.from_numpy(frames)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if _RESIZES_BYTES:
        # what torchvision calls as well, after checks that take longer than a small image
        resized = interpolate(
            images, (height, width), mode=interpolation, align_corners=False, antialias=True
        )
    else:
        mode = InterpolationMode(interpolation)
        resized = tvf.resize(images, [height, width], mode, antialias=True)
    return resized.permute(0, 2, 3, 1)


def _open(
    path: str,
    backend: str,
    frames: int,
    seekable: bool | None,
    verified: tuple[str, ...],
    series: str,
) -> Video:
    """Return the reader of a file.

    Args:
        path: a video, an image, a folder of frames, a file of numpy, or an image of a torchvision
            data set.
        backend: a name of BACKENDS.
        frames: number of frames that decode; 0: unknown.
        seekable: whether times identify frames; None: unknown.
        verified: decoders that show the same frames as PyAV.
        series: for a folder of frames, the beginning of the names that are the video.
    """
    if path.startswith(TORCHVISION):
        return TorchvisionImage(path)
    file = Path(path)
    if is_folder(path):
        return FrameFolder(path, frames, series)
    size = file_size(path)
    if size < 0:
        raise DecodeError(f"{path}: no such file")
    if size == 0:
        raise DecodeError(f"{path}: the file is empty")
    if is_image(path):
        return Image(path)
    if file.suffix == ".npy":
        return ArrayFile(path)
    if file.suffix.lower() == ".gif":
        return PyAV(path, frames, seekable)
    reader = lookup(BACKENDS, backend, "data.backend")
    # A decoder that a scan has not verified for this file is checked now.
    if backend in CHECKED and backend not in verified:
        reason = disagreement(backend, reader, path)
        if reason:
            raise DecodeError(f"{path}: {backend} {reason}; use PyAV (data.backend=auto)")
    return reader(path, frames, seekable)

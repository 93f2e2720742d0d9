"""Read frames by number from a video, an image or a folder of frames.

A file is opened, read and closed for every sample: readers that are kept open leak (decord's issues
157, 208). A decoder yields the frames one by one, so that cropping never holds more than one whole
frame.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from vidrobust.data.decoding.agreement import disagreement
from vidrobust.data.decoding.images import (
    TORCHVISION,
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
from vidrobust.data.records import Record
from vidrobust.utils.errors import lookup

__all__ = ["BACKENDS", "DecodeError", "Video", "open_record", "open_video", "read_frames", "resize"]

# decoders of video files: (path, decodable frames or 0, seekable or None) -> Video. "auto" is the
# one that a manifest names, or else PyAV.
BACKENDS: dict[str, Callable[[str, int, bool | None], Video]] = {
    "auto": PyAV,
    "pyav": PyAV,
    "decord": Decord,
    "torchcodec": TorchCodec,
}
# decoders whose frame numbers are checked against PyAV's before they are used for a file
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
        short_side: pixels of the shorter side after decoding, aspect kept; None keeps the size.
        backend: a name of BACKENDS; images, folders of frames and GIFs have their own reader.
        frames: how many frames are decodable, from a manifest; 0 counts what a player shows.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        DecodeError: and nothing else.
    """
    with open_video(path, backend=backend, frames=frames) as video:
        return frames_of(video, path, indices, short_side=short_side)


def frames_of(
    video: Video, path: str | Path, indices: np.ndarray, *, short_side: int | None = None
) -> np.ndarray:
    """Read frames of an open video; arguments and errors as in `read_frames`."""
    unique, position = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    # one by one: all frames of a large video at their own size are gigabytes
    found = [_shrunk(frame, short_side) for frame in checked_frames(video, path, unique)]
    return np.stack(found)[position]


def _shrunk(frame: np.ndarray, short_side: int | None) -> np.ndarray:
    if not short_side:
        return frame
    height, width = frame.shape[:2]
    scale = short_side / min(height, width)
    return resize(frame[None], round(height * scale), round(width * scale)).numpy()[0]


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
        path: as in `read_frames`, and backend and frames as well.
        seekable: whether the times in the file say which frame is which; None: not known.
        verified: decoders that a scan has found to show the frames that PyAV shows.
        series: of a folder of frames, the beginning of the names that are wanted.

    Raises:
        DecodeError: and nothing else.
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
    except Exception as error:  # native decoders raise whatever they like
        raise DecodeError(f"{path}: {one_line(error)}") from error


@contextmanager
def open_record(record: Record, backend: str = "auto") -> Iterator[Video]:
    """Open a record's file with what its manifest knows of it.

    Args:
        record: a bad one is refused.
        backend: a name of BACKENDS; "auto" is the one that the manifest names.

    Raises:
        DecodeError: and nothing else.
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
    """The frames of sorted, unique indices, one each; DecodeError for indices outside the video, or
    missing frames.
    """
    if unique.size == 0 or unique[0] < 0 or unique[-1] >= video.num_frames:
        asked = f"{unique[0]} to {unique[-1]}" if unique.size else "none"
        raise DecodeError(
            f"{path}: the frames asked for, {asked}, are not all within its {video.num_frames}"
            " frames"
        )
    count = 0
    for frame in video.frames(unique):
        count += 1
        yield frame
    if count < len(unique):
        raise DecodeError(
            f"{path}: frame {unique[count]} of {video.num_frames} cannot be decoded: the file is"
            " damaged"
        )


def resize(frames: np.ndarray, height: int, width: int) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, height, width, 3) uint8, bilinear, antialiased."""
    if frames.shape[1:3] == (height, width):
        return torch.from_numpy(frames)
    return tvf.resize(
        torch.from_numpy(frames).permute(0, 3, 1, 2), [height, width], antialias=True
    ).permute(0, 2, 3, 1)


def _open(
    path: str,
    backend: str,
    frames: int,
    seekable: bool | None,
    verified: tuple[str, ...],
    series: str,
) -> Video:
    if path.startswith(TORCHVISION):
        return TorchvisionImage(path)
    place = Path(path)
    if place.is_dir():
        return FrameFolder(path, frames, series)
    if not place.is_file():
        raise DecodeError(f"{path}: no such file")
    if place.stat().st_size == 0:
        raise DecodeError(f"{path}: the file is empty")
    if is_image(path):
        return Image(path)
    if place.suffix.lower() == ".gif":
        return PyAV(path, frames, seekable)
    reader = lookup(BACKENDS, backend, "data.backend")
    if (
        backend in CHECKED
        and backend not in verified
        and (reason := disagreement(backend, reader, path))
    ):
        raise DecodeError(f"{path}: {backend} {reason}; use PyAV (data.backend=auto)")
    return reader(path, frames, seekable)

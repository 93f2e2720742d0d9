"""Path and frame indices -> uint8 frames, whatever the path is: a video, an image, a folder of frames.

A file is opened, read and closed for every sample: readers that are kept open leak (decord's issues 157, 208). A
decoder yields the frames asked for one by one, so that whoever crops them never holds more whole frames than one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from vidrobust.data.decoders import DecodeError, Decord, PyAV, TorchCodec, Video, one_line
from vidrobust.data.images import TORCHVISION, FrameFolder, Image, TorchvisionImage, is_image
from vidrobust.errors import lookup

__all__ = ["BACKENDS", "DecodeError", "Video", "open_video", "read_frames", "resize"]

# decoders of video files: (path, decodable frames or 0) -> Video. "auto" is the one a manifest names, or else PyAV.
BACKENDS: dict[str, Callable[[str, int], Video]] = {
    "auto": PyAV,
    "pyav": PyAV,
    "decord": Decord,
    "torchcodec": TorchCodec,
}


def read_frames(
    path: str | Path, indices: np.ndarray, *, short_side: int | None = None, backend: str = "auto", frames: int = 0
) -> np.ndarray:
    """Frames `indices` of a video, upright.

    indices: (T,) int, each in [0, number of frames), in any order, repeats allowed.
    short_side: pixels of the shorter side after decoding, aspect kept; None keeps the source's size.
    backend: a name of BACKENDS; images, folders of frames and GIFs have their own reader whatever it says.
    frames: how many frames are decodable, from a manifest; 0 counts what the container holds.
    Returns (T, H, W, 3) uint8, RGB. Raises DecodeError, and nothing else.
    """
    with open_video(path, backend=backend, frames=frames) as video:
        indices = np.asarray(indices, dtype=np.int64)
        unique, position = np.unique(indices, return_inverse=True)
        found = np.stack(list(checked_frames(video, path, unique)))
        if short_side:
            height, width = found.shape[1:3]
            scale = short_side / min(height, width)
            found = resize(found, round(height * scale), round(width * scale)).numpy()
        return found[position]


@contextmanager
def open_video(path: str | Path, *, backend: str = "auto", frames: int = 0) -> Iterator[Video]:
    """Open a file for one sample: `with open_video(path) as video: video.frames(indices)`.

    Arguments and errors as in `read_frames`.
    """
    path = str(path)
    try:
        video = _open(path, backend, frames)
        try:
            yield video
        finally:
            video.close()
    except DecodeError:
        raise
    except Exception as error:  # native decoders raise whatever they like
        raise DecodeError(f"{path}: {one_line(error)}") from error


def checked_frames(video: Video, path: str | Path, unique: np.ndarray) -> Iterator[np.ndarray]:
    """The frames of sorted, unique indices, one each; DecodeError for indices outside the video, or missing frames."""
    if unique.size == 0 or unique[0] < 0 or unique[-1] >= video.num_frames:
        asked = f"{unique[0]} to {unique[-1]}" if unique.size else "none"
        raise DecodeError(f"{path}: the frames asked for, {asked}, are not all within its {video.num_frames} frames")
    count = 0
    for frame in video.frames(unique):
        count += 1
        yield frame
    if count < len(unique):
        raise DecodeError(f"{path}: frame {unique[count]} of {video.num_frames} cannot be decoded: the file is damaged")


def resize(frames: np.ndarray, height: int, width: int) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, height, width, 3) uint8, bilinear, antialiased."""
    if frames.shape[1:3] == (height, width):
        return torch.from_numpy(frames)
    return tvf.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [height, width], antialias=True).permute(0, 2, 3, 1)


def _open(path: str, backend: str, frames: int) -> Video:
    if path.startswith(TORCHVISION):
        return TorchvisionImage(path)
    place = Path(path)
    if place.is_dir():
        return FrameFolder(path, frames)
    if not place.is_file():
        raise DecodeError(f"{path}: no such file")
    if place.stat().st_size == 0:
        raise DecodeError(f"{path}: the file is empty")
    if is_image(path):
        return Image(path)
    if place.suffix.lower() == ".gif":
        return PyAV(path, frames)
    return lookup(BACKENDS, backend, "data.backend")(path, frames)

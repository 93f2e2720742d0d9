"""Check that a decoder shows the same frames as PyAV.

Decoders number frames differently after seeks, and nothing in a file reveals it. So the frames
themselves are compared: a few are read as a loader reads them, and compared with the frames that
PyAV decodes from the first one on.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

import av
import numpy as np

from vidrobust.data.decoding.pyav import (
    ONE_THREAD,
    DecodeError,
    Video,
    decoded,
    misleads,
    one_line,
    open_container,
    orientation,
    turned,
    video_stream,
)
from vidrobust.data.places import stamp

_THUMB_PX = 32  # height and width at which frames are compared
_PARTS = 8  # one frame is read from each of so many parts of the video
_TOLERANCE = 4.0  # mean difference, in grey levels, that two decoders may have in a frame
_TIE = 0.25  # grey levels by which another frame may be nearer than the one asked for

# opens a file: (path, number of frames, seekable)
Reader = Callable[[str, int, bool | None], Video]


def disagreement(backend: str, reader: Reader, path: str) -> str:
    """Return why a decoder must not be used for a file, as words that follow its name.

    About ten frames are read: the first, the last, and those that differ most from their
    neighbours. They are read in one batch and then alone, each time with a new reader, as in a
    loader. The answer is cached as long as the file does not change.

    Args:
        backend: name of the decoder.
        reader: opens a file with it.
        path: a video file.

    Returns:
        "" if the decoder shows the same frames as PyAV.

    Raises:
        DecodeError: PyAV cannot read the file either.
    """
    return _disagreement(backend, reader, path, *stamp(path))


@functools.lru_cache(maxsize=4096)
def _disagreement(backend: str, reader: Reader, path: str, size: int, changed_ns: int) -> str:
    """Return the answer of `disagreement`.

    Args:
        backend: name of the decoder.
        reader: opens a file with it.
        path: a video file.
        size: its size in bytes, a key of the cache.
        changed_ns: time of its last change, a key of the cache.
    """
    with open_container(path) as container:
        if cause := misleads(container, backend):
            return f"reads other frames of such a file ({cause})"
    thumbnails = _thumbnails(path)
    if not len(thumbnails):
        raise DecodeError(f"{path}: no frame decodes")
    test_frames = _test_frames(thumbnails)
    try:
        # All test frames in one batch, then each of them alone.
        for requested in (test_frames, *([number] for number in test_frames)):
            video = reader(path, len(thumbnails), None)
            try:
                for number, frame in zip(requested, video.frames(np.array(requested)), strict=True):
                    if not _is_frame(_thumbnail(frame), number, thumbnails):
                        return f"reads another frame than number {number} of it"
            finally:
                video.close()
    except DecodeError as error:
        return (
            str(error)
            .removeprefix(f"{path}: ")
            .removeprefix(f"{backend} ")
            .removesuffix("; use PyAV")
        )
    except Exception as error:  # native decoders raise errors of any type
        return f"fails at it ({one_line(error)})"
    return ""


def _thumbnails(path: str) -> np.ndarray:
    """Return every frame that PyAV shows, small and grey: (N, S, S) float32."""
    thumbnails = []
    with open_container(path) as container, contextlib.suppress(av.error.FFmpegError):
        for frame in decoded(container, video_stream(container)):
            small = frame.reformat(
                _THUMB_PX, _THUMB_PX, "rgb24", interpolation="AREA", **ONE_THREAD
            )
            thumbnails.append(_grey(turned(small.to_ndarray(), orientation(frame))))
    return np.array(thumbnails, np.float32)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """Return a frame (H, W, 3) uint8, small and grey: (S, S) float32."""
    whole: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    small = whole.reformat(_THUMB_PX, _THUMB_PX, "rgb24", interpolation="AREA", **ONE_THREAD)
    return _grey(small.to_ndarray())


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return the mean over the channels of (H, W, 3) pixels."""
    return pixels.astype(np.float32).mean(2)


def _test_frames(thumbnails: np.ndarray) -> list[int]:
    """Return the numbers of the frames to compare, sorted.

    They are the first and the last frame, and from each part of the video the one that differs most
    from its neighbours.

    Args:
        thumbnails: (N, S, S) all frames, small and grey.
    """
    steps = np.abs(np.diff(thumbnails, axis=0)).mean((1, 2))
    # A frame reveals a shift by one only if it differs from both of its neighbours.
    apart = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
    edges = np.linspace(0, len(thumbnails), min(_PARTS, len(thumbnails)) + 1).astype(int)
    best = [low + int(apart[low:high].argmax()) for low, high in itertools.pairwise(edges)]
    # Also the frame that differs most of all, except the first and the last one.
    inner = apart.copy()
    inner[[0, -1]] = -1
    return sorted({0, len(thumbnails) - 1, int(inner.argmax()), *best})


def _is_frame(thumbnail: np.ndarray, number: int, thumbnails: np.ndarray) -> bool:
    """Return whether a thumbnail shows a frame: it is near that frame, and no other is much nearer.

    Args:
        thumbnail: (S, S) the thumbnail.
        number: number of the frame.
        thumbnails: (N, S, S) all frames, small and grey.
    """
    distances = np.abs(thumbnails - thumbnail).mean((1, 2))
    return bool(distances[number] <= min(_TOLERANCE, distances.min() + _TIE))

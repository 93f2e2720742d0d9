"""Check that a decoder shows the same frames as PyAV.

Decoders number frames differently after seeks, in ways that nothing in a file gives away. So the
question is put to the frames themselves: a few are read as a loader reads them, and compared with
what PyAV decodes from the first frame on.
"""

import contextlib
import functools
import itertools
import os
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

_THUMB_PX = 32  # frames are compared at this size
_PARTS = 8  # of the video, of each of which one frame is read
_TOLERANCE = 4.0  # mean grey levels by which decoders may differ in a frame
_TIE = 0.25  # and by which another frame may come nearer than the one asked for

Reader = Callable[[str, int, bool | None], Video]


def disagreement(backend: str, reader: Reader, path: str) -> str:
    """Return why a decoder is not to be used for a file, in words that follow its name.

    The frames that differ most from their neighbours are asked for, alone and in one batch, from
    readers that are fresh as in a loader. The answer is kept as long as the file does not change.

    Args:
        backend: the decoder's name.
        reader: opens a file with it.
        path: a video file.

    Returns:
        "" where it shows the frames that PyAV shows.

    Raises:
        DecodeError: PyAV cannot read the file either.
    """
    state = os.stat(path)
    return _disagreement(backend, reader, path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _disagreement(backend: str, reader: Reader, path: str, size: int, changed_ns: int) -> str:
    with open_container(path) as container:
        if known := misleads(container, backend):
            return f"reads other frames of such a file ({known})"
    shown = _thumbnails(path)
    if not len(shown):
        raise DecodeError(f"{path}: no frame decodes")
    telling = _telling(shown)
    try:
        for asked in (telling, *([number] for number in telling)):
            video = reader(path, len(shown), None)
            try:
                for number, frame in zip(asked, video.frames(np.array(asked)), strict=True):
                    if not _is_frame(_thumbnail(frame), number, shown):
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
    except Exception as error:  # native decoders raise whatever they like
        return f"fails at it ({one_line(error)})"
    return ""


def _thumbnails(path: str) -> np.ndarray:
    """Return every frame that PyAV shows, small and grey, (N, S, S)."""
    found = []
    with open_container(path) as container, contextlib.suppress(av.error.FFmpegError):
        for frame in decoded(container, video_stream(container)):
            small = frame.reformat(
                _THUMB_PX, _THUMB_PX, "rgb24", interpolation="AREA", **ONE_THREAD
            )
            found.append(_grey(turned(small.to_ndarray(), orientation(frame))))
    return np.array(found, np.float32)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    whole: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    small = whole.reformat(_THUMB_PX, _THUMB_PX, "rgb24", interpolation="AREA", **ONE_THREAD)
    return _grey(small.to_ndarray())


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32).mean(2)


def _telling(shown: np.ndarray) -> list[int]:
    """Return frame numbers, rising: the ends, and of each part the frame that differs most."""
    steps = np.abs(np.diff(shown, axis=0)).mean((1, 2))
    # a frame tells an error by one only where it differs from both of its neighbours
    apart = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
    edges = np.linspace(0, len(shown), min(_PARTS, len(shown)) + 1).astype(int)
    best = [low + int(apart[low:high].argmax()) for low, high in itertools.pairwise(edges)]
    inner = apart.copy()
    inner[[0, -1]] = -1
    return sorted({0, len(shown) - 1, int(inner.argmax()), *best})


def _is_frame(seen: np.ndarray, number: int, shown: np.ndarray) -> bool:
    """Return whether a thumbnail is that of the frame: near it, and no other is nearer."""
    distances = np.abs(shown - seen).mean((1, 2))
    return bool(distances[number] <= min(_TOLERANCE, distances.min() + _TIE))

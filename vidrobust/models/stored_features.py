"""Read features that ranks have stored on disk, in the order of the records and in bounded memory.

N videos, K clips of each, D feature dimension.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust.data import Failure
from vidrobust.utils.errors import UserError

CHUNK_BYTES = 2**23  # features that are read at once


@dataclass
class Part:
    """Hold where the complete rows and features of one rank are.

    Attributes:
        table: file of the rows.
        stores: file of the features of each output.
        indices: record of each row.
        places: for each row the position of its features in the stores; -1 for a row with an error.
        offsets: where each row begins in the table, bytes.
        sizes: bytes of each store that have rows.
        table_size: bytes of the complete rows.
        shapes: (K, D) or (K, tokens, D) of each output; empty without a decoded video.
    """

    table: Path
    stores: list[Path]
    indices: "array[int]"
    places: "array[int]"
    offsets: "array[int]"
    sizes: list[int]
    table_size: int
    shapes: list[tuple[int, ...]]


@dataclass(frozen=True)
class Counts:
    """Hold what is counted over all rows.

    Attributes:
        failed: the videos that did not decode.
        repeats: number of videos that are shorter than a clip, and show a frame twice.
        resized: number of videos that had frames of several sizes.
        uid_length: characters of the longest name of a decoded video.
    """

    failed: list[Failure]
    repeats: int
    resized: int
    uid_length: int


class StoredFeatures:
    """Read the rows and features of all ranks in the order of the records.

    Memory holds four integers for each video, one row, and one chunk of features, whatever the
    number of videos and of features.

    Args:
        parts: what each rank has stored.
        dtype: of the stored features.

    Attributes:
        videos: N, the number of decoded videos.
        clips: K; 0 without a decoded video.
    """

    def __init__(self, parts: Sequence[Part], dtype: np.dtype[Any]) -> None:
        self.parts = list(parts)
        self.dtype = dtype
        columns = [np.empty((4, 0), np.int64)]
        for number, part in enumerate(self.parts):
            whole = np.stack([_int64(part.indices), _int64(part.places), _int64(part.offsets)])
            columns.append(np.concatenate([np.full((1, whole.shape[1]), number), whole]))
        joined = np.concatenate(columns, 1)
        # Two ranks may have the same video, if the number of ranks has changed: take the first.
        _, order = np.unique(joined[1], return_index=True)
        kept = joined[:, order]
        self._part = kept[0]
        self._place = kept[2]
        self._offset = kept[3]
        self.shapes = next((part.shapes for part in self.parts if part.shapes), [])
        self.clips = self.shapes[0][0] if self.shapes else 0
        self.videos = int((self._place >= 0).sum())

    def shape(self, output: int) -> tuple[int, ...]:
        """Return the shape of an output of a clip, (D,) or (tokens, D); (0,) without videos."""
        return self.shapes[output][1:] if self.shapes else (0,)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows, those of videos that did not decode included."""
        with ExitStack() as stack:
            files = [stack.enter_context(open(part.table, "rb")) for part in self.parts]
            ends = [0] * len(files)
            for number, offset in zip(self._part, self._offset, strict=True):
                file = files[number]
                # seek only where a row does not follow the last one: it may drop the buffer
                if ends[number] != offset:
                    file.seek(offset)
                line = file.readline()
                ends[number] = offset + len(line)
                yield json.loads(line)

    def counts(self) -> Counts:
        """Return what is counted over all rows."""
        failed = []
        repeats = resized = uid_length = 0
        for row in self.rows():
            if row["error"] is None:
                repeats += row["repeats"]
                resized += row["resized"]
                uid_length = max(uid_length, len(row["uid"]))
            else:
                failed.append(Failure(row["index"], row["uid"], row["label"], row["error"]))
        return Counts(failed, repeats, resized, uid_length)

    def features(self, output: int) -> Iterator[np.ndarray]:
        """Yield the features of an output of the decoded videos, in chunks (n, K, ...).

        Files are read instead of mapped: pages of a mapped file count as memory of the process.
        """
        if not self.videos:
            return
        shape = self.shapes[output]
        video_bytes = max(1, self.dtype.itemsize * int(np.prod(shape)))
        number = max(1, CHUNK_BYTES // video_bytes)
        good = self._place >= 0
        parts, places = self._part[good], self._place[good]
        with ExitStack() as stack:
            files = [
                stack.enter_context(open(part.stores[output], "rb", buffering=0))
                if part.shapes
                else None
                for part in self.parts
            ]
            for first in range(0, self.videos, number):
                last = min(first + number, self.videos)
                chunk = np.empty((last - first, *shape), self.dtype)
                for start, stop in _runs(parts[first:last], places[first:last]):
                    file = files[parts[first + start]]
                    assert file is not None
                    file.seek(int(places[first + start]) * video_bytes)
                    _read_into(file, chunk[start:stop])
                yield chunk


def no_video_decodes(failed: Sequence[Failure]) -> UserError:
    """Return the error of a list without any video that decodes."""
    reason = failed[0].reason if failed else "the list of videos is empty"
    return UserError(f"no video decodes ({reason}); check data.root and the list of videos")


def _int64(numbers: "array[int]") -> np.ndarray:
    return np.frombuffer(numbers, np.int64) if numbers else np.empty(0, np.int64)


def _runs(parts: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the runs of videos whose features follow each other in one file."""
    follows = (np.diff(parts) == 0) & (np.diff(places) == 1)
    edges = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(parts)]
    yield from pairwise(edges)


def _read_into(file: Any, values: np.ndarray) -> None:
    """Fill an array with the next bytes of a file."""
    view = values.reshape(-1).view(np.uint8).data
    while len(view):
        count = file.readinto(view)
        if not count:
            raise OSError(0, "the file has become shorter while it was read", file.name)
        view = view[count:]

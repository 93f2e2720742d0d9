"""Write features to disk as they are computed, and resume.

    <folder>/<name>.rows.jsonl   header, then a row per video: index, uid, label, start, fps, error
    <folder>/<name>.<m>.f32      output m: K x D float32 per decoded video, in the order of rows

Both files only grow at their ends: first the features, then their rows. A killed run leaves
features without rows at the end, or half a row. The next run cuts these off. Each rank has its own
files, `<name>.rank1...`. Files of float16 are called .f16. Tokens are K x tokens x D numbers.

N videos, K clips of each, D feature dimension. An output is what one model gives, or one of its
stages.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vidrobust.data import Batch, Failure
from vidrobust.models.stored_features import Part, StoredFeatures, no_video_decodes
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

Row = dict[str, Any]
Dims = int | list[int]  # D of an output, or [tokens, D]


@dataclass
class Features:
    """Hold the features of the N videos that decoded, in the order of the records.

    Attributes:
        features: (N, K, D).
        labels: (N,).
        index: (N,), of the records.
        start: (N, K), first source frame of each clip.
        end: (N, K), source frame after the last one of each clip.
        fps: (N,), frames per second.
        uids: N names.
        failed: the videos that did not decode.
        repeats: number of videos that are shorter than a clip, and show a frame twice.
        resized: number of videos that had frames of several sizes.
    """

    features: Tensor
    labels: Tensor
    index: Tensor
    start: Tensor
    fps: Tensor
    uids: list[str]
    failed: list[Failure]
    repeats: int = 0
    resized: int = 0
    end: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> "Features":
        """Restore features from the output of `dataclasses.asdict`."""
        return cls(**(kept | {"failed": [Failure(**failure) for failure in kept["failed"]]}))

    @classmethod
    def of_rows(cls, rows: Sequence[Row], features: np.ndarray) -> "Features":
        """Combine rows of videos with the features (N, K, D) of the rows without an error.

        Raises:
            UserError: no row is without an error.
        """
        good = [row for row in rows if row["error"] is None]
        failed = [
            Failure(row["index"], row["uid"], row["label"], row["error"])
            for row in rows
            if row["error"]
        ]
        if not good:
            raise no_video_decodes(failed)
        return cls(
            torch.from_numpy(features),
            labels=torch.tensor([row["label"] for row in good]),
            index=torch.tensor([row["index"] for row in good]),
            start=torch.tensor([row["start"] for row in good]),
            fps=torch.tensor([row["fps"] for row in good], dtype=torch.float32),
            uids=[row["uid"] for row in good],
            failed=failed,
            repeats=sum(row["repeats"] for row in good),
            resized=sum(row["resized"] for row in good),
            # rows of earlier versions do not have it
            end=torch.tensor([row.get("end", row["start"]) for row in good]),
        )


class MemoryStore:
    """Keep rows and features in memory, for few videos or for features that need no resume.

    Attributes:
        shared: whether the ranks share the batches; False: each rank computes all of them.
    """

    shared = False

    def __init__(self, models: int) -> None:
        self.models = models
        self.rows: list[Row] = []
        self.parts: list[list[np.ndarray]] = [[] for _ in range(models)]

    def done(self) -> set[int]:
        """Return the indices of records that need not be extracted any more: none."""
        return set()

    def append(self, rows: Sequence[Row], features: Sequence[np.ndarray]) -> None:
        """Add rows of videos, and for each model the features (B, K, D) of rows without error."""
        self.rows += rows
        for part, model_features in zip(self.parts, features, strict=True):
            # a batch without a decoded video has no number of clips either
            if len(model_features):
                part.append(model_features)

    def load(self) -> list[Features]:
        """Return the features of each model, in the order of the records."""
        whole = [
            np.concatenate(part) if part else np.empty((0, 0, 0), np.float32) for part in self.parts
        ]
        return [Features.of_rows(self.rows, features) for features in whole]

    def close(self) -> None:
        """Do nothing; a DiskStore closes its files here."""


class SharedStore(MemoryStore):
    """Keep rows and features of this rank's batches in memory, until all ranks exchange them."""

    shared = True

    def load(self) -> list[Features]:
        """Wait for all ranks, then return the features of each model, in the order of records."""
        own = [np.concatenate(part) if part else None for part in self.parts]
        ranks = distributed.gathered((self.rows, own))
        rows = [row for part, _ in ranks for row in part]
        # features are those of the rows without an error
        indices = np.array([row["index"] for row in rows if row["error"] is None], np.int64)
        order = np.argsort(indices, kind="stable")
        rows.sort(key=lambda row: row["index"])
        loaded = []
        for m in range(self.models):
            parts = [features[m] for _, features in ranks if features[m] is not None]
            whole = np.concatenate(parts)[order] if parts else np.empty((0, 0, 0), np.float32)
            loaded.append(Features.of_rows(rows, whole))
        return loaded


class DiskStore:
    """Keep rows and features on disk, from all ranks together.

    Args:
        folder: where the files are.
        name: first part of the file names, such as the split.
        models: number of outputs.
        identity: what the features belong to, as JSON; files of another identity are overwritten.
        half: keep float16 in place of float32.
    """

    shared = True

    def __init__(
        self, folder: Path, name: str, models: int, identity: object, *, half: bool = False
    ) -> None:
        self.folder = folder
        self.name = name
        self.models = models
        self.dtype = np.dtype(np.float16 if half else np.float32)
        # Through JSON once, so that the header compares equal to one that was read.
        self.header = json.loads(json.dumps({"identity": identity, "models": models}))
        folder.mkdir(parents=True, exist_ok=True)
        self.stored_indices: set[int] = set()
        for part in self._parts():
            self.stored_indices.update(part.indices)
        # Wait until every rank has read the files that the others will append to.
        distributed.patient_barrier()
        self.files: list[BinaryIO] | None = None

    def done(self) -> set[int]:
        """Return the indices of records that need not be extracted any more."""
        return self.stored_indices

    def append(self, rows: Sequence[Row], features: Sequence[np.ndarray]) -> None:
        """Add rows of videos, and for each output the features (B, K, ...) of rows without error.

        Raises:
            UserError: for features that float16 does not hold.
        """
        if self.files is None:
            self.files = self._open(distributed.rank())
        *stores, table = self.files
        if self.dtype == np.float16:
            uids = [row["uid"] for row in rows if row["error"] is None]
            features = [to_half(each, uids) for each in features]
        # Features first: rows without features would count as finished videos.
        for store, output in zip(stores, features, strict=True):
            store.write(np.ascontiguousarray(output, self.dtype).tobytes())
            store.flush()
        table.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        table.flush()

    def stored(self) -> StoredFeatures:
        """Wait for all ranks, then return a reader of what they have written."""
        distributed.patient_barrier()
        return StoredFeatures(self._parts(), self.dtype)

    def load(self) -> list[Features]:
        """Wait for all ranks, then return the features of each output in the order of records.

        It returns when every rank has read them, so that rank 0 may delete the files.
        """
        return self.load_with_rows()[0]

    def load_with_rows(self) -> tuple[list[Features], list[Row]]:
        """Return what `load` returns, and the rows as they were appended, in the same order."""
        stored = self.stored()
        rows = list(stored.rows())
        loaded = []
        for m in range(self.models):
            whole = np.empty((stored.videos, stored.clips, *stored.shape(m)), np.float32)
            first = 0
            for chunk in stored.features(m):
                whole[first : first + len(chunk)] = chunk
                first += len(chunk)
            loaded.append(Features.of_rows(rows, whole))
        distributed.patient_barrier()  # every rank has read
        return loaded, rows

    def close(self) -> None:
        """Close the files of this rank."""
        for file in self.files or ():
            file.close()
        self.files = None

    def _parts(self) -> list[Part]:
        """Read the files of every rank, except those of another identity."""
        tables = [
            self._path(0, "rows.jsonl"),
            *sorted(self.folder.glob(f"{self.name}.rank*.rows.jsonl")),
        ]
        parts = (self._read(table) for table in tables if table.is_file())
        return [part for part in parts if part is not None]

    def _path(self, rank: int, tail: str) -> Path:
        """Return the path of a file of a rank; the names of rank 0 have no rank in them."""
        return self.folder / f"{self.name}{f'.rank{rank}' if rank else ''}.{tail}"

    def _tail(self, m: int) -> str:
        """Return the end of the name of the features of an output."""
        return f"{m}.f{8 * self.dtype.itemsize}"

    def _read(self, table: Path) -> Part | None:
        """Read the files that belong to a table of rows."""
        stem = str(table).removesuffix("rows.jsonl")
        stores = [Path(f"{stem}{self._tail(m)}") for m in range(self.models)]
        return _read_part(table, stores, self.header, self.dtype.itemsize)

    def _open(self, rank: int) -> list[BinaryIO]:
        """Open the files of a rank, and cut off everything that is incomplete."""
        table = self._path(rank, "rows.jsonl")
        part = self._read(table) if table.is_file() else None
        paths = [self._path(rank, self._tail(m)) for m in range(self.models)] + [table]
        sizes = [0] * len(paths) if part is None else [*part.sizes, part.table_size]
        files: list[BinaryIO] = []
        for path, size in zip(paths, sizes, strict=True):
            files.append(open(path, "r+b" if size else "wb"))  # noqa: SIM115  (closed by close)
            files[-1].truncate(size)
            files[-1].seek(size)
        if part is None:
            files[-1].write((json.dumps(self.header) + "\n").encode())
        return files


def to_half(values: np.ndarray, uids: Sequence[str]) -> np.ndarray:
    """Return values rounded to the nearest float16.

    Args:
        values: features (B, ...) of B videos.
        uids: their names, for the message.

    Raises:
        UserError: for a finite value beyond the largest float16.
    """
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    lost = np.isinf(half) & np.isfinite(values)
    if lost.any():
        video = int(np.nonzero(lost)[0][0])
        raise UserError(
            f"--half: a feature of {uids[video]} is {float(values[lost][0]):.6g}, and float16 ends"
            " at 65504; extract without --half"
        )
    return half


def _read_part(table: Path, stores: Sequence[Path], header: object, itemsize: int) -> Part | None:
    """Read which rows of a rank are complete.

    Args:
        table: path of the rows.
        stores: paths of the features of each output.
        header: the header that the table must have.
        itemsize: bytes of a number.

    Returns:
        The complete rows, or None if the table has another header.
    """
    lines = _whole_lines(table)
    first = next(lines, None)
    if first is None or first[1] != header:
        return None
    # Arrays of numbers: lists of them would need five times the memory.
    indices, places, offsets = array("q"), array("q"), array("q")
    table_size = first[0]

    # Rows are valid up to the first one whose features are not completely on disk.
    shapes: list[tuple[int, ...]] = []  # (K, ...) of each output
    video_bytes: list[int] = []
    good = 0
    sizes = [path.stat().st_size if path.is_file() else 0 for path in stores]
    for end, row in lines:
        if row["error"] is None:
            if not shapes:
                shapes = [(len(row["start"]), *shape_of(dims)) for dims in row["dims"]]
                video_bytes = [itemsize * int(np.prod(shape)) for shape in shapes]
            needed = [(good + 1) * each for each in video_bytes]
            if any(size < need for size, need in zip(sizes, needed, strict=True)):
                break
            good += 1
        indices.append(row["index"])
        places.append(good - 1 if row["error"] is None else -1)
        offsets.append(table_size)
        table_size = end
    kept = [good * each for each in video_bytes] if shapes else [0] * len(stores)
    return Part(table, list(stores), indices, places, offsets, kept, table_size, shapes)


def shape_of(dims: Dims) -> tuple[int, ...]:
    """Return the shape of an output of a clip: (D,) or (tokens, D)."""
    return (dims,) if isinstance(dims, int) else tuple(dims)


def dims_of(features: np.ndarray) -> Dims:
    """Return D of features (B, K, D), or [tokens, D] of tokens (B, K, tokens, D), for a row."""
    return features.shape[2] if features.ndim == 3 else list(features.shape[2:])


def _whole_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (offset of its end, object) for each line, up to the first incomplete one."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            try:
                if not line.endswith(b"\n"):
                    return
                yield end, json.loads(line)
            except json.JSONDecodeError:
                return


def rows_of(batch: Batch, dims: Sequence[Dims]) -> list[Row]:
    """Return the rows of a batch's videos: first those that decoded, then the failures.

    Rows contain numbers instead of tensors, because the tensors of a batch are in shared memory.

    Args:
        batch: videos that decoded, and those that did not.
        dims: the number of features D of each output, or [tokens, D].
    """
    repeats = set(batch.repeats)
    resized = set(batch.resized)
    good = [
        {
            "index": index,
            "uid": uid,
            "label": label,
            "start": start,
            "end": end,
            "fps": fps,
            "dims": list(dims),
            "repeats": index in repeats,
            "resized": index in resized,
            "error": None,
        }
        for index, uid, label, start, end, fps in zip(
            batch.index.tolist(),
            batch.uids,
            batch.labels.tolist(),
            batch.start.tolist(),
            batch.end.tolist(),
            batch.fps.tolist(),
            strict=True,
        )
    ]
    return good + [
        {
            "index": failure.index,
            "uid": failure.uid,
            "label": failure.label,
            "error": failure.reason,
        }
        for failure in batch.failed
    ]

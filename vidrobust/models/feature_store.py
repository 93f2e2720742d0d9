"""Write features to disk as they are computed, and resume.

    <folder>/<name>.rows.jsonl   header, then a row per video: index, uid, label, start, fps, error
    <folder>/<name>.<m>.f32      model m: K x D float32 per decoded video, in the order of rows

Both files only grow at their ends: first the features, then their rows. A killed run leaves
features without rows at the end, or half a row. The next run cuts these off. Each rank has its own
files, `<name>.rank1...`.

N videos, K clips of each, D feature dimension.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vidrobust.data import Batch, Failure
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

Row = dict[str, Any]


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
            reason = failed[0].reason if failed else "the list of videos is empty"
            raise UserError(f"no video decodes ({reason}); check data.root and the list of videos")
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
    """Keep rows and features in memory, for few videos or for features that need no resume."""

    def __init__(self, models: int) -> None:
        self.rows: list[Row] = []
        self.parts: list[list[np.ndarray]] = [[] for _ in range(models)]

    def done(self) -> set[int]:
        """Return the indices of records that need not be extracted any more: none."""
        return set()

    def append(self, rows: Sequence[Row], features: Sequence[np.ndarray]) -> None:
        """Add rows of videos, and for each model the features (B, K, D) of rows without error."""
        self.rows += rows
        for part, model_features in zip(self.parts, features, strict=True):
            part.append(model_features)

    def load(self) -> list[Features]:
        """Return the features of each model, in the order of the records."""
        whole = [
            np.concatenate(part) if part else np.empty((0, 0, 0), np.float32) for part in self.parts
        ]
        return [Features.of_rows(self.rows, features) for features in whole]

    def close(self) -> None:
        """Do nothing; a DiskStore closes its files here."""


class DiskStore:
    """Keep rows and features on disk, from all ranks together.

    Args:
        folder: where the files are.
        name: first part of the file names, such as the split.
        models: number of models.
        identity: what the features belong to, as JSON; files of another identity are overwritten.
    """

    def __init__(self, folder: Path, name: str, models: int, identity: object) -> None:
        self.folder = folder
        self.name = name
        self.models = models
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
        """Add rows of videos, and for each model the features (B, K, D) of rows without error."""
        if self.files is None:
            self.files = self._open(distributed.rank())
        *stores, table = self.files
        # Features first: rows without features would count as finished videos.
        for store, model_features in zip(stores, features, strict=True):
            store.write(np.ascontiguousarray(model_features, np.float32).tobytes())
            store.flush()
        table.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        table.flush()

    def load(self) -> list[Features]:
        """Wait for all ranks, then return the features of each model in the order of records."""
        return self.load_with_rows()[0]

    def load_with_rows(self) -> tuple[list[Features], list[Row]]:
        """Return what `load` returns, and the rows as they were appended, in the same order."""
        distributed.patient_barrier()
        rows: dict[int, Row] = {}
        places: dict[int, tuple[int, int]] = {}  # index of a record -> (part, place in its stores)
        parts = self._parts()
        for number, part in enumerate(parts):
            for row, place in zip(part.rows(), part.places, strict=True):
                # Two ranks may have the same video, if the number of ranks has changed.
                if row["index"] not in rows:
                    rows[row["index"]] = row
                    places[row["index"]] = number, place
        order = sorted(rows)
        good = [places[index] for index in order if rows[index]["error"] is None]
        in_order = [rows[index] for index in order]
        features = [
            Features.of_rows(in_order, _gathered([p.stores[m] for p in parts], good))
            for m in range(self.models)
        ]
        return features, in_order

    def close(self) -> None:
        """Close the files of this rank."""
        for file in self.files or ():
            file.close()
        self.files = None

    def _parts(self) -> list["_Part"]:
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

    def _read(self, table: Path) -> "_Part | None":
        """Read the files that belong to a table of rows."""
        stem = str(table).removesuffix("rows.jsonl")
        return _Part.read(table, [Path(f"{stem}{m}.f32") for m in range(self.models)], self.header)

    def _open(self, rank: int) -> list[BinaryIO]:
        """Open the files of a rank, and cut off everything that is incomplete."""
        table = self._path(rank, "rows.jsonl")
        part = self._read(table) if table.is_file() else None
        paths = [self._path(rank, f"{m}.f32") for m in range(self.models)] + [table]
        sizes = [0] * len(paths) if part is None else [*part.sizes, part.table_size]
        files: list[BinaryIO] = []
        for path, size in zip(paths, sizes, strict=True):
            files.append(open(path, "r+b" if size else "wb"))  # noqa: SIM115  (closed by close)
            files[-1].truncate(size)
            files[-1].seek(size)
        if part is None:
            files[-1].write((json.dumps(self.header) + "\n").encode())
        return files


@dataclass
class _Part:
    """Hold the complete content of the files of one rank.

    Attributes:
        table: path of the rows.
        stores: features (n, K, D) of each model.
        indices: record of each row.
        places: for each row the position of its features in the stores; -1 for a row with an error.
        sizes: bytes of each store that have rows.
        table_size: bytes of the complete rows.
    """

    table: Path
    stores: list[np.ndarray]
    indices: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    table_size: int = 0

    @classmethod
    def read(cls, table: Path, stores: Sequence[Path], header: object) -> "_Part | None":
        """Read the files of a rank.

        Args:
            table: path of the rows.
            stores: paths of the features of each model.
            header: the header that the table must have.

        Returns:
            The content, or None if the table has another header.
        """
        part = cls(table, [])
        lines = _whole_lines(table)
        first = next(lines, None)
        if first is None or first[1] != header:
            return None
        part.table_size = first[0]

        # Rows are valid up to the first one whose features are not completely on disk.
        shape: tuple[int, ...] | None = None  # K, then D of each model
        good = 0
        sizes = [path.stat().st_size if path.is_file() else 0 for path in stores]
        for end, row in lines:
            if row["error"] is None:
                shape = (len(row["start"]), *row["dims"])
                needed = [(good + 1) * 4 * shape[0] * dim for dim in shape[1:]]
                if any(size < need for size, need in zip(sizes, needed, strict=True)):
                    break
                good += 1
            part.indices.append(row["index"])
            part.places.append(good - 1 if row["error"] is None else -1)
            part.table_size = end

        # Map the features instead of reading them: they may not fit into memory.
        for path, dim in zip(stores, shape[1:] if shape else [0] * len(stores), strict=True):
            whole = (good, shape[0] if shape else 0, dim)
            store = (
                np.memmap(path, np.float32, "r", shape=whole)
                if good
                else np.empty(whole, np.float32)
            )
            part.stores.append(store)
            part.sizes.append(store.nbytes)
        return part

    def rows(self) -> Iterable[Row]:
        """Read the rows again, because they are not held while features are computed."""
        lines = _whole_lines(self.table)
        next(lines)  # the header
        for _, (_, row) in zip(self.indices, lines, strict=False):
            yield row


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


def _gathered(stores: Sequence[np.ndarray], places: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the features at (store, place), in the order of places."""
    if not places:
        return np.empty((0, 0, 0), np.float32)
    features = np.empty((len(places), *stores[places[0][0]].shape[1:]), np.float32)
    for row, (store, place) in enumerate(places):
        features[row] = stores[store][place]
    return features


def rows_of(batch: Batch, dims: Sequence[int]) -> list[Row]:
    """Return the rows of a batch's videos: first those that decoded, then the failures.

    Rows contain numbers instead of tensors, because the tensors of a batch are in shared memory.

    Args:
        batch: videos that decoded, and those that did not.
        dims: the number of features D of each model.
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

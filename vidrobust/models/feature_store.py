"""Write features to disk as they are computed, and resume.

    <folder>/<name>.rows.jsonl   header, then a row per video: index, uid, label, start, fps, error
    <folder>/<name>.<m>.f32      model m: K x D float32 per video that decoded, in the rows' order

Both only ever grow at their ends: features first, then their rows. A kill leaves a tail without
rows, or half a row, which the next run cuts off. Each rank has files of its own, `<name>.rank1...`.
N videos, K clips of each, D feature.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vidrobust.data import Failure
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

Row = dict[str, Any]


@dataclass
class Features:
    """What `extract` found: features (N, K, D) of the N videos that decoded, in the order of the
    records.

    labels, index (N,), start (N, K) first source frame, fps (N,), uids; `failed` are the videos
    that did not. repeats: how many are shorter than a clip, and show a frame twice; resized: how
    many had frames of several sizes.
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

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> "Features":
        """From what `dataclasses.asdict` made of it."""
        return cls(**(kept | {"failed": [Failure(**failure) for failure in kept["failed"]]}))

    @classmethod
    def of_rows(cls, rows: Sequence[Row], features: np.ndarray) -> "Features":
        """From rows of videos, and the features (N, K, D) of those without an error.

        Raises:
            UserError: there is none.
        """
        good = [row for row in rows if row["error"] is None]
        failed = [
            Failure(row["index"], row["uid"], row["label"], row["error"])
            for row in rows
            if row["error"]
        ]
        if not good:
            reason = failed[0].reason if failed else "the list is empty"
            raise UserError(f"no video of the list decodes ({reason})")
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
        )


class MemoryStore:
    """Rows and features that are kept in memory: of few videos, or of features that nobody waits
    for.
    """

    def __init__(self, models: int) -> None:
        self.rows: list[Row] = []
        self.parts: list[list[np.ndarray]] = [[] for _ in range(models)]

    def done(self) -> set[int]:
        """Return the records that need not be extracted any more."""
        return set()

    def append(self, rows: Sequence[Row], features: Sequence[np.ndarray]) -> None:
        """Add rows of videos, and of each model the features (B, K, D) of those without an
        error.
        """
        self.rows += rows
        for part, found in zip(self.parts, features, strict=True):
            part.append(found)

    def load(self) -> list[Features]:
        """Return the features of each model, in the order of the records."""
        whole = [
            np.concatenate(part) if part else np.empty((0, 0, 0), np.float32) for part in self.parts
        ]
        return [Features.of_rows(self.rows, features) for features in whole]

    def close(self) -> None:
        pass


class DiskStore:
    """Rows and features on disk, of all ranks together.

    Args:
        folder: where the files lie.
        name: what they are called, such as the split.
        models: how many models there are.
        identity: what they are features of; files of another one are written anew.
    """

    def __init__(self, folder: Path, name: str, models: int, identity: object) -> None:
        self.folder = folder
        self.name = name
        self.models = models
        self.header = json.loads(json.dumps({"identity": identity, "models": models}))
        folder.mkdir(parents=True, exist_ok=True)
        self.kept = {index for part in self._parts() for index in part.indices}
        distributed.patient_barrier()  # every rank has read what the others go on writing
        self.files: list[BinaryIO] | None = None

    def done(self) -> set[int]:
        """Return the records that need not be extracted any more."""
        return self.kept

    def append(self, rows: Sequence[Row], features: Sequence[np.ndarray]) -> None:
        """Add rows of videos, and of each model the features (B, K, D) of those without an
        error.
        """
        if self.files is None:
            self.files = self._open(distributed.rank())
        *stores, table = self.files
        for store, found in zip(stores, features, strict=True):
            store.write(np.ascontiguousarray(found, np.float32).tobytes())
            store.flush()
        table.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        table.flush()

    def load(self) -> list[Features]:
        """Return the features of each model, in the order of the records, once all ranks are
        done.
        """
        distributed.patient_barrier()
        rows: dict[int, Row] = {}
        places: dict[int, tuple[int, int]] = {}
        parts = self._parts()
        for number, part in enumerate(parts):
            for row, place in zip(part.rows(), part.places, strict=True):
                if row["index"] not in rows:
                    rows[row["index"]] = row
                    places[row["index"]] = number, place
        order = sorted(rows)
        good = [places[index] for index in order if rows[index]["error"] is None]
        return [
            Features.of_rows(
                [rows[index] for index in order], _gathered([p.stores[m] for p in parts], good)
            )
            for m in range(self.models)
        ]

    def close(self) -> None:
        """Close the files of this rank."""
        for file in self.files or ():
            file.close()
        self.files = None

    def _parts(self) -> list["_Part"]:
        """The files of every rank that has some, but for those of another identity."""
        tables = [
            self._path(0, "rows.jsonl"),
            *sorted(self.folder.glob(f"{self.name}.rank*.rows.jsonl")),
        ]
        found = (self._read(table) for table in tables if table.is_file())
        return [part for part in found if part is not None]

    def _path(self, rank: int, tail: str) -> Path:
        return self.folder / f"{self.name}{f'.rank{rank}' if rank else ''}.{tail}"

    def _read(self, table: Path) -> "_Part | None":
        stem = str(table).removesuffix("rows.jsonl")
        return _Part.read(table, [Path(f"{stem}{m}.f32") for m in range(self.models)], self.header)

    def _open(self, rank: int) -> list[BinaryIO]:
        """Open the files of a rank at the ends of what is whole in them."""
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
    """The files of one rank, as far as they are whole.

    places: of each row the number of its features, -1 for a row with an error. sizes: bytes of the
    stores that have rows; table_size: bytes of the whole rows.
    """

    table: Path
    stores: list[np.ndarray]
    indices: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    table_size: int = 0

    @classmethod
    def read(cls, table: Path, stores: Sequence[Path], header: object) -> "_Part | None":
        """Read the files of a rank; None where they are of another identity."""
        part = cls(table, [])
        found = _whole_lines(table)
        first = next(found, None)
        if first is None or first[1] != header:
            return None
        part.table_size = first[0]
        shape: tuple[int, ...] | None = None
        good = 0
        sizes = [path.stat().st_size if path.is_file() else 0 for path in stores]
        for end, row in found:
            if row["error"] is None:
                shape = (len(row["start"]), *row["dims"])
                needed = [(good + 1) * 4 * shape[0] * dim for dim in shape[1:]]
                if any(size < need for size, need in zip(sizes, needed, strict=True)):
                    break  # its features were lost
                good += 1
            part.indices.append(row["index"])
            part.places.append(good - 1 if row["error"] is None else -1)
            part.table_size = end
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
        """Read the rows again: they are not held while features are computed."""
        lines = _whole_lines(self.table)
        next(lines)
        for _, (_, row) in zip(self.indices, lines, strict=False):
            yield row


def _whole_lines(path: Path) -> Any:
    """Yield (offset of its end, object) of each line, up to the first that a kill has cut."""
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
    """Return the features at (store, place), in that order."""
    if not places:
        return np.empty((0, 0, 0), np.float32)
    found = np.empty((len(places), *stores[places[0][0]].shape[1:]), np.float32)
    for row, (store, place) in enumerate(places):
        found[row] = stores[store][place]
    return found


def rows_of(batch: Any, dims: Sequence[int]) -> list[Row]:
    """Return rows of a batch's videos, with numbers in place of tensors: those lie in shared
    memory.

    Args:
        batch: a `Batch`.
        dims: the widths D of the models' features.
    """
    repeats = set(batch.repeats)
    resized = set(batch.resized)
    good = [
        {
            "index": index,
            "uid": uid,
            "label": label,
            "start": start,
            "fps": fps,
            "dims": list(dims),
            "repeats": index in repeats,
            "resized": index in resized,
            "error": None,
        }
        for index, uid, label, start, fps in zip(
            batch.index.tolist(),
            batch.uids,
            batch.labels.tolist(),
            batch.start.tolist(),
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

"""Write files of features, .npz or memory-mapped .npy with a table, in bounded memory."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from vidrobust.models.feature_store import to_half
from vidrobust.models.stored_features import Counts, StoredFeatures
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

FORMATS = ("auto", "npz", "npy")
LARGE_BYTES = 2**30  # features of more bytes become .npy, if the format is auto
_ROWS = 4096  # videos whose rows of the table are held at once


@dataclass(frozen=True)
class FeatureFile:
    """Name the files of one output of one model.

    Attributes:
        path: the .npz file, or the .npy file if the format is npy.
        format: npz, npy, or auto: which of them depends on the size.
    """

    path: Path
    format: str

    @property
    def stem(self) -> str:
        """Name of the file without .npz or .npy."""
        return stem_of(self.path)

    @property
    def npy(self) -> Path:
        """File of the features alone."""
        return self.path.with_name(f"{self.stem}.npy")

    @property
    def table(self) -> Path:
        """File of what each row of the .npy file is."""
        return self.path.with_name(f"{self.stem}.table.npy")

    @property
    def json(self) -> Path:
        """File of what the .npy file was computed from."""
        return self.path.with_name(f"{self.stem}.json")

    def require_unused(self, meta: dict[str, Any]) -> None:
        """Raise UserError if a file that may be written holds other features.

        Args:
            meta: what the new features are computed from.
        """
        other = None
        if self.format != "npy" and self.path.is_file() and _read_npz_meta(self.path) != meta:
            other = self.path
        if self.format != "npz":
            there = [path for path in (self.npy, self.table, self.json) if path.is_file()]
            if there and _read_json_meta(self.json) != meta:
                other = there[0]
        if other is not None:
            raise UserError(f"{other} holds other features; set --output FILE, or --overwrite")


def stem_of(path: Path) -> str:
    """Return the name of a file without .npz or .npy."""
    return path.stem if path.suffix in (".npz", ".npy") else path.name


@dataclass(frozen=True)
class FeatureRows:
    """Give the rows of one output as they stand in files: of clips, or of videos.

    Attributes:
        stored: the features of all outputs.
        output: which one.
        counts: what is counted over all videos.
        per_video: whether rows are videos, with the mean over their clips.
        half: whether numbers are float16.
    """

    stored: StoredFeatures
    output: int
    counts: Counts
    per_video: bool
    half: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features: (rows, D), or (rows, tokens, D)."""
        each = 1 if self.per_video else self.stored.clips
        return (self.stored.videos * each, *self.stored.shape(self.output))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the features."""
        return np.dtype(np.float16 if self.half else np.float32)

    @property
    def bytes(self) -> int:
        """Size of the features."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def features(self) -> Iterator[np.ndarray]:
        """Yield the features in chunks of rows."""
        uids = (row["uid"] for row in self.stored.rows() if row["error"] is None)
        for chunk in self.stored.features(self.output):
            if not self.per_video:
                yield chunk.reshape(-1, *chunk.shape[2:])
                continue
            mean = torch.from_numpy(chunk).mean(1).numpy()
            names = [next(uids) for _ in mean] if self.half else []
            yield to_half(mean, names) if self.half else mean

    def table_type(self) -> np.dtype[Any]:
        """Return the type of a row of the table."""
        return np.dtype(
            [
                ("uid", f"<U{max(1, self.counts.uid_length)}"),
                ("label", "<i8"),
                ("clip", "<i8"),
                ("start_frame", "<i8"),
                ("start_s", "<f4"),
                ("end_s", "<f4"),
                ("fps", "<f4"),
            ]
        )

    def table(self) -> Iterator[np.ndarray]:
        """Yield the table in chunks of rows; seconds are NaN where the frame rate is unknown."""
        videos: list[dict[str, Any]] = []
        for row in self.stored.rows():
            if row["error"] is None:
                videos.append(row)
            if len(videos) == _ROWS:
                yield self._table(videos)
                videos = []
        if videos:
            yield self._table(videos)

    def _table(self, videos: list[dict[str, Any]]) -> np.ndarray:
        """Return the part of the table that belongs to some videos."""
        starts = np.array([row["start"] for row in videos], np.int64)
        # files of earlier versions have no ends
        ends = np.array([row.get("end", row["start"]) for row in videos], np.int64)
        if self.per_video:
            starts, ends = starts[:, :1], ends.max(1, keepdims=True)
        each = starts.shape[1]
        table = np.empty(len(videos) * each, self.table_type())
        fps = np.array([row["fps"] for row in videos], np.float32).repeat(each)
        known = np.where(fps > 0, fps, np.float32(np.nan))
        table["uid"] = np.array([row["uid"] for row in videos]).repeat(each)
        table["label"] = np.array([row["label"] for row in videos], np.int64).repeat(each)
        table["clip"] = -1 if self.per_video else np.tile(np.arange(each), len(videos))
        table["start_frame"] = starts.ravel()
        # frames as float32 first: the seconds of files of earlier versions
        table["start_s"] = starts.ravel().astype(np.float32) / known
        table["end_s"] = ends.ravel().astype(np.float32) / known
        table["fps"] = fps
        return table


def write_feature_file(
    file: FeatureFile, rows: FeatureRows, meta: dict[str, Any], folder: Path
) -> Path:
    """Write the features of one output, whole or not at all.

    Args:
        file: where.
        rows: the features.
        meta: what they are computed from.
        folder: for a temporary file.

    Returns:
        The file that holds the features.
    """
    failed = [{"uid": failure.uid, "reason": failure.reason} for failure in rows.counts.failed]
    text = json.dumps(meta | {"failed": failed})
    large = file.format == "npy" or (file.format == "auto" and rows.bytes > LARGE_BYTES)
    written, other = (file.npy, file.path) if large else (file.path, file.npy)
    if large:
        _write_npy(file, rows, text)
    else:
        with replacing(file.path) as out:
            _write_npz(out, rows, text, folder)
    if file.format == "auto" and other.is_file():
        log.warning(f"{other} is left from another extraction; these features are in {written}")
    return written


def _write_npy(file: FeatureFile, rows: FeatureRows, text: str) -> None:
    """Write the .npy file, its table and its .json file.

    The .npy file appears last, when the other two are complete, and never beside those of others.
    """
    # the stack is closed from the last to the first
    with ExitStack() as stack:
        features, table, meta = (
            stack.enter_context(replacing(path)) for path in (file.npy, file.table, file.json)
        )
        _write_array(features, rows.dtype, rows.shape, rows.features())
        _write_array(table, rows.table_type(), rows.shape[:1], rows.table())
        meta.write(text.encode())
        file.npy.unlink(missing_ok=True)


def _write_npz(out: BinaryIO, rows: FeatureRows, text: str, folder: Path) -> None:
    """Write the .npz file with the bytes of `np.savez`, but in chunks.

    Args:
        out: the file.
        rows: the features.
        text: the meta entry.
        folder: for a temporary table, from which the columns are copied one by one.
    """
    path = folder / "table"
    with open(path, "wb") as table:
        for chunk in rows.table():
            table.write(chunk.tobytes())
    columns = {
        "labels": "label",
        "uids": "uid",
        "clip_index": "clip",
        "start_frame": "start_frame",
        "fps": "fps",
        "start_s": "start_s",
        "end_s": "end_s",
    }
    kind = rows.table_type()
    count = rows.shape[:1]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with _member(archive, "features") as member:
            _write_array(member, rows.dtype, rows.shape, rows.features())
        for name, column in columns.items():
            with _member(archive, name) as member:
                values = (chunk[column] for chunk in _chunks(path, kind))
                _write_array(member, kind[column], count, values)
        with _member(archive, "meta") as member:
            npy.write_array(member, np.array(text), allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an array of an .npz file for writing, as `np.savez` does."""
    return archive.open(f"{name}.npy", "w", force_zip64=True)


def _chunks(path: Path, kind: np.dtype[Any]) -> Iterator[np.ndarray]:
    """Yield the rows of a temporary table in chunks."""
    with open(path, "rb") as file:
        while len(chunk := np.fromfile(file, kind, _ROWS)):
            yield chunk


def _write_array(
    file: Any, dtype: np.dtype[Any], shape: tuple[int, ...], chunks: Iterator[np.ndarray]
) -> None:
    """Write an array in the format of .npy.

    Args:
        file: where.
        dtype: of the array.
        shape: of the array.
        chunks: its rows in order.
    """
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    for chunk in chunks:
        file.write(np.ascontiguousarray(chunk, dtype).tobytes())


def _read_npz_meta(path: Path) -> object:
    """Return the `meta` of an .npz file, without the videos that failed; None for other files."""
    try:
        with np.load(path) as saved:
            return _without_failed(str(saved["meta"]))
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
    ):
        return None


def _read_json_meta(path: Path) -> object:
    """Return what a .json file says, without the videos that failed; None for other files."""
    try:
        return _without_failed(path.read_text())
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _without_failed(text: str) -> object:
    meta = json.loads(text)
    meta.pop("failed", None)
    return meta

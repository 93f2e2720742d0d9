"""Probe every file once and write a manifest.

A manifest is a text file. Its first line is {"format": 1, "sha": ...}, with the hash of the rest.
Then follows one line per file:

    {"path": "a/v.avi", "frames": 120, "fps": 25.0, "width": 320, "height": 240, "rotation": 0,
     "backend": "pyav", "reason": "", "seekable": true, "verified": [], "streams": 1,
     "bytes": 81234, "mtime_ns": ...}

- path: relative to the root of the data set if the file is in it, otherwise absolute.
- frames: number of frames that decode from the first frame on; 0 is a bad file.
- reason: why a file is bad, or what is wrong with a file that is used as far as it decodes.
- seekable: whether the times in the file identify its frames; otherwise, frames are counted from
  the first one.
- verified: decoders other than PyAV that show the same frames.
- streams: number of videos in the file; the one that a player shows is read.

Rows of videos also have `mirrored`: whether frames are mirrored in addition to the rotation. Some
rows have `compared`, the decoders that were compared with PyAV; `series`, the names of images that
were read as the video; or `retry`, which makes the next scan read the file again.
"""

import dataclasses
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from vidrobust.data.decoding.agreement import disagreement
from vidrobust.data.decoding.images import (
    IMAGE_SUFFIXES,
    TORCHVISION,
    frame_files,
    missing_numbers,
    pages,
)
from vidrobust.data.decoding.pyav import (
    TRUNCATED,
    DecodeError,
    PyAV,
    declared_frames,
    decoded,
    one_line,
    open_container,
    orientation,
    video_stream,
    video_streams,
)
from vidrobust.data.decoding.read_frames import BACKENDS, CHECKED, open_video
from vidrobust.data.isolation import NO_ANSWER, ChildDied, in_children
from vidrobust.data.places import file_size, is_folder, place_below, stamp
from vidrobust.data.records import Record
from vidrobust.data.tar_index import ArchiveError
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError

log = logging.getLogger("vidrobust")
Row = dict[str, Any]
_WRITE_EVERY_S = 30.0  # a killed scan loses at most this much work
_HEAD = b'{"format": '  # how every manifest begins
_STAMP = ("bytes", "mtime_ns")  # the keys of a row that hold the state of its file


@dataclasses.dataclass(frozen=True)
class Probe:
    """A function that probes one path, with its settings; it is called in a child process.

    Attributes:
        backend: decoder other than PyAV that runs will use, and whose frames are compared with
            those of PyAV; "" for none.
        series: for folders of frames, the names that are the video, as in `frame_files`.
        counts: for folders of frames, how many images a list promises, by path.
    """

    backend: str = ""
    series: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str) -> Row:
        """Return the row of a file, with the size and time that it had before it was read.

        A file that is being written meanwhile is therefore read again by the next scan.
        """
        before = dict(zip(_STAMP, stamp(path), strict=True))
        row = probe(path, backend=self.backend, series=self.series, count=self.counts.get(path, 0))
        return row | before | ({"series": self.series} if self.series else {})


def scan(
    paths: Iterable[str],
    root: Path,
    manifest: Path,
    *,
    workers: int = 2,
    timeout_s: float = 60,
    backend: str = "",
    series: str = "",
    counts: Mapping[str, int] | None = None,
) -> list[Row]:
    """Probe files, and write a manifest and a list of the files that are bad.

    The list is `<manifest>.bad.txt`; it also names files that are read only in part.

    Files of an earlier manifest whose size and time have not changed are not read again, except
    those that timed out. Each probe runs in a child process, which is killed after timeout_s; its
    file is then bad. An interrupted scan writes what it has; the next one goes on from there.

    Args:
        paths: the files, or folders of frames.
        root: root of the data set.
        manifest: the file to write.
        workers: number of files probed at a time.
        timeout_s: seconds that probing a file may take.
        backend: see `Probe`, and also for series and counts.

    Returns:
        The rows of the files, sorted by path.

    Raises:
        UserError: there is nothing to scan, or the manifest cannot be written.
    """
    settings = Probe(backend if backend in CHECKED else "", series, counts or {})
    path_of = {
        _key(path, root): path for path in sorted(set(paths)) if not path.startswith(TORCHVISION)
    }
    if not path_of:
        raise UserError("nothing to scan: torchvision's data sets are arrays in memory")
    # Keep the rows of an earlier manifest that still describe their files.
    rows = {
        key: row
        for key, row in _earlier(manifest).items()
        if key in path_of and stamp(path_of[key]) == _stamp_of(row) and _still_true(row, settings)
    }
    _write(manifest, rows)  # a manifest that cannot be written is reported now, not after hours
    _probe_missing(path_of, rows, settings, manifest, workers, timeout_s)
    return [rows[key] for key in path_of]


def _probe_missing(
    path_of: Mapping[str, str],
    rows: dict[str, Row],
    settings: Probe,
    manifest: Path,
    workers: int,
    timeout_s: float,
) -> None:
    """Probe the files that have no row yet, and write the manifest from time to time.

    Args:
        path_of: key of a row -> path of its file.
        rows: the rows by key, to which new ones are added.
        settings: what to probe.
        manifest: the file to write.
        workers: number of files probed at a time.
        timeout_s: seconds that probing a file may take.
    """
    key_of = {path: key for key, path in path_of.items() if key not in rows}
    tqdm.monitor_interval = 0  # tqdm must start no thread, because children are forked
    written = time.monotonic()
    bar = tqdm(
        total=len(path_of),
        initial=len(rows),
        desc="scan",
        unit="file",
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    try:
        for path, answer in in_children(settings, list(key_of), workers, timeout_s):
            # The child ran out of time or memory: the next scan tries the file again.
            if isinstance(answer, ChildDied):
                state = dict(zip(_STAMP, stamp(path), strict=True))
                answer = _bad(str(answer)) | state | {"retry": True}
            rows[key_of[path]] = {"path": key_of[path], **answer}
            bar.update()
            if time.monotonic() - written > _WRITE_EVERY_S:
                _write(manifest, rows)
                written = time.monotonic()
    finally:
        _write(manifest, rows)
        bar.close()


def notes(rows: Iterable[Row], backend: str = "") -> list[str]:
    """Return lines about files that are read in an unusual way, each with the number of such files.

    Args:
        rows: the rows of a scan.
        backend: the decoder that runs will use.
    """
    videos = [row for row in rows if row["backend"] == "pyav" and row["frames"]]
    several = [row["path"] for row in videos if row.get("streams", 1) > 1]
    counted = [row["path"] for row in videos if not row.get("seekable", True)]
    refused = []
    if backend in CHECKED:
        refused = [row["path"] for row in videos if backend not in row.get("verified", ())]
    findings = (
        (several, "hold several videos; the one that a player shows is read"),
        (
            counted,
            "have times that do not say which frame is which; frames are counted from the first:"
            " slower",
        ),
        (refused, f"are refused with data.backend={backend}, which shows other frames than PyAV"),
    )
    return [
        f"{len(paths)} of {len(videos)} videos {text}; first: {paths[0]}"
        for paths, text in findings
        if paths
    ]


def _still_true(row: Row, settings: Probe) -> bool:
    """Return whether a row of an unchanged file answers everything that this scan asks.

    Args:
        row: a row of an earlier manifest.
        settings: what this scan probes.
    """
    if row.get("retry") or row["reason"].startswith(NO_ANSWER):
        return False
    if row.get("series", "") != settings.series:
        return False
    if row["backend"] != "pyav":  # not a video
        return True
    if "seekable" not in row:  # a manifest of an earlier version
        return False
    return not settings.backend or settings.backend in row.get("compared", [])


def probe(path: str, *, backend: str = "", series: str = "", count: int = 0) -> Row:
    """Decode a whole file and return its row. It may hang or crash, so `scan` calls it in a child.

    Args:
        path: a video, an image or a folder of frames.
        backend: see `Probe`, and also for series.
        count: how many images a list promises; 0 for none.
    """
    try:
        if is_folder(path) or Path(path).suffix.lower() in IMAGE_SUFFIXES:
            return _probe_images(path, series, count)
        row = _probe_video(path)
        if backend and row["frames"]:
            same = not disagreement(backend, BACKENDS[backend], path)
            row |= {"compared": [backend], "verified": [backend] if same else []}
        return row
    except Exception as error:
        if isinstance(error, DecodeError):
            return _bad(str(error).removeprefix(f"{path}: "))
        return _bad(one_line(error))


def _probe_video(path: str) -> Row:
    """Decode every frame with PyAV, up to the first one that does not decode."""
    # A file that is not a video is refused here, with the same message as in a run.
    with open_video(path, frames=1) as video:
        assert isinstance(video, PyAV)
        hidden = video.hidden_packets + video.repeated
        timeline = video.timeline
    count = 0
    corrupt = 0
    odd = 0  # frames with another size or orientation than the first one
    first = None
    reasons = []
    times: list[int | None] = []
    with open_container(path) as container:
        stream = video_stream(container)
        fps = float(stream.average_rate or 0)
        declared = declared_frames(container)
        streams = len(video_streams(container))
        try:
            for frame in decoded(container, stream):
                size = frame.width, frame.height, orientation(frame)
                first = first or size
                count += 1
                corrupt += bool(frame.is_corrupt)
                odd += size != first
                times.append(frame.pts)
        except av.error.FFmpegError as error:
            reasons.append(f"decodes up to frame {count} of {declared or '?'} ({error.strerror})")
    if first is None:
        return _bad("; ".join(reasons) or "no frame decodes")
    if not reasons and count < TRUNCATED * (declared - hidden):
        reasons.append(
            f"its header declares {declared} frames, {count} decode: cut short, or frames are lost"
            " inside"
        )
    if odd:
        reasons.append(f"{odd} of {count} frames have another size, and are resized")
    if corrupt:
        reasons.append(f"{corrupt} of {count} frames are damaged")
    width, height, upright = first
    row = _row(count, fps, width, height, upright.degrees, "pyav", "; ".join(reasons))
    # The frames that decode must have the times that the container lists, in the same order.
    seekable = timeline is not None and timeline[0][:count] == times
    return row | {
        "mirrored": upright.mirrored,
        "seekable": seekable,
        "verified": [],
        "streams": streams,
    }


def _probe_images(path: str, series: str, count: int) -> Row:
    """Read every image of a folder, or one image, up to the first one that does not decode.

    Args:
        path: an image or a folder.
        series: see `Probe`.
        count: how many images a list promises; 0 for none.
    """
    files = frame_files(Path(path), series, count) if is_folder(path) else [Path(path)]
    shape = None
    odd = 0  # images with another size than the first one
    reason = ""
    num_read = 0
    for file in files:
        try:
            size = _size_of_image(str(file))
        except DecodeError as error:
            reason = str(error).removeprefix(f"{path}/").removeprefix(f"{path}: ")
            break
        shape = shape or size
        odd += size != shape
        num_read += 1
    if shape is None:
        return _bad(reason or "the folder holds no image")
    num_pages = pages(str(files[0]))
    reasons = [
        reason,
        f"{odd} of {num_read} frames have another size, and are resized" if odd else "",
        missing_numbers(files),
        f"the first of {num_pages} pictures is read" if num_pages > 1 else "",
    ]
    return _row(num_read, 0.0, shape[1], shape[0], 0, "auto", "; ".join(filter(None, reasons)))


def _size_of_image(path: str) -> tuple[int, int]:
    """Return the (height, width) of an image; raise DecodeError if it does not decode."""
    with open_video(path) as video:
        height, width = next(iter(video.frames(np.array([0])))).shape[:2]
        return height, width


def _row(
    frames: int, fps: float, width: int, height: int, rotation: int, backend: str, reason: str
) -> Row:
    """Return the row of a file, without its path, size and time.

    Args:
        frames: number of frames that decode.
        fps: frames per second.
        width: width of the frames, pixels.
        height: height of the frames, pixels.
        rotation: rotation that the file asks for, degrees counter-clockwise.
        backend: decoder of the file.
        reason: what is wrong with it; empty for nothing.
    """
    return {
        "frames": frames,
        "fps": round(fps, 3),
        "width": width,
        "height": height,
        "rotation": rotation,
        "backend": backend,
        "reason": reason,
    }


def _bad(reason: str) -> Row:
    """Return the row of a file that does not decode."""
    return _row(0, 0.0, 0, 0, 0, "", reason)


def read_manifest(path: Path) -> tuple[dict[str, Row], str]:
    """Return the rows of a manifest by path, and its hash.

    Raises UserError for a file that is not a manifest, or whose rows do not match its hash.
    """
    if not path.is_file():
        raise UserError(
            f"no manifest {path}; python datasets/prepare.py scan makes one, or set"
            " data.manifest= to run without"
        )
    try:
        head, *lines = path.read_text().splitlines()
        header = json.loads(head)
        sha = header["sha"]
        version = header["format"]
        rows = {row["path"]: row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path} is not a manifest; python datasets/prepare.py scan makes one"
        ) from None
    if version != 1 or sha != _sha(rows):
        raise UserError(
            f"{path} was changed or cut after its scan (its hash does not match); scan again"
        )
    return rows, sha


def apply_manifest(records: list[Record], manifest: Path, root: Path) -> list[Record]:
    """Return records with what a manifest says about their files.

    Args:
        records: the records.
        manifest: path of the manifest.
        root: root of the data set.

    Raises:
        UserError: a file is not in the manifest, or has another size than in it.
    """
    rows, _ = read_manifest(manifest)
    updated = []
    for record in records:
        if record.path.startswith(TORCHVISION):
            raise UserError(
                f"{manifest}: torchvision's data sets are arrays in memory and have no manifest"
            )
        row = rows.get(_key(record.path, root))
        if row is None:
            raise UserError(
                f"{manifest} does not know {record.uid}; scan again, with the same data.name and"
                " data.root"
            )
        if _resized(record.path, row):
            raise UserError(f"{record.path} has changed since {manifest} was written; scan again")
        # A file is bad if it does not decode, or decodes fewer frames than its list promises.
        if not row["frames"]:
            updated.append(dataclasses.replace(record, bad=row["reason"]))
            continue
        if record.frames > row["frames"]:
            bad = f"{record.frames} frames are listed, {row['frames']} decode"
            updated.append(dataclasses.replace(record, bad=bad))
            continue
        updated.append(
            dataclasses.replace(
                record,
                frames=record.frames or row["frames"],
                backend=row["backend"],
                seekable=row.get("seekable"),
                verified=tuple(row.get("verified", ())),
            )
        )
    return updated


def _earlier(manifest: Path) -> dict[str, Row]:
    """Return the rows of an existing manifest; none if it is missing or damaged.

    Raises UserError for any other file, which would be overwritten.
    """
    if manifest.is_dir():
        raise UserError(f"{manifest} is a folder; name the file to write")
    if not manifest.exists():
        return {}
    with open(manifest, "rb") as file:
        head = file.read(len(_HEAD))
    if head and head != _HEAD:
        raise UserError(
            f"{manifest} exists and is not a manifest: it is not overwritten; name another file"
        )
    try:
        return read_manifest(manifest)[0]
    except UserError as error:
        log.warning(f"{error}: every file is read again")
        return {}


def _write(manifest: Path, rows: dict[str, Row]) -> None:
    """Write a manifest, and its `.bad.txt` with one line per file that has a reason."""
    rows = dict(sorted(rows.items()))
    with replacing(manifest) as file:
        file.write((json.dumps({"format": 1, "sha": _sha(rows)}) + "\n").encode())
        file.write("".join(json.dumps(row) + "\n" for row in rows.values()).encode())
    wrong = [row for row in rows.values() if row["reason"]]
    with replacing(manifest.with_name(manifest.name + ".bad.txt")) as file:
        for row in wrong:
            # A name may contain a tab, or bytes that are not UTF-8.
            name = json.dumps(row["path"], ensure_ascii=False)[1:-1]
            line = f"{name}\t{row['frames']} frames\t{row['reason']}\n"
            file.write(line.encode(errors="surrogateescape"))


def _sha(rows: dict[str, Row]) -> str:
    """Return the hash of rows: of what the files hold, not of when they were written."""
    lines = (
        json.dumps({k: v for k, v in row.items() if k != "mtime_ns"})
        for _, row in sorted(rows.items())
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _key(path: str, root: Path) -> str:
    """Return the path of a file in a manifest: relative to the root if the file is below it."""
    inside = place_below(path, root)
    return os.path.abspath(path) if inside.startswith("..") else Path(inside).as_posix()


def _resized(path: str, row: Row) -> bool:
    """Return whether a file has another size than its row says.

    The files in a folder are not checked.
    """
    try:
        size = file_size(path)
    except ArchiveError:
        return True
    if size < 0 and is_folder(path):
        return False
    return bool(size != row["bytes"] if size >= 0 else row["bytes"] >= 0)


def _stamp_of(row: Row) -> tuple[int, int]:
    """Return the (size in bytes, time in ns) that a row holds."""
    return row["bytes"], row["mtime_ns"]

"""Probe every file once and write a manifest.

A manifest is a text file. Its first line is {"format": 1, "sha": ...}, the hash of what follows;
then a line a file:

    {"path": "a/v.avi", "frames": 120, "fps": 25.0, "width": 320, "height": 240, "rotation": 0,
     "backend": "pyav", "reason": "", "seekable": true, "verified": [], "streams": 1,
     "bytes": 81234, "mtime_ns": ...}

`frames` counts what decodes from the first frame on, 0 is a bad file; `reason` is why it is bad, or
what is wrong with a file that is used as far as it goes. `seekable`: whether the times in the file
say which frame is which; where they do not, frames are counted from the first. `verified`: decoders
that show the same frames as PyAV. `streams`: videos in the file, of which the one is read that a
player shows. Paths are relative to the data set's root where they lie in it.
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
from stat import S_ISDIR
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
from vidrobust.data.records import Record
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError

log = logging.getLogger("vidrobust")
Row = dict[str, Any]
_WRITE_EVERY_S = 30.0
_HEAD = b'{"format": '  # how every manifest begins
_STAMP = ("bytes", "mtime_ns")


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a probe looks for; it is called with a path, in a child process.

    Args:
        backend: a decoder beside PyAV that runs will use, and whose frames are therefore compared
            with PyAV's; "" for none.
        series: of folders of frames, the names that are the video, as `frame_files` takes them.
        counts: of folders of frames, how many images a list promises.
    """

    backend: str = ""
    series: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str) -> Row:
        """Return a row, with the state that the file had before: what is being written is read
        again.
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
    """Probe files, and write a manifest, and `<manifest>.bad.txt` with the files that have a
    reason.

    Files of an earlier manifest that have kept size and time are not read again, but for those that
    timed out. Each probe runs in a child process, which is killed after timeout_s: its file is bad.
    A scan that is interrupted writes what it has, and goes on.

    Args:
        paths: the files, or folders of frames.
        root: of the data set.
        manifest: the file to write.
        workers: files at a time.
        timeout_s: seconds that a file may take.
        backend: as in `Probe`, and series and counts as well.

    Returns:
        The rows of the files, sorted by path.

    Raises:
        UserError: nothing to scan, or a manifest that cannot be written.
    """
    look = Probe(backend if backend in CHECKED else "", series, counts or {})
    found = {
        _key(path, root): path for path in sorted(set(paths)) if not path.startswith(TORCHVISION)
    }
    if not found:
        raise UserError("nothing to scan: torchvision's data sets are arrays in memory")
    rows = {
        key: row
        for key, row in _earlier(manifest).items()
        if key in found and stamp(found[key]) == _stamp_of(row) and _still_true(row, look)
    }
    _write(manifest, rows)  # where it cannot be written is told now
    fresh = [key for key in found if key not in rows]
    tqdm.monitor_interval = 0  # no thread of tqdm's own: children are forked
    written = time.monotonic()
    bar = tqdm(
        total=len(found),
        initial=len(rows),
        desc="scan",
        unit="file",
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    try:
        keys = {found[key]: key for key in fresh}
        for path, answer in in_children(look, [found[key] for key in fresh], workers, timeout_s):
            if isinstance(answer, ChildDied):  # a limit, memory: another scan may fare better
                answer = (
                    _bad(str(answer))
                    | dict(zip(_STAMP, stamp(path), strict=True))
                    | {"retry": True}
                )
            rows[keys[path]] = {"path": keys[path], **answer}
            bar.update()
            if time.monotonic() - written > _WRITE_EVERY_S:
                _write(manifest, rows)
                written = time.monotonic()
    finally:
        _write(manifest, rows)
        bar.close()
    return [rows[key] for key in found]


def notes(rows: Iterable[Row], backend: str = "") -> list[str]:
    """Return lines about files that are read in an unusual way, each with how many there are.

    Args:
        rows: of a scan.
        backend: the decoder that runs will use.
    """
    videos = [row for row in rows if row["backend"] == "pyav" and row["frames"]]
    several = [row["path"] for row in videos if row.get("streams", 1) > 1]
    counted = [row["path"] for row in videos if not row.get("seekable", True)]
    refused = [
        row["path"]
        for row in videos
        if backend in CHECKED and backend not in row.get("verified", ())
    ]
    found = (
        (several, "hold several videos; the one that a player shows is read"),
        (
            counted,
            (
                "have times that do not say which frame is which; frames are counted from the"
                " first: slower"
            ),
        ),
        (refused, f"are refused with data.backend={backend}, which shows other frames than PyAV"),
    )
    return [
        f"{len(paths)} of {len(videos)} videos {what}; first: {paths[0]}"
        for paths, what in found
        if paths
    ]


def _still_true(row: Row, look: Probe) -> bool:
    """Return whether a row answers what is asked now, of a file that has not changed."""
    if (
        row.get("retry")
        or row["reason"].startswith(NO_ANSWER)
        or row.get("series", "") != look.series
    ):
        return False
    video = row["backend"] == "pyav"
    return not video or (
        "seekable" in row and (not look.backend or look.backend in row.get("compared", []))
    )


def probe(path: str, *, backend: str = "", series: str = "", count: int = 0) -> Row:
    """Decode all of a file, and say what is in it. May hang or crash: `scan` calls it in a child.

    Args:
        path: a video, an image or a folder of frames.
        backend: as in `Probe`, and series as well.
        count: how many images a list promises, 0 for none.
    """
    try:
        if Path(path).is_dir() or Path(path).suffix.lower() in IMAGE_SUFFIXES:
            return _probe_images(path, series, count)
        row = _probe_video(path)
        if backend and row["frames"]:
            same = not disagreement(backend, BACKENDS[backend], path)
            row |= {"compared": [backend], "verified": [backend] if same else []}
        return row
    except Exception as error:
        return _bad(
            str(error).removeprefix(f"{path}: ")
            if isinstance(error, DecodeError)
            else one_line(error)
        )


def _probe_video(path: str) -> Row:
    """Decode every frame by PyAV, up to the first that does not decode."""
    with open_video(
        path, frames=1
    ) as video:  # refuses what is no video, in the words that a run uses
        assert isinstance(video, PyAV)
        hidden, timeline = video.hidden_packets + video.repeated, video.timeline
    count, corrupt, odd, first, reasons = 0, 0, 0, None, []
    times: list[int | None] = []
    with open_container(path) as container:
        stream = video_stream(container)
        fps, declared = float(stream.average_rate or 0), declared_frames(container)
        streams = len(video_streams(container))
        try:
            for frame in decoded(container, stream):
                size = frame.width, frame.height, orientation(frame)
                first = first or size
                count, corrupt, odd = (
                    count + 1,
                    corrupt + bool(frame.is_corrupt),
                    odd + (size != first),
                )
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
    width, height, how = first
    row = _row(count, fps, width, height, how.degrees, "pyav", "; ".join(reasons))
    seekable = timeline is not None and timeline[0][:count] == times
    return row | {
        "mirrored": how.mirrored,
        "seekable": seekable,
        "verified": [],
        "streams": streams,
    }


def _probe_images(path: str, series: str, count: int) -> Row:
    files = frame_files(Path(path), series, count) if Path(path).is_dir() else [Path(path)]
    shape, odd, reason = None, 0, ""
    count = 0
    for file in files:
        try:
            frame = _only_frame(str(file))
        except DecodeError as error:
            reason = str(error).removeprefix(f"{path}/").removeprefix(f"{path}: ")
            break
        shape = shape or frame
        odd += frame != shape
        count += 1
    if shape is None:
        return _bad(reason or "the folder holds no image")
    several = pages(str(files[0]))
    told = [
        reason,
        f"{odd} of {count} frames have another size, and are resized" if odd else "",
        missing_numbers(files),
        f"the first of {several} pictures is read" if several > 1 else "",
    ]
    return _row(count, 0.0, shape[1], shape[0], 0, "auto", "; ".join(filter(None, told)))


def _only_frame(path: str) -> tuple[int, int]:
    with open_video(path) as video:
        height, width = next(iter(video.frames(np.array([0])))).shape[:2]
        return height, width


def _row(
    frames: int, fps: float, width: int, height: int, rotation: int, backend: str, reason: str
) -> Row:
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
    return _row(0, 0.0, 0, 0, 0, "", reason)


def read_manifest(path: Path) -> tuple[dict[str, Row], str]:
    """(rows by path, hash). Raises UserError for a file that is no manifest, or whose rows do not
    have its hash.
    """
    if not path.is_file():
        raise UserError(
            f"no manifest {path}; python datasets/prepare.py scan makes one, data.manifest= does"
            " without"
        )
    try:
        head, *lines = path.read_text().splitlines()
        sha, form = json.loads(head)["sha"], json.loads(head)["format"]
        rows = {row["path"]: row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path} is not a manifest; python datasets/prepare.py scan makes one"
        ) from None
    if form != 1 or sha != _sha(rows):
        raise UserError(
            f"{path} was changed or cut after its scan (its hash does not fit); scan again"
        )
    return rows, sha


def apply_manifest(records: list[Record], manifest: Path, root: Path) -> list[Record]:
    """The records with what the manifest knows of their files.

    Raises UserError when one is not in it, or has another size than it had: the manifest is of
    other data.
    """
    rows, _ = read_manifest(manifest)
    known = []
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
        if not row["frames"]:
            known.append(dataclasses.replace(record, bad=row["reason"]))
            continue
        if record.frames > row["frames"]:
            bad = f"{record.frames} frames are listed, {row['frames']} decode"
            known.append(dataclasses.replace(record, bad=bad))
            continue
        known.append(
            dataclasses.replace(
                record,
                frames=record.frames or row["frames"],
                backend=row["backend"],
                seekable=row.get("seekable"),
                verified=tuple(row.get("verified", ())),
            )
        )
    return known


def _earlier(manifest: Path) -> dict[str, Row]:
    """Rows of a manifest that is there; a damaged one has none. Any other file is refused: it would
    be written over.
    """
    if manifest.is_dir():
        raise UserError(f"{manifest} is a folder; name the file to write")
    if not manifest.exists():
        return {}
    with open(manifest, "rb") as file:
        head = file.read(len(_HEAD))
    if head and head != _HEAD:
        raise UserError(
            f"{manifest} is there and is no manifest: it is not written over; name another file"
        )
    try:
        return read_manifest(manifest)[0]
    except UserError as error:
        log.warning(f"{error}: every file is read")
        return {}


def _write(manifest: Path, rows: dict[str, Row]) -> None:
    rows = dict(sorted(rows.items()))
    with replacing(manifest) as file:
        file.write((json.dumps({"format": 1, "sha": _sha(rows)}) + "\n").encode())
        file.write("".join(json.dumps(row) + "\n" for row in rows.values()).encode())
    wrong = [row for row in rows.values() if row["reason"]]
    with replacing(manifest.with_name(manifest.name + ".bad.txt")) as file:
        for row in wrong:
            name = json.dumps(row["path"], ensure_ascii=False)[
                1:-1
            ]  # a name may hold a tab, or be no UTF-8
            file.write(
                f"{name}\t{row['frames']} frames\t{row['reason']}\n".encode(
                    errors="surrogateescape"
                )
            )


def _sha(rows: dict[str, Row]) -> str:
    """Of what the files hold, not of when they were written."""
    lines = (
        json.dumps({k: v for k, v in row.items() if k != "mtime_ns"})
        for _, row in sorted(rows.items())
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _key(path: str, root: Path) -> str:
    inside = os.path.relpath(path, root)
    return os.path.abspath(path) if inside.startswith("..") else Path(inside).as_posix()


def stamp(path: str) -> tuple[int, int]:
    """(bytes, of all its files for a folder; time of the last change), (-1, 0) where nothing is, or
    may be seen.
    """
    try:
        own = os.stat(path)
        if not S_ISDIR(own.st_mode):
            return own.st_size, own.st_mtime_ns
        inner = [entry.stat() for entry in os.scandir(path)]
    except OSError:
        return -1, 0
    return sum(state.st_size for state in inner), max(state.st_mtime_ns for state in (own, *inner))


def _resized(path: str, row: Row) -> bool:
    """Whether a file has another size than its row says, by one call of the system; a folder is not
    looked into.
    """
    try:
        now = os.stat(path)
    except OSError:
        return row["bytes"] >= 0
    return not S_ISDIR(now.st_mode) and now.st_size != row["bytes"]


def _stamp_of(row: Row) -> tuple[int, int]:
    return row["bytes"], row["mtime_ns"]

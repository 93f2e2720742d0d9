"""Read files, and members of tar archives, by path.

A path below an archive, such as `/data/ucf101.tar/videos/a.avi`, names a member. Every function
takes any path. A member is found by the index of its archive (`tar_index.py`). Each read opens the
archive anew, so that processes share no file position, and no descriptor stays open.
"""

import functools
import io
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from vidrobust.data.tar_index import ArchiveError, Member, open_index

_SUFFIX = ".tar"


def split_archive(path: str) -> tuple[str, str] | None:
    """Return (archive, name of the member) of a path below an archive; None for any other path."""
    start = path.find(_SUFFIX + "/")
    while start >= 0:
        archive = path[: start + len(_SUFFIX)]
        if _is_file(archive):
            return archive, path[start + len(_SUFFIX) + 1 :]
        start = path.find(_SUFFIX + "/", start + 1)
    return None


@functools.lru_cache(maxsize=64)
def _is_file(path: str) -> bool:
    """Return whether a path is a file; remembered, because every read of a member asks."""
    return os.path.isfile(path)


def _member(path: str) -> Member | None:
    """Return the member that a path names; None for a path that is not below an archive.

    Raises:
        ArchiveError: the archive has no such member, or has changed.
    """
    parts = split_archive(path)
    if parts is None:
        return None
    try:
        member = open_index(parts[0]).find(parts[1])
    except FileNotFoundError:
        raise ArchiveError("the archive is gone") from None
    if member is None:
        raise ArchiveError("the archive has no such member")
    return member


def is_folder(path: str | Path) -> bool:
    """Return whether a path is a folder."""
    try:
        member = _member(str(path))
    except ArchiveError:
        return False
    return os.path.isdir(path) if member is None else member.is_folder


def exists(path: str | Path) -> bool:
    """Return whether a path exists."""
    try:
        return _member(str(path)) is not None or os.path.exists(path)
    except ArchiveError:
        return False


def file_size(path: str) -> int:
    """Return the number of bytes of a file; -1 if there is no such file."""
    try:
        member = _member(path)
        if member is not None:
            return member.length  # of a folder, -1
        state = os.stat(path)
    except ArchiveError:
        raise
    except (OSError, ValueError):  # ValueError: the path holds a null character
        return -1
    return state.st_size if S_ISREG(state.st_mode) else -1


def children(folder: Path) -> Iterator[Path]:
    """Yield the files and folders of a folder."""
    if _member(str(folder)) is None:
        yield from folder.iterdir()
        return
    archive, name = split_archive(str(folder)) or ("", "")
    for member in open_index(archive).children(name):
        yield folder / posixpath.basename(member.name)


def readable(path: str) -> str | io.BytesIO:
    """Return what a reader of images or arrays opens: a path, or the bytes of a member."""
    member = _member(path)
    if member is None:
        return path
    if member.is_folder:
        raise ArchiveError("it is a folder")
    # Not os.pread, of which one call reads at most 2 GiB.
    with open(member.archive, "rb") as file:
        file.seek(member.offset)
        content = file.read(member.length)
    if len(content) < member.length:
        raise ArchiveError(f"the archive ends within it, after {len(content)} bytes")
    return io.BytesIO(content)


def ffmpeg_url(path: str) -> str:
    """Return what FFmpeg, and decoders built on it, open: a path, or a part of an archive.

    No decoder mistakes the path for a protocol (unlike `a:b.avi`).
    """
    member = _member(path)
    if member is None:
        return path if os.path.isabs(path) else os.path.join(os.curdir, path)
    # "subfile" is a protocol of FFmpeg: the bytes of a file from start to end.
    archive = os.path.abspath(member.archive)
    return f"subfile,,start,{member.offset},end,{member.offset + member.length},,:{archive}"


def stamp(path: str) -> tuple[int, int]:
    """Return (size in bytes, time of the last change in ns); (-1, 0) if the path is not accessible.

    The size of a folder is that of its files, and its time the latest one of its files and itself.
    The time of a member is that of the archive.
    """
    try:
        member = _member(path)
        if member is not None:
            index = open_index(member.archive)
            parts = index.children(member.name) if member.is_folder else [member]
            return sum(max(part.length, 0) for part in parts), index.mtime_ns
        state = os.stat(path)
        if not S_ISDIR(state.st_mode):
            return state.st_size, state.st_mtime_ns
        entries = [entry.stat() for entry in os.scandir(path)]
    except OSError:
        return -1, 0
    return sum(entry.st_size for entry in entries), max(
        entry.st_mtime_ns for entry in (state, *entries)
    )


def place_below(path: str, root: str | Path) -> str:
    """Return the path of a file relative to the root of its data set.

    For a member it is the member's name, as if the archive was unpacked in the root. For a file
    outside the root it begins with `..`.

    Args:
        path: path of the file.
        root: root of the data set.
    """
    parts = split_archive(path)
    return parts[1] if parts else os.path.relpath(os.path.abspath(path), os.path.abspath(root))

"""Index a tar archive, so that its members are read in place.

An index lists the names of an archive, sorted, with the offset and length of each file. It is built
from the headers alone, and kept in `<archive>.index`: a line of JSON, then three arrays of int64
and the names. Processes map it into memory, so that they share it. It names the size and time of
the archive, so that the index of a changed archive is built again.
"""

import bisect
import contextlib
import functools
import itertools
import json
import logging
import mmap
import os
import posixpath
import socket
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

log = logging.getLogger("vidrobust")
_HEAD = b'{"tar_index": 1, '  # how every index begins
_BLOCK = 512  # bytes of a tar header
_FOLDER = -1  # length of a member that is a folder
_MOST_LINKS = 40  # links that may lead from one to the next
_MOST_PADDING = 1 << 20  # bytes after the last member; tar writes 10 KiB unless told otherwise
_AGAIN = "copy it again, or pack the folder with datasets/prepare.py pack"
# First bytes of compressed files.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class ArchiveError(OSError):
    """Report a member that cannot be read; the message says why, without its name."""


@dataclass(frozen=True)
class Member:
    """A file or folder of an archive.

    Attributes:
        archive: path of the archive.
        name: path inside the archive.
        offset: position of its first byte in the archive; 0 for a folder.
        length: number of bytes; -1 for a folder.
    """

    archive: str
    name: str
    offset: int
    length: int

    @property
    def is_folder(self) -> bool:
        """Return whether the member is a folder."""
        return self.length == _FOLDER


class TarIndex:
    """The names in an archive, sorted by their bytes, with their places.

    Args:
        archive: path of the archive.
        header: first line of the index file.
        content: the rest of it.
    """

    def __init__(self, archive: str, header: dict[str, Any], content: memoryview) -> None:
        self.archive = archive
        self.left_out: tuple[int, str] = header["left_out"][0], header["left_out"][1]
        self.mtime_ns: int = header["mtime_ns"]
        self._header = header
        self._content = content
        count = header["members"]
        numbers = np.frombuffer(content, np.int64, 3 * count + 1)
        self._starts = numbers[: count + 1]
        self._offsets = numbers[count + 1 : 2 * count + 1]
        self._lengths = numbers[2 * count + 1 :]
        self._names = content[numbers.nbytes :]

    def is_whole(self) -> bool:
        """Return whether header and content are what was written; this reads all of it."""
        return _crc(self._header, self._content) == self._header.get("crc")

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Member]:
        starts = self._starts.tolist()
        names = (
            os.fsdecode(bytes(self._names[start:end])) for start, end in itertools.pairwise(starts)
        )
        rows = zip(names, self._offsets.tolist(), self._lengths.tolist(), strict=True)
        return (Member(self.archive, *row) for row in rows)

    def find(self, name: str) -> Member | None:
        """Return the member of a name; None if there is none."""
        key = os.fsencode(name)
        place = self._rank(key)
        return self._member(place) if place < len(self) and self._name(place) == key else None

    def children(self, folder: str) -> Iterator[Member]:
        """Yield the files and folders directly inside a folder, sorted.

        Args:
            folder: name of the folder; "" for the whole archive.
        """
        prefix = os.fsencode(folder) + b"/" if folder else b""
        place = self._rank(prefix)
        while place < len(self) and (name := self._name(place)).startswith(prefix):
            if b"/" not in name[len(prefix) :]:
                yield self._member(place)
            place += 1

    def _rank(self, key: bytes) -> int:
        """Return how many names are sorted before a name."""
        return bisect.bisect_left(range(len(self)), key, key=self._name)

    def _name(self, place: int) -> bytes:
        return bytes(self._names[self._starts[place] : self._starts[place + 1]])

    def _member(self, place: int) -> Member:
        name = os.fsdecode(self._name(place))
        return Member(self.archive, name, int(self._offsets[place]), int(self._lengths[place]))


def open_index(archive: str) -> TarIndex:
    """Return the index of an archive that `require_index` has built; it never builds one.

    Raises:
        ArchiveError: there is none, or the archive has changed since.
    """
    return _mapped(archive, *_state(archive))


def require_index(archive: Path) -> TarIndex:
    """Return the index of an archive; build it if there is none, or if the archive has changed.

    An index that cannot be written beside the archive is written into the user's cache folder.

    Args:
        archive: the archive.

    Raises:
        UserError: the file is compressed, cut short or not an archive, or the index cannot be
            written.
    """
    text = os.path.abspath(archive)
    state = _state(text)
    with contextlib.suppress(ArchiveError):
        index = _mapped(text, *state)
        if index.is_whole():
            return index
        _mapped.cache_clear()  # its file is replaced below
    members, left_out = _read_headers(text, state[0])
    refusals = []
    for path in _index_files(text):
        try:
            _write(path, members, left_out, state)
        except OSError as error:
            refusals.append(f"{path} ({error.strerror})")
            continue
        log.info(f"{text}: index of {len(members)} names in {path}")
        return _mapped(text, *state)
    raise UserError(
        f"data.archive={text}: its index can be written neither into {' nor '.join(refusals)};"
        " make one of them writable"
    )


def _state(archive: str) -> tuple[int, int]:
    """Return the size of an archive, and the time of its last change in ns."""
    state = os.stat(archive)
    return state.st_size, state.st_mtime_ns


def _index_files(archive: str) -> list[Path]:
    """Return where the index of an archive may lie: beside it, or in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # The whole path is part of the name, because two archives may have one name.
    name = archive.strip("/").replace("%", "%25").replace("/", "%2F")
    return [Path(f"{archive}.index"), cache / "vidrobust" / f"{name}.index"]


@functools.lru_cache(maxsize=16)
def _mapped(archive: str, size: int, mtime_ns: int) -> TarIndex:
    """Return the index file of an archive in this state; raise ArchiveError if there is none."""
    for path in _index_files(archive):
        try:
            with open(path, "rb") as file:
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):  # missing, or empty
            continue
        header = _header(content)
        if header and (header.get("size"), header.get("mtime_ns")) == (size, mtime_ns):
            # a damaged header may have no such key, or count more members than the file holds
            with contextlib.suppress(LookupError, ValueError, TypeError):
                return TarIndex(archive, header, content[_BLOCK:])
    raise ArchiveError("the archive has no index, or has changed since it was made; start again")


def _header(content: memoryview) -> dict[str, Any] | None:
    """Return the first line of an index; None if the index is no such file, or cut short."""
    if bytes(content[: len(_HEAD)]) != _HEAD:
        return None
    try:
        header: dict[str, Any] = json.loads(bytes(content[:_BLOCK]))
    except ValueError:
        return None
    return header if header.get("bytes") == len(content) - _BLOCK else None


def _crc(header: dict[str, Any], content: bytes | memoryview) -> int:
    """Return the checksum of an index: of its content, and of its header without the checksum."""
    rest = {key: value for key, value in header.items() if key not in ("crc", "tar_index")}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode(), zlib.crc32(content))


def _write(
    path: Path,
    members: dict[str, tuple[int, int]],
    left_out: list[str],
    state: tuple[int, int],
) -> None:
    """Write an index file at once.

    Args:
        path: the file.
        members: name -> (offset, length).
        left_out: names of members that are not read.
        state: size of the archive, and the time of its last change in ns.
    """
    rows = sorted((os.fsencode(name), *place) for name, place in members.items())
    starts = np.cumsum([0, *(len(name) for name, _, _ in rows)], dtype=np.int64)
    numbers = [starts, *(np.array([row[i] for row in rows], np.int64) for i in (1, 2))]
    content = b"".join(array.tobytes() for array in numbers) + b"".join(row[0] for row in rows)
    header = {
        "members": len(rows),
        "size": state[0],
        "mtime_ns": state[1],
        "bytes": len(content),
        "left_out": [len(left_out), ascii(left_out[0])[1:-1][:80] if left_out else ""],
    }
    header["crc"] = _crc(header, content)
    line = _HEAD + json.dumps(header).encode()[1:]
    # Two runs may build the index at the same time: each writes a file of its own.
    own = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    with replacing(own) as file:
        file.write(line.ljust(_BLOCK - 1) + b"\n" + content)
    os.replace(own, path)


# ------------------------------------------------------------------ headers


def _read_headers(archive: str, size: int) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Read the headers of an archive.

    Of members of the same name, the last one counts, as for tar. Links to members are resolved.

    Args:
        archive: path of the archive.
        size: its number of bytes.

    Returns:
        (name -> (offset, length), names of members that are no files, or lie outside).

    Raises:
        UserError: the file is compressed, cut short, or not an archive.
    """
    _refuse_compressed(archive)
    members: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    left_out: list[str] = []
    for info in _infos(archive, size):
        name = posixpath.normpath(info.name).lstrip("/")
        if name == ".." or name.startswith("../") or "\0" in name:
            left_out.append(info.name)
            continue
        # Of a hard link, the content is that of its target by now, and may be replaced later.
        target = posixpath.normpath(info.linkname).lstrip("/") if info.islnk() else ""
        place, link = members.get(target), links.get(target)
        members.pop(name, None)
        links.pop(name, None)
        if info.isreg() and not info.issparse():
            members[name] = info.offset_data, info.size
        elif info.isdir():
            members[name] = 0, _FOLDER
        elif place is not None and place[1] != _FOLDER:
            members[name] = place
        elif link is not None:
            links[name] = link
        elif info.issym():
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname))
        else:
            left_out.append(info.name)
    for name in links:
        target = _link_target(name, links)
        if members.get(target, (0, _FOLDER))[1] == _FOLDER:
            left_out.append(name)
        else:
            members[name] = members[target]
    # Most archives also have a member for each folder; the others get one.
    for name in list(members):
        while (name := posixpath.dirname(name)) and name not in members:
            members[name] = 0, _FOLDER
    members.pop(".", None)
    return members, left_out


def _link_target(name: str, links: dict[str, str]) -> str:
    """Return the name of the member at the end of a chain of links."""
    for _ in range(_MOST_LINKS):
        if name not in links:
            break
        name = links[name]
    return name


def _refuse_compressed(archive: str) -> None:
    """Raise UserError for a compressed file, whose members have no place of their own."""
    with open(archive, "rb") as file:
        head = file.read(6)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"data.archive={archive}: is compressed ({kind}), so that its members cannot be"
                " read in place; decompress it first (videos and images are compressed anyway)"
            )


def _infos(archive: str, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an archive.

    Args:
        archive: path of the archive.
        size: its number of bytes.

    Raises:
        UserError: it is cut short or damaged, or not an archive.
    """
    last = "its beginning"
    end = 0  # of the members so far
    try:
        with tarfile.open(archive, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                last = f"member {shown(info.name, 200)}"
                end = info.offset_data + (info.size if info.isreg() and not info.issparse() else 0)
                if end > size:
                    raise UserError(
                        f"data.archive={archive}: is cut short: {last} reaches to byte {end}, and"
                        f" the file ends at byte {size}; {_AGAIN}"
                    )
                yield info
                # they would fill the memory for a million members
                tar.members.clear()  # type: ignore[attr-defined]
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        end = -(-end // _BLOCK) * _BLOCK  # zeros follow the data up to there
        raise UserError(
            f"data.archive={archive}: is not a tar archive, or is damaged or cut short after {last}"
            f", at byte {end} ({error}); {_AGAIN}"
        ) from None
    # tarfile takes any header that it cannot read for the end. A real end is a block of zeros, and
    # nothing but a few more follow it: a lost stretch, or a copy that was cut short, has others.
    with open(archive, "rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
        rest = file.read(_MOST_PADDING)
    if block != bytes(_BLOCK):
        problem = "is damaged" if len(block) == _BLOCK else "is cut short"
        raise UserError(
            f"data.archive={archive}: {problem}: no header and no end mark at byte {end}, after"
            f" {last} (the file has {size} bytes); {_AGAIN}"
        )
    if any(rest) or size - end > _MOST_PADDING:
        raise UserError(
            f"data.archive={archive}: is damaged, or several archives in one file: after {last} it"
            f" has an end mark at byte {end}, and goes on to byte {size}; {_AGAIN}"
        )

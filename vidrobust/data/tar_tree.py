"""Show parsers the members of archives as if they were unpacked in data.root.

Parsers of formats look for lists and videos with the methods of `Path`. They are given a `TreePath`
in place of the root, whose methods find members of archives and files on disk.
"""

import fnmatch
import glob
import logging
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidrobust.data.places import readable
from vidrobust.data.records import Record, is_hidden
from vidrobust.data.tar_index import require_index
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

log = logging.getLogger("vidrobust")
_FOLDER = -1  # in place of the number of an archive


def find_archives(text: str) -> list[Path]:
    """Return the archives that data.archive names, sorted.

    Args:
        text: a file, a folder of `.tar` files, or a pattern of files.

    Raises:
        UserError: there is none, or the name of one does not end in `.tar`.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.glob("*.tar") if not is_hidden(file.name))
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        what = "no .tar file in this folder" if path.is_dir() else "no such file"
        raise UserError(
            f"data.archive={text}: {what}; name a .tar file, a folder of them, or a pattern"
        )
    for each in found:
        # The suffix marks an archive inside the path of a member.
        if each.suffix != ".tar" or not each.is_file():
            raise UserError(
                f"data.archive={text}: {each} is no .tar file; compressed archives must be"
                " decompressed first, others renamed to end in .tar"
            )
    return [Path(os.path.abspath(each)) for each in found]


class Tree:
    """The members of archives, by folder.

    Args:
        archives: the archives.
        root: folder in which they seem to be unpacked; it need not exist.

    Raises:
        UserError: two archives hold the same file.
    """

    def __init__(self, archives: Sequence[Path], root: str) -> None:
        self.archives = archives
        self.root = root
        # folder -> name -> number of the archive, or _FOLDER
        self.folders: dict[str, dict[str, int]] = {"": {}}
        for number, archive in enumerate(archives):
            index = require_index(archive)
            self._warn(archive, *index.left_out)
            for member in index:
                folder, name = posixpath.split(member.name)
                entries = self.folders.setdefault(folder, {})
                kind = _FOLDER if member.is_folder else number
                # Folders may be in several archives, files may not.
                if entries.setdefault(name, kind) != kind:
                    raise UserError(
                        f"data.archive: {shown(member.name, 300)} is in {archive} and in an archive"
                        " before it; remove one of them"
                    )
                if member.is_folder:
                    self.folders.setdefault(member.name, {})

    @staticmethod
    def _warn(archive: Path, count: int, first: str) -> None:
        """Log that members of an archive are left out."""
        if count:
            log.warning(
                f"{archive}: {count} members are left out, first {first}: devices, sparse files,"
                " names outside the archive, and links to what it does not hold"
            )

    def kind(self, name: str) -> int | None:
        """Return the number of a file's archive, _FOLDER for a folder, or None for no member."""
        folder, last = posixpath.split(name)
        return _FOLDER if not name else self.folders.get(folder, {}).get(last)

    def name_of(self, path: str) -> str | None:
        """Return the name of the member at a path; None if the path is outside the root."""
        # the usual case, without a call that costs more than all else in a parser
        prefix = f"{self.root}/"
        if path.startswith(prefix) and "/." not in path and "//" not in path:
            return path[len(prefix) :]
        name = os.path.relpath(os.path.normpath(path), self.root)
        if name == os.curdir:
            return ""
        return None if name == os.pardir or name.startswith("../") else name

    def located(self, record: Record) -> Record:
        """Return a record with the path of its member, if it is one.

        Raises:
            UserError: the files of a folder of frames are in several archives.
        """
        name = self.name_of(record.path) or ""
        kind = self.kind(name) if name else None
        if kind is None:
            return record
        if kind == _FOLDER:
            numbers = sorted({n for n in self.folders[name].values() if n != _FOLDER}) or [0]
            if len(numbers) > 1:
                raise UserError(
                    f"data.archive: the frames of {shown(record.uid, 300)} are in"
                    f" {self.archives[numbers[0]]} and in {self.archives[numbers[1]]}; pack them"
                    " into one archive"
                )
            kind = numbers[0]
        return replace(record, path=f"{self.archives[kind]}/{name}")

    def hint(self) -> str:
        """Return a hint if all members lie in one folder, which was packed with its name."""
        entries = self.folders[""]
        if len(entries) != 1 or _FOLDER not in entries.values():
            return ""
        (name,) = entries
        return (
            f"; all members of {self.archives[0]} lie in the folder {shown(name)}: if this is the"
            f" data set, pack what is in it (tar -C {shown(name)} -cf FILE.tar .)"
        )


class TreePath(type(Path())):  # type: ignore[misc]
    """A path below data.root, where archives seem to be unpacked.

    A member counts before a file on disk. `tree` is an attribute of a class made for each tree,
    because before Python 3.12 the paths made from a path have its class, but not its attributes.
    """

    tree: Tree

    def _kind(self) -> int | None:
        """Return what `Tree.kind` says of this path."""
        name = self.tree.name_of(str(self))
        return None if name is None else self.tree.kind(name)

    def exists(self, **options: Any) -> bool:
        """Return whether there is a member or a file of this path."""
        return self._kind() is not None or os.path.exists(self)

    def is_file(self, **options: Any) -> bool:
        """Return whether the path is a file."""
        kind = self._kind()
        return os.path.isfile(self) if kind is None else kind != _FOLDER

    def is_dir(self, **options: Any) -> bool:
        """Return whether the path is a folder."""
        kind = self._kind()
        return os.path.isdir(self) if kind is None else kind == _FOLDER

    def names(self) -> dict[str, bool]:
        """Return name -> whether it is a folder, of what is in this folder."""
        found: dict[str, bool] = {}
        if os.path.isdir(self):
            with os.scandir(self) as entries:
                found = {e.name: os.path.isdir(e.path) for e in entries if os.path.exists(e.path)}
        members = self.tree.folders.get(self.tree.name_of(str(self)) or "", {})
        return found | {name: kind == _FOLDER for name, kind in members.items()}

    def iterdir(self) -> Iterator["TreePath"]:
        """Yield what is in this folder."""
        for name in self.names():
            yield self / name

    def glob(self, pattern: str, **options: Any) -> Iterator["TreePath"]:
        """Yield what is in this folder and has a name of a pattern."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        """Return the content of a member or a file."""
        kind = self._kind()
        if kind is None or kind == _FOLDER:
            return bytes(super().read_bytes())
        content = readable(f"{self.tree.archives[kind]}/{self.tree.name_of(str(self))}")
        assert not isinstance(content, str)
        return content.getvalue()


def unpacked(archives: Sequence[Path], root: Path) -> tuple[TreePath, Tree]:
    """Return data.root as a path below which archives seem to be unpacked, and its tree.

    Args:
        archives: the archives.
        root: data.root; it need not exist.
    """
    top = os.path.abspath(root)
    tree = Tree(archives, top)
    kind = type("TreePath", (TreePath,), {"tree": tree})
    return kind(top), tree

"""What a data set is once its format is read: a list of records, and class names."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidrobust.errors import UserError


@dataclass(frozen=True)
class Record:
    """One video or image.

    uid: its path relative to the data set's videos, unique in it. label: in 0..K-1, or -1 for none. group: what it
    was cut from, shared by clips of one source; empty where the format does not say. From a manifest: `frames` that
    are decodable (0: not scanned), the `backend` that decodes them, and why the file is `bad` (empty: it is not).
    `seekable`: whether its times say which frame is which (None: not scanned); `verified`: decoders besides PyAV that
    show the same frames. `series`: of a folder of images, the beginning of the names that are the video.
    """

    uid: str
    path: str
    label: int
    group: str = ""
    frames: int = 0
    backend: str = "auto"
    bad: str = ""
    seekable: bool | None = None
    verified: tuple[str, ...] = ()
    series: str = ""


Parsed = tuple[list[Record], list[str]]


@dataclass(frozen=True)
class Failure:
    """A record that did not decode, and why (one line that names the file)."""

    index: int
    uid: str
    label: int
    reason: str


def records_sha(records: list[Record]) -> str:
    """First 16 hex digits of a SHA-256: which list, in which order, with which manifest a result belongs to."""
    lines = "".join(
        f"{r.uid} {r.label}" + (f" {r.frames} {r.backend}" if r.frames else "") + (" bad" if r.bad else "")
        + (f" {r.series}" if r.series else "") + "\n"
        for r in records
    )
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


def shared_sources(train: list[Record], test: list[Record]) -> list[str]:
    """Test records whose video is a training record, or a clip of the same source and class is: uids.

    Of the same class, because HMDB51's official lists share films between their parts, not scenes.
    """
    files = {record.path for record in train}
    sources = {(record.group, record.label) for record in train if record.group}
    return [record.uid for record in test if record.path in files or (record.group, record.label) in sources]


def split_by_group(records: list[Record], share: float) -> tuple[list[Record], list[Record]]:
    """(the rest, about `share` of the records), no group in both; a record without a group is one of its own.

    Groups are taken in the order of a hash of their names: the same ones whatever the order of the list. Raises
    UserError when one of the two would be empty.
    """
    sizes = Counter(record.group or record.uid for record in records)
    left, taken = share * len(records), set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(os.fsencode(name)).digest()):
        if sizes[name] > 2 * left:  # less would be missing without it than too much with it
            break
        taken.add(name)
        left -= sizes[name]
    rest = [record for record in records if (record.group or record.uid) not in taken]
    if not taken or not rest:
        raise UserError(
            f"data.validation={share:g}: {len(records)} videos of {len(sizes)} sources have no such part without "
            "breaking a source up; choose another share"
        )
    return rest, [record for record in records if (record.group or record.uid) in taken]


def require_labels(records: list[Record], what: str) -> None:
    """Raises UserError when some record has no label; what: who does not go without, in the singular."""
    without = [record.uid for record in records if record.label < 0]
    if without:
        raise UserError(
            f"{what} needs labels, and {len(without)} of {len(records)} videos have none; first: {without[0]}"
        )


def require_root(root: Path, name: str) -> Path:
    """The root of a data set, or a UserError that says what belongs there."""
    if root.is_file():
        raise UserError(f"{root} is a file; data.root is a folder (data.name={name}; datasets/README.md says more)")
    if not root.is_dir():
        raise UserError(
            f"no data root {root}: put the data set there (datasets/README.md says how) or set data.root=FOLDER"
        )
    return root


class Missing:
    """Finds listed files whatever their case, and collects those that are not there: one message for all."""

    def __init__(self, top: Path) -> None:
        self.top, self.folders, self.lost = top, dict[Path, dict[str, str]](), list[str]()

    def find(self, name: str, where: str) -> Path:
        path, parts = self.top, Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            path, parts = self.top / name, ()
        for part in parts:
            names = self._names(path)
            path = path / names.get(part, names.get(part.lower(), part))
        if (parts and path.name not in self._names(path.parent)) or (not parts and not path.exists()):
            self.lost.append(f"{where}: {name}")
        return path

    def _names(self, folder: Path) -> dict[str, str]:
        """What is in a folder, by exact name and by name in lower case; each folder is listed once."""
        if folder not in self.folders:
            entries = os.scandir(folder) if folder.is_dir() else ()
            here = [entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)]
            self.folders[folder] = {name.lower(): name for name in here} | {name: name for name in here}
        return self.folders[folder]

    def refuse(self) -> None:
        if self.lost:
            others = f" (and {len(self.lost) - 1} more)" if len(self.lost) > 1 else ""
            raise UserError(f"{self.lost[0]} is not under {self.top}{others}; add the file or remove the line")


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file, line 3", text) of each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def checked(records: list[Record], source: Path) -> list[Record]:
    if not records:
        raise UserError(f"{source} lists no video; fill it, or choose another data.fold or data.root")
    seen: set[str] = set()
    for record in records:
        path = os.path.normpath(record.path)
        if record.uid in seen or path in seen:
            raise UserError(f"{source}: {record.uid} is listed twice; remove one of the lines")
        seen |= {record.uid, path}
    return records


def files_below(top: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files at any depth, sorted, links followed but for those that lead back `above`; hidden ones are left out."""
    here = os.path.realpath(top)
    if here in above:
        return
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from files_below(top / entry.name, (*above, here))
        elif not entry.name.startswith("."):
            yield top / entry.name

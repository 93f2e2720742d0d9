"""Record: one video or image with its label; checks of lists of records."""

import codecs
import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

log = logging.getLogger("vidrobust")


@dataclass(frozen=True)
class Record:
    """One video or image.

    uid: its path relative to the data set's videos, unique in it. label: in 0..K-1, or -1 for none.
    group: what it was cut from, shared by clips of one source; empty where the format does not say.
    From a manifest: `frames` that are decodable (0: not scanned), the `backend` that decodes them,
    and why the file is `bad` (empty: it is not). `seekable`: whether its times say which frame is
    which (None: not scanned); `verified`: decoders besides PyAV that show the same frames.
    `series`: of a folder of images, the beginning of the names that are the video.
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
    """First 16 hex digits of a SHA-256: which list, in which order, with which manifest a result
    belongs to.
    """
    lines = "".join(
        f"{r.uid} {r.label}"
        + (f" {r.frames} {r.backend}" if r.frames else "")
        + (" bad" if r.bad else "")
        + (f" {r.series}" if r.series else "")
        + "\n"
        for r in records
    )
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


def shared_sources(train: list[Record], test: list[Record]) -> list[str]:
    """Test records whose video is a training record, or a clip of the same source and class is:
    uids.

    Of the same class, because HMDB51's official lists share films between their parts, not scenes.
    """
    files = {record.path for record in train}
    sources = {(record.group, record.label) for record in train if record.group}
    return [
        record.uid
        for record in test
        if record.path in files or (record.group, record.label) in sources
    ]


def split_by_group(records: list[Record], share: float) -> tuple[list[Record], list[Record]]:
    """(the rest, about `share` of the records), no group in both; a record without a group is one
    of its own.

    Groups are taken in the order of a hash of their names: the same ones whatever the order of the
    list. Raises UserError when one of the two would be empty.
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
            f"data.validation={share:g}: {len(records)} videos of {len(sizes)} sources have no such"
            " part without breaking a source up; choose another share"
        )
    return rest, [record for record in records if (record.group or record.uid) in taken]


def require_labels(records: list[Record], what: str) -> None:
    """Raises UserError when some record has no label; what: who does not go without, in the
    singular.
    """
    without = [record.uid for record in records if record.label < 0]
    if without:
        raise UserError(
            f"{what} needs labels, and {len(without)} of {len(records)} videos have none; first:"
            f" {without[0]}"
        )


def require_root(root: Path, name: str) -> Path:
    """The root of a data set, or a UserError that says what belongs there."""
    if root.is_file():
        raise UserError(
            f"{root} is a file; data.root is a folder (data.name={name}; datasets/README.md says"
            " more)"
        )
    if not root.is_dir():
        raise UserError(
            f"no data root {root}: put the data set there (datasets/README.md says how) or set"
            " data.root=FOLDER"
        )
    return root


class Missing:
    """Finds listed files, and collects those that are not there: one message for all.

    A name is the file of that name. Else it is the only one that differs from it in case (UCF101's
    own lists do) or in its Unicode form (macOS writes an accent as a character of its own).
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folders: dict[Path, set[str]] = {}
        self.alike: dict[Path, dict[str, list[str]]] = {}
        self.lost: list[tuple[str, str, str]] = []  # line, name, what may be wrong with it
        self.other_forms: list[str] = []

    def find(self, name: str, where: str) -> Path:
        """Return the path of a listed file; one that is not there is remembered for `refuse`.

        Args:
            name: as the list has it, relative to `top` or absolute.
            where: the list and the line, for the message.
        """
        path, reason = self._located(name)
        if path is None:
            self.lost.append((where, name, reason))
            return self.top / name
        if not str(path).lower().endswith(str(Path(name)).lower()):
            self.other_forms.append(name)
        return path

    def has(self, name: str) -> bool:
        """Return whether `find` would find this name."""
        return self._located(name)[0] is not None

    def _located(self, name: str) -> tuple[Path | None, str]:
        """Return the path of a name, or None and what may be wrong with the name."""
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            path = self.top / name
            return (path, "") if parts and os.path.exists(path) else (None, odd_name(name))
        path = self.top
        for part in parts:
            if part not in self._names(path):
                known = self._alike(path).get(plain_name(part), [])
                # of several the one in the same case counts, if there is one such
                same_case = [entry for entry in known if composed(entry) == composed(part)]
                known = same_case if len(same_case) == 1 else known
                if len(known) > 1:
                    names = ", ".join(map(repr, known))
                    return None, f"{names} differ from it in case or Unicode form alone; "
                if not known:
                    return None, odd_name(name)
                part = known[0]
            path = path / part
        return path, ""

    def _names(self, folder: Path) -> set[str]:
        """Return what is in a folder; each folder is listed once."""
        if folder not in self.folders:
            entries = os.scandir(folder) if os.path.isdir(folder) else ()
            there = (e for e in entries if not e.is_symlink() or os.path.exists(e.path))
            self.folders[folder] = {entry.name for entry in there}
        return self.folders[folder]

    def _alike(self, folder: Path) -> dict[str, list[str]]:
        """Return the names in a folder by their `plain_name`."""
        if folder not in self.alike:
            self.alike[folder] = {}
            for name in sorted(self._names(folder)):
                self.alike[folder].setdefault(plain_name(name), []).append(name)
        return self.alike[folder]

    def refuse(self) -> None:
        """Raise UserError where a file is missing; log how many names have another Unicode form."""
        if self.lost:
            where, name, reason = self.lost[0]
            others = f" (and {len(self.lost) - 1} more)" if len(self.lost) > 1 else ""
            raise UserError(
                f"{where}: {shown(name, 300)} is not under {self.top}{others}; {reason}"
                "add the file or remove the line"
            )
        if self.other_forms:
            log.warning(
                f"{self.top}: {len(self.other_forms)} listed files have names of another Unicode "
                f"form (NFC or NFD) on disk, first '{shown(self.other_forms[0])}'"
            )


def composed(name: str) -> str:
    """Return a name with its accents composed, Unicode form NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def plain_name(name: str) -> str:
    """Return a name in lower case with its accents composed: names that look alike share it."""
    return composed(name).lower()


def odd_name(name: str) -> str:
    """Return what in a name often keeps its file from being found, as a clause; "" for nothing."""
    name = name.strip()
    if name[:1] in ("'", '"') or name[-1:] in ("'", '"'):
        return "its quotes are taken as part of the name, write it without; "
    if "\\" in name:
        return "its backslashes are taken as part of the name, write / between folders; "
    if composed(name) != name:
        return "its accents are decomposed (Unicode form NFD), write them as the file's name does; "
    return ""


def is_hidden(name: str) -> bool:
    """Return whether a name is no data: hidden, or a folder that macOS or a file server leaves."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def file_path(path: Path) -> str:
    """Return a path as text that FFmpeg takes for a file: it reads `a:b.avi` as protocol a."""
    text = str(path)
    return os.path.abspath(text) if ":" in text.split(os.sep)[0] else text


def whole_number(text: str) -> int | None:
    """Return an integer of at most 18 ASCII digits; None for other text."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def read_list(path: Path) -> str:
    """Return the text of a list. Raises UserError, with the line, for what is no UTF-8."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: not UTF-8, but UTF-16; save the list as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {number}: not a text file in UTF-8 (byte 0x{content[error.start]:02x}); "
            "save the list as UTF-8"
        ) from None
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{path}, line {number}: not a text file (it holds a null character); "
            "save the list as UTF-8"
        )
    return text


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file, line 3", text) of each line that is not blank.

    Lines end with LF, CR LF or CR. Other characters at which Python splits, such as U+2028, may be
    part of a file's name.
    """
    text = read_list(path).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.lstrip(" \t").rstrip()


def checked(records: list[Record], source: Path) -> list[Record]:
    if not records:
        raise UserError(
            f"{source} lists no video; fill it, or choose another data.fold or data.root"
        )
    seen: set[str] = set()
    for record in records:
        path = os.path.abspath(record.path)
        if record.uid in seen or path in seen:
            raise UserError(f"{source}: {record.uid} is listed twice; remove one of the lines")
        seen |= {record.uid, path}
    return records


def files_below(top: Path) -> Iterator[Path]:
    """Yield the files at any depth, sorted by folder; hidden ones are left out.

    Links are followed, but for those that lead back to a folder above them.
    """
    # (folders yet to be read or files to be given, the real paths of the folders above them)
    waiting: list[tuple[Path, bool, tuple[str, ...]]] = [(top, True, ())]
    while waiting:
        place, is_folder, above = waiting.pop()
        if not is_folder:
            yield place
            continue
        real = os.path.realpath(place)
        if real in above:
            continue
        with os.scandir(place) as entries:
            names = [(e.name, _is_folder(e)) for e in entries if not is_hidden(e.name)]
        inside = (*above, real)
        waiting += [(place / name, folder, inside) for name, folder in sorted(names, reverse=True)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False

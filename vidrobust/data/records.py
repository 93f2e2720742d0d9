"""Records of videos and images, and checks of lists of records."""

import codecs
import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidrobust.data.places import exists
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

log = logging.getLogger("vidrobust")
VIDEO_SUFFIXES = {
    ".avi",
    ".mp4",
    ".mkv",
    ".mov",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".gif",
    ".flv",
    ".ts",
    ".mts",
    ".m2ts",
    ".wmv",
    ".3gp",
    ".ogv",
}


@dataclass(frozen=True)
class Record:
    """One video or image.

    The fields from `frames` to `verified` come from a manifest.

    Attributes:
        uid: path relative to the data set's videos; unique in the data set.
        path: path of the file, of a folder of frames, or `torchvision:...`.
        label: class label in 0..K-1; -1 for none, and in data sets with several labels per video.
        group: the source that the video was cut from, shared by clips of one source; empty where
            the format does not say.
        frames: number of frames that decode; 0: not scanned.
        backend: name of the decoder that decodes them.
        bad: why the file is bad; empty: it is not.
        seekable: whether the times in the file identify its frames; None: not scanned.
        verified: decoders other than PyAV that show the same frames.
        series: for a folder of images, the beginning of the names that are the video.
        labels: classes of the video in a data set with several labels per video, sorted, possibly
            none; None: the data set has one label per video, which is `label`.
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
    labels: tuple[int, ...] | None = None


# (records, names of the classes), what a parser of a format returns
Parsed = tuple[list[Record], list[str]]


@dataclass(frozen=True)
class Failure:
    """A record that did not decode.

    Attributes:
        index: position of the record in its list.
        uid: its name.
        label: its class label.
        reason: why, in one line that names the file.
    """

    index: int
    uid: str
    label: int
    reason: str


def records_sha(records: list[Record]) -> str:
    """Return the first 16 hex digits of a SHA-256 of a list of records.

    It identifies the list, its order, and its manifest, to which a result belongs.
    """
    text = "".join(_identity(record) for record in records)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _identity(record: Record) -> str:
    """Return the hashed line of a record; fields without a value add nothing."""
    line = f"{record.uid} {record.label}"
    if record.frames:
        line += f" {record.frames} {record.backend}"
    if record.bad:
        line += " bad"
    if record.series:
        line += f" {record.series}"
    if record.labels is not None:
        line += f" labels {','.join(map(str, record.labels))}"
    return line + "\n"


def shared_sources(train: list[Record], test: list[Record]) -> list[str]:
    """Return the uids of test records that are, or share source and class with, a training record.

    The class must be the same, because HMDB51's official lists share films between training and
    test, but not scenes.
    """
    files = {record.path for record in train}
    # A record without a group has no source that it could share.
    sources = {(record.group, record.label) for record in train if record.group}
    return [
        record.uid
        for record in test
        if record.path in files or (record.group, record.label) in sources
    ]


def split_by_group(records: list[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Return (the rest, about a fraction `share` of the records), without breaking a group.

    A record without a group is a group of its own. Groups are chosen in the order of a hash of
    their names, so that the order of the list does not matter.

    Args:
        records: the records.
        share: fraction of the records to split off, in (0, 1).

    Raises:
        UserError: one of the two parts would be empty.
    """
    sizes = Counter(record.group or record.uid for record in records)
    remaining = share * len(records)  # how many records to take yet
    taken = set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(os.fsencode(name)).digest()):
        # Stop if the part is nearer to its size without this group than with it.
        if sizes[name] > 2 * remaining:
            break
        taken.add(name)
        remaining -= sizes[name]
    rest = [record for record in records if (record.group or record.uid) not in taken]
    if not taken or not rest:
        raise UserError(
            f"data.validation={share:g}: {len(records)} videos of {len(sizes)} sources cannot be"
            " split so without breaking up a source; choose another fraction"
        )
    return rest, [record for record in records if (record.group or record.uid) in taken]


def require_labels(records: list[Record], what: str) -> None:
    """Raise UserError if some record has no label, or may have several.

    Args:
        records: the records.
        what: what needs the labels, in the singular, for the message.
    """
    if any(record.labels is not None for record in records):
        raise UserError(
            f"{what} needs one label per video, and this data set has several; choose another"
            " data.name, or a method that needs no labels"
        )
    without = [record.uid for record in records if record.label < 0]
    if without:
        raise UserError(
            f"{what} needs labels, and {len(without)} of {len(records)} videos have none; first:"
            f" {without[0]}"
        )


def require_root(root: Path, name: str) -> Path:
    """Return the root of a data set; raise UserError with a hint if it is not a folder."""
    if root.is_file():
        raise UserError(
            f"{root} is a file; data.root is a folder, and data.archive a tar archive"
            f" (data.name={name}; datasets/README.md says more)"
        )
    if not root.is_dir():
        raise UserError(
            f"no data root {root}: put the data set there (datasets/README.md says how) or set"
            " data.root=FOLDER"
        )
    return root


def videos_folder(root: Path, *names: str) -> Path:
    """Return the folder of the videos: `videos`, that of an official archive, or the root.

    Args:
        root: folder of the data set.
        names: names of the folder in official archives.
    """
    folders = (root / name for name in ("videos", *names))
    return next((folder for folder in folders if folder.is_dir()), root)


class FilesByStem:
    """Find videos by their names without suffix, in any folder below a folder.

    Args:
        top: the folder.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.files: dict[str, list[Path]] = {}
        self.lost: list[tuple[str, str]] = []  # file and line, name
        for file in files_below(top):
            if file.suffix.lower() in VIDEO_SUFFIXES:
                self.files.setdefault(file.stem, []).append(file)

    def find(self, stems: Sequence[str], where: str) -> Path | None:
        """Return the file of the first name that has one; None for a missing file, which is noted.

        Args:
            stems: possible names, without suffix.
            where: the list and the line, for messages.

        Raises:
            UserError: two files have the name.
        """
        candidates = next((self.files[stem] for stem in stems if stem in self.files), [])
        if len(candidates) > 1:
            raise UserError(
                f"{where}: {candidates[0]} and {candidates[1]} are both {candidates[0].stem};"
                " remove or rename one"
            )
        if not candidates:
            self.lost.append((where, stems[0]))
            return None
        return candidates[0]

    def uid(self, file: Path) -> str:
        """Return the uid of a file: its path below the folder."""
        return file.relative_to(self.top).as_posix()

    def refuse(self) -> None:
        """Raise UserError if a file is missing."""
        if self.lost:
            where, name = self.lost[0]
            others = f" (and {len(self.lost) - 1} more)" if len(self.lost) > 1 else ""
            raise UserError(
                f"{where}: no video {shown(name, 300)} under {self.top}{others}; add the file, or"
                " remove it from the list"
            )

    def warn(self, source: Path, listed: int) -> None:
        """Log how many files are missing, if any, of a data set from which videos disappear.

        Args:
            source: the list.
            listed: number of its videos.
        """
        if self.lost:
            first = shown(self.lost[0][1])
            log.warning(
                f"{source}: {len(self.lost)} of {listed} videos are not under {self.top}, first"
                f" {first}"
            )


class Missing:
    """Find listed files, and collect those that are missing, to report them in one message.

    A name means the file of that name. If there is none, it means the only file that differs from
    it in case or in Unicode form. UCF101's own lists differ in case from its files. macOS writes an
    accent as a character of its own.

    Args:
        top: the folder to which listed names are relative.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folders: dict[Path, set[str]] = {}
        self.alike: dict[Path, dict[str, list[str]]] = {}
        self.lost: list[tuple[str, str, str]] = []  # file and line, name, hint
        self.other_forms: list[str] = []

    def find(self, name: str, where: str) -> Path:
        """Return the path of a listed file; a missing one is remembered for `refuse`.

        Args:
            name: the listed name, relative to `top` or absolute.
            where: the file and the line, for the message.
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
        """Return (path, "") of a name, or (None, a hint what may be wrong with the name)."""
        parts = Path(name).parts
        # Only names below the top are searched for other spellings.
        if not parts or Path(name).is_absolute() or ".." in parts:
            path = self.top / name
            return (path, "") if parts and exists(path) else (None, odd_name(name))
        # Go down folder by folder. Each folder is listed once, which is faster than one call per
        # file.
        path = self.top
        for part in parts:
            if part not in self._names(path):
                candidates = self._alike(path).get(plain_name(part), [])
                # Of several candidates, one in the same case is preferred.
                same_case = [entry for entry in candidates if composed(entry) == composed(part)]
                candidates = same_case if len(same_case) == 1 else candidates
                if len(candidates) > 1:
                    names = ", ".join(map(repr, candidates))
                    return None, f"{names} differ from it in case or Unicode form alone; "
                if not candidates:
                    return None, odd_name(name)
                part = candidates[0]
            path = path / part
        return path, ""

    def _names(self, folder: Path) -> set[str]:
        """Return the names in a folder without dangling links; each folder is listed once."""
        if folder not in self.folders:
            self.folders[folder] = set(entries(folder)) if is_folder(folder) else set()
        return self.folders[folder]

    def _alike(self, folder: Path) -> dict[str, list[str]]:
        """Return the names in a folder by their `plain_name`."""
        if folder not in self.alike:
            self.alike[folder] = {}
            for name in sorted(self._names(folder)):
                self.alike[folder].setdefault(plain_name(name), []).append(name)
        return self.alike[folder]

    def refuse(self) -> None:
        """Raise UserError if a file is missing; otherwise warn of names in another Unicode form."""
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
    """Return a name with its accents composed (Unicode form NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def plain_name(name: str) -> str:
    """Return a name in lower case with composed accents: names that look alike share it."""
    return composed(name).lower()


def odd_name(name: str) -> str:
    """Return a clause about what often keeps a listed name from matching a file; "" for nothing."""
    name = name.strip()
    if name[:1] in ("'", '"') or name[-1:] in ("'", '"'):
        return "its quotes are read as part of the name, write it without; "
    if "\\" in name:
        return "its backslashes are read as part of the name, write / between folders; "
    if composed(name) != name:
        return "its accents are decomposed (Unicode form NFD), write them as the file's name does; "
    return ""


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or a folder that macOS or a file server leaves behind."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def file_path(path: Path) -> str:
    """Return a path as text that FFmpeg reads as a file.

    FFmpeg would read `a:b.avi` as protocol a, so such a path is made absolute.
    """
    text = str(path)
    return os.path.abspath(text) if ":" in text.split(os.sep)[0] else text


def whole_number(text: str) -> int | None:
    """Return the integer of at most 18 ASCII digits that a text holds; None for other text."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def read_list(path: Path) -> str:
    """Return the text of a list.

    Raises UserError, with the line, for a file that is not UTF-8 text.
    """
    # Windows editors write a byte-order mark, which "utf-8-sig" removes.
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
            f"{path}, line {number}: not a text file (it contains a null character); "
            "save the list as UTF-8"
        )
    return text


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file, line 3", text) for each line that is not blank.

    Lines end with LF, CR LF or CR. Other characters at which Python splits lines, such as U+2028,
    may be part of a file name.
    """
    text = read_list(path).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.lstrip(" \t").rstrip()


def checked(records: list[Record], source: Path) -> list[Record]:
    """Return the records; raise UserError if there is none, or if one is listed twice.

    Args:
        records: the records of a list.
        source: the list, for messages.
    """
    if not records:
        raise UserError(
            f"{source} lists no video; fill it, or choose another data.fold or data.root"
        )
    listed: set[str] = set()
    for record in records:
        # Two names may mean one file, as "a/../b.avi" and "b.avi" do.
        path = os.path.abspath(record.path)
        if record.uid in listed or path in listed:
            raise UserError(f"{source}: {record.uid} is listed twice; remove one of the lines")
        listed |= {record.uid, path}
    return records


def files_below(top: Path) -> Iterator[Path]:
    """Yield the files at any depth below a folder, sorted by folder, without hidden ones.

    Links are followed, except those that lead back to a folder above them.
    """
    # A stack of (path, whether it is a folder to list, real paths of the folders above it). A file
    # is yielded when it is taken from the stack.
    stack: list[tuple[Path, bool, tuple[str, ...]]] = [(top, True, ())]
    while stack:
        path, listed, above = stack.pop()
        if not listed:
            yield path
            continue
        # A link back to a folder above would make an endless loop.
        real = os.path.realpath(path)
        if real in above:
            continue
        found = sorted(entries(path, dangling=True).items(), reverse=True)
        inside = (*above, real)
        stack += [(path / name, folder, inside) for name, folder in found if not is_hidden(name)]


def entries(folder: Path, *, dangling: bool = False) -> dict[str, bool]:
    """Return name -> whether it is a folder, of what is in a folder.

    Args:
        folder: the folder, on disk or of an archive.
        dangling: whether links that lead nowhere are included.
    """
    # A `TreePath` knows the members of archives.
    names: Callable[[], dict[str, bool]] | None = getattr(folder, "names", None)
    if names is not None:
        return names()
    with os.scandir(folder) as found:
        return {
            entry.name: _is_folder(entry)
            for entry in found
            if dangling or not entry.is_symlink() or os.path.exists(entry.path)
        }


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; False for a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if that cannot be found out."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False if that cannot be found out."""
    try:
        return path.is_file()
    except OSError:
        return False

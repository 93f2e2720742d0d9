"""Files on disk become records: one parser a data set format.

A parser is `parser(root, split, fold) -> (records, classes)` with split "train" or "test". Labels are ranks
0..K-1 into `classes`; every listed file exists. A list that is wrong is refused with the line that is wrong.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidrobust.errors import UserError

log = logging.getLogger("vidrobust")
VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class Record:
    """One video: `uid` is its path relative to the data set's videos and unique in it, `label` in 0..K-1."""

    uid: str
    path: str
    label: int


Parsed = tuple[list[Record], list[str]]


def records_sha(records: list[Record]) -> str:
    """First 16 hex digits of the SHA-256 of uids and labels: which list, in which order, a result belongs to."""
    lines = "".join(f"{record.uid} {record.label}\n" for record in records)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def ucf101(root: Path, split: str, fold: int) -> Parsed:
    """UCF101 and everything in its layout: `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`.

    The ids of classInd start at 1 and may have gaps (a restricted list); a label is a class's rank among them.
    A test list has no labels: the folder is the class. Names are matched without regard to case, because
    UCF101 itself spells HandstandPushups in two ways.
    """
    lists = _first_folder(root, ("ucfTrainTestlist", "annotations", "."), "classInd.txt")
    videos = next((root / name for name in ("videos", "UCF-101") if (root / name).is_dir()), root)
    ids = _class_ids(lists / "classInd.txt")
    classes = [ids[i] for i in sorted(ids)]
    rank = {name.lower(): label for label, name in enumerate(classes)}
    path = lists / f"{split}list{fold:02d}.txt"
    if not path.is_file():
        raise UserError(f"no split file {path}: data.fold={fold} is not one of this data set's splits")
    records, missing = [], _Missing(videos)
    for where, line in _lines(path):
        name, _, listed = line.rpartition(" ") if re.search(r" \d+$", line) else (line, "", "")
        folder = name.split("/")[0]
        if folder.lower() not in rank:
            raise UserError(f"{where}: class {folder!r} is not in {lists / 'classInd.txt'}")
        if listed and ids.get(int(listed), "").lower() != folder.lower():
            expected = next(i for i, known in ids.items() if known.lower() == folder.lower())
            raise UserError(
                f"{where}: label {listed} is not {folder}'s; classInd.txt says {expected} (its ids start at 1)"
            )
        file = missing.find(name, where)
        records.append(Record(name, str(file), rank[folder.lower()]))
    missing.refuse()
    return _checked(records, path), classes


def path_label_list(root: Path, split: str, fold: int) -> Parsed:
    """`train.csv|txt` and `test.csv|txt` (or `val`) under root: a line is `path label`, paths relative to root.

    The separator is a space, a comma or a tab; the line is split from the right, so paths may hold spaces.
    `classes.txt`, a name a line, is optional: without it classes are called by their numbers.
    """
    train = _list_file(root, ("train",))
    path = train if split == "train" else _list_file(root, ("test", "val"))
    pairs = {file: [(*_split_right(line, where), where) for where, line in _lines(file)] for file in {train, path}}
    labels = [int(label) for _, label, _ in pairs[train]]
    if not labels:
        raise UserError(f"{train} lists no video")
    names = root / "classes.txt"
    classes = [line for _, line in _lines(names)] if names.is_file() else None
    if min(labels) == 1 and (classes is None or max(labels) >= len(classes)):
        raise UserError(f"{train}: labels look 1-based (smallest 1, largest {max(labels)}); subtract 1 from each")
    classes = classes or [str(label) for label in range(max(labels) + 1)]
    records, missing = [], _Missing(root)
    for name, text, where in pairs[path]:
        if not 0 <= int(text) < len(classes):
            source = names.name if names.is_file() else train.name
            raise UserError(f"{where}: label {text} is out of range 0..{len(classes) - 1} ({source})")
        records.append(Record(name, str(missing.find(name, where)), int(text)))
    missing.refuse()
    return _checked(records, path), classes


def video_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<split>/<class>/<video>`, split train and test (or val); classes are the training folders, sorted."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"no folder {train}: data.name=folder reads {root}/train/<class>/<video>")
    classes = [folder.name for folder in _folders(train)]
    rank = {name: label for label, name in enumerate(classes)}
    top = train if split == "train" else next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
    if top is None:
        raise UserError(f"no folder {root / 'test'} (or val): evaluation reads its videos there")
    records = []
    skipped = []
    for folder in _folders(top):
        if folder.name not in rank:
            raise UserError(f"{folder}: class {folder.name!r} has no folder in {train}")
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            if file.suffix.lower() in VIDEO_SUFFIXES:
                records.append(Record(file.relative_to(top).as_posix(), str(file), rank[folder.name]))
            else:
                skipped.append(file)
    if skipped:
        log.warning(
            f"{top}: {len(skipped)} files are left out, first {skipped[0]}; "
            f"videos end in {', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return _checked(records, top), classes


def _folders(top: Path) -> list[Path]:
    return sorted(entry for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def require_root(root: Path, name: str) -> Path:
    """The root of a data set, or a UserError that says what belongs there."""
    if root.is_file():
        raise UserError(f"{root} is a file; data.root is a folder (data.name={name}; datasets/README.md says more)")
    if not root.is_dir():
        raise UserError(
            f"no data root {root}: put the data set there (datasets/README.md says how) or set data.root=FOLDER"
        )
    return root


class _Missing:
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
        if (parts and path.name not in self._names(path.parent)) or (not parts and not path.is_file()):
            self.lost.append(f"{where}: {name}")
        return path

    def _names(self, folder: Path) -> dict[str, str]:
        """What is in a folder, by exact name and by name in lower case; each folder is listed once."""
        if folder not in self.folders:
            here = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
            self.folders[folder] = {name.lower(): name for name in here} | {name: name for name in here}
        return self.folders[folder]

    def refuse(self) -> None:
        if self.lost:
            others = f" (and {len(self.lost) - 1} more)" if len(self.lost) > 1 else ""
            raise UserError(f"{self.lost[0]} is not under {self.top}{others}; add the file or remove the line")


def _first_folder(root: Path, names: tuple[str, ...], file: str) -> Path:
    for name in names:
        if (root / name / file).is_file():
            return root / name
    raise UserError(f"no {file} in {root / names[0]}: the official split files of UCF101 belong there")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file, line 3", text) of each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def _class_ids(path: Path) -> dict[int, str]:
    ids: dict[int, str] = {}
    for where, line in _lines(path):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name:
            raise UserError(f"{where}: expected `id ClassName`, found {line!r}")
        if int(number) in ids or name.strip().lower() in {known.lower() for known in ids.values()}:
            raise UserError(f"{where}: {line!r} repeats an id or a name; each stands once")
        ids[int(number)] = name.strip()
    if not ids:
        raise UserError(f"{path} lists no class; take the official one")
    return ids


def _list_file(root: Path, stems: tuple[str, ...]) -> Path:
    for stem in stems:
        for suffix in (".csv", ".txt"):
            if (root / f"{stem}{suffix}").is_file():
                return root / f"{stem}{suffix}"
    names = " or ".join(f"{stem}.csv|txt" for stem in stems)
    raise UserError(f"no {names} in {root}: data.name=list reads its lines `path label`")


def _split_right(line: str, where: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+?)\s*[,\t ]\s*(-?\d+)", line)
    if match is None:
        raise UserError(f"{where}: expected a path and an integer label from 0 (no header line), found {line!r}")
    return match[1], match[2]


def _checked(records: list[Record], source: Path) -> list[Record]:
    if not records:
        raise UserError(f"{source} lists no video; fill it, or choose another data.fold or data.root")
    seen: set[str] = set()
    for record in records:
        if record.uid in seen:
            raise UserError(f"{source}: {record.uid} is listed twice; remove one of the lines")
        seen.add(record.uid)
    return records

"""Files on disk become records: one parser a data set format.

A parser is `parser(root, split, fold) -> (records, classes)` with split "train" or "test". Labels are ranks
0..K-1 into `classes`; every listed file exists. A list that is wrong is refused with the line that is wrong.
"""

import csv
import logging
import re
from collections.abc import Callable
from pathlib import Path

from vidrobust.data.images import IMAGE_SUFFIXES, TORCHVISION, torchvision_dataset
from vidrobust.data.records import Missing, Parsed, Record, checked, files_below, lines
from vidrobust.errors import UserError, nearest

log = logging.getLogger("vidrobust")
_WITHOUT_TEST = "without one, set data.validation=0.2 or eval.enabled=false"
VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".gif",
                  ".flv", ".ts", ".mts", ".m2ts", ".wmv", ".3gp", ".ogv"}  # fmt: skip


def ucf101(root: Path, split: str, fold: int) -> Parsed:
    """UCF101 and everything in its layout: `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`.

    The ids of classInd start at 1 and may have gaps (a restricted list); a label is a class's rank among them.
    A test list has no labels: the folder is the class. Names are matched without regard to case, because
    UCF101 itself spells HandstandPushups in two ways. Clips of one gNN were cut from one source: their group.
    """
    lists = _first_folder(root, ("ucfTrainTestlist", "annotations", "."), "classInd.txt")
    ids = _class_ids(lists / "classInd.txt")
    classes = [ids[i] for i in sorted(ids)]
    rank = {name.lower(): label for label, name in enumerate(classes)}
    path = lists / f"{split}list{fold:02d}.txt"
    if not path.is_file():
        raise UserError(f"no split file {path}: data.fold={fold} is not one of this data set's splits")
    records, missing = [], Missing(_videos(root, "UCF-101"))
    for where, line in lines(path):
        name, _, listed = line.rpartition(" ") if re.search(r" \d+$", line) else (line, "", "")
        folder = name.split("/")[0]
        if folder.lower() not in rank:
            raise UserError(f"{where}: class {folder!r} is not in {lists / 'classInd.txt'}")
        if listed and ids.get(int(listed), "").lower() != folder.lower():
            expected = next(i for i, known in ids.items() if known.lower() == folder.lower())
            raise UserError(
                f"{where}: label {listed} is not {folder}'s; classInd.txt says {expected} (its ids start at 1)"
            )
        group = re.sub(r"_c\d+$", "", Path(name).stem).lower()
        records.append(Record(name, str(missing.find(name, where)), rank[folder.lower()], group))
    missing.refuse()
    return checked(records, path), classes


def hmdb51(root: Path, split: str, fold: int) -> Parsed:
    """HMDB51: `<class>_test_split<N>.txt`, lines `file.avi 1` (train), `2` (test) or `0` (unused).

    Classes are those that have a list of this fold, sorted. A file's name begins with the film
    it was cut from: its group.
    """
    pattern = f"*_test_split{fold}.txt"
    tops = [root / name for name in ("testTrainMulti_7030_splits", "splits", "annotations", ".")]
    found = next((sorted(top.glob(pattern)) for top in tops if top.is_dir() and any(top.glob(pattern))), None)
    if found is None:
        raise UserError(
            f"no {pattern} in {tops[0]}: the official lists of HMDB51 belong there (data.fold=1..3; "
            "datasets/hmdb51/README.md)"
        )
    classes = [path.name.removesuffix(pattern[1:]) for path in found]
    records, missing = [], Missing(_videos(root, "hmdb51_org"))
    for label, (name, path) in enumerate(zip(classes, found, strict=True)):
        for where, line in lines(path):
            file, _, tag = line.rpartition(" ")
            if tag not in ("0", "1", "2"):
                raise UserError(f"{where}: expected a file and 1 (train), 2 (test) or 0 (unused), found {line!r}")
            if tag == ("1" if split == "train" else "2"):
                uid = f"{name}/{file.strip()}"
                group = re.split(f"_{re.escape(name)}_", Path(uid).stem, maxsplit=1, flags=re.IGNORECASE)[0]
                records.append(Record(uid, str(missing.find(uid, where)), label, group))
    missing.refuse()
    return checked(records, found[0].parent), classes


def kinetics(root: Path, split: str, fold: int) -> Parsed:
    """Kinetics: official csv files (label, youtube_id, time_start, ...) and files `<id>_<start>_<end>.mp4`.

    split "test" is the validation list where there is one, as its papers have it. Files may lie in folders a split
    or a class, or none, and be called by their id alone. YouTube removes videos: those that are not there are left
    out, and said. Classes are those of the training list, sorted. The group is the YouTube id.
    """
    stems = ("train",) if split == "train" else ("val", "validate", "validation", "test")
    train = _kinetics_csv(_kinetics_list(root, ("train",)))
    path = _kinetics_list(root, stems)
    classes = sorted({row["label"] for _, row in train})
    rank = {name: label for label, name in enumerate(classes)}
    top = next((root / stem for stem in stems if (root / stem).is_dir()), _videos(root, "videos"))
    files = {file.stem: file for file in files_below(top) if file.suffix.lower() in VIDEO_SUFFIXES}
    records: list[Record] = []
    lost = []
    for where, row in train if split == "train" else _kinetics_csv(path):
        if row["label"] not in rank:
            raise UserError(f"{where}: class {row['label']!r} is not in the training list")
        source, span = row["youtube_id"], (row["time_start"], row["time_end"])
        stem = f"{source}_{int(float(span[0])):06d}_{int(float(span[1])):06d}"
        file = files.get(stem) or files.get(source)
        if file is None:
            lost.append(stem)
        else:
            records.append(Record(file.relative_to(top).as_posix(), str(file), rank[row["label"]], source))
    if lost:
        log.warning(f"{path}: {len(lost)} of {len(lost) + len(records)} videos are not under {top}, first {lost[0]}")
    return checked(records, path), classes


def path_label_list(root: Path, split: str, fold: int) -> Parsed:
    """`train.csv|txt` and `test.csv|txt` (or `val`) under root: a line is `path label`, paths relative to root.

    The separator is a space, a comma or a tab; the line is split from the right, so paths may hold spaces. Label -1 is
    a video without one. `classes.txt`, a name a line, is optional: without it classes are called by their numbers.
    """

    def path_alone(name: str, where: str) -> tuple[str, int]:
        if name.endswith(" 0") and not (root / name).exists() and (root / name[:-2]).exists():
            return name[:-2], 0  # VideoMAE's lines for pretraining: `path 0 -1`
        return name, 0

    return _listed(root, split, path_alone, "`path label`")


def frame_list(root: Path, split: str, fold: int) -> Parsed:
    """Lists as `path_label_list`, but of folders of frames: a line is `folder n_frames label`."""

    def folder_and_count(text: str, where: str) -> tuple[str, int]:
        name, count = _split_right(text, where, "a folder, its number of frames and a label")
        if count < 1:
            raise UserError(f"{where}: {name} has {count} frames; a clip has one or more")
        return name, count

    return _listed(root, split, folder_and_count, "`folder n_frames label`")


def video_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<split>/<class>/<video>`, split train and test (or val); classes are the training folders, sorted."""
    return _foldered(root, split, VIDEO_SUFFIXES)


def image_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<split>/<class>/<image>`, as torchvision's ImageFolder: each image is a clip of one frame."""
    return _foldered(root, split, IMAGE_SUFFIXES)


def frame_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<split>/<class>/<clip>/<image>`: a folder of frames is a clip."""
    return _foldered(root, split, None)


def class_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<class>/<image or video>`, one list, all of it "train": as ImageNet-Sketch, -R and -A come."""
    if split != "train":
        raise UserError(f"data.name=class_folder: {root} has one list; data.validation holds out a part of it")
    classes = [folder.name for folder in _folders(root)]
    records = [
        Record(file.relative_to(root).as_posix(), str(file), label)
        for label, name in enumerate(classes) for file in files_below(root / name)
        if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    ]  # fmt: skip
    return checked(records, root), classes


def torchvision_images(name: str, root: Path, split: str, fold: int) -> Parsed:
    """A classification data set of torchvision.datasets by its class's name, in the root that torchvision is given."""
    from torchvision import datasets

    if name not in datasets.__all__:
        raise UserError(
            f"data.name=torchvision:{name}: torchvision has no such data set{nearest(name, datasets.__all__)}"
        )
    try:
        images = torchvision_dataset(name, split, str(root))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"data.name=torchvision:{name}: no {split} split is known of it ({' '.join(str(error).split())})"
        ) from None
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{root} holds no {name} ({' '.join(str(error).split())}); "
            f"python -c \"from torchvision.datasets import {name}; {name}('{root}', download=True)\" fetches it"
        ) from None
    known = next((getattr(images, key) for key in ("targets", "labels", "_labels") if hasattr(images, key)), None)
    try:
        labels = [int(label) for label in (known if known is not None else (label for _, label in images))]
    except (TypeError, ValueError):
        raise UserError(f"data.name=torchvision:{name}: its targets are not classes") from None
    classes = [str(c) for c in getattr(images, "classes", range(max(labels) + 1))]
    records = [
        Record(f"{split}/{i:06d}", f"{TORCHVISION}{name}:{split}:{i}:{root}", label) for i, label in enumerate(labels)
    ]
    return checked(records, root), classes


def _listed(root: Path, split: str, entry: Callable[[str, str], tuple[str, int]], form: str) -> Parsed:
    """Records of `train|test.csv|txt`; entry: what stands before the label -> (path, number of frames or 0)."""
    train = _list_file(root, ("train",), form)
    path = train if split == "train" else _list_file(root, ("test", "val"), form)
    rows = {file: [(*_split_right(line, where), where) for where, line in lines(file)] for file in {train, path}}
    labels = [label for _, label, _ in rows[train]]
    if not labels:
        raise UserError(f"{train} lists no video")
    names = root / "classes.txt"
    classes = [line for _, line in lines(names)] if names.is_file() else None
    known = [label for label in labels if label >= 0] or [-1]
    if min(known) == 1 and (classes is None or max(labels) >= len(classes)):
        raise UserError(f"{train}: labels look 1-based (smallest 1, largest {max(labels)}); subtract 1 from each")
    classes = classes or [str(label) for label in range(max(labels) + 1)]
    records, missing = [], Missing(root)
    for text, label, where in rows[path]:
        if not -1 <= label < len(classes):
            source = names.name if names.is_file() else train.name
            raise UserError(f"{where}: label {label} is out of range 0..{len(classes) - 1} ({source})")
        name, frames = entry(text, where)
        records.append(Record(name, str(missing.find(name, where)), label, frames=frames))
    missing.refuse()
    return checked(records, path), classes


def _foldered(root: Path, split: str, suffixes: set[str] | None) -> Parsed:
    """Records of `root/<split>/<class>/`: files of these suffixes at any depth, or for None the folders in it."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"no folder {train}: its folders are the classes, {root}/train/<class>/...")
    classes = [folder.name for folder in _folders(train)]
    rank = {name: label for label, name in enumerate(classes)}
    top = train if split == "train" else next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
    if top is None:
        raise UserError(f"no folder {root / 'test'} (or val): evaluation reads its videos there; {_WITHOUT_TEST}")
    records: list[Record] = []
    skipped, empty = [], []
    for folder in _folders(top):
        if folder.name not in rank:
            raise UserError(f"{folder}: class {folder.name!r} has no folder in {train}")
        before = len(records)
        entries = files_below(folder) if suffixes else (e for e in sorted(folder.iterdir()) if e.name[0] != ".")
        for entry in entries:
            if entry.is_dir() if suffixes is None else entry.suffix.lower() in suffixes and entry.is_file():
                records.append(Record(entry.relative_to(top).as_posix(), str(entry), rank[folder.name]))
            else:
                skipped.append(entry)
        empty += [folder.name] if len(records) == before else []
    if skipped:
        kept = ", ".join(sorted(suffixes)) if suffixes else "folders of frames"
        log.warning(f"{top}: {len(skipped)} files are left out, first {skipped[0]}; this format takes {kept}")
    if empty:
        log.warning(f"{top}: {len(empty)} classes have no video, first {empty[0]}")
    return checked(records, top), classes


def _folders(top: Path) -> list[Path]:
    return sorted(entry for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _videos(root: Path, name: str) -> Path:
    """Where the videos lie: `videos`, the folder of the official archive, or the root itself."""
    return next((root / folder for folder in ("videos", name) if (root / folder).is_dir()), root)


def _kinetics_list(root: Path, stems: tuple[str, ...]) -> Path:
    for stem in stems:
        for folder in (root, root / "annotations"):
            if (folder / f"{stem}.csv").is_file():
                return folder / f"{stem}.csv"
    raise UserError(f"no {' or '.join(f'{stem}.csv' for stem in stems)} in {root}: the official lists belong there")


def _kinetics_csv(path: Path) -> list[tuple[str, dict[str, str]]]:
    """("file, line 3", row) of an official csv."""
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        needed = {"label", "youtube_id", "time_start", "time_end"}
        if not needed <= set(table.fieldnames or ()):
            raise UserError(f"{path}: an official list has the columns {', '.join(sorted(needed))}")
        for row in table:
            where = f"{path}, line {table.line_num}"
            if any(row[key] is None for key in needed) or not re.fullmatch(
                r"\d+(\.\d*)? \d+(\.\d*)?", f"{row['time_start']} {row['time_end']}"
            ):
                raise UserError(f"{where}: times and label expected, found {','.join(str(v) for v in row.values())!r}")
            rows.append((where, row))
    return rows


def _first_folder(root: Path, names: tuple[str, ...], file: str) -> Path:
    for name in names:
        if (root / name / file).is_file():
            return root / name
    raise UserError(f"no {file} in {root / names[0]}: the official split files of UCF101 belong there")


def _class_ids(path: Path) -> dict[int, str]:
    ids: dict[int, str] = {}
    for where, line in lines(path):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name:
            raise UserError(f"{where}: expected `id ClassName`, found {line!r}")
        if int(number) in ids or name.strip().lower() in {known.lower() for known in ids.values()}:
            raise UserError(f"{where}: {line!r} repeats an id or a name; each stands once")
        ids[int(number)] = name.strip()
    if not ids:
        raise UserError(f"{path} lists no class; take the official one")
    return ids


def _list_file(root: Path, stems: tuple[str, ...], form: str) -> Path:
    for stem in stems:
        for suffix in (".csv", ".txt"):
            if (root / f"{stem}{suffix}").is_file():
                return root / f"{stem}{suffix}"
    names = " or ".join(f"{stem}.csv|txt" for stem in stems)
    without = f"; {_WITHOUT_TEST}" if "test" in stems else ""
    raise UserError(f"no {names} in {root}: this format reads its lines {form}{without}")


def _split_right(line: str, where: str, form: str = "a path and an integer label from 0") -> tuple[str, int]:
    match = re.fullmatch(r"(.+?)\s*[,\t ]\s*(-?\d+)", line)
    if match is None:
        raise UserError(f"{where}: expected {form} (no header line), found {line!r}")
    return match[1], int(match[2])

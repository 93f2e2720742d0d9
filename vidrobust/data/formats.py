"""Parse data set layouts into records, one function per format.

A parser is `parser(root, split, fold) -> (records, classes)` with split "train" or "test". Labels
are ranks 0..K-1 into `classes`; every listed file exists. A list that is wrong is refused with the
line that is wrong.
"""

import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidrobust.data.decoding.images import IMAGE_SUFFIXES, TORCHVISION, torchvision_dataset
from vidrobust.data.records import (
    Missing,
    Parsed,
    Record,
    checked,
    composed,
    file_path,
    files_below,
    is_hidden,
    lines,
    odd_name,
    plain_name,
    read_list,
    whole_number,
)
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown

log = logging.getLogger("vidrobust")
_WITHOUT_TEST = "without one, set data.validation=0.2 or eval.enabled=false"
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


def ucf101(root: Path, split: str, fold: int) -> Parsed:
    """UCF101 and everything in its layout: `classInd.txt`, `trainlist0N.txt`, `testlist0N.txt`.

    The ids of classInd start at 1 and may have gaps (a restricted list); a label is a class's rank
    among them. A test list has no labels: the folder is the class. Names are matched without regard
    to case, because UCF101 itself spells HandstandPushups in two ways. Clips of one gNN were cut
    from one source: their group.
    """
    lists = _first_folder(root, ("ucfTrainTestlist", "annotations", "."), "classInd.txt")
    ids = _class_ids(lists / "classInd.txt")
    classes = [ids[i] for i in sorted(ids)]
    rank = {plain_name(name): label for label, name in enumerate(classes)}
    path = lists / f"{split}list{fold:02d}.txt"
    if not path.is_file():
        raise UserError(
            f"no split file {path}: data.fold={fold} is not one of this data set's splits"
        )
    records, missing = [], Missing(_videos(root, "UCF-101"))
    for where, line in lines(path):
        name, _, listed = line.rpartition(" ")
        if not name or re.fullmatch("[0-9]+", listed) is None:
            name, listed = line, ""
        name = name.rstrip(" \t")
        folder = name.split("/")[0]
        label = rank.get(plain_name(folder))
        if label is None:
            raise UserError(
                f"{where}: class '{shown(folder)}' is not in {lists / 'classInd.txt'}; "
                f"{odd_name(name)}correct the line, or add the class there"
            )
        number = whole_number(listed)
        if listed and (number is None or classes[label] != ids.get(number)):
            expected = next(i for i, known in ids.items() if known == classes[label])
            raise UserError(
                f"{where}: label {shown(listed)} is not {folder}'s; "
                f"classInd.txt says {expected} (its ids start at 1)"
            )
        group = re.sub(r"_c\d+$", "", Path(name).stem).lower()
        records.append(Record(name, file_path(missing.find(name, where)), label, group))
    missing.refuse()
    return checked(records, path), classes


def hmdb51(root: Path, split: str, fold: int) -> Parsed:
    """HMDB51: `<class>_test_split<N>.txt`, lines `file.avi 1` (train), `2` (test) or `0` (unused).

    Classes are those that have a list of this fold, sorted. A file's name begins with the film
    it was cut from: its group.
    """
    pattern = f"*_test_split{fold}.txt"
    tops = [root / name for name in ("testTrainMulti_7030_splits", "splits", "annotations", ".")]
    found = next(filter(None, (_lists_in(top, pattern) for top in tops)), None)
    if found is None:
        raise UserError(
            f"no {pattern} in {tops[0]}: the official lists of HMDB51 belong there (data.fold=1..3;"
            " datasets/hmdb51/README.md)"
        )
    classes = [path.name.removesuffix(pattern[1:]) for path in found]
    records, missing = [], Missing(_videos(root, "hmdb51_org"))
    for label, (name, path) in enumerate(zip(classes, found, strict=True)):
        for where, line in lines(path):
            file, _, tag = line.rpartition(" ")
            if tag not in ("0", "1", "2"):
                raise UserError(
                    f"{where}: expected a file and 1 (train), 2 (test) or 0 (unused), "
                    f"found '{shown(line)}'"
                )
            if tag == ("1" if split == "train" else "2"):
                uid = f"{name}/{file.strip()}"
                group = re.split(
                    f"_{re.escape(name)}_", Path(uid).stem, maxsplit=1, flags=re.IGNORECASE
                )[0]
                records.append(Record(uid, file_path(missing.find(uid, where)), label, group))
    missing.refuse()
    return checked(records, found[0].parent), classes


def kinetics(root: Path, split: str, fold: int) -> Parsed:
    """Kinetics: official csv files (label, youtube_id, time_start, ...) and files
    `<id>_<start>_<end>.mp4`.

    split "test" is the validation list where there is one, as its papers have it. Files may lie in
    folders a split or a class, or none, and be called by their id alone. YouTube removes videos:
    those that are not there are left out, and said. Classes are those of the training list, sorted.
    The group is the YouTube id.
    """
    stems = ("train",) if split == "train" else ("val", "validate", "validation", "test")
    train = _kinetics_csv(_kinetics_list(root, ("train",)))
    path = _kinetics_list(root, stems)
    classes = sorted({row["label"] for _, row in train})
    rank = {name: label for label, name in enumerate(classes)}
    top = next((root / stem for stem in stems if (root / stem).is_dir()), _videos(root, "videos"))
    files: dict[str, list[Path]] = {}
    for file in files_below(top):
        if file.suffix.lower() in VIDEO_SUFFIXES:
            files.setdefault(file.stem, []).append(file)
    records: list[Record] = []
    lost = []
    for where, row in train if split == "train" else _kinetics_csv(path):
        if row["label"] not in rank:
            raise UserError(f"{where}: class '{shown(row['label'])}' is not in the training list")
        source, span = row["youtube_id"], (row["time_start"], row["time_end"])
        stem = f"{source}_{int(float(span[0])):06d}_{int(float(span[1])):06d}"
        named = files.get(stem) or files.get(source, [])
        if len(named) > 1:
            raise UserError(
                f"{where}: {named[0]} and {named[1]} are both {named[0].stem}; remove or rename one"
            )
        if not named:
            lost.append(stem)
            continue
        uid = named[0].relative_to(top).as_posix()
        records.append(Record(uid, file_path(named[0]), rank[row["label"]], source))
    if lost:
        listed = len(lost) + len(records)
        first = shown(lost[0])
        log.warning(f"{path}: {len(lost)} of {listed} videos are not under {top}, first {first}")
    return checked(records, path), classes


def path_label_list(root: Path, split: str, fold: int) -> Parsed:
    """`train.csv|txt` and `test.csv|txt` (or `val`) under root: a line is `path label`, paths
    relative to root.

    The separator is a space, a comma or a tab; the line is split from the right, so paths may hold
    spaces. Label -1 is a video without one. `classes.txt`, a name a line, is optional: without it
    classes are called by their numbers. VideoMAE's lines for pretraining, `path 0 -1`, are read;
    others of three columns are refused.
    """
    missing = Missing(root)

    def entry(line: str, where: str) -> _Entry:
        name, label = _split_right(line, where, "a path and an integer label from 0")
        columns = _integer_column(name)
        if columns is None or missing.has(name):
            return _Entry(where, name, label)
        if (columns[1], label) == (0, -1):
            return _Entry(where, columns[0], label)
        raise UserError(
            f"{where}: three columns, '{shown(columns[0])}', {columns[1]} and {label}, where a "
            f"line of data.name=list is `path label`; if {label} is a label, remove {columns[1]}; "
            "if it is a number of frames, as the last column of VideoMAEv2's lists for "
            "pre-training (path, start, total), write -1 in place of both"
        )

    return _listed(root, split, entry, missing, "`path label`")


def frame_list(root: Path, split: str, fold: int) -> Parsed:
    """Lists as `path_label_list`, but of folders of frames: a line is `folder n_frames label`."""
    form = "a folder, its number of frames and a label"

    def entry(line: str, where: str) -> _Entry:
        text, label = _split_right(line, where, form)
        name, count = _split_right(text, where, form)
        return _Entry(where, name, label, count)

    return _listed(root, split, entry, Missing(root), "`folder n_frames label`")


def video_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<split>/<class>/<video>`, split train and test (or val); classes are the training
    folders, sorted.
    """
    return _foldered(root, split, VIDEO_SUFFIXES)


def image_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<split>/<class>/<image>`, as torchvision's ImageFolder: each image is a clip of one
    frame.
    """
    return _foldered(root, split, IMAGE_SUFFIXES)


def frame_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<split>/<class>/<clip>/<image>`: a folder of frames is a clip."""
    return _foldered(root, split, None)


def class_folder(root: Path, split: str, fold: int) -> Parsed:
    """`root/<class>/<image or video>`, one list, all of it "train": as ImageNet-Sketch, -R and -A
    come.
    """
    if split != "train":
        raise UserError(
            f"data.name=class_folder: {root} has one list; data.validation holds out a part of it"
        )
    classes = [folder.name for folder in _folders(root)]
    for name in classes:
        _refuse_clips(root / name)
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    records, skipped = [], []
    for label, name in enumerate(classes):
        for file in files_below(root / name):
            if file.suffix.lower() in suffixes:
                uid = file.relative_to(root).as_posix()
                records.append(Record(uid, file_path(file), label))
            else:
                skipped.append(file)
    _warn_of_skipped(root, skipped, suffixes)
    return checked(records, root), classes


def _refuse_clips(folder: Path) -> None:
    """Raise UserError for a class whose folders hold the frames of clips: each would be a video."""
    clips = []
    for inner in _folders(folder):
        names = [file.stem for file in inner.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
        if len(names) > 1 and all(re.search(r"\d", name) for name in names):
            clips.append(inner)
    if len(clips) > 1:  # one may be a folder for all images, as Tiny ImageNet has
        raise UserError(
            f"data.name=class_folder: {clips[0]} and {len(clips) - 1} more folders hold numbered"
            " images, the frames of clips, and each image would be a video; set"
            " data.name=frame_folder and put the classes below train/"
        )


def torchvision_images(name: str, root: Path, split: str, fold: int) -> Parsed:
    """A classification data set of torchvision.datasets by its class's name, in the root that
    torchvision is given.
    """
    from torchvision import datasets

    if name not in datasets.__all__:
        raise UserError(
            f"data.name=torchvision:{name}: torchvision has no such data"
            f" set{nearest(name, datasets.__all__)}"
        )
    try:
        images = torchvision_dataset(name, split, str(root))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"data.name=torchvision:{name}: no {split} split is known of it"
            f" ({' '.join(str(error).split())})"
        ) from None
    except (RuntimeError, OSError) as error:
        raise UserError(
            f'{root} holds no {name} ({" ".join(str(error).split())}); python -c "from'
            f" torchvision.datasets import {name}; {name}('{root}', download=True)\" fetches it"
        ) from None
    known = next(
        (getattr(images, key) for key in ("targets", "labels", "_labels") if hasattr(images, key)),
        None,
    )
    try:
        labels = [
            int(label) for label in (known if known is not None else (label for _, label in images))
        ]
    except (TypeError, ValueError):
        raise UserError(f"data.name=torchvision:{name}: its targets are not classes") from None
    classes = [str(c) for c in getattr(images, "classes", range(max(labels) + 1))]
    records = [
        Record(f"{split}/{i:06d}", f"{TORCHVISION}{name}:{split}:{i}:{root}", label)
        for i, label in enumerate(labels)
    ]
    return checked(records, root), classes


@dataclass(frozen=True)
class _Entry:
    """A line of a list. frames: None where the format has no such column."""

    where: str
    name: str
    label: int
    frames: int | None = None


def _listed(
    root: Path, split: str, entry: Callable[[str, str], _Entry], missing: Missing, form: str
) -> Parsed:
    """Return the records of `train|test.csv|txt`.

    Args:
        root: the data set's folder.
        split: "train" or "test".
        entry: reads a line: (text, where it stands) -> _Entry.
        missing: looks the files up.
        form: what a line looks like, for messages.
    """
    train = _list_file(root, ("train",), form)
    path = train if split == "train" else _list_file(root, ("test", "val"), form)
    rows = {}
    for file in dict.fromkeys((train, path)):
        rows[file] = [entry(line, where) for where, line in lines(file)]
    if not rows[train]:
        raise UserError(f"{train} lists no video; write lines {form}")
    names = root / "classes.txt"
    classes = [line for _, line in lines(names)] if names.is_file() else None
    for name, count in Counter(classes or ()).items():
        if count > 1:
            raise UserError(
                f"{names}: class '{shown(name)}' stands {count} times; each stands once"
            )
    for listed in rows.values():
        _check_counts(listed, named=bool(classes))
    classes = _classes_of(rows[train], train, classes)
    records = []
    for row in rows[path]:
        if not -1 <= row.label < len(classes):
            source = names.name if names.is_file() else train.name
            raise UserError(
                f"{row.where}: label {row.label} is out of range 0..{len(classes) - 1} ({source}); "
                "correct it, or list its class there"
            )
        place = file_path(missing.find(row.name, row.where))
        records.append(Record(row.name, place, row.label, frames=row.frames or 0))
    missing.refuse()
    return checked(records, path), classes


# without classes.txt a label may be as large, or as large as the list is long: each is a class
_MANY_CLASSES = 10_000


def _classes_of(rows: list[_Entry], train: Path, classes: list[str] | None) -> list[str]:
    """Return the names of classes.txt, or else the numbers up to the largest label.

    Args:
        rows: the training list.
        train: its path, for messages.
        classes: the names of classes.txt; None or empty without one.

    Raises:
        UserError: for labels that are too large to be classes, or that look 1-based.
    """
    labels = [row.label for row in rows]
    for row in rows:
        if row.label < -1:
            raise UserError(
                f"{row.where}: label {row.label} is out of range: classes are numbers from 0, and "
                "-1 is a video without a label"
            )
    known = [label for label in labels if label >= 0] or [-1]
    limit = max(_MANY_CLASSES, len(rows))
    for row in rows:
        if not classes and row.label >= limit:
            raise UserError(
                f"{row.where}: label {row.label} is too large for a list of {len(rows)} lines "
                f"without classes.txt (at most {limit - 1}); number classes from 0, or name them "
                "in classes.txt"
            )
    if min(known) == 1 and (not classes or max(labels) >= len(classes)):
        raise UserError(
            f"{train}: labels look 1-based (smallest 1, largest {max(labels)}); "
            "subtract 1 from each"
        )
    return classes or [str(label) for label in range(max(labels) + 1)]


def _check_counts(rows: list[_Entry], *, named: bool) -> None:
    """Raise UserError for numbers of frames below 1, and for a start and a total in their place.

    named: classes.txt says that the last column is a label.
    """
    counts = [row.frames for row in rows if row.frames is not None]
    if counts and not named and max(counts) <= 1 and min(row.label for row in rows) > 1:
        first = rows[0]
        raise UserError(
            f"{first.where}: {first.frames} and {first.label} look like the first frame and the "
            "number of frames (VideoMAEv2's lists for pre-training: folder, start, total), not "
            f"like `folder n_frames label`; write {first.label} -1 for them, or name the classes "
            "in classes.txt"
        )
    for row in rows:
        if row.frames is not None and row.frames < 1:
            raise UserError(
                f"{row.where}: {shown(row.name)} has {row.frames} frames; a clip has one or more"
            )


def _foldered(root: Path, split: str, suffixes: set[str] | None) -> Parsed:
    """Records of `root/<split>/<class>/`: files of these suffixes at any depth, or for None the
    folders in it.
    """
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"no folder {train}: its folders are the classes, {root}/train/<class>/...")
    classes = [folder.name for folder in _folders(train)]
    rank = _ranks(classes)
    top = (
        train
        if split == "train"
        else next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
    )
    if top is None:
        raise UserError(
            f"no folder {root / 'test'} (or val): evaluation reads its videos there;"
            f" {_WITHOUT_TEST}"
        )
    records: list[Record] = []
    skipped, empty = [], []
    for folder in _folders(top):
        label = rank.get(folder.name, rank.get(composed(folder.name)))
        if label is None:
            raise UserError(f"{folder}: class '{shown(folder.name)}' has no folder in {train}")
        before = len(records)
        inner = files_below(folder) if suffixes else sorted(folder.iterdir())
        for entry in inner:
            if is_hidden(entry.name):
                continue
            if _is_clip(entry, suffixes):
                records.append(Record(entry.relative_to(top).as_posix(), file_path(entry), label))
            else:
                skipped.append(entry)
        empty += [folder.name] if len(records) == before else []
    _warn_of_skipped(top, skipped, suffixes)
    if empty:
        log.warning(f"{top}: {len(empty)} classes have no video, first {shown(empty[0])}")
    return checked(records, top), classes


def _warn_of_skipped(top: Path, skipped: list[Path], suffixes: set[str] | None) -> None:
    if skipped:
        kept = ", ".join(sorted(suffixes)) if suffixes else "folders of frames"
        first = shown(skipped[0], 300)
        log.warning(
            f"{top}: {len(skipped)} files are left out, first {first}; this format takes {kept}"
        )


def _is_clip(entry: Path, suffixes: set[str] | None) -> bool:
    """Return whether this is a file of these suffixes, or for None a folder."""
    if suffixes is None:
        return os.path.isdir(entry)
    return entry.suffix.lower() in suffixes and os.path.isfile(entry)


def _ranks(classes: list[str]) -> Mapping[str, int]:
    """Return the label of each class by its name, and by its name with accents composed."""
    plain = [composed(name) for name in classes]
    count = Counter(plain)
    others = {name: label for label, name in enumerate(plain) if count[name] == 1}
    return others | {name: label for label, name in enumerate(classes)}


def _folders(top: Path) -> list[Path]:
    entries = (entry for entry in top.iterdir() if not is_hidden(entry.name))
    return sorted(entry for entry in entries if os.path.isdir(entry))


def _lists_in(folder: Path, pattern: str) -> list[Path]:
    """Return the lists of a folder, sorted; macOS leaves hidden files of the same names."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.name))


def _videos(root: Path, name: str) -> Path:
    """Where the videos lie: `videos`, the folder of the official archive, or the root itself."""
    return next((root / folder for folder in ("videos", name) if (root / folder).is_dir()), root)


def _kinetics_list(root: Path, stems: tuple[str, ...]) -> Path:
    for stem in stems:
        for folder in (root, root / "annotations"):
            if (folder / f"{stem}.csv").is_file():
                return folder / f"{stem}.csv"
    raise UserError(
        f"no {' or '.join(f'{stem}.csv' for stem in stems)} in {root}: the official lists belong"
        " there"
    )


def _kinetics_csv(path: Path) -> list[tuple[str, dict[str, str]]]:
    """("file, line 3", row) of an official csv."""
    rows = []
    needed = {"label", "youtube_id", "time_start", "time_end"}
    table = csv.DictReader(io.StringIO(read_list(path), newline=""))
    try:
        if not needed <= set(table.fieldnames or ()):
            raise UserError(f"{path}: an official list has the columns {', '.join(sorted(needed))}")
        for row in table:
            where = f"{path}, line {table.line_num}"
            times = f"{row['time_start']} {row['time_end']}"
            if (
                not (row["label"] or "").strip()
                or not row["youtube_id"]
                or not _TIMES.fullmatch(times)
            ):
                found = ",".join(map(str, row.values()))
                raise UserError(f"{where}: times and label expected, found '{shown(found)}'")
            rows.append((where, row | {"label": row["label"].strip()}))
    except csv.Error as error:  # such as a quote that is never closed
        raise UserError(
            f"{path}, line {table.line_num}: not a table ({error}); mend the line"
        ) from None
    return rows


_TIMES = re.compile(r"[0-9]{1,9}(\.[0-9]*)? [0-9]{1,9}(\.[0-9]*)?")


def _first_folder(root: Path, names: tuple[str, ...], file: str) -> Path:
    for name in names:
        if (root / name / file).is_file():
            return root / name
    raise UserError(
        f"no {file} in {root / names[0]}: the official split files of UCF101 belong there"
    )


def _class_ids(path: Path) -> dict[int, str]:
    ids: dict[int, str] = {}
    names: set[str] = set()
    for where, line in lines(path):
        text, _, name = line.partition(" ")
        number = whole_number(text)
        name = name.strip(" \t")
        if number is None or number < 0 or not name:
            raise UserError(f"{where}: expected `id ClassName`, found '{shown(line)}'")
        if number in ids or plain_name(name) in names:
            raise UserError(f"{where}: '{shown(line)}' repeats an id or a name; each stands once")
        ids[number] = name
        names.add(plain_name(name))
    if not ids:
        raise UserError(f"{path} lists no class; take the official one")
    return ids


def _list_file(root: Path, stems: tuple[str, ...], form: str) -> Path:
    for stem in stems:
        found = [root / f"{stem}{suffix}" for suffix in (".csv", ".txt")]
        found = [path for path in found if path.is_file()]
        if len(found) > 1:
            raise UserError(f"{root}: {found[0].name} and {found[1].name}; remove or rename one")
        if found:
            return found[0]
    names = " or ".join(f"{stem}.csv|txt" for stem in stems)
    without = f"; {_WITHOUT_TEST}" if "test" in stems else ""
    raise UserError(f"no {names} in {root}: this format reads its lines {form}{without}")


def _split_right(line: str, where: str, form: str) -> tuple[str, int]:
    """Return what stands before the last integer of a line, and the integer.

    Args:
        line: the text.
        where: the list and the line, for the message.
        form: what is expected there.

    Raises:
        UserError: where the line does not end in an integer.
    """
    columns = _integer_column(line)
    if columns is None:
        hint = odd_name(line)
        raise UserError(
            f"{where}: expected {form} (no header line), found '{shown(line)}'; {hint}mend the line"
        )
    return columns


def _integer_column(line: str) -> tuple[str, int] | None:
    """Return what stands before an integer at the end of a line, and the integer, or None.

    Spaces and tabs, and one comma among them, stand between the two.
    """
    start = max(map(line.rfind, (" ", "\t", ",")))
    number = whole_number(line[start + 1 :])
    name = line[: max(start, 0)].rstrip(" \t")
    if start >= 0 and line[start] != ",":
        name = name.removesuffix(",").rstrip(" \t")
    return (name, number) if name and number is not None else None

"""Parse the layouts of Kinetics, Something-Something v2, Diving48, FineGym and Charades.

The lists of these data sets name a video by an id, and its file lies in any folder below that of
the videos. Each parser is called as those of `formats.py`.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidrobust.data.records import (
    VIDEO_SUFFIXES,
    FilesByStem,
    Parsed,
    Record,
    checked,
    file_path,
    lines,
    read_list,
    videos_folder,
    whole_number,
)
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

Row = dict[str, Any]


# ------------------------------------------------------------------ Kinetics


def kinetics(root: Path, split: str, fold: int, classes: int = 0) -> Parsed:
    """Read Kinetics: official csv files, and clips that are named by id and times.

    The lists have columns label, youtube_id, time_start, ...; a clip is
    `<youtube_id>_<start>_<end>.mp4`. split "test" is the validation list if there is one, as in the
    papers. Files may lie in folders by split or by class, or in none, and may be named by their id
    alone. YouTube removes videos: those that are missing are left out, and a warning counts them.
    Classes are those of the training list, sorted. The group is the YouTube id.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
        classes: number of classes that the training list must have: 400, 600 or 700; 0: any.
    """
    stems = ("train",) if split == "train" else ("val", "validate", "validation", "test")
    source = _kinetics_list(root, ("train",), classes)
    train = _kinetics_csv(source)
    path = _kinetics_list(root, stems, classes)
    names = sorted({row["label"] for _, row in train})
    if classes and len(names) != classes:
        raise UserError(
            f"{source} lists {len(names)} classes, and data.name=kinetics{classes} has {classes};"
            " take the official list, or set data.name=kinetics for another one"
        )
    label_of = {name: label for label, name in enumerate(names)}
    by_split = (root / stem for stem in stems if (root / stem).is_dir())
    files = FilesByStem(next(by_split, videos_folder(root)))
    records: list[Record] = []
    rows = train if split == "train" else _kinetics_csv(path)
    # Match each line with a file: by id and times, or by the id alone.
    for where, row in rows:
        if row["label"] not in label_of:
            raise UserError(f"{where}: class '{shown(row['label'])}' is not in the training list")
        youtube_id = row["youtube_id"]
        start = int(float(row["time_start"]))
        end = int(float(row["time_end"]))
        file = files.find((f"{youtube_id}_{start:06d}_{end:06d}", youtube_id), where)
        if file is not None:
            label = label_of[row["label"]]
            records.append(Record(files.uid(file), file_path(file), label, youtube_id))
    files.warn(path, len(rows))
    return checked(records, path), names


def _kinetics_list(root: Path, stems: tuple[str, ...], classes: int) -> Path:
    """Return the path of the first official list that exists; raise UserError for none.

    Args:
        root: folder of the data set.
        stems: possible names, without suffix.
        classes: number in the name of the data set, which some releases put before; 0: none.
    """
    prefixes = ["", "kinetics_"]
    if classes:
        prefixes += [f"kinetics{classes}_", f"kinetics-{classes}_", f"kinetics_{classes}_"]
    names = [f"{prefix}{stem}.csv" for stem in stems for prefix in prefixes]
    without_prefix = " or ".join(f"{stem}.csv" for stem in stems)
    return _list_path(root, names, without_prefix)


def _kinetics_csv(path: Path) -> list[tuple[str, Row]]:
    """Return ("file, line 3", row) of each line of an official csv file."""
    rows = []
    for where, row in _table(path, ("label", "youtube_id", "time_start", "time_end")):
        times = f"{row['time_start']} {row['time_end']}"
        label = (row["label"] or "").strip()
        if not label or not row["youtube_id"] or not _TIMES.fullmatch(times):
            text = ",".join(map(str, row.values()))
            raise UserError(f"{where}: times and label expected, found '{shown(text)}'")
        rows.append((where, row | {"label": label}))
    return rows


# time_start and time_end in seconds, joined by a space
_TIMES = re.compile(r"[0-9]{1,9}(\.[0-9]*)? [0-9]{1,9}(\.[0-9]*)?")


# ------------------------------------------------------------------ Something-Something v2


def ssv2(root: Path, split: str, fold: int) -> Parsed:
    """Read Something-Something v2.

    The lists are `labels.json` (template -> id), `train.json` and `validation.json`, whose entries
    have an `id` and a `template`. The brackets of a template are removed to find its class. The
    newer names `something-something-v2-<list>.json` are accepted. Split "test" is the validation
    list, as in the papers: `test.json` has no labels.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    label_of = _ssv2_labels(_ssv2_list(root, "labels"))
    path = _ssv2_list(root, "train" if split == "train" else "validation")
    files = FilesByStem(videos_folder(root, "20bn-something-something-v2"))
    records = []
    for where, entry in _entries(path):
        name = str(entry.get("id", ""))
        template = entry.get("template")
        if not name or not isinstance(template, str):
            raise UserError(
                f"{where}: an entry has an id and a template, found '{shown(str(entry))}'; take the"
                " official train.json and validation.json (test.json has no labels)"
            )
        label = label_of.get(template.replace("[", "").replace("]", ""))
        if label is None:
            raise UserError(
                f"{where}: template '{shown(template)}' is not in labels.json; take the labels of"
                " the same release"
            )
        file = files.find((name,), where)
        if file is not None:
            records.append(Record(files.uid(file), file_path(file), label))
    files.refuse()
    return checked(records, path), list(label_of)


def _ssv2_list(root: Path, stem: str) -> Path:
    """Return the path of a list of Something-Something v2; raise UserError for none."""
    names = (f"{stem}.json", f"something-something-v2-{stem}.json")
    return _list_path(root, names, " or ".join(names))


def _ssv2_labels(path: Path) -> dict[str, int]:
    """Return template -> label of a `labels.json`, in the order of the labels.

    Raises:
        UserError: the file does not give each number from 0 to one template.
    """
    content = _json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: not an object of templates and ids; take the official file")
    numbers = {template: whole_number(str(number)) for template, number in content.items()}
    if set(numbers.values()) != set(range(len(numbers))):
        raise UserError(
            f"{path}: the ids of {len(numbers)} templates are not 0 to {len(numbers) - 1}, each"
            " once; take the official file"
        )
    return dict(sorted(numbers.items(), key=lambda item: item[1] or 0))


# ------------------------------------------------------------------ Diving48


def diving48(root: Path, split: str, fold: int) -> Parsed:
    """Read Diving48.

    The lists are `Diving48_vocab.json` (a list of classes), `Diving48_V2_train.json` and
    `Diving48_V2_test.json`, whose entries have a `vid_name` and a `label`. Without those of V2, the
    lists of V1 are read (`Diving48_train.json`). A file is one dive, so the entries' start_frame
    and end_frame are not used. The group is the video of the competition.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    vocab = _list_path(root, ("Diving48_vocab.json",))
    content = _json(vocab)
    if not isinstance(content, list) or not content:
        raise UserError(f"{vocab}: not a list of classes; take the official file")
    # a class of the vocabulary is a list: take-off, somersault, twist and position
    classes = [" ".join(map(str, c)) if isinstance(c, list) else str(c) for c in content]
    # the version of the training list decides, as labels of V1 are corrected in V2
    train = _list_path(root, ("Diving48_V2_train.json", "Diving48_train.json"))
    path = train
    if split == "test":
        path = _list_path(root, (train.name.replace("train", "test"),))
    files = FilesByStem(videos_folder(root, "rgb"))
    records = []
    for where, entry in _entries(path):
        name = entry.get("vid_name")
        label = entry.get("label")
        if not isinstance(name, str) or not name or type(label) is not int:  # not True, which is 1
            raise UserError(
                f"{where}: an entry has a vid_name and a label, found '{shown(str(entry))}'; take"
                " the official file"
            )
        if not 0 <= label < len(classes):
            raise UserError(
                f"{where}: label {label} is out of range 0..{len(classes) - 1} ({vocab.name});"
                " take the lists of one release"
            )
        file = files.find((name,), where)
        if file is not None:
            group = re.sub(r"_[0-9]+$", "", name)
            records.append(Record(files.uid(file), file_path(file), label, group))
    files.refuse()
    return checked(records, path), classes


# ------------------------------------------------------------------ FineGym


def finegym(root: Path, split: str, fold: int, classes: int) -> Parsed:
    """Read Gym99 or Gym288 of FineGym, cut into one file per element.

    The lists are `gym99_train_element_v1.1.txt` and `gym99_val_element.txt`, with lines `<id>
    <label>`, or those of mmaction2, `gym99_train.txt` and `gym99_val.txt`, with lines `<id>.mp4
    <label>`. Names of the classes are in `gym99_categories.txt`; without it they are numbers. An id
    is `<youtube_id>_E_<start>_<end>_A_<start>_<end>`, and its group is the YouTube id. YouTube
    removes videos: those that are missing are left out, and a warning counts them.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
        classes: 99 or 288.
    """
    prefix = f"gym{classes}"
    ends = ["val_element", "val_org", "val"]
    if split == "train":
        ends = ["train_element_v1.1", "train_element_v1.0", "train_org", "train"]
    path = _list_path(root, [f"{prefix}_{end}.txt" for end in ends])
    names = _gym_names(root, f"{prefix}_categories.txt", classes)
    files = FilesByStem(videos_folder(root, "subactions"))
    records = []
    count = 0
    for where, line in lines(path):
        count += 1
        name, _, text = line.replace("\t", " ").rpartition(" ")
        name = name.strip()
        label = whole_number(text)
        if not name or label is None:
            raise UserError(
                f"{where}: expected an id and a label, found '{shown(line)}'; take the official"
                " list"
            )
        if not 0 <= label < classes:
            raise UserError(
                f"{where}: label {label} is out of range 0..{classes - 1} of {prefix}; take the"
                " official list"
            )
        if Path(name).suffix.lower() in VIDEO_SUFFIXES:
            name = Path(name).stem
        file = files.find((name,), where)
        if file is not None:
            group = name.split("_E_")[0]
            records.append(Record(files.uid(file), file_path(file), label, group))
    files.warn(path, count)
    return checked(records, path), names


def _gym_names(root: Path, name: str, classes: int) -> list[str]:
    """Return the names of the classes, or their numbers without a file of names.

    Args:
        root: folder of the data set.
        name: of the file, whose lines are `Clabel: 0; set: 1; Glabel: 5; (VT) round-off`.
        classes: number of classes.

    Raises:
        UserError: a line has another form, or a class is missing or repeated.
    """
    path = next(filter(Path.is_file, (root / folder / name for folder in _LISTS)), None)
    if path is None:
        return [str(label) for label in range(classes)]
    names: dict[int, str] = {}
    for where, line in lines(path):
        match = _CATEGORY.fullmatch(line)
        if match is None:
            raise UserError(
                f"{where}: expected `Clabel: 0; set: 1; Glabel: 5; name`, found '{shown(line)}';"
                " take the official file"
            )
        label = int(match[1])
        if label in names:
            raise UserError(f"{where}: class {label} is listed twice; take the official file")
        names[label] = match[2].strip()
    if set(names) != set(range(classes)):
        raise UserError(
            f"{path} does not list the classes 0 to {classes - 1}, but {len(names)} others; take"
            " the official file"
        )
    return [names[label] for label in range(classes)]


# the label of a class, further numbers, and its name, which may hold semicolons
_CATEGORY = re.compile(r"Clabel:\s*([0-9]{1,9})\s*;(?:\s*\w+:\s*[0-9]+\s*;)*(.*\S.*)")


# ------------------------------------------------------------------ Charades


def charades(root: Path, split: str, fold: int) -> Parsed:
    """Read Charades, whose videos have several labels each.

    The lists are `Charades_v1_train.csv` and `Charades_v1_test.csv`. Their column `actions` has
    entries `c092 11.90 21.20` (class, start and end in seconds), separated by semicolons; it may be
    empty. Times are not used: a video has every class that it shows. Classes are those of
    `Charades_v1_classes.txt`, lines `c000 Holding some clothes`. The group is the subject, who
    recorded the video at home.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    source = _list_path(root, ("Charades_v1_classes.txt",))
    codes = _charades_classes(source)
    place = {code: label for label, code in enumerate(codes)}
    path = _list_path(root, (f"Charades_v1_{split}.csv",))
    files = FilesByStem(videos_folder(root, "Charades_v1_480", "Charades_v1"))
    records = []
    for where, row in _table(path, ("id", "subject", "actions")):
        name = (row["id"] or "").strip()
        if not name:
            raise UserError(f"{where}: no id; take the official list")
        labels = set()
        for action in filter(None, (row["actions"] or "").split(";")):
            words = action.split()
            if len(words) != 3 or words[0] not in place:
                raise UserError(
                    f"{where}: expected actions such as `c092 11.90 21.20` with a class of"
                    f" {source.name}, found '{shown(action)}'; take the official list"
                )
            labels.add(place[words[0]])
        file = files.find((name,), where)
        if file is not None:
            records.append(
                Record(
                    files.uid(file),
                    file_path(file),
                    label=-1,
                    group=row["subject"] or "",
                    labels=tuple(sorted(labels)),
                )
            )
    files.refuse()
    return checked(records, path), list(codes.values())


def _charades_classes(path: Path) -> dict[str, str]:
    """Return code -> name of the classes of Charades, in the order of the file."""
    names: dict[str, str] = {}
    for where, line in lines(path):
        code, _, name = line.partition(" ")
        if not re.fullmatch(r"c[0-9]{3}", code) or not name.strip():
            raise UserError(
                f"{where}: expected `c000 Holding some clothes`, found '{shown(line)}'; take the"
                " official file"
            )
        if code in names:
            raise UserError(f"{where}: class {code} is listed twice; take the official file")
        names[code] = name.strip()
    if not names:
        raise UserError(f"{path} lists no class; take the official file")
    return names


# ------------------------------------------------------------------ files

# folders below the root in which releases have their lists
_LISTS = (".", "annotations", "labels", "categories", "Charades")


def _list_path(root: Path, names: Sequence[str], shown_as: str = "") -> Path:
    """Return the path of the first list that exists; raise UserError for none.

    Args:
        root: folder of the data set.
        names: possible names, the preferred one first.
        shown_as: names for the message; "": all.
    """
    for name in names:
        for folder in _LISTS:
            if (root / folder / name).is_file():
                return root / folder / name
    raise UserError(
        f"no {shown_as or ' or '.join(names)} in {root}: the official lists belong there"
    )


def _json(path: Path) -> Any:
    """Return the content of a JSON file; raise UserError, with the line, for any other file."""
    try:
        return json.loads(read_list(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); take the official file"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise UserError(f"{path}: not JSON ({error}); take the official file") from None


def _entries(path: Path) -> list[tuple[str, Row]]:
    """Return ("file, entry 3", entry) of a JSON list of objects."""
    content = _json(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: not a list of videos; take the official file")
    entries = []
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict):
            raise UserError(
                f"{path}, entry {number}: not an object, but '{shown(str(entry))}'; take the"
                " official file"
            )
        entries.append((f"{path}, entry {number}", entry))
    return entries


def _table(path: Path, columns: Sequence[str]) -> list[tuple[str, Row]]:
    """Return ("file, line 3", row) of each line of a csv file with a header.

    Args:
        path: the file.
        columns: names of the columns that it must have.

    Raises:
        UserError: for a missing column, and for a file that is no table.
    """
    rows = []
    table = csv.DictReader(io.StringIO(read_list(path), newline=""))
    try:
        if not set(columns) <= set(table.fieldnames or ()):
            raise UserError(
                f"{path}: an official list has the columns {', '.join(sorted(columns))}"
            )
        for row in table:
            rows.append((f"{path}, line {table.line_num}", row))
    except csv.Error as error:  # for example, a quote that is never closed
        raise UserError(
            f"{path}, line {table.line_num}: not a table ({error}); correct the line"
        ) from None
    return rows

"""Parse data set layouts into records, one function per format.

A parser is called as `parser(root, split, fold)`, with split "train" or "test", and returns
(records, classes). Labels are 0..K-1, positions in `classes`. Every listed file exists. An error in
a list is reported with the file and the line. Formats whose lists name a video by an id are in
`action_formats.py`.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidrobust.data.decoding.images import IMAGE_SUFFIXES, TORCHVISION, torchvision_dataset
from vidrobust.data.records import (
    VIDEO_SUFFIXES,
    Missing,
    Parsed,
    Record,
    checked,
    composed,
    file_path,
    files_below,
    is_file,
    is_folder,
    is_hidden,
    lines,
    odd_name,
    plain_name,
    videos_folder,
    whole_number,
)
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown

log = logging.getLogger("vidrobust")
# how to run without a test list; ends several messages
_WITHOUT_TEST = "without one, set data.validation=0.2 or eval.enabled=false"


def ucf101(root: Path, split: str, fold: int) -> Parsed:
    """Read UCF101, or a data set in its layout.

    The lists are `classInd.txt`, `trainlist0N.txt` and `testlist0N.txt`. The ids of classInd.txt
    start at 1 and may have gaps (a restricted list); the label of a class is its rank among the
    ids. Test lists have no labels: the folder is the class. Names are matched without regard to
    case, because UCF101 itself spells HandstandPushups in two ways. The group of a clip is its gNN:
    clips of one gNN were cut from one source.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: number N of the official split.
    """
    lists = _first_folder(root, ("ucfTrainTestlist", "annotations", "."), "classInd.txt")
    ids = _class_ids(lists / "classInd.txt")
    classes = [ids[i] for i in sorted(ids)]
    label_of = {plain_name(name): label for label, name in enumerate(classes)}
    path = lists / f"{split}list{fold:02d}.txt"
    if not path.is_file():
        raise UserError(
            f"no split file {path}: data.fold={fold} is not one of this data set's splits"
        )
    records = []
    missing = Missing(videos_folder(root, "UCF-101"))
    for where, line in lines(path):
        # A training line is `path id`, a test line is `path`; a path may hold spaces.
        name, _, listed_id = line.rpartition(" ")
        if not name or re.fullmatch("[0-9]+", listed_id) is None:
            name = line
            listed_id = ""
        name = name.rstrip(" \t")
        folder = name.split("/")[0]
        label = label_of.get(plain_name(folder))
        if label is None:
            raise UserError(
                f"{where}: class '{shown(folder)}' is not in {lists / 'classInd.txt'}; "
                f"{odd_name(name)}correct the line, or add the class there"
            )
        # A listed id must be that of the folder.
        number = whole_number(listed_id)
        if listed_id and (number is None or classes[label] != ids.get(number)):
            expected = next(i for i, class_name in ids.items() if class_name == classes[label])
            raise UserError(
                f"{where}: label {shown(listed_id)} is not {folder}'s; "
                f"classInd.txt says {expected} (its ids start at 1)"
            )
        group = re.sub(r"_c\d+$", "", Path(name).stem).lower()
        records.append(Record(name, file_path(missing.find(name, where)), label, group))
    missing.refuse()
    return checked(records, path), classes


def hmdb51(root: Path, split: str, fold: int) -> Parsed:
    """Read HMDB51.

    Its lists are `<class>_test_split<N>.txt`, with lines `file.avi 1` (train), `2` (test) or `0`
    (unused). Classes are those that have a list of this fold, sorted. The name of a file begins
    with the film that it was cut from, which is its group.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: number N of the official split.
    """
    pattern = f"*_test_split{fold}.txt"
    folders = [root / name for name in ("testTrainMulti_7030_splits", "splits", "annotations", ".")]
    lists = next(filter(None, (_lists_in(folder, pattern) for folder in folders)), None)
    if lists is None:
        raise UserError(
            f"no {pattern} in {folders[0]}: the official lists of HMDB51 belong there"
            " (data.fold=1..3; datasets/hmdb51/README.md)"
        )
    classes = [path.name.removesuffix(pattern[1:]) for path in lists]
    records = []
    missing = Missing(videos_folder(root, "hmdb51_org"))
    split_tag = "1" if split == "train" else "2"
    for label, (name, path) in enumerate(zip(classes, lists, strict=True)):
        for where, line in lines(path):
            file, _, tag = line.rpartition(" ")
            if tag not in ("0", "1", "2"):
                raise UserError(
                    f"{where}: expected a file and 1 (train), 2 (test) or 0 (unused), "
                    f"found '{shown(line)}'"
                )
            if tag == split_tag:
                uid = f"{name}/{file.strip()}"
                # File names are <film>_<class>_<attributes>.avi.
                group = re.split(
                    f"_{re.escape(name)}_", Path(uid).stem, maxsplit=1, flags=re.IGNORECASE
                )[0]
                records.append(Record(uid, file_path(missing.find(uid, where)), label, group))
    missing.refuse()
    return checked(records, lists[0].parent), classes


def path_label_list(root: Path, split: str, fold: int) -> Parsed:
    """Read `train.csv|txt` and `test.csv|txt` (or `val`), with lines `path label`.

    Paths are relative to root. The separator is a space, a comma or a tab. Lines are split from the
    right, so paths may contain spaces. Label -1 is a video without a label. `classes.txt`, one name
    per line, is optional: without it, classes are named by their numbers. With it a test list needs
    no training list. VideoMAE's lines for pre-training, `path 0 -1`, are accepted; other lines of
    three columns are refused.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    missing = Missing(root)

    def entry(line: str, where: str) -> _Entry:
        """Parse a line `path label`, or `path 0 -1`."""
        name, label = _split_right(line, where, "a path and an integer label from 0")
        columns = _integer_column(name)
        # A path may end in a number: it is a path if there is such a file.
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
    """Read lists of folders of frames, with lines `folder n_frames label`.

    Everything else is as in `path_label_list`.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    form = "a folder, its number of frames and a label"

    def entry(line: str, where: str) -> _Entry:
        """Parse a line `folder n_frames label`."""
        text, label = _split_right(line, where, form)
        name, count = _split_right(text, where, form)
        return _Entry(where, name, label, count)

    return _listed(root, split, entry, Missing(root), "`folder n_frames label`")


def video_folder(root: Path, split: str, fold: int) -> Parsed:
    """Read `root/<split>/<class>/<video>`, with splits train and test (or val).

    Classes are the folders in train, sorted.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    return _foldered(root, split, VIDEO_SUFFIXES)


def image_folder(root: Path, split: str, fold: int) -> Parsed:
    """Read `root/<split>/<class>/<image>`, as torchvision's ImageFolder does.

    An image is a clip of one frame.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    return _foldered(root, split, IMAGE_SUFFIXES)


def frame_folder(root: Path, split: str, fold: int) -> Parsed:
    """Read `root/<split>/<class>/<clip>/<image>`; a folder of frames is a clip.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        fold: unused: this layout has one split.
    """
    return _foldered(root, split, None)


def class_folder(root: Path, split: str, fold: int) -> Parsed:
    """Read `root/<class>/<image or video>`, one list, all of it "train".

    ImageNet-Sketch, -R and -A come in this layout.

    Args:
        root: folder of the data set.
        split: "train"; "test" raises UserError.
        fold: unused: this layout has one split.
    """
    if split != "train":
        raise UserError(
            f"data.name=class_folder: {root} has one list; data.validation holds out a part of it"
        )
    classes = [folder.name for folder in _folders(root)]
    for name in classes:
        _refuse_clips(root / name)
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    records = []
    skipped = []
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
    """Raise UserError for a class whose folders hold the frames of clips.

    Each frame would become a video of its own.
    """
    clip_folders = []
    for subfolder in _folders(folder):
        names = [file.stem for file in subfolder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
        if len(names) > 1 and all(re.search(r"\d", name) for name in names):
            clip_folders.append(subfolder)
    # A single folder may hold all images of the class, as in Tiny ImageNet.
    if len(clip_folders) > 1:
        raise UserError(
            f"data.name=class_folder: {clip_folders[0]} and {len(clip_folders) - 1} more folders"
            " hold numbered images, the frames of clips, and each image would be a video; set"
            " data.name=frame_folder and put the classes below train/"
        )


def torchvision_images(name: str, root: Path, split: str, fold: int) -> Parsed:
    """Read a classification data set of torchvision.datasets.

    Args:
        name: name of its class, such as "CIFAR10".
        root: the folder that torchvision is given as root.
        split: "train" or "test".
        fold: unused.
    """
    from torchvision import datasets

    if name not in datasets.__all__:
        raise UserError(
            f"data.name=torchvision:{name}: torchvision has no such data"
            f" set{nearest(name, datasets.__all__)}"
        )
    try:
        # torchvision raises a different error for an unknown split than for missing files.
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
    # Most data sets hold their labels in one of these attributes; otherwise every image is read.
    targets = next(
        (getattr(images, key) for key in ("targets", "labels", "_labels") if hasattr(images, key)),
        None,
    )
    try:
        if targets is None:
            targets = (label for _, label in images)
        labels = [int(label) for label in targets]
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
    """A line of a list.

    Attributes:
        where: the file and the line, for messages.
        name: path of the video, as listed.
        label: its label; -1 for none.
        frames: its number of frames; None if the format has no such column.
    """

    where: str
    name: str
    label: int
    frames: int | None = None


def _listed(
    root: Path, split: str, entry: Callable[[str, str], _Entry], missing: Missing, form: str
) -> Parsed:
    """Return the records of `train|test.csv|txt`.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        entry: parses a line: (text, file and line) -> _Entry.
        missing: finds the listed files.
        form: what a line looks like, for messages.
    """
    names = root / "classes.txt"
    classes = [line for _, line in lines(names)] if names.is_file() else None
    path = _list_file(root, ("train",) if split == "train" else ("test", "val"), form)
    # The training list decides what the classes are, unless they are named and it does not exist.
    train = path
    if split != "train" and not (classes and _is_missing(root, "train")):
        train = _list_file(root, ("train",), form)
    rows = {}
    for file in dict.fromkeys((train, path)):
        rows[file] = [entry(line, where) for where, line in lines(file)]
    if not rows[train]:
        raise UserError(f"{train} lists no video; write lines {form}")
    # A class that stands twice would have two labels.
    for name, count in Counter(classes or ()).items():
        if count > 1:
            raise UserError(f"{names}: class '{shown(name)}' stands {count} times; list it once")
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


# Without classes.txt, the largest label gives the number of classes. A label up to this number, or
# up to the length of the list, is plausible; a larger one is not a label.
_MANY_CLASSES = 10_000


def _classes_of(rows: list[_Entry], train: Path, classes: list[str] | None) -> list[str]:
    """Return the names in classes.txt, or otherwise the numbers up to the largest label.

    Args:
        rows: lines of the training list.
        train: path of the training list, for messages.
        classes: the names in classes.txt; None or empty without it.

    Raises:
        UserError: labels are too large to be classes, or look 1-based.
    """
    labels = [row.label for row in rows]
    for row in rows:
        if row.label < -1:
            raise UserError(
                f"{row.where}: label {row.label} is out of range: classes are numbers from 0, and "
                "-1 is a video without a label"
            )
    # Labels other than -1, which is a video without a label.
    class_labels = [label for label in labels if label >= 0] or [-1]
    limit = max(_MANY_CLASSES, len(rows))
    for row in rows:
        # A number of frames in the last column would otherwise give thousands of classes.
        if not classes and row.label >= limit:
            raise UserError(
                f"{row.where}: label {row.label} is too large for a list of {len(rows)} lines "
                f"without classes.txt (at most {limit - 1}); number classes from 0, or name them "
                "in classes.txt"
            )
    if min(class_labels) == 1 and (not classes or max(labels) >= len(classes)):
        raise UserError(
            f"{train}: labels look 1-based (smallest 1, largest {max(labels)}); "
            "subtract 1 from each"
        )
    return classes or [str(label) for label in range(max(labels) + 1)]


def _check_counts(rows: list[_Entry], *, named: bool) -> None:
    """Raise UserError if a number of frames is below 1, or columns look like a start and a total.

    Args:
        rows: lines of a list.
        named: whether classes.txt exists, which means that the last column is a label.
    """
    counts = [row.frames for row in rows if row.frames is not None]
    # Without class names, a VideoMAEv2 line (folder, start, total) looks like (folder, n, label).
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
    """Return the records of `root/<split>/<class>/`.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        suffixes: suffixes of the files that are videos, at any depth; None: folders are videos.
    """
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"no folder {train}: its folders are the classes, {root}/train/<class>/...")
    classes = [folder.name for folder in _folders(train)]
    label_of = _ranks(classes)
    candidates = ("train",) if split == "train" else ("test", "val")
    top = next((root / name for name in candidates if (root / name).is_dir()), None)
    if top is None:
        raise UserError(
            f"no folder {root / 'test'} (or val): evaluation reads its videos there;"
            f" {_WITHOUT_TEST}"
        )
    records: list[Record] = []
    skipped = []
    empty_classes = []
    for folder in _folders(top):
        label = label_of.get(folder.name, label_of.get(composed(folder.name)))
        if label is None:
            raise UserError(f"{folder}: class '{shown(folder.name)}' has no folder in {train}")
        # Hidden entries are skipped; other files that are not videos are reported.
        before = len(records)
        entries = files_below(folder) if suffixes else sorted(folder.iterdir())
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is_clip(entry, suffixes):
                records.append(Record(entry.relative_to(top).as_posix(), file_path(entry), label))
            else:
                skipped.append(entry)
        if len(records) == before:
            empty_classes.append(folder.name)
    _warn_of_skipped(top, skipped, suffixes)
    if empty_classes:
        log.warning(
            f"{top}: {len(empty_classes)} classes have no video, first {shown(empty_classes[0])}"
        )
    return checked(records, top), classes


def _warn_of_skipped(top: Path, skipped: list[Path], suffixes: set[str] | None) -> None:
    """Log how many files are left out, if any.

    Args:
        top: the folder that was read.
        skipped: the files that are left out.
        suffixes: suffixes that the format takes; None: it takes folders of frames.
    """
    if skipped:
        kept = ", ".join(sorted(suffixes)) if suffixes else "folders of frames"
        first = shown(skipped[0], 300)
        log.warning(
            f"{top}: {len(skipped)} files are left out, first {first}; this format takes {kept}"
        )


def _is_clip(entry: Path, suffixes: set[str] | None) -> bool:
    """Return whether an entry is a file with one of the suffixes, or for None a folder."""
    if suffixes is None:
        return is_folder(entry)
    return entry.suffix.lower() in suffixes and is_file(entry)


def _ranks(classes: list[str]) -> Mapping[str, int]:
    """Return the label of each class by its name, and by its name with composed accents.

    The composed form is left out where two classes share it.
    """
    plain = [composed(name) for name in classes]
    count = Counter(plain)
    others = {name: label for label, name in enumerate(plain) if count[name] == 1}
    return others | {name: label for label, name in enumerate(classes)}


def _folders(top: Path) -> list[Path]:
    """Return the folders inside a folder, sorted, without hidden ones."""
    entries = (entry for entry in top.iterdir() if not is_hidden(entry.name))
    return sorted(entry for entry in entries if is_folder(entry))


def _lists_in(folder: Path, pattern: str) -> list[Path]:
    """Return the lists in a folder, sorted.

    Hidden files are left out: macOS leaves some with the names of the lists.
    """
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.name))


def _first_folder(root: Path, names: tuple[str, ...], file: str) -> Path:
    """Return the first of some folders that contains a file; raise UserError for none."""
    for name in names:
        if (root / name / file).is_file():
            return root / name
    raise UserError(
        f"no {file} in {root / names[0]}: the official split files of UCF101 belong there"
    )


def _class_ids(path: Path) -> dict[int, str]:
    """Return the class names of a classInd.txt by their ids."""
    ids: dict[int, str] = {}
    names: set[str] = set()
    for where, line in lines(path):
        text, _, name = line.partition(" ")
        number = whole_number(text)
        name = name.strip(" \t")
        if number is None or number < 0 or not name:
            raise UserError(f"{where}: expected `id ClassName`, found '{shown(line)}'")
        if number in ids or plain_name(name) in names:
            raise UserError(
                f"{where}: '{shown(line)}' repeats an id or a name; remove or correct the line"
            )
        ids[number] = name
        names.add(plain_name(name))
    if not ids:
        raise UserError(f"{path} lists no class; take the official one")
    return ids


def _is_missing(root: Path, stem: str) -> bool:
    """Return whether there is no list of a name, with either suffix."""
    return not any((root / f"{stem}{suffix}").exists() for suffix in (".csv", ".txt"))


def _list_file(root: Path, stems: tuple[str, ...], form: str) -> Path:
    """Return the path of a list; raise UserError if there is none, or two with the same name.

    Args:
        root: folder of the data set.
        stems: possible names without suffix.
        form: what a line looks like, for the message.
    """
    for stem in stems:
        paths = [root / f"{stem}{suffix}" for suffix in (".csv", ".txt")]
        paths = [path for path in paths if path.is_file()]
        if len(paths) > 1:
            raise UserError(f"{root}: {paths[0].name} and {paths[1].name}; remove or rename one")
        if paths:
            return paths[0]
    names = " or ".join(f"{stem}.csv|txt" for stem in stems)
    without = f"; {_WITHOUT_TEST}" if "test" in stems else ""
    raise UserError(f"no {names} in {root}: this format reads its lines {form}{without}")


def _split_right(line: str, where: str, form: str) -> tuple[str, int]:
    """Return the text before the last integer of a line, and the integer.

    Args:
        line: the text.
        where: the file and the line, for the message.
        form: what a line should look like, for the message.

    Raises:
        UserError: the line does not end in an integer.
    """
    columns = _integer_column(line)
    if columns is None:
        hint = odd_name(line)
        raise UserError(
            f"{where}: expected {form} (no header line), found '{shown(line)}'; "
            f"{hint}correct the line"
        )
    return columns


def _integer_column(line: str) -> tuple[str, int] | None:
    """Return the text before an integer at the end of a line, and the integer; None without one.

    Spaces, tabs, and at most one comma separate the two.
    """
    start = max(map(line.rfind, (" ", "\t", ",")))
    number = whole_number(line[start + 1 :])
    name = line[: max(start, 0)].rstrip(" \t")
    if start >= 0 and line[start] != ",":
        name = name.removesuffix(",").rstrip(" \t")
    return (name, number) if name and number is not None else None

"""Choose few labelled videos per class, and write lists that others can read."""

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from vidrobust.data.decoding.images import TORCHVISION
from vidrobust.data.records import Record
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

log = logging.getLogger("vidrobust")


# ------------------------------------------------------------------ few labels


@dataclass(frozen=True)
class _Amount:
    """Hold how many labels each class keeps.

    Attributes:
        fraction: of the videos of the class, above 0 and up to 1; 0: `count` videos.
        count: number of videos of each class.
    """

    fraction: float = 0.0
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> "_Amount":
        """Return the amount that a text such as "10%" or "5" means; raise UserError for others."""
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(%?)", text)
        number = float(match[1]) if match else 0.0
        if match and match[2] and 0 < number <= 100:
            return cls(fraction=number / 100)
        if match and not match[2] and number >= 1 and number.is_integer():
            return cls(count=int(number))
        raise UserError(
            f"data.labels={shown(text)}: must be a percentage above 0, such as 10%, or a whole"
            " number of videos per class, such as 5"
        )

    def of(self, videos: int) -> int:
        """Return how many of a class's videos it asks for; it may be more than there are."""
        if self.count:
            return self.count
        return max(1, math.floor(self.fraction * videos + 0.5))


def few_labels(
    records: Sequence[Record], classes: Sequence[str], amount: str, seed: int
) -> list[Record]:
    """Return the records whose labels are used if labels are few.

    A class keeps the first of its videos in a random order that depends on the seed and the uids
    alone. So the choice is the same for any order of the list, and with one seed a smaller amount
    is a subset of a larger one. Videos without a label (-1) are left out. If a class has fewer
    videos than asked for, all of them are taken, and a warning says so.

    Args:
        records: videos with one label each.
        classes: names of the classes.
        amount: a percentage of each class, rounded, at least one video, such as "1%"; or a number
            of videos per class, such as "5".
        seed: decides the order.

    Returns:
        The chosen records, in the order of `records`.

    Raises:
        UserError: for another amount, for classes without a video, and for a data set with several
            labels per video.

    Example:
        train = few_labels(records, classes, "10%", seed=0)
    """
    requested = _Amount.parse(amount)
    _require_single(records, f"data.labels={amount}")
    by_class: list[list[Record]] = [[] for _ in classes]
    for record in records:
        if record.label >= 0:
            by_class[record.label].append(record)
    empty = [name for name, members in zip(classes, by_class, strict=True) if not members]
    if empty:
        raise UserError(
            f"data.labels={amount}: {len(empty)} classes have no labelled video:"
            f" {first_names(empty)}; add some, or remove the classes"
        )
    chosen: set[str] = set()
    short = []
    for name, members in zip(classes, by_class, strict=True):
        count = requested.of(len(members))
        if count > len(members):
            short.append(f"{name} ({len(members)})")
        ordered = sorted(members, key=lambda record: seeded_order(seed, record.uid))
        chosen |= {record.uid for record in ordered[:count]}
    if short:
        log.warning(
            f"data.labels={amount}: {len(short)} classes have fewer than {requested.count} videos,"
            f" all of which are taken: {first_names(short)}"
        )
    return [record for record in records if record.uid in chosen]


def seeded_order(seed: int, name: str) -> bytes:
    """Return a key that sorts names in a random order, which depends on the seed and the name."""
    return sha256(os.fsencode(f"{seed}\n{name}")).digest()


def _require_single(records: Sequence[Record], what: str) -> None:
    """Raise UserError for records of a data set with several labels per video."""
    if any(record.labels is not None for record in records):
        raise UserError(
            f"{what}: needs one label per video, and this data set has several; choose another"
            " data.name"
        )


def first_names(names: Sequence[str]) -> str:
    """Return the first five names, and how many follow, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown(name) for name in names[:5]) + more


# ------------------------------------------------------------------ lists


def write_list(records: Sequence[Record], classes: Sequence[str], path: Path) -> None:
    """Write a list that data.name=list reads, and `classes.txt` beside it.

    A line is `path label`. Paths below the folder of the list are relative to it, others are
    absolute. An existing list is replaced.

    Args:
        records: videos with at most one label each.
        classes: names of the classes.
        path: `train`, `val` or `test`, with suffix .txt or .csv, in the folder that will be
            data.root.

    Raises:
        UserError: for names that a list cannot hold, for other classes in an existing
            `classes.txt`, and for a list of the same name with the other suffix.
    """
    if path.suffix not in (".txt", ".csv"):
        raise UserError(f"{path}: a list has the suffix .txt or .csv; rename it")
    other = path.with_suffix(".csv" if path.suffix == ".txt" else ".txt")
    if other.exists():
        raise UserError(f"{other} exists, and a folder has one list of a name; remove it")
    _require_single(records, str(path))
    text = list_text(records, path.parent)
    names = "".join(f"{_writable(name, 'class')}\n" for name in classes)
    names_path = path.parent / "classes.txt"
    if names_path.is_file() and names_path.read_bytes() != names.encode():
        raise UserError(f"{names_path} has other classes; write the list into another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((names_path, names), (path, text)):
        with replacing(target) as file:
            file.write(content.encode())


def write_chosen(records: Sequence[Record], classes: Sequence[str], folder: Path) -> None:
    """Write which records were chosen into `train.txt` of a folder, so that others can repeat it.

    data.name=list reads it, but for arrays of torchvision, whose names alone are written.

    Args:
        records: the chosen training videos.
        classes: names of the classes.
        folder: the folder.
    """
    if not records or not records[0].path.startswith(TORCHVISION):
        write_list(records, classes, folder / "train.txt")
        return
    with replacing(folder / "train.txt") as file:
        file.write("".join(f"{each.uid} {each.label}\n" for each in records).encode())


def list_text(records: Sequence[Record], folder: Path) -> str:
    """Return the text of a list in a folder; raise UserError for names that it cannot hold."""
    top = os.path.abspath(folder)
    return "".join(f"{_listed_name(record.path, top)} {record.label}\n" for record in records)


def _listed_name(place: str, folder: str) -> str:
    """Return how a list names a file.

    Args:
        place: path of the file.
        folder: absolute path of the list's folder.

    Raises:
        UserError: a list cannot hold the name.
    """
    if place.startswith(TORCHVISION):
        raise UserError(
            f"{place}: torchvision's data sets are arrays, which no list can name; save them as a"
            " folder of images"
        )
    absolute = os.path.abspath(place)
    relative = os.path.relpath(absolute, folder)
    inside = relative != os.pardir and not relative.startswith(os.pardir + os.sep)
    return _writable(relative if inside else absolute, "file")


def _writable(name: str, kind: str) -> str:
    """Return a name that reads back from a line as it is; raise UserError for any other name.

    Args:
        name: the name.
        kind: "file" or "class", for the message.
    """
    # a reader removes spaces, a byte-order mark and, before the label, a comma
    survives = name.strip() == name and name[:1] != "\ufeff" and name[-1:] != ","
    if not name or not survives or re.search(r"[\r\n\0\ud800-\udfff]", name):
        raise UserError(
            f"{kind} '{shown(name, 300)}': a list cannot hold this name (a line break, a space or a"
            " comma at an end, or no UTF-8); rename it"
        )
    return name

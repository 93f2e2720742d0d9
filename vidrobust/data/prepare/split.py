"""Split a folder of classes into train, validation and test lists, without breaking up sources."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidrobust.data.few_labels import first_names, list_text, seeded_order, write_list
from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

# names of the lists, in the order of the fractions
LISTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Settings of a split.

    Attributes:
        fractions: of each class's videos in the training, validation and test list; 0: no list.
        seed: decides which videos are in which list.
        group: regular expression with one group, searched in a file's path below data.root. Files
            with the same text in the group come from one source, and stay in one list; "": each
            file is a source.
    """

    fractions: tuple[float, float, float]
    seed: int = 0
    group: str = ""


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Return the fractions of a text such as "0.7,0.1,0.2"; raise UserError for another text."""
    try:
        train, validation, test = (float(word) for word in text.split(","))
    except ValueError:
        train = validation = test = math.nan
    total = train + validation + test
    # NaN compares as False
    is_whole = abs(total - 1) < 1e-6
    if not is_whole or min(train, validation, test) < 0 or train in (0, 1):
        raise UserError(
            f"--fractions {shown(text)}: must be the fractions of train, validation and test, such"
            " as 0.7,0.1,0.2, which sum to 1; 0 leaves out validation or test"
        )
    return train / total, validation / total, test / total


def split_records(
    records: Sequence[Record], classes: Sequence[str], settings: Split
) -> list[list[Record]]:
    """Return the training, validation and test records; a list with fraction 0 is empty.

    Every class has its fractions, rounded, with at least one video in each list. With sources of
    several videos, sources are assigned whole, the largest first, each to the list that needs it
    most. The result does not depend on the order of the records.

    Args:
        records: videos with one label each.
        classes: names of the classes.
        settings: fractions, seed and sources.

    Raises:
        UserError: for a wrong pattern, for files that it does not match, and for classes with fewer
            sources than lists.
    """
    lists = [i for i, fraction in enumerate(settings.fractions) if fraction > 0]
    sources = _sources(records, settings.group)
    _require_sources(sources, classes, len(lists))
    balance = _Balance.begin(sources, settings.fractions, lists)
    # Largest first: small sources can then even out what large ones leave.
    order = sorted(
        sources, key=lambda name: (-len(sources[name]), seeded_order(settings.seed, name))
    )
    parts: list[list[Record]] = [[] for _ in settings.fractions]
    for name in order:
        counts = Counter(record.label for record in sources[name])
        parts[balance.assign(counts)] += sources[name]
    absent = balance.absent()
    if absent is not None:
        label, index = absent
        raise UserError(
            f"class '{shown(classes[label])}' has no video in the list {LISTS[index]}, because its"
            " sources are also those of other classes; choose another seed or another --group"
        )
    return [sorted(part, key=lambda record: record.uid) for part in parts]


def write_split(
    parts: Sequence[Sequence[Record]], classes: Sequence[str], output: Path, *, overwrite: bool
) -> list[Path]:
    """Write `train.txt`, `val.txt`, `test.txt` and `classes.txt`, and return the lists' paths.

    Args:
        parts: the records of each list; none: no list.
        classes: names of the classes.
        output: the folder.
        overwrite: replace lists that are there, and delete those that have no records now.

    Raises:
        UserError: for lists that are there, and for names that a list cannot hold.
    """
    paths = [output / f"{name}.txt" for name in LISTS]
    # Another program has written a .csv, so it is not deleted.
    for path in paths:
        if path.with_suffix(".csv").exists():
            raise UserError(
                f"{path.with_suffix('.csv')} exists, and a folder has one list of a name; remove it"
            )
    mine = [*paths, output / "classes.txt"]
    existing = [path for path in mine if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists; give another --output, or --overwrite to replace it"
        )
    used = [(path, part) for path, part in zip(paths, parts, strict=True) if part]
    # Refuse names before anything is deleted.
    for path, part in used:
        list_text(part, path.parent)
    for path in mine:
        path.unlink(missing_ok=True)
    for path, part in used:
        write_list(part, classes, path)
    return [path for path, _ in used]


def _sources(records: Sequence[Record], pattern: str) -> dict[str, list[Record]]:
    """Return the records of each source, by its name.

    Args:
        records: the records.
        pattern: see `Split.group`.

    Raises:
        UserError: for a wrong pattern, and for files that it does not match.
    """
    if not pattern:
        return {record.uid: [record] for record in records}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group {shown(pattern)}: not a regular expression ({error})") from None
    if expression.groups != 1:
        raise UserError(
            f"--group {shown(pattern)}: has {expression.groups} groups; put parentheses around the"
            " part of the path that names the source, as in _(g[0-9]+)_"
        )
    sources: dict[str, list[Record]] = {}
    unmatched = []
    for record in records:
        match = expression.search(record.uid)
        if match is None or match[1] is None:
            unmatched.append(record.uid)
        else:
            sources.setdefault(match[1], []).append(replace(record, group=match[1]))
    if unmatched:
        raise UserError(
            f"--group {shown(pattern)}: does not match {len(unmatched)} of {len(records)} files,"
            f" first {shown(unmatched[0], 300)}; correct it"
        )
    return sources


def _require_sources(sources: dict[str, list[Record]], classes: Sequence[str], lists: int) -> None:
    """Raise UserError, with their names, for classes with fewer sources than lists.

    Args:
        sources: records of each source.
        classes: names of the classes.
        lists: number of lists.
    """
    counts: Counter[int] = Counter()
    for members in sources.values():
        counts.update({record.label for record in members})
    few = [f"{name} ({counts[i]})" for i, name in enumerate(classes) if counts[i] < lists]
    if few:
        raise UserError(
            f"classes with fewer sources than the {lists} lists: {first_names(few)}; add videos,"
            " remove the classes, or set a fraction of --fractions to 0"
        )


@dataclass(frozen=True)
class _Balance:
    """Keep what each list needs yet of each class.

    Attributes:
        lists: indices of the lists with records.
        targets: label -> number of videos that each list should have.
        needed: label -> number of videos that each list needs yet, below 0 for a surplus.
        sources_left: label -> number of sources that are not assigned yet.
        filled: (label, list) that has a video.
    """

    lists: list[int]
    targets: dict[int, list[int]]
    needed: dict[int, list[int]]
    sources_left: Counter[int]
    filled: set[tuple[int, int]]

    @classmethod
    def begin(
        cls, sources: dict[str, list[Record]], fractions: Sequence[float], lists: list[int]
    ) -> "_Balance":
        """Return the state before the first assignment.

        Args:
            sources: records of each source.
            fractions: of each list.
            lists: indices of the lists whose fraction is above 0.
        """
        videos: Counter[int] = Counter()
        sources_left: Counter[int] = Counter()
        for members in sources.values():
            videos.update(record.label for record in members)
            sources_left.update({record.label for record in members})
        targets = {label: rounded_counts(n, fractions) for label, n in videos.items()}
        needed = {label: list(counts) for label, counts in targets.items()}
        return cls(lists, targets, needed, sources_left, set())

    def assign(self, counts: Counter[int]) -> int:
        """Return the list that a source is assigned to, and note it.

        Args:
            counts: label -> number of the source's videos.
        """
        options = self._options(counts)
        best = max(options, key=lambda i: (self._gain(counts, i), self._open(counts, i), -i))
        for label, count in counts.items():
            self.needed[label][best] -= count
            self.sources_left[label] -= 1
            self.filled.add((label, best))
        return best

    def absent(self) -> tuple[int, int] | None:
        """Return (label, list) of the first class that is absent from a list; None for none."""
        pairs = ((label, i) for label in sorted(self.targets) for i in self.lists)
        return next((pair for pair in pairs if pair not in self.filled), None)

    def _options(self, counts: Counter[int]) -> list[int]:
        """Return the lists that a source may be assigned to.

        If a class has as many sources left as it is absent from lists, they go to those lists.
        """
        required = []
        for label in counts:
            empty = {i for i in self.lists if (label, i) not in self.filled}
            if empty and self.sources_left[label] <= len(empty):
                required.append(empty)
        if not required:
            return self.lists
        return sorted(set.intersection(*required) or set.union(*required))

    def _gain(self, counts: Counter[int], index: int) -> int:
        """Return by how many videos a list comes nearer to its targets with a source."""
        return sum(
            abs(self.needed[label][index]) - abs(self.needed[label][index] - count)
            for label, count in counts.items()
        )

    def _open(self, counts: Counter[int], index: int) -> float:
        """Return which part of its targets a list needs yet, summed over the source's classes."""
        return sum(
            self.needed[label][index] / max(1, self.targets[label][index]) for label in counts
        )


def rounded_counts(count: int, fractions: Sequence[float]) -> list[int]:
    """Return whole numbers that sum to a count, in the proportion of fractions that sum to 1.

    Each is the fraction of the count, rounded up or down (largest remainders are rounded up), but
    at least 1 for a fraction above 0 if the count allows.

    Args:
        count: what is divided, at least 0.
        fractions: at least 0, with sum 1.
    """
    exact = [fraction * count for fraction in fractions]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: count - sum(counts)]:
        counts[i] += 1
    for i, fraction in enumerate(fractions):
        if fraction > 0 and counts[i] == 0 and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts

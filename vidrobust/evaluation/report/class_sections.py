"""Accuracy by class, and which class is predicted for which, before and under an attack."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vidrobust.evaluation.report.clip_player import class_name

_MATRIX = 24  # largest number of classes of a matrix; more are a list of pairs
_PAIRS = 25  # rows of that list
NO_CLASS = "no prediction"

Answers = Sequence[tuple[int, int | None]]  # (true class, predicted class or None)


@dataclass(frozen=True)
class Confusion:
    """Count how often videos of each class were given each class.

    Attributes:
        title: when.
        names: of the classes in the order of rows and columns.
        counts: rows are true classes, columns predicted ones.
        largest: number of videos of the largest class.
    """

    title: str
    names: list[str]
    counts: list[list[int]]
    largest: int


@dataclass(frozen=True)
class ClassSection:
    """Tables of classes.

    Attributes:
        threat: of the columns under attack; "" without.
        rows: class, number of videos, accuracy, and accuracy under the attack or None.
        matrices: before and under the attack, for few classes.
        pairs: for many classes: true, taken, videos before, videos under the attack.
    """

    threat: str
    rows: list[tuple[str, int, float, float | None]]
    matrices: list[Confusion] = field(default_factory=list)
    pairs: list[tuple[str, str, int, int]] = field(default_factory=list)


def class_section(
    classes: Sequence[str],
    before: Answers,
    after: Answers,
    robust: Sequence[bool],
    threat: str,
) -> ClassSection:
    """Return the tables of classes that have test videos.

    Args:
        classes: names of the classes.
        before: answers without an attack.
        after: answers for adversarial clips of the same videos; none without an attack.
        robust: which videos withstand the attack.
        threat: of the attack.
    """
    present = sorted({label for label, _ in before})
    rows = []
    for label in present:
        places = [i for i, (true, _) in enumerate(before) if true == label]
        right = sum(before[i][1] == label for i in places) / len(places)
        kept = sum(robust[i] for i in places) / len(places) if robust else None
        rows.append((class_name(classes, label), len(places), right, kept))
    taken = {answer for _, answer in (*before, *after) if answer is not None}
    shown = sorted(set(present) | taken)
    if len(shown) <= _MATRIX:
        matrices = [_confusion("without an attack", classes, shown, before)]
        if after:
            matrices.append(_confusion(f"under {threat}", classes, shown, after))
        return ClassSection(threat, rows, matrices)
    return ClassSection(threat, rows, pairs=_pairs(classes, before, after))


def _confusion(
    title: str, classes: Sequence[str], shown: Sequence[int], answers: Answers
) -> Confusion:
    """Return a matrix of the shown classes; answers that are None have a column of their own."""
    counted = Counter(answers)
    columns: list[int | None] = list(shown)
    if any(answer is None for _, answer in answers):
        columns.append(None)
    counts = [[counted[label, column] for column in columns] for label in shown]
    names = [class_name(classes, label) for label in shown]
    names += [NO_CLASS] * (len(columns) - len(shown))
    return Confusion(title, names, counts, max(map(sum, counts), default=0))


def _pairs(
    classes: Sequence[str], before: Answers, after: Answers
) -> list[tuple[str, str, int, int]]:
    """Return the most frequent pairs of true and wrong classes, those under the attack first."""
    wrong_before = Counter(pair for pair in before if pair[0] != pair[1])
    wrong_after = Counter(pair for pair in after if pair[0] != pair[1])
    ranked = (wrong_after or wrong_before).most_common(_PAIRS)
    return [
        (
            class_name(classes, label),
            NO_CLASS if answer is None else class_name(classes, answer),
            wrong_before[label, answer],
            wrong_after[label, answer],
        )
        for (label, answer), _ in ranked
    ]

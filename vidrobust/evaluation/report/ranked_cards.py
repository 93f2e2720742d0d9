"""Collect cards of evaluations, and rank them by an accuracy."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.evaluation.accuracy_limits import CLEAN, MPC
from vidrobust.evaluation.adversarial.suites import families
from vidrobust.evaluation.report.card import FILE, Card, make_card, read_card
from vidrobust.evaluation.summary import read_summary
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown


@dataclass(frozen=True)
class Entry:
    """A card on a leaderboard.

    Attributes:
        card: the card.
        place: folder or file that it comes from.
        short: the same without the folders that all cards have in common; "" for one card.
    """

    card: Card
    place: str
    short: str = ""

    @property
    def name(self) -> str:
        """Name of the model; its place for a card without a name."""
        return self.card.name or self.short or self.place

    @property
    def group(self) -> tuple[str, ...]:
        """Return what two cards must have in common to be ranked together.

        The name of a data set may be that of its format, such as "list". So chance and the hash of
        the test videos count too.
        """
        card = self.card
        attack = f"{card.unit}s attacked by {card.suite}" if card.suite else "no attack"
        n = card.clean.n if card.clean else 0
        chance = f"chance {100 * card.chance:.4g} %"
        sha = card.hashes.test_videos
        videos = f"test videos {sha}" if sha else "unknown test videos"
        return card.dataset, card.split, f"{n} videos", chance, attack, videos


@dataclass(frozen=True)
class Ranked:
    """A card with its place in an order.

    Attributes:
        number: index in the list of entries.
        rank: within its group, from 1, shared by equal accuracies; None without the accuracy.
    """

    number: int
    rank: int | None


# --- Collect ---


def collect(paths: Sequence[Path]) -> list[Entry]:
    """Return the cards of files, evaluations and runs, each once.

    An evaluation of before cards existed gets one from its summary.

    Args:
        paths: files of cards, folders of evaluations, and folders of runs with all evaluations of
            their `eval/`.

    Raises:
        UserError: for a path without any, and for files that are damaged.
    """
    entries: dict[Path, Entry] = {}
    for path in paths:
        places = [path] if path.is_file() else _evaluations(path)
        if not places:
            raise UserError(
                f"{path}: is no card, and no folder with a {FILE}, a summary.json or an eval/*"
                " that has one; name the folder of a finished evaluation or of its run"
            )
        for place in places:
            # the card of an evaluation is the same as its folder
            same = place.parent if place.name == FILE else place
            if same.resolve() not in entries:
                entries[same.resolve()] = Entry(_card_at(place), str(same))
    if len(entries) == 1:
        return list(entries.values())
    top = os.path.commonpath(entries)
    return [replace(entry, short=os.path.relpath(own, top)) for own, entry in entries.items()]


def _evaluations(folder: Path) -> list[Path]:
    """Return the folders of finished evaluations: the folder itself, or those of a run."""
    if _is_finished(folder):
        return [folder]
    return [place for place in sorted(folder.glob("eval/*")) if _is_finished(place)]


def _is_finished(folder: Path) -> bool:
    return (folder / FILE).is_file() or (folder / "summary.json").is_file()


def _card_at(place: Path) -> Card:
    """Return the card of a file or of an evaluation."""
    if place.is_file():
        return read_card(place)
    if (place / FILE).is_file():
        return read_card(place / FILE)
    return make_card(place, read_summary(place / "summary.json"), config.CardConfig())


# --- Rank ---


def accuracy(card: Card, measure: str) -> float | None:
    """Return an accuracy of a card: CLEAN, MPC, or that under a threat; None without it."""
    if measure == CLEAN:
        return card.clean.accuracy if card.clean else None
    if measure == MPC:
        return card.corrupted.mpc if card.corrupted else None
    return next((each.accuracy for each in card.robust if each.threat == measure), None)


def measures_of(entries: Sequence[Entry]) -> list[str]:
    """Return the accuracies that any card has: threats by kind and budget, MPC, CLEAN."""
    names = dict.fromkeys(each.threat for entry in entries for each in entry.card.robust)
    kinds = families([parse_threat(name) for name in names])
    threats = [str(threat) for family in kinds for threat in family]
    others = [
        measure
        for measure in (MPC, CLEAN)
        if any(accuracy(entry.card, measure) is not None for entry in entries)
    ]
    return [*threats, *others]


def ranking_measure(entries: Sequence[Entry], asked: str = "") -> str:
    """Return the accuracy to rank by.

    Args:
        entries: the cards.
        asked: a threat, CLEAN or MPC; "": the first that most cards have.

    Raises:
        UserError: for one that no card has.
    """
    measures = measures_of(entries)
    if not asked:
        counts = {
            measure: sum(accuracy(entry.card, measure) is not None for entry in entries)
            for measure in measures
        }
        # every card has a clean accuracy, which says least
        threats = [measure for measure in measures if measure not in (CLEAN, MPC)] or measures
        return max(threats, key=lambda measure: counts[measure], default=CLEAN)
    try:
        name = asked if asked in (CLEAN, MPC) else str(parse_threat(asked))
    except ValueError as error:
        raise UserError(f"--sort {shown(asked)}: {error}") from None
    if name not in measures:
        raise UserError(
            f"--sort {shown(asked)}: no card has this accuracy; they have {', '.join(measures)}"
        )
    return name


def groups_of(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return the groups whose cards are ranked together, in order."""
    return sorted({entry.group for entry in entries})


def ranked(entries: Sequence[Entry], measure: str) -> list[Ranked]:
    """Return the order of cards: by group, then from the highest accuracy to the lowest.

    Equal accuracies share the rank, and the rank after them counts them all (1, 2, 2, 4). Cards
    without the accuracy come last in their group, without a rank, and so do groups without it.

    Args:
        entries: the cards.
        measure: the accuracy to rank by.
    """
    order = []
    with_measure = {entry.group for entry in entries if accuracy(entry.card, measure) is not None}
    for group in sorted(groups_of(entries), key=lambda group: group not in with_measure):
        values = {
            n: accuracy(entry.card, measure)
            for n, entry in enumerate(entries)
            if entry.group == group
        }
        having = [value for value in values.values() if value is not None]
        # accuracies are at most 1: cards without one come last
        keys = [
            (2.0 if value is None else -value, entries[n].name.casefold(), entries[n].place, n)
            for n, value in values.items()
        ]
        for *_, n in sorted(keys):
            value = values[n]
            rank = None if value is None else 1 + sum(other > value for other in having)
            order.append(Ranked(n, rank))
    return order


def doubts_of_groups(entries: Sequence[Entry]) -> list[str]:
    """Return what differs between cards that are ranked together."""
    doubts = []
    groups = groups_of(entries)
    for number, group in enumerate(groups, 1):
        cards = [entry.card for entry in entries if entry.group == group]
        where = f"group {number}: " if len(groups) > 1 else ""
        if len({card.hashes.videos for card in cards}) > 1:
            doubts.append(
                f"{where}the test videos are the same, but not the lists of training videos"
                if cards[0].hashes.test_videos
                else f"{where}the lists of videos differ; those of training videos count too, so"
                " that the test videos may be the same"
            )
        corrupted = [card.corrupted for card in cards if card.corrupted]
        if len({(*each.corruptions, *each.severities) for each in corrupted}) > 1:
            doubts.append(f"{where}the corruptions of {MPC} differ")
        classifiers = sorted({card.classifier for card in cards})
        if len(classifiers) > 1:
            doubts.append(f"{where}the classifiers differ ({', '.join(classifiers)})")
    return doubts

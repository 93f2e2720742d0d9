"""Write leaderboard.html and leaderboard.md: cards of evaluations in one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidrobust.evaluation.accuracy_limits import CLEAN, MPC
from vidrobust.evaluation.report import tables as markdown
from vidrobust.evaluation.report.card import Card
from vidrobust.evaluation.report.page import render, write_page
from vidrobust.evaluation.report.ranked_cards import (
    Entry,
    accuracy,
    doubts_of_groups,
    groups_of,
    measures_of,
    ranked,
)
from vidrobust.utils.readable import between, percent

_THREATS = 6  # threats whose columns are shown at first; boxes show the others


@dataclass(frozen=True)
class CardCell:
    """A cell: its text, the value that it is sorted by (None: the text), and an interval."""

    text: str
    value: float | None = None
    interval: str = ""

    @property
    def whole(self) -> str:
        """Text with the interval."""
        return f"{self.text} ({self.interval})" if self.interval else self.text


@dataclass(frozen=True)
class Column:
    """A column of a leaderboard.

    Attributes:
        title: its title.
        numeric: its cells are numbers.
        shown: a box shows it at first.
        measure: name of the accuracy that it holds; "": another property.
    """

    title: str
    numeric: bool = False
    shown: bool = True
    measure: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a leaderboard.

    Attributes:
        card: of the model.
        name: of the model.
        place: where the card comes from.
        rank: its rank; "" without the accuracy.
        group: number of its group.
        cells: one per column.
        ranks: accuracy -> [place in the order, rank], for another order than that of the page.
    """

    card: Card
    name: str
    place: str
    rank: str
    group: int
    cells: list[CardCell]
    ranks: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Leaderboard:
    """The table of a leaderboard.

    Attributes:
        measure: accuracy that it is ranked by.
        measures: all accuracies that it can be ranked by.
        groups: what each group has in common, by number.
        doubts: what differs within a group.
        columns: after rank, model and group.
        rows: in order.
    """

    measure: str
    measures: list[str]
    groups: list[str]
    doubts: list[str]
    columns: list[Column]
    rows: list[Row]


# title, is a number, what a card says; a column is shown at first where its cells differ, and
# those of _ALWAYS always
_PROPERTIES: list[tuple[str, bool, Callable[[Card], CardCell]]] = [
    ("data set", False, lambda card: CardCell(card.dataset)),
    ("architecture", False, lambda card: CardCell(card.architecture)),
    ("training", False, lambda card: CardCell(card.training)),
    ("extra data", False, lambda card: CardCell(_extra(card))),
    ("suite", False, lambda card: CardCell(card.suite)),
    ("unit", False, lambda card: CardCell(card.unit)),
    ("frames", False, lambda card: CardCell(_frames(card))),
    ("classifier", False, lambda card: CardCell(_classifier(card))),
    ("parameters, M", True, lambda card: _number(card.parameters, 1e-6, ".2f")),
    ("GFLOPs x views", True, lambda card: _cost(card)),
]
_ALWAYS = ("architecture", "parameters, M", "GFLOPs x views")
_LATER: list[tuple[str, bool, Callable[[Card], CardCell]]] = [
    ("split", False, lambda card: CardCell(card.split)),
    ("videos", True, lambda card: _number(card.clean.n if card.clean else None, 1, ".0f")),
    ("reported", False, lambda card: CardCell(_reported(card))),
    ("weights", False, lambda card: CardCell(card.hashes.checkpoint)),
    ("date", False, lambda card: CardCell(card.date)),
]


def leaderboard(entries: Sequence[Entry], measure: str) -> Leaderboard:
    """Return the table of cards.

    Args:
        entries: the cards.
        measure: accuracy to rank by, of `measures_of`.
    """
    measures = measures_of(entries)
    orders = {each: ranked(entries, each) for each in measures}
    ranks: list[dict[str, tuple[int, str]]] = [{} for _ in entries]
    for each, order in orders.items():
        for place, item in enumerate(order):
            ranks[item.number][each] = (place, str(item.rank or ""))
    groups = groups_of(entries)
    columns, cells = _columns(entries, measure, measures)
    rows = [
        Row(
            entries[item.number].card,
            entries[item.number].name,
            entries[item.number].place,
            str(item.rank or ""),
            groups.index(entries[item.number].group) + 1,
            [column[item.number] for column in cells],
            ranks[item.number],
        )
        for item in orders.get(measure, [])
    ]
    names = [", ".join(group) for group in groups]
    return Leaderboard(measure, measures, names, doubts_of_groups(entries), columns, rows)


def _columns(
    entries: Sequence[Entry], measure: str, measures: Sequence[str]
) -> tuple[list[Column], list[list[CardCell]]]:
    """Return the columns and their cells, one per entry; columns without any text are left out.

    Args:
        entries: the cards.
        measure: accuracy to rank by.
        measures: all accuracies.
    """
    threats = [each for each in measures if each not in (CLEAN, MPC)]
    first = {measure, CLEAN, MPC, *threats[:_THREATS]}
    columns: list[Column] = []
    cells: list[list[CardCell]] = []
    for each in dict.fromkeys((measure, CLEAN, *threats, MPC)):
        if each in measures:
            columns.append(Column(each, True, each in first, each))
            cells.append([_accuracy(entry.card, each) for entry in entries])
    for title, numeric, read in (*_PROPERTIES, *_LATER):
        _add(columns, cells, title, numeric, [read(entry.card) for entry in entries])
    return columns, cells


def _add(
    columns: list[Column],
    cells: list[list[CardCell]],
    title: str,
    numeric: bool,
    column: list[CardCell],
) -> None:
    """Add a column of a property in place, unless all of its cells are empty.

    Args:
        columns: gets the column.
        cells: gets its cells.
        title: of the column.
        numeric: its cells are numbers.
        column: its cells.
    """
    texts = {cell.text for cell in column}
    if texts == {""}:
        return
    later = title in [name for name, _, _ in _LATER]
    shown = not later and (title in _ALWAYS or len(texts) > 1)
    columns.append(Column(title, numeric, shown))
    cells.append(column)


# --- Cells ---


def _accuracy(card: Card, measure: str) -> CardCell:
    """Return an accuracy in per cent with its interval."""
    value = accuracy(card, measure)
    if value is None:
        return CardCell("")
    interval = next((each.ci95 for each in card.robust if each.threat == measure), None)
    if measure == CLEAN and card.clean:
        interval = card.clean.ci95
    text = between(interval) if interval else ""
    return CardCell(percent(value, unit=""), value, text)


def _number(value: float | None, unit: float, form: str) -> CardCell:
    """Return a number, or an empty cell for None.

    Args:
        value: the number.
        unit: factor of the number that is shown.
        form: format of the number.
    """
    return CardCell("") if value is None else CardCell(f"{value * unit:{form}}", value)


def _cost(card: Card) -> CardCell:
    """Return the cost of an attacked prediction: that of a view, and the number of views."""
    if card.gflops_per_view is None:
        return CardCell("")
    views = card.views.get("attack", "1x1")
    passes = f" x {card.number_forward_passes} passes" if card.number_forward_passes > 1 else ""
    return CardCell(f"{card.gflops_per_view:.3g} x {views}{passes}", card.gflops_per_prediction)


def _extra(card: Card) -> str:
    if card.additional_data is None:
        return ""
    return card.additional_data_names or "yes" if card.additional_data else "no"


def _frames(card: Card) -> str:
    """Return frames, stride and size of the clips."""
    clip = card.input
    if not clip.get("frames"):
        return ""
    rate = f" at {clip['fps']:g}/s" if clip.get("fps") else ""
    rate = f", stride {clip['stride']}" if clip.get("stride") and clip["frames"] > 1 else rate
    size = " x ".join(map(str, clip.get("size", [])))
    return f"{clip['frames']}{rate}, {size}" if size else f"{clip['frames']}{rate}"


def _classifier(card: Card) -> str:
    """Return the classifier, with the protocol and the labels that fitted it."""
    parts = [card.classifier]
    parts += [card.protocol] if card.protocol not in ("", "auto", card.classifier) else []
    parts += [f"{card.labels} of the labels"] if card.labels else []
    parts += [f"branch {card.branch}"] if card.branch not in ("", "clean") else []
    return ", ".join(parts)


def _reported(card: Card) -> str:
    return ", ".join(f"{name}: {100 * value:g}" for name, value in card.reported.items())


# --- Pages ---


def write_leaderboard(folder: Path, board: Leaderboard) -> None:
    """Write folder/leaderboard.html and folder/leaderboard.md.

    Args:
        folder: where they go.
        board: the table.
    """
    page = render("leaderboard.html", title=f"Leaderboard by {board.measure}", board=board)
    write_page(folder / "leaderboard.html", page)
    markdown.write(folder / "leaderboard.md", _lines(board))


def _lines(board: Leaderboard) -> list[str]:
    """Return the leaderboard as Markdown."""
    shown = [number for number, column in enumerate(board.columns) if column.shown]
    several = len(board.groups) > 1
    titles = ["rank", "model", *(["group"] if several else [])]
    titles += [board.columns[number].title for number in shown]
    rows = [
        [
            row.rank or "-",
            row.name + (" (unreliable)" if row.card.unreliable else ""),
            *([str(row.group)] if several else []),
            *(row.cells[number].whole or "-" for number in shown),
        ]
        for row in board.rows
    ]
    lines = [
        "# Leaderboard",
        "",
        (
            f"Ranked by accuracy: {markdown.code(board.measure)}, per cent, with 95 %"
            " intervals; equal accuracies share a rank."
        ),
        "",
    ]
    if several:
        lines += ["Ranks are those within a group, whose cards can be compared:", ""]
        lines += [f"{n}. {markdown.escape(name)}" for n, name in enumerate(board.groups, 1)]
    else:
        lines += [f"All of {markdown.escape(name)}." for name in board.groups]
    lines += ["", *(f"- {markdown.escape(doubt)}" for doubt in board.doubts), ""]
    lines += markdown.table(titles, *rows)
    unreliable = [row for row in board.rows if row.card.unreliable]
    if unreliable:
        lines += ["", "## Unreliable", ""]
        lines += [
            f"- {markdown.escape(row.name)}:"
            f" {markdown.escape('; '.join(row.card.unreliable_reasons))}"
            for row in unreliable
        ]
    return lines

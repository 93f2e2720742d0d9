"""Markdown that reports share."""

from collections.abc import Sequence


def table(titles: Sequence[str], *rows: Sequence[str]) -> list[str]:
    """Lines of a table: titles, a rule, rows of as many cells."""
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]

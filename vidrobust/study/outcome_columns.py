"""Write numbers of each test video as short text, and read them."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

# uid -> (k,) numbers of the video
ByVideo = dict[str, list[float]]


def packed(numbers: ByVideo) -> tuple[str, list[str], dict[str, Any]]:
    """Return numbers of videos in a form that is short as JSON.

    Few different numbers, such as 0 and 1 of a wrong and a right prediction, become a digit per
    video and the list of what the digits mean. Nothing is rounded.

    Args:
        numbers: uid -> (k,) numbers.

    Returns:
        A name for the videos, their uids in order, and the column, which has this name.
    """
    uids = sorted(numbers)
    name = hashlib.sha256("\n".join(uids).encode(errors="surrogateescape")).hexdigest()[:16]
    rows = [
        _column([numbers[uid][place] for uid in uids]) for place in range(len(numbers[uids[0]]))
    ]
    return name, uids, {"videos": name, "numbers": rows}


def unpacked(content: dict[str, Any], column: str) -> ByVideo:
    """Return the numbers of a column, in the form that `outcomes.read_column` has.

    Args:
        content: "columns": name -> column, and "videos": name -> uids, of `packed`.
        column: name of the column; one that is not there has no videos.
    """
    entry = content["columns"].get(column)
    if entry is None:
        return {}
    rows = [_numbers(row) for row in entry["numbers"]]
    uids = content["videos"][entry["videos"]]
    return dict(zip(uids, map(list, zip(*rows, strict=True)), strict=True))


def _column(numbers: Sequence[float]) -> list[Any]:
    """Return the different numbers and a text of digits, or all numbers; None is infinity."""
    different = sorted(set(numbers))
    if len(different) > len(_DIGITS):
        return [_finite(numbers)]
    digits = dict(zip(different, _DIGITS, strict=False))
    return [_finite(different), "".join(digits[number] for number in numbers)]


def _finite(numbers: Sequence[float]) -> list[float | None]:
    """Return numbers with None in place of infinity, which JSON has no name for."""
    return [None if math.isinf(number) else number for number in numbers]


def _numbers(column: list[Any]) -> list[float]:
    """Return the numbers of `_column`."""
    values = [math.inf if number is None else float(number) for number in column[0]]
    if len(column) == 1:
        return values
    return [values[_DIGITS.index(digit)] for digit in column[1]]

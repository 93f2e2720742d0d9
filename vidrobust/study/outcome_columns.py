"""Write numbers of each test video as short text, and read them."""

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_MOST = 256  # different numbers; more are written as they are

# uid -> (k,) numbers of the video
ByVideo = dict[str, list[float]]


def packed(numbers: ByVideo) -> tuple[str, list[str], dict[str, Any]]:
    """Return numbers of videos in a form that is short as JSON.

    Few different numbers, such as 0 and 1 of a wrong and a right prediction, become their places in
    the list of different ones. Nothing is rounded.

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
    """Return the different numbers and the place of each, or all numbers; None is infinity.

    Places have as many bits as the last one needs, highest first, and are written in base 64.
    """
    different, places = np.unique(np.asarray(numbers, np.float64), return_inverse=True)
    if len(different) > _MOST:
        return [_finite(numbers)]
    bits = np.arange(_bits(len(different)))[::-1]
    text = np.packbits((places.reshape(-1, 1) >> bits & 1).astype(np.uint8)).tobytes()
    return [_finite(different.tolist()), len(numbers), base64.b64encode(text).decode()]


def _bits(count: int) -> int:
    """Return the number of bits of places in a list of `count` numbers, at least 1."""
    return max(1, (count - 1).bit_length())


def _finite(numbers: Sequence[float]) -> list[float | None]:
    """Return numbers with None in place of infinity, which JSON has no name for."""
    return [None if math.isinf(number) else number for number in numbers]


def _numbers(column: list[Any]) -> list[float]:
    """Return the numbers of `_column`."""
    values = [math.inf if number is None else float(number) for number in column[0]]
    if len(column) == 1:
        return values
    _, count, text = column
    width = _bits(len(values))
    packed_bits = np.frombuffer(base64.b64decode(text), np.uint8)
    bits = np.unpackbits(packed_bits, count=count * width).reshape(count, width)
    places = bits @ (1 << np.arange(width)[::-1])
    return [values[place] for place in places]

"""Claims of papers about the arms of a study, and whether its runs bear them out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown

ABOVE, BELOW = "above", "below"
_TEXTS = (
    "name",
    "source",
    "says",
    "arm",
    "against",
    "expected",
    "beyond",
    "dial_name",
    "evaluation",
)
_NEEDED = ("name", "source", "says", "arm", "measures", "expected")


@dataclass(frozen=True)
class Claim:
    """A prediction about the difference between two arms.

    Attributes:
        name: a word or two.
        source: who claims it.
        says: the claim, as a sentence.
        arm: name of the arm that it is about.
        against: name of the arm that it is compared with; empty: the measure itself is above or
            below 0, as what the trained probe gains over that of random weights.
        measures: measures of `arm_table.summarise` that it is tested by, each a row.
        expected: whether the arm's measures are "above" or "below" the other's.
        relevant: smallest difference that counts. Where the interval excludes it, the claim did not
            hold; 0: any difference counts.
        beyond: measure that must differ in the same direction, or the claim holds "by accuracy
            alone", such as the fraction of accuracy that is kept; empty: none.
        datasets: data sets that it is tested on; none: all.
        dial: data set -> a number that differs between the data sets, such as the fraction of false
            negatives. The claim is then about the slope of the difference over that number.
        dial_name: what the dial is, for figures.
        evaluation: name of the further evaluation that it is tested by; empty: the run's own.
    """

    name: str
    source: str
    says: str
    arm: str
    measures: Sequence[str]
    expected: str
    against: str = ""
    relevant: float = 0.0
    beyond: str = ""
    datasets: Sequence[str] = ()
    dial: Mapping[str, float] = field(default_factory=dict)
    dial_name: str = ""
    evaluation: str = ""

    @property
    def sign(self) -> int:
        """1 where the arm is expected above the other, -1 where below."""
        return 1 if self.expected == ABOVE else -1


def read_claims(content: Any, path: Path) -> list[Claim]:
    """Return the claims of a study's config file.

    Args:
        content: value of its key `claims`.
        path: the config file, for messages.

    Raises:
        UserError: for a missing or unknown key, and a value of another type.
    """
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise UserError(f"{path}: claims: must be a list of mappings")
    return [_read_claim(item, f"{path}: claims: {shown(item.get('name', ''))}") for item in content]


def _read_claim(item: dict[str, Any], where: str) -> Claim:
    """Return one claim.

    Args:
        item: its keys and values.
        where: its place, for messages.
    """
    keys = [each.name for each in fields(Claim)]
    for key in item:
        if key not in keys:
            raise UserError(f"{where}: unknown key '{shown(key)}'{nearest(key, keys)}")
    for key in _NEEDED:
        if not item.get(key):
            raise UserError(f"{where}: {key} is missing")
    right = {
        **{key: isinstance(item.get(key, ""), str) for key in _TEXTS},
        "measures": is_list_of_text(item["measures"]),
        "datasets": is_list_of_text(item.get("datasets", [])),
        "dial": _is_dial(item.get("dial", {})),
        "relevant": _is_number(item.get("relevant", 0)) and item.get("relevant", 0) >= 0,
    }
    right["expected"] = item["expected"] in (ABOVE, BELOW)
    for key, is_right in right.items():
        if not is_right:
            raise UserError(f"{where}: {key}={shown(item[key])}: must be {_KINDS.get(key, 'text')}")
    return Claim(**item)


_KINDS = {
    "measures": "a list of measures",
    "datasets": "a list of data sets",
    "dial": "a number for each of at least two data sets, not all equal",
    "relevant": "a number, not below 0",
    "expected": f"{ABOVE} or {BELOW}",
}


def is_list_of_text(value: Any) -> bool:
    """Return whether a value is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_dial(value: Any) -> bool:
    """Return whether a value is a mapping to numbers that are not all equal, or an empty one."""
    if not isinstance(value, dict):
        return False
    return not value or (all(map(_is_number, value.values())) and len(set(value.values())) > 1)


def _is_number(value: Any) -> bool:
    """Return whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)

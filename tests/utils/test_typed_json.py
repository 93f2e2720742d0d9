"""JSON of other revisions is read, and damaged JSON is refused by name."""

from dataclasses import asdict, dataclass, field

import pytest

from vidrobust.utils.typed_json import from_json


@dataclass
class Point:
    eps: float
    ci95: list[float]
    name: str | None = None


@dataclass
class Table:
    n: int
    points: list[Point]
    by_name: dict[str, Point] | None
    counts: dict[str, float | None] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


TABLE = {"n": 2, "points": [{"eps": 0, "ci95": [0.5, 1]}], "by_name": None}


def test_what_was_written_is_read_as_the_same():
    table = Table(3, [Point(0.5, [0, 1], "a")], {"b": Point(1.0, [])}, {"c": None, "d": 2.0})
    assert from_json(Table, asdict(table)) == table


def test_unknown_keys_are_ignored_and_defaults_may_be_missing():
    assert from_json(Table, TABLE | {"new": 1}) == Table(2, [Point(0, [0.5, 1])], None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": "2"}, "expected int @ n"),
        ({"n": True}, "expected int @ n"),
        ({"n": 2.5}, "expected int @ n"),
        ({"points": [{"eps": "x", "ci95": []}]}, r"expected float @ points\[0\].eps"),
        ({"points": [{"ci95": []}]}, r"required field missing @ points\[0\].eps"),
        ({"points": [{"eps": 1, "ci95": [None]}]}, r"expected float @ points\[0\].ci95\[0\]"),
        ({"points": [{"eps": 1, "ci95": [], "name": 3}]}, r"@ points\[0\].name"),
        ({"points": 3}, "expected list @ points"),
        ({"points": {}}, "expected list @ points"),
        ({"names": "ab"}, "expected list @ names"),
        ({"names": ["a", 1]}, r"expected str @ names\[1\]"),
        ({"by_name": 3}, "expected a mapping @ by_name"),
        ({"counts": {"a": "b"}}, r"@ counts\['a'\]"),
    ],
)
def test_an_entry_of_another_type_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        from_json(Table, TABLE | change)


@pytest.mark.parametrize("content", [None, [], "text", 3, [TABLE]])
def test_anything_but_an_object_is_refused(content):
    with pytest.raises(ValueError):
        from_json(Table, content)

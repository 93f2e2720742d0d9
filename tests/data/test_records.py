import os

import pytest

from vidrobust.data import (
    Record,
    records_sha,
    require_labels,
    shared_sources,
    split_by_group,
    ucf101,
)
from vidrobust.utils.errors import UserError


def test_the_sha_depends_on_order_and_labels(ucf):
    records, _ = ucf101(ucf, "train", 1)
    assert records_sha(records) == records_sha(list(records)) != records_sha(records[::-1])


def test_the_sha_depends_on_what_a_manifest_says():
    plain, scanned = Record("a", "/a", 0), Record("a", "/a", 0, frames=7, backend="pyav")
    assert len({records_sha([r]) for r in (plain, scanned, Record("a", "/a", 0, bad="cut"))}) == 3
    assert records_sha([plain]) == records_sha([Record("a", "/elsewhere/a", 0, group="g")])


def _clips(groups, per_group=3):
    return [Record(f"{g}_{i}", f"/{g}_{i}", 0, group=g) for g in groups for i in range(per_group)]


def test_shared_sources_are_the_same_file_or_the_same_group_and_class():
    train = [Record("a", "/a", 0, "film"), Record("b", "/b", 0)]
    test = [
        Record("c", "/c", 0, "film"),
        Record("b2", "/b", 0),
        Record("d", "/d", 0),
        Record("e", "/e", 0, "other"),
        Record("f", "/f", 1, "film"),
    ]
    assert shared_sources(train, test) == ["c", "b2"]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_part_held_out_shares_no_source_with_the_rest(share):
    records = _clips([f"g{i}" for i in range(40)])
    rest, held = split_by_group(records, share)
    assert not shared_sources(rest, held) and len(rest) + len(held) == len(records)
    assert abs(len(held) - share * len(records)) <= 3
    backwards = split_by_group(records[::-1], share)
    assert {r.uid for r in backwards[1]} == {r.uid for r in held}  # whatever the order of the list
    assert held == [r for r in records if r in held]  # and in its order


def test_records_without_a_group_are_held_out_one_by_one():
    records = [Record(str(i), f"/{i}", 0) for i in range(50)]
    assert len(split_by_group(records, 0.2)[1]) == 10


def test_names_that_are_not_valid_text_are_held_out_like_others():
    records = [Record(os.fsdecode(b"\xff%d.avi" % i), f"/{i}", 0) for i in range(20)]
    assert len(split_by_group(records, 0.25)[1]) == 5


def test_a_single_source_is_not_split():
    with pytest.raises(UserError, match="data.validation=0.2: 3 videos of 1 sources"):
        split_by_group(_clips(["g"]), 0.2)


def test_labels_are_required_by_name():
    require_labels([Record("a", "/a", 0)], "the probe")
    with pytest.raises(
        UserError, match="the probe needs labels, and 1 of 2 videos have none; first: b"
    ):
        require_labels([Record("a", "/a", 0), Record("b", "/b", -1)], "the probe")

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import REPO, counting_video, read_numbers, tiny_ucf101
from vidrobust.cli.common import parser
from vidrobust.config import DataConfig, MotionShapes
from vidrobust.data import (
    FORMATS,
    FormatSpec,
    Record,
    all_records,
    apply_manifest,
    build,
    build_records,
    find_format,
    read_frames,
    records_sha,
    scan,
    second_cues,
    ucf101,
)
from vidrobust.utils.errors import UserError


def test_a_missing_root_and_an_unknown_format_are_named_in_the_message(tmp_path):
    with pytest.raises(UserError, match="no data root .*nowhere"):
        build_records(DataConfig(name="ucf101", root=str(tmp_path / "nowhere")), "train")
    with pytest.raises(UserError, match="data.name: unknown name 'ucf-101'; did you mean 'ucf101'"):
        build_records(DataConfig(name="ucf-101", root=str(tmp_path)), "train")


def test_some_classes_are_a_data_set_of_their_own(tmp_path):
    root = tiny_ucf101(tmp_path)
    whole = DataConfig(name="ucf101", root=str(root))
    records, classes = build_records(whole, "train")
    assert len(classes) == 2
    for order in (classes, classes[::-1]):
        both = build_records(dataclasses.replace(whole, classes=order), "train")
        assert both == (records, classes)
    for split in ("train", "test"):
        every, _ = build_records(whole, split)
        second, names = build_records(dataclasses.replace(whole, classes=classes[1:]), split)
        assert names == classes[1:] and {record.label for record in second} == {0}
        assert [r.uid for r in second] == [r.uid for r in every if r.label == 1]
    held_out = dataclasses.replace(whole, classes=classes[1:], validation=0.5)
    parts = [build_records(held_out, split)[0] for split in ("train", "test")]
    assert sum(map(len, parts)) == sum(record.label == 1 for record in records)
    with pytest.raises(UserError, match=f"data.classes: no class 'x'.*{classes[0]}"):
        build_records(dataclasses.replace(whole, classes=["x"]), "train")
    several = ([Record("a", "a", -1, labels=(0, 1))], classes)
    with pytest.raises(UserError, match="data.classes: videos of this data set have several"):
        build._of_classes(dataclasses.replace(whole, classes=classes), several)


def test_every_format_is_found_by_name_and_named_in_the_help():
    help_lines = parser("").epilog.splitlines()
    help = next(line for line in help_lines if line.startswith("  data.name="))
    for name in FORMATS:
        assert callable(find_format(name)) and name in help
    with pytest.raises(UserError, match="data.name"):
        find_format("torchvision:")


def test_an_entry_of_formats_is_all_that_a_new_format_needs(tmp_path, monkeypatch):
    """The fields of its entry decide how it is drawn, which folds it has, and what its cues are."""

    def parse(root, split, fold):
        name = f"{split}{fold}.avi"
        return [Record(name, str(root / name), 0)], ["class"]

    spec = FormatSpec(
        parse,
        "one video per split",
        folds=(1, 2),
        draw=lambda root, cfg: root.mkdir(),
        second_cues=lambda root: {"test1.avi": "class"},
    )
    monkeypatch.setitem(FORMATS, "new", spec)
    cfg = DataConfig(name="new", root=str(tmp_path / "new"))
    records, classes = build_records(cfg, "test")
    assert [record.uid for record in records] == ["test1.avi"]
    assert second_cues(cfg, records, classes) == {0: 0}
    monkeypatch.setitem(FORMATS, "new", dataclasses.replace(spec, draw=None))
    assert [record.uid for record in all_records(cfg)] == [
        "train1.avi",
        "test1.avi",
        "train2.avi",
        "test2.avi",
    ]


def test_no_format_is_special_cased_by_name_outside_the_registry():
    """What differs between formats is a field of FormatSpec."""
    names = "|".join(sorted(FORMATS))
    comparison = re.compile(rf"""\.name (==|!=|in|not in) \(?["']({names})["']""")
    for path in (REPO / "vidrobust").rglob("*.py"):
        assert not comparison.findall(path.read_text()), path


def test_part_of_the_training_list_is_held_out_by_source(ucf):
    cfg = DataConfig(name="ucf101", root=str(ucf), validation=0.25)
    (rest, _), (held, _) = build_records(cfg, "train"), build_records(cfg, "test")
    whole, _ = ucf101(ucf, "train", 1)
    assert len(held) == 2 and sorted(r.uid for r in rest + held) == [r.uid for r in whole]
    assert not {r.group for r in rest} & {r.group for r in held}


def test_all_records_of_every_split_are_listed_once(tmp_path, caplog):
    root = tiny_ucf101(tmp_path)
    lists = root / "ucfTrainTestlist"
    (lists / "trainlist02.txt").write_text((lists / "trainlist01.txt").read_text())
    (lists / "testlist02.txt").write_text("Gone/v_Gone_g01_c01.avi\n")
    assert len(all_records(DataConfig(name="ucf101", root=str(root)))) == 12
    assert "left out" in caplog.text and "Gone" in caplog.text


@pytest.mark.parametrize("name", ["a:b.avi", "torchvision:x.avi", "file:x.avi", "concat:a|b.avi"])
def test_names_with_a_colon_below_a_relative_root_are_files(tmp_path, monkeypatch, name):
    counting_video(tmp_path / name, 5)
    counting_video(tmp_path / "x/c:d.avi", 5, first=9)
    (tmp_path / "train.txt").write_text(f"{name} 0\nx/c:d.avi 0\n")
    absolute, _ = build_records(DataConfig(name="list", root=str(tmp_path)), "train")
    monkeypatch.chdir(tmp_path)
    records, _ = build_records(DataConfig(name="list", root="."), "train")
    assert read_numbers(read_frames(records[0].path, np.arange(5))) == [0, 1, 2, 3, 4]
    assert read_numbers(read_frames(records[1].path, np.arange(5))) == [9, 10, 11, 12, 13]
    assert [record.uid for record in records] == [name, "x/c:d.avi"]
    assert records_sha(records) == records_sha(absolute)
    rows = scan([record.path for record in records], Path("."), Path("m.jsonl"))
    assert [row["path"] for row in rows] == [name, "x/c:d.avi"]
    scanned = apply_manifest(records, Path("m.jsonl"), Path("."))
    assert [record.frames for record in scanned] == [5, 5]


def test_a_relative_root_with_a_colon_is_a_folder(tmp_path, monkeypatch):
    for split in ("train", "test"):
        counting_video(tmp_path / "my:set" / split / "run" / "x.avi", 5)
    monkeypatch.chdir(tmp_path)
    ((record,), _) = build_records(DataConfig(name="folder", root="my:set"), "train")
    assert record.uid == "run/x.avi"
    assert read_numbers(read_frames(record.path, np.arange(5))) == [0, 1, 2, 3, 4]


def test_the_built_in_data_set_is_drawn_below_a_root_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = MotionShapes(train_per_class=1, test_per_class=1, frames=8, size=24)
    records, _ = build_records(
        DataConfig(name="motionshapes", root="my:set", motionshapes=spec), "train"
    )
    assert len(records) == 8
    assert read_frames(records[0].path, np.arange(8)).shape == (8, 24, 24, 3)

import pytest

from tests.helpers import tiny_ucf101
from vidrobust.config import Data, options
from vidrobust.data import (
    FORMATS,
    all_records,
    build_records,
    find_format,
    ucf101,
)
from vidrobust.errors import UserError


def test_a_missing_root_and_an_unknown_format_are_named(tmp_path):
    with pytest.raises(UserError, match="no data root .*nowhere"):
        build_records(Data(name="ucf101", root=str(tmp_path / "nowhere")), "train")
    with pytest.raises(UserError, match="data.name: unknown name 'ucf-101'; did you mean 'ucf101'"):
        build_records(Data(name="ucf-101", root=str(tmp_path)), "train")


def test_every_format_is_found_by_name_and_named_in_the_help():
    help = next(item.metadata["help"] for key, item in options() if key == "data.name")
    for name in FORMATS:
        assert callable(find_format(name)) and name in help
    with pytest.raises(UserError, match="data.name"):
        find_format("torchvision:")


def test_part_of_the_training_list_is_held_out_by_source(ucf):
    cfg = Data(name="ucf101", root=str(ucf), validation=0.25)
    (rest, _), (held, _) = build_records(cfg, "train"), build_records(cfg, "test")
    whole, _ = ucf101(ucf, "train", 1)
    assert len(held) == 2 and sorted(r.uid for r in rest + held) == [r.uid for r in whole]
    assert not {r.group for r in rest} & {r.group for r in held}


def test_all_records_are_those_of_every_split_once(tmp_path, caplog):
    root = tiny_ucf101(tmp_path)
    lists = root / "ucfTrainTestlist"
    (lists / "trainlist02.txt").write_text((lists / "trainlist01.txt").read_text())
    (lists / "testlist02.txt").write_text("Gone/v_Gone_g01_c01.avi\n")
    assert len(all_records(Data(name="ucf101", root=str(root)))) == 12
    assert "left out" in caplog.text and "Gone" in caplog.text

"""The mark in a folder of copies."""

import json

import pytest

from tests.helpers import another_process
from vidrobust.data.prepare.provenance import claim, read_mark, same_sources, size_of
from vidrobust.utils.errors import UserError


def _files(folder, sizes):
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(b"x" * size)
    return {name: str(folder / name) for name in sizes}


def _claim(*args):
    with claim(*args):
        pass


def test_a_folder_of_copies_continues_with_equal_options_and_refuses_others(tmp_path):
    sources = _files(tmp_path / "a", {f"{i}.avi": 100 + i for i in range(40)})
    _claim(tmp_path / "out", {"short_side": 8}, sources)
    mark = read_mark(tmp_path / "out")
    assert mark is not None and mark["short_side"] == 8 and 8 <= len(mark["sources"]) <= 16
    assert all(mark["sources"][name] == size_of(sources[name]) for name in mark["sources"])
    _claim(tmp_path / "out", {"short_side": 8}, sources)
    (tmp_path / "a/0.avi").write_bytes(b"mended")
    _claim(tmp_path / "out", {"short_side": 8}, sources)
    with pytest.raises(UserError, match=r"files of another encoding \(short_side=8, not 9\); give"):
        _claim(tmp_path / "out", {"short_side": 9}, sources)
    others = _files(tmp_path / "b", {f"{i}.avi": 200 + i for i in range(40)})
    with pytest.raises(
        UserError, match="copies of another data set's files; give another --output, or delete it"
    ):
        _claim(tmp_path / "out", {"short_side": 8}, others)
    with pytest.raises(UserError, match="holds other files; give an empty folder"):
        _claim(tmp_path / "a", {"short_side": 8}, sources)


def test_a_mark_without_sources_fits_any_data_set(tmp_path):
    (tmp_path / "prepared.json").write_text(json.dumps({"short_side": 8}))
    _claim(tmp_path, {"short_side": 8}, {})
    assert same_sources({}, {}) and read_mark(tmp_path / "nowhere") is None


def test_half_of_the_files_identify_a_data_set_and_of_few_any_may_change():
    sizes = {str(i): i for i in range(8)}
    assert same_sources(sizes, {str(i): i for i in range(4)})
    assert not same_sources(sizes, {str(i): i for i in range(3)})
    assert same_sources({"a": 1, "b": 2}, {"a": 5, "b": 6})


def test_a_folder_of_frames_has_the_size_of_its_files(tmp_path):
    _files(tmp_path / "f", {"1.jpg": 3, "2.jpg": 4})
    assert size_of(tmp_path / "f") == 7 and size_of(tmp_path / "none") == -1


def test_a_folder_is_refused_while_another_process_writes_to_it(tmp_path):
    with (
        another_process(lambda: claim(tmp_path / "out", {"short_side": 8}, {})),
        pytest.raises(
            UserError,
            match="another process writes .*/out; wait for it or stop it, or give another",
        ),
    ):
        _claim(tmp_path / "out", {"short_side": 8}, {})
    _claim(tmp_path / "out", {"short_side": 8}, {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"sources": 3}'])
def test_a_damaged_mark_is_refused_by_name(tmp_path, content):
    (tmp_path / "prepared.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"prepared.json: (damaged|holds no JSON object).*; delete the folder"
    ):
        read_mark(tmp_path)

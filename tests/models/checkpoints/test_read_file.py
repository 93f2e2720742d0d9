"""Messages say what is wrong with a file."""

import json
import struct
import sys
import zipfile

import pytest
import torch

from vidrobust.models.checkpoints import read_weights
from vidrobust.utils.errors import UserError

STATE = {"a.weight": torch.arange(2000.0), "a.bias": torch.ones(3)}


def test_files_of_both_formats_of_torch(tmp_path):
    for new in (True, False):
        torch.save(STATE, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        read = read_weights(tmp_path / "a.pt")
        assert read.foreign == () and torch.equal(read.value["a.weight"], STATE["a.weight"])


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(STATE, tmp_path / "a.safetensors")
    assert torch.equal(read_weights(tmp_path / "a.safetensors").value["a.bias"], torch.ones(3))
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:99])
    with pytest.raises(UserError, match="b.safetensors: "):
        read_weights(tmp_path / "b.safetensors")


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 10, 100, 1000, 4000, -1])
def test_a_file_that_was_cut_short_is_named(tmp_path, new, kept):
    path = tmp_path / "a.pt"
    torch.save(STATE | {"args": ValueError("foreign")}, path, _use_new_zipfile_serialization=new)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a.pt: .*(cut short|empty|not a checkpoint)") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of git-lfs"),
        (b"seed: 0\n", "not a checkpoint that torch.save, pickle or safetensors has written"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a checkpoint that torch.save"),
    ],
)
def test_other_files_are_recognised(tmp_path, content, said):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_weights(tmp_path / "a.pth")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_weights(tmp_path / "a.pth")


def test_a_torchscript_program_is_not_run(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="a TorchScript program, not weights"):
        read_weights(tmp_path / "a.pt")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    with pytest.raises(UserError, match="an archive without weights"):
        read_weights(tmp_path / "a.zip")


def test_a_safetensors_file_needs_its_package(tmp_path, monkeypatch):
    header = json.dumps({}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"pip install 'vidrobust\[hf\]'"):
        read_weights(tmp_path / "a.safetensors")

"""A file never runs code: what it names is replaced by objects that do nothing."""

import builtins
import collections
import contextlib
import importlib
import os
import pickle
import subprocess
from argparse import Namespace
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from vidrobust.models.checkpoints.inert_pickle import InertPickle, StandIn
from vidrobust.models.checkpoints.read_file import read_weights


class Color(Enum):
    RED = 1


@dataclass
class History:
    values: list


class OwnDict(dict):
    pass


class OwnList(list):
    pass


class Calls:
    """Pickle as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


CRIMES = {
    "os.system": lambda path: Calls(os.system, f"touch {path}"),
    "subprocess": lambda path: Calls(subprocess.call, ["touch", str(path)]),
    "eval": lambda path: Calls(eval, f"open({str(path)!r}, 'w').close()"),
    "exec": lambda path: Calls(exec, f"open({str(path)!r}, 'w').close()"),
    "getattr": lambda path: Calls(getattr, "text", "upper"),
    "import": lambda path: Calls(__import__, "antigravity"),
    "open": lambda path: Calls(open, str(path), "w"),
    "nested": lambda path: Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {path}"))),
    "hub": lambda path: Calls(torch.hub.load, "owner/repository", "model"),
    "storage": lambda path: Calls(
        torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, f"touch {path}"))
    ),
}


@pytest.mark.parametrize("saved", ["torch.save", "old torch.save", "pickle"])
@pytest.mark.parametrize("crime", CRIMES)
def test_malicious_files_run_nothing(tmp_path, crime, saved):
    victim = tmp_path / "victim"
    content = {"state_dict": {"a.weight": torch.ones(2)}, "args": CRIMES[crime](victim)}
    path = tmp_path / "evil.pt"
    if saved == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=saved == "torch.save")
    try:
        read = read_weights(path)
    except Exception as error:
        assert crime == "storage", error  # bytes that are no storage cannot be read
    else:
        assert torch.equal(read.value["state_dict"]["a.weight"], torch.ones(2))
        assert read.foreign
    assert not victim.exists()


@pytest.mark.parametrize(
    "name",
    [
        "_codecs.encode",
        "collections.OrderedDict",
        "collections.deque",
        "numpy.dtype",
        "numpy.ndarray",
        "torch.Size",
        "torch._utils._rebuild_tensor_v2",
        "torch.storage._load_from_bytes",
    ],
)
@pytest.mark.parametrize("second", [False, True])
def test_what_a_pickle_names_cannot_be_changed(name, second):
    """BUILD sets attributes; the second part of a state is set one by one, also on a class."""
    module, _, attribute = name.rpartition(".")
    state = b"}X\x04\x00\x00\x00evilK\x01s"  # {"evil": 1}
    if second:
        state = b"N" + state + b"\x86"  # (None, {"evil": 1})
    program = b"\x80\x02" + f"c{module}\n{attribute}\n".encode() + state + b"b."
    with contextlib.suppress(Exception):  # a class of C refuses
        pickle_module = InertPickle()
        pickle_module.load(__import__("io").BytesIO(program))
    found = getattr(importlib.import_module(module), attribute)
    assert not hasattr(found, "evil")
    fresh = InertPickle().load(
        __import__("io").BytesIO(b"\x80\x02" + f"c{module}\n{attribute}\n.".encode())
    )
    assert not hasattr(getattr(fresh, "func", fresh), "evil")


def test_plain_values_tensors_and_arrays_are_read_as_they_are(tmp_path):
    content = {
        "tensor": torch.arange(6.0).view(2, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.ones(3)),
        "ordered": collections.OrderedDict(a=1),
        "numpy": np.arange(4, dtype=np.float32),
        "scalar": np.float64(2.5),
        "set": {1, 2},
        "tuple": (1, "a", None, 2.5, True, b"x"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "foreign": Namespace(lr=0.5),
    }
    path = tmp_path / "a.pt"
    torch.save(content, path)
    read = read_weights(path)
    assert read.foreign == ("argparse.Namespace",)
    value = read.value
    for key in ("tensor", "half", "parameter"):
        assert torch.equal(value[key], content[key]) and value[key].dtype == content[key].dtype
    assert torch.equal(value["numpy"], torch.arange(4.0))
    for key in ("ordered", "scalar", "set", "tuple", "size", "dtype"):
        assert value[key] == content[key], key
    assert value["foreign"].lr == 0.5


def test_objects_of_foreign_classes_are_stand_ins(tmp_path):
    content = {
        "enum": Color.RED,
        "dataclass": History([1, 2]),
        "dict": OwnDict(a=1),
        "list": OwnList([1]),
        "default": defaultdict(list, a=[1]),
        "omegaconf": OmegaConf.create({"lr": 0.5, "deep": {"a": [1, 2]}}),
        "exception": ValueError("text"),
        "function": len,
        "class": History,
        "by object": {Color.RED: 1},
        "weights": {"w": torch.ones(2)},
    }
    path = tmp_path / "a.pt"
    torch.save(content, path)
    read = read_weights(path)
    assert torch.equal(read.value["weights"]["w"], torch.ones(2))
    assert isinstance(read.value["dataclass"], StandIn)
    assert read.value["dataclass"].values == [1, 2]
    assert {"builtins.len", "builtins.ValueError", "collections.defaultdict"} <= set(read.foreign)
    assert builtins.len is len


def test_what_python_2_and_caffe2_have_pickled(tmp_path):
    """Byte strings of Python 2 are read as latin-1, and its arrays become tensors."""
    blobs = {"conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3), "lr": np.float32(0.1)}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "name": "résumé"}, protocol=2))
    read = read_weights(path)
    assert torch.equal(read.value["blobs"]["conv1_w"], torch.arange(6.0).view(2, 3))
    assert read.foreign == ()

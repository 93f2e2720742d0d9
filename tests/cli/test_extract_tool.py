"""The command line of extraction: stages, tokens, several models, names of files, mistakes."""

import json

import numpy as np
import pytest

from tests.helpers import counting_video, tool

# a stage is the mean colour of each frame; the features are twice the mean over frames
OWN = """
import torch
from vidrobust.models.input_spec import InputSpec

class Net(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.layer1 = torch.nn.AdaptiveAvgPool3d((None, 1, 1))
        self.factor = factor

    def forward(self, x):
        return self.factor * self.layer1(x).flatten(2).mean(2)

def network(factor=2):
    return Net(factor), InputSpec(frames=3, stride=2, size=(16, 16))

def other():
    return network(3)

def longer():
    return Net(2), InputSpec(frames=4, stride=2, size=(16, 16))
"""
COMMON = ("--videos", "clips", "data.workers=0", "data.timeout_s=0", "eval.clips=2")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    for n in range(3):
        counting_video(tmp_path / f"clips/{n}.avi", 20, first=50 * n)
    return tmp_path


def _extract(place, *words, model="network"):
    return tool("extract_features", "--model", f"python:own.py:{model}", *COMMON, *words, cwd=place)


def _refused(done):
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_stages_and_tokens_of_one_model(place):
    for words in (["--stages", "layer1"], ["--stages", "layer1", "--tokens"], []):
        done = _extract(place, "--output", "f.npz", *words)
        assert done.returncode == 0, done.stderr
    assert "6 x 3 features in f.npz" in done.stderr
    whole, stage, tokens = (
        np.load(place / name)["features"]
        for name in ("f.npz", "f.layer1.npz", "f.layer1.tokens.npz")
    )
    assert tokens.shape == (6, 3, 3) and np.allclose(tokens.mean(1), stage, atol=1e-6)
    assert np.allclose(2 * stage, whole, atol=1e-6)


def test_half_and_npy(place):
    done = _extract(place, "--output", "f.npy", "--half")
    assert done.returncode == 0, done.stderr
    assert np.load(place / "f.npy").dtype == np.float16
    assert len(np.load(place / "f.table.npy")) == 6
    assert json.loads((place / "f.json").read_text())["dtype"] == "float16"


def test_several_models_have_files_of_their_own(place):
    other = ("--model", "python:own.py:other")
    done = _extract(place, *other, "--output", "f.npz")
    assert done.returncode == 0, done.stderr
    names = ("f.python_own.py_network.npz", "f.python_own.py_other.npz")
    first, second = (np.load(place / name)["features"] for name in names)
    assert np.allclose(3 * first, 2 * second, atol=1e-6)
    # without --output, each in the folder of its own model
    done = _extract(place, *other)
    assert done.returncode == 0, done.stderr
    assert len(list((place / "outputs").glob("*/features/videos.npz"))) == 2


def test_models_of_the_same_name_are_numbered(place):
    done = _extract(place, "--model", "python:own.py:network", "--output", "f.npz")
    assert done.returncode == 0, done.stderr
    names = [f"f.python_own.py_network-{number}.npz" for number in (1, 2)]
    assert sorted(path.name for path in place.glob("f.*")) == names


def test_mistakes_are_one_line(place):
    network = "python:own.py:network"
    mistakes = {
        ("--tokens", "--per-video"): "--tokens: tokens belong to a clip, and --per-video averages",
        ("--stages", "layer7"): f"--stages: {network}: the network has no module 'layer7'",
        ("--stages", "layer1,"): "--stages layer1,: give names with commas between them, or all",
        ("--format", "npy", "--output", "f.npz"): "--output f.npz ends with .npz; name a .npy file",
        ("--format", "npz", "--output", "f.npy"): "--output f.npy ends with .npy; name a .npz file",
        ("--model", "python:own.py:longer"): "data.frames=4 of python:own.py:longer, and 3 of",
        ("--model", network): "would hold features of several of",
    }
    for words, said in mistakes.items():
        assert said in _refused(_extract(place, *words)), words
    assert not list(place.glob("**/*.np[yz]"))


def test_weights_belong_to_the_model_before_them(place):
    words = ("--model", "torchvision:r3d_18", "--model", "torchvision:mc3_18", *COMMON)
    line = _refused(tool("extract_features", "--weights", "a.pth", *words, cwd=place))
    assert "--weights a.pth: give it after its --model" in line
    twice = ("--weights", "b.pth", "--weights", "c.pth")
    line = _refused(tool("extract_features", *words, *twice, cwd=place))
    assert "--weights c.pth: give it after its --model" in line
    line = _refused(tool("extract_features", *words, "--weights", "b.pth", cwd=place))
    assert "b.pth" in line and "mc3_18" not in line
    # of a single model they may come first
    single = ("--weights", "d.pth", "--model", "torchvision:r3d_18", *COMMON)
    assert "d.pth" in _refused(tool("extract_features", *single, cwd=place))
    run = ("--weights", "e.pth", "--checkpoint", "run", *COMMON)
    line = _refused(tool("extract_features", *run, cwd=place))
    assert "--weights e.pth: the run run has its own weights" in line


def test_a_dry_run_prints_the_options_of_each_model(place):
    done = _extract(place, "--model", "python:own.py:other", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\neval:\n") == 2 and "# python:own.py:other\n" in done.stdout


def test_a_model_is_required(place):
    done = tool("extract_features", *COMMON, cwd=place)
    assert done.returncode == 2
    assert "one of the arguments --checkpoint --model is required" in done.stderr

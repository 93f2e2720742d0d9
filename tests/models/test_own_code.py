"""Models of the user's own code: any module or function, with what it returns."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vidrobust import config
from vidrobust.evaluation.measured_model import load_source
from vidrobust.models.input_spec import InputSpec
from vidrobust.models.sources import build_source
from vidrobust.models.sources.own_code import logits_of, wrapped
from vidrobust.utils.errors import UserError

CARD = InputSpec(frames=2, size=(8, 8))


class Video(nn.Module):
    """A small classifier of clips; `order`: dimensions that are averaged."""

    def __init__(self, order=(2, 3, 4)):
        super().__init__()
        self.order = order
        self.first = nn.Linear(3, 5)
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.first(x.mean(self.order)).relu())


class Other(Video):
    """Its last linear layer in order of registration does not make the output."""

    def forward(self, x):
        return self.first(x.mean(self.order)) + self.last(torch.ones(len(x), 5)).mean()


FILE = """
import torch
from torch import nn
from vidrobust.models.input_spec import InputSpec

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
    def forward(self, x):
        return self.fc(x.mean((1, 3, 4)))

def with_card():
    return Net(), InputSpec(frames=2, size=(8, 8), layout="BTCHW")

def plain():
    return lambda clips: clips.mean((2, 3, 4))

def fails():
    raise RuntimeError("no weights here")

def number():
    return 3

def uncalled():
    return Net

def pair():
    return lambda clips: (clips, clips), InputSpec(frames=2, size=(8, 8))

def wrong():
    return Net(), InputSpec(frames=2, size=(8, 8))
"""


def test_the_last_linear_layer_is_the_head():
    network = Video().eval()
    x = torch.rand(3, 3, 2, 8, 8)
    expected = network(x)
    model = wrapped(network, CARD, "mine")
    features = model.network(x)
    assert features.shape == (3, 5) and model.dim == 5
    assert torch.equal(model.head(features), expected)


@pytest.mark.parametrize(
    "network", [Other(), lambda x: x.mean((2, 3, 4))], ids=["module", "function"]
)
def test_without_such_a_layer_the_logits_are_the_features(network):
    x = torch.rand(3, 3, 2, 8, 8)
    expected = network(x)
    model = wrapped(network, CARD, "mine")
    assert torch.equal(model.network(x), expected)
    assert torch.equal(model.head(expected), expected), "the head changes nothing"


def test_the_layout_of_the_card_is_what_the_module_sees():
    network = Video(order=(1, 3, 4))
    card = InputSpec(frames=2, size=(8, 8), layout="BTCHW", channels="bgr")
    model = wrapped(network, card, "mine")
    x = torch.rand(3, 3, 2, 8, 8)
    seen = x.flip(1).mean((2, 3, 4))
    assert torch.allclose(model.network(x), network.first(seen).relu())


@pytest.mark.parametrize(
    "output",
    [
        torch.ones(2, 3),
        {"logits": torch.ones(2, 3), "loss": 0},
        SimpleNamespace(logits=torch.ones(2, 3)),
        (torch.ones(2, 3),),
    ],
    ids=["tensor", "mapping", "object", "tuple of one"],
)
def test_outputs_without_doubt_are_taken(output):
    assert torch.equal(logits_of(output, "mine"), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ((torch.ones(2, 3), torch.ones(2, 5)), "mine returns a tuple"),
        ({"scores": torch.ones(2, 3)}, "mine returns"),
        (torch.ones(2, 3, 4), r"mine returns \(2, 3, 4\); give logits"),
        (torch.ones(2, 3).long(), "mine returns a tensor of torch.int64"),
        (None, "mine returns"),
    ],
)
def test_others_are_refused_with_what_they_are(output, said):
    with pytest.raises(ValueError, match=said):
        logits_of(output, "mine")


def test_a_function_of_a_file_makes_the_model(tmp_path):
    path = tmp_path / "mymodels.py"
    path.write_text(FILE)
    model = build_source(f"python:{path}:with_card")
    assert model.input.layout == "BTCHW" and model.dim == 3
    x = torch.rand(2, 3, 2, 8, 8)
    assert torch.allclose(model.network(x), x.mean((2, 3, 4)))
    assert build_source(f"python:{path}:plain").dim == 3


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("missing", "has no function missing; it has .*with_card"),
        ("fails", r"fails\(\) failed: RuntimeError\('no weights here'\)"),
        ("number", r"number\(\) returned int; return a module"),
        ("uncalled", r"uncalled\(\) returned the class Net; return a module"),
        ("pair", r"pair returns a tuple \(Tensor, Tensor\); give lambda x: model\(x\)\[0\]$"),
        ("wrong", r"fails on a clip of 2 frames of 8 x 8 pixels"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, function, said):
    path = tmp_path / "mymodels.py"
    path.write_text(FILE)
    with pytest.raises(UserError, match=said) as error:
        build_source(f"python:{path}:{function}")
    assert "\\n" not in str(error.value)


def test_files_that_cannot_be_imported(tmp_path):
    with pytest.raises(UserError, match="no file nothing.py"):
        build_source("python:nothing.py:build")
    (tmp_path / "bad.py").write_text("import no_such_package")
    with pytest.raises(UserError, match=r"importing .*bad.py failed: ModuleNotFoundError"):
        build_source(f"python:{tmp_path}/bad.py:build")
    with pytest.raises(UserError, match="write python:FILE.py:FUNCTION"):
        build_source("python:build")


def test_a_torchscript_program(tmp_path):
    network = Video().eval()
    scripted = torch.jit.trace(network, torch.rand(1, 3, 16, 112, 112))
    scripted.save(str(tmp_path / "a.pt"))
    model = build_source(f"torchscript:{tmp_path}/a.pt")
    x = torch.rand(2, 3, 16, 112, 112)
    assert torch.allclose(model.head(model.network(x)), network(x), atol=1e-6)
    (tmp_path / "b.pt").write_text("text")
    for name in ("b.pt", "none.pt"):
        with pytest.raises(UserError, match="torchscript:.*: no "):
            build_source(f"torchscript:{tmp_path}/{name}")


def test_probabilities_become_logits(caplog):
    network = nn.Sequential(Video(), nn.Softmax(1)).eval()
    x = torch.rand(3, 3, 2, 8, 8)
    with caplog.at_level("INFO", "vidrobust"):
        model = wrapped(network, CARD, "mine")
    assert "mine returns probabilities" in caplog.text
    assert torch.allclose(model.head(model.network(x)), network(x).log())


class OneClip(Video):
    """Refuse all but one clip, as a model exported with a fixed batch size does."""

    def forward(self, x):
        if len(x) != 1:
            raise RuntimeError("expected batch 1")
        return super().forward(x)


def test_a_fixed_batch_of_one_runs_clip_by_clip(caplog):
    network, x = OneClip().eval(), torch.rand(3, 3, 2, 8, 8)
    expected = torch.cat([network(clip) for clip in x.split(1)])
    with caplog.at_level("INFO", "vidrobust"):
        model = wrapped(network, CARD, "mine")
    assert "mine takes one clip at a time" in caplog.text and model.dim == 5
    assert torch.allclose(model.head(model.network(x)), expected)


class Counter(Video):
    """Its state changes with every forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_a_model_that_changes_its_state_is_reported(caplog):
    with caplog.at_level("WARNING", "vidrobust"):
        wrapped(Counter(), CARD, "mine")
    assert "mine changes its own state in a forward pass" in caplog.text and "calls" in caplog.text


# --- Weights of a file ---

WEIGHTS = """
import torch
from torch import nn
from vidrobust.models.input_spec import InputSpec

class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.backbone = nn.Linear(3, 5)
        self.fc = nn.Linear(5, 4)
        self.kind = kind
    def forward(self, x):
        logits = self.fc(self.backbone(x.mean((2, 3, 4))).relu())
        return {"plain": logits, "twice": 2 * logits, "softmax": logits.softmax(1)}[self.kind]

def plain():
    return Net("plain"), InputSpec(frames=2, size=(8, 8))

def twice():
    return Net("twice"), InputSpec(frames=2, size=(8, 8))

def softmax():
    return Net("softmax"), InputSpec(frames=2, size=(8, 8))
"""


@pytest.mark.parametrize("kind", ["plain", "twice", "softmax"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_fills_the_users_module_and_its_own_head(tmp_path, kind, prefix):
    """Names such as backbone and fc are those of the module, not of a layout."""
    (tmp_path / "w.py").write_text(WEIGHTS)
    inside: dict = {}
    exec(WEIGHTS, inside)
    torch.manual_seed(3)
    original, _ = inside[kind]()
    state = {prefix + key: value for key, value in original.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    measured = load_source(
        config.Config(), f"python:{tmp_path}/w.py:{kind}", str(tmp_path / "w.pt")
    )
    clips = torch.rand(3, 3, 2, 8, 8)
    with torch.no_grad():
        wanted = original(clips)
        logits = measured.model(clips)
    wanted = wanted.log() if kind == "softmax" else wanted
    assert torch.allclose(logits, wanted, atol=1e-5)

"""Files say what their models expect of inputs, and settings that no network has are refused."""

import argparse

import pytest
import torch
import yaml

from tests.models.checkpoints.helpers import hub, prefixed, pyslowfast_name, save
from tests.models.checkpoints.originals import TorchvisionResNet, randomise
from vidrobust import checkpoint, config
from vidrobust.cli.common import model_config
from vidrobust.evaluation.measured_model import load_source
from vidrobust.models.checkpoints import file_adjustment, recognise
from vidrobust.models.input_spec import InputSpec
from vidrobust.training.weights_options import with_weights_options
from vidrobust.utils.errors import UserError

# as `cfg.dump()` of PySlowFast writes it; every group also has entries of other networks
SETTINGS = {
    "DATA": {
        "NUM_FRAMES": 4,
        "SAMPLING_RATE": 16,
        "TEST_CROP_SIZE": 64,
        "TRAIN_CROP_SIZE": 56,
        "TRAIN_JITTER_SCALES": [72, 80],
        "MEAN": [0.5, 0.4, 0.3],
        "STD": [0.25, 0.25, 0.2],
        "REVERSE_INPUT_CHANNEL": False,
    },
    "MODEL": {"ARCH": "slow", "NUM_CLASSES": 400, "HEAD_ACT": "softmax"},
    "SLOWFAST": {"ALPHA": 8, "FUSION_KERNEL_SZ": 5},
    "MVIT": {"USE_MEAN_POOLING": False},
    "TEST": {"NUM_SPATIAL_CROPS": 3},
}


def changed(group, **entries):
    """Return the settings with other entries in one group."""
    return SETTINGS | {group: SETTINGS[group] | entries}


def file_of(path, settings, state=None):
    """Write a file of PySlowFast; settings are a dict, or text as it stands in the file."""
    text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
    state = state or {"s1.pathway0_stem.conv.weight": torch.ones(2, 3, 1, 7, 7)}
    return save(path / "a.pyth", {"epoch": 1, "model_state": state, "cfg": text})


def test_the_configuration_of_pyslowfast_is_read(tmp_path):
    found = recognise(file_of(tmp_path, SETTINGS))
    assert found.card == {
        "frames": 4,
        "stride": 16,
        "short_side": 64,
        "size": (64, 64),
        "view_average": "probabilities",
    }
    assert found.options == {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.2]}
    assert "made for frames=4 stride=16" in found.text()


def test_one_crop_is_taken_from_the_smallest_frames_of_training(tmp_path):
    found = recognise(file_of(tmp_path, changed("TEST", NUM_SPATIAL_CROPS=1)))
    assert (found.card["short_side"], found.card["size"]) == (72, (64, 64))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "DATA: 5",
        "DATA: {NUM_FRAMES: many, MEAN: [1], STD: [0, 0, 0], TEST_CROP_SIZE: -1}",
        "DATA: {NUM_FRAMES: true, MEAN: [0.5, 0.5, 0.5], STD: [0, 0, 0]}",
        "{" * 2000,
        "a: !!python/object/apply:os.system ['touch victim']",
        "a: 1\n" * 100_000,
    ],
)
def test_other_texts_say_nothing_and_run_nothing(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = recognise(file_of(tmp_path, text))
    assert found.card == {} and found.options == {}
    assert not (tmp_path / "victim").exists()


def test_frames_in_the_order_bgr_are_a_field_of_the_card(tmp_path):
    path = file_of(tmp_path, changed("DATA", REVERSE_INPUT_CHANNEL=True))
    found = recognise(path)
    assert found.card["channels"] == "bgr"
    adjust = file_adjustment(found)
    assert adjust(InputSpec()).channels == "bgr"
    given = InputSpec(layout="pathways", slow_frames="linspace")
    assert adjust(given).slow_frames == "linspace", "a file that does not say it changes nothing"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            SETTINGS | {"MODEL": {"ARCH": "slowfast"}},
            "trained with SLOWFAST.ALPHA=8, but slowfast_r50 and slowfast_r101 have 4",
        ),
        (
            SETTINGS | {"MODEL": {"ARCH": "mvit"}, "MVIT": {"USE_MEAN_POOLING": True}},
            "MVIT.USE_MEAN_POOLING=True, but torchvision's MViT classifies its class token",
        ),
    ],
)
def test_what_the_weights_do_not_show_is_refused_by_name(tmp_path, settings, said):
    with pytest.raises(UserError, match=f"a.pyth: PySlowFast.*{said}"):
        recognise(file_of(tmp_path, settings))


@pytest.fixture(scope="module")
def slow_state():
    return {
        pyslowfast_name(key): value
        for key, value in hub("slow_r50").state_dict().items()
        if not key.startswith("blocks.5")
    }


def test_a_measured_model_normalises_as_its_file_says(tmp_path, slow_state):
    path = file_of(tmp_path, SETTINGS, slow_state)
    measured = load_source(config.Config(), "pytorchvideo:slow_r50", str(path))
    assert (measured.input.frames, measured.input.stride) == (4, 16)
    assert measured.input.mean == (0.5, 0.4, 0.3)
    assert measured.input.view_average == "probabilities"
    for model in (measured.model, measured.random):
        assert torch.allclose(model.backbone.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
        assert torch.allclose(model.backbone.std.flatten(), torch.tensor([0.25, 0.25, 0.2]))


def test_options_come_before_what_the_file_says(tmp_path, slow_state):
    path = file_of(tmp_path, SETTINGS, slow_state)
    cfg = config.Config(model=config.ModelConfig(mean=[0.1, 0.1, 0.1]))
    measured = load_source(cfg, "pytorchvideo:slow_r50", str(path))
    assert torch.allclose(measured.model.backbone.mean.flatten(), torch.full((3,), 0.1))


def test_training_takes_the_statistics_of_the_file(tmp_path):
    path = file_of(tmp_path, SETTINGS)
    model = config.ModelConfig(backbone="pytorchvideo:slow_r50", weights=str(path))
    cfg = with_weights_options(config.Config(model=model))
    assert (cfg.model.mean, cfg.model.std) == ([0.5, 0.4, 0.3], [0.25, 0.25, 0.2])


def test_statistics_of_the_input_card_come_before_those_of_the_file(tmp_path):
    path = file_of(tmp_path, SETTINGS)
    card = config.InputConfig(mean=[0.1, 0.1, 0.1])
    model = config.ModelConfig(backbone="pytorchvideo:slow_r50", weights=str(path), input=card)
    cfg = with_weights_options(config.Config(model=model))
    assert cfg.model.mean == [] and cfg.model.input.mean == [0.1, 0.1, 0.1]


def test_options_of_the_card_come_before_the_file(tmp_path, slow_state):
    path = file_of(tmp_path, SETTINGS, slow_state)
    card = config.InputConfig(frames=8, mean=[0.1, 0.1, 0.1])
    cfg = config.Config(model=config.ModelConfig(input=card))
    measured = load_source(cfg, "pytorchvideo:slow_r50", str(path))
    assert (measured.input.frames, measured.input.stride) == (8, 16)
    assert torch.allclose(measured.model.backbone.mean.flatten(), torch.full((3,), 0.1))


def test_the_command_line_follows_the_card_of_the_file(tmp_path):
    """Options of the command line come before it."""
    path = file_of(tmp_path, SETTINGS)
    args = argparse.Namespace(
        model="pytorchvideo:slow_r50", weights=str(path), overrides=["data.stride=2"], cfg=None
    )
    cfg, _ = model_config(args)
    assert (cfg.data.frames, cfg.data.size, cfg.data.stride) == (4, 64, 2)
    assert cfg.eval.view_average == "probabilities"


def test_a_file_is_read_once_and_not_kept(tmp_path, slow_state, monkeypatch):
    path = str(file_of(tmp_path, SETTINGS, slow_state))
    reads = []
    read = checkpoint.read_foreign
    monkeypatch.setattr(checkpoint, "read_foreign", lambda p: reads.append(p) or read(p))
    args = argparse.Namespace(model="pytorchvideo:slow_r50", weights=path, overrides=[], cfg=None)
    cfg, _ = model_config(args)
    load_source(cfg, args.model, path)
    assert reads == [path]
    load_source(cfg, args.model, path)
    assert reads == [path, path], "a file that has changed since is read again"


@pytest.fixture
def warnings(monkeypatch):
    logged = []
    monkeypatch.setattr("vidrobust.models.checkpoints.file_card.log.warning", logged.append)
    return logged


def slowfast_file(path):
    """Write a SlowFast of PySlowFast without its configuration."""
    state = {
        pyslowfast_name(key): value
        for key, value in hub("slowfast_r50").state_dict().items()
        if not key.startswith("blocks.6")
    }
    return save(path / "a.pyth", {"model_state": state})


def test_the_slow_frames_of_pyslowfast_are_those_of_the_input_card(tmp_path, warnings):
    path = slowfast_file(tmp_path)
    spec = "pytorchvideo:slowfast_r50"
    measured = load_source(config.Config(), spec, str(path))
    assert measured.input.slow_frames == "linspace"
    assert measured.model.backbone.trunk.input.slow_frames == "linspace"
    model = config.ModelConfig(backbone=spec, weights=str(path))
    assert with_weights_options(config.Config(model=model)).model.input.slow_frames == "linspace"
    assert warnings == []


def test_options_that_a_source_does_not_have_are_warned_of(tmp_path, warnings):
    original = randomise(TorchvisionResNet((3, 1, 2), classes=0))
    state = prefixed(original.state_dict(), "backbone.") | {"classifier.weight": torch.ones(2, 32)}
    path = save(tmp_path / "solo.ckpt", {"state_dict": state})
    model = config.ModelConfig(backbone="torchvision:resnet18", weights=str(path))
    assert with_weights_options(config.Config(model=model)).model.stem == ""
    assert [line.split(",")[0] for line in warnings] == [
        "the weights need model.stem=cifar",
        "the weights need model.stem_padding=2",
    ]

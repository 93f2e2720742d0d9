"""The input card: overridden fields, layouts, and the options that follow from it."""

from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from vidrobust import config
from vidrobust.evaluation.measured_model import card_options, load_source
from vidrobust.models import build_backbone
from vidrobust.models.build import card_adjustment
from vidrobust.models.input_spec import InputSpec, Published, arranged, overridden, slow_pathway
from vidrobust.models.sources.own_code import wrapped
from vidrobust.utils.errors import UserError

CARD = InputSpec(frames=8, stride=4, short_side=256, size=(224, 224), classes=("a", "b"))


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"frames": 4}, {"frames": 4}),
        ({"fps": 15.0}, {"fps": 15.0, "stride": None}),
        ({"resize": [128, 171]}, {"resize": (128, 171), "short_side": None}),
        ({"size": 112}, {"size": (112, 112)}),
        ({"size": [112]}, {"size": (112, 112)}),
        ({"mean": [1, 2, 3], "range": [0, 255]}, {"mean": (1, 2, 3), "range": (0, 255)}),
        ({"channels": "bgr", "layout": "BTCHW"}, {"channels": "bgr", "layout": "BTCHW"}),
        (
            {"acc": 0.9, "acc_dataset": "ucf101", "acc_views": "10x3"},
            {"published": Published(0.9, "ucf101", "10x3", "")},
        ),
    ],
)
def test_fields_are_replaced(values, changed):
    assert overridden(CARD, **values) == replace(CARD, **changed)


def test_a_published_accuracy_keeps_what_is_not_given():
    known = replace(CARD, published=Published(0.7, "Kinetics-400", "5x1", "torchvision"))
    assert overridden(known, acc=0.6).published == Published(
        0.6, "Kinetics-400", "5x1", "torchvision"
    )


def test_classes_are_read_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("Alpha\n\n Beta \n")
    assert overridden(CARD, classes=str(tmp_path / "names.txt")).classes == ("Alpha", "Beta")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stride=2", "fps=15"], "stride and fps exclude each other"),
        (["resize=[128,171]", "short_side=128"], "exclude each other"),
        (["mean=[0.5,0.5]"], "give three numbers each"),
        (["range=[1]"], "give two numbers each"),
        (["size=[8,8,8]"], "give two numbers each"),
        (["acc=0.9"], "set both"),
        (["classes=/no/such/file"], "/no/such/file"),
    ],
)
def test_options_that_no_model_has_are_refused(words, said):
    cfg = config.loads("", [f"model.input.{word}" for word in words])
    adjust = card_adjustment(cfg.model)
    with pytest.raises(UserError, match=rf"model\.input.*: .*{said}"):
        adjust(CARD)


def test_statistics_are_given_in_one_place_only():
    words = ["model.mean=[0,0,0]", "model.std=[1,1,1]", "model.input.mean=[1,1,1]"]
    with pytest.raises(UserError, match=r"model.input.mean and std: .*remove one"):
        card_adjustment(config.loads("", words).model)


def test_without_options_nothing_changes():
    assert card_adjustment(config.Config().model) is None


def test_a_backbone_of_this_package_has_no_card():
    with pytest.raises(UserError, match=r"backbone resnet18 has no input card; set data\.\*"):
        build_backbone("resnet18", adjust=lambda card: card)


def test_the_options_of_a_run_follow_the_card():
    rate = overridden(CARD, fps=15.0, resize=[128, 171], size=112, interpolation="bicubic")
    options = yaml.safe_load(card_options(replace(rate, view_average="probabilities")))
    assert options["data"] == {
        "frames": 8,
        "size": 112,
        "short_side": 112,
        "resize": [128, 171],
        "fps": 15.0,
        "stride": 1,
        "interpolation": "bicubic",
    }
    assert options["eval"] == {"view_average": "probabilities"}
    assert yaml.safe_load(card_options(CARD))["data"]["stride"] == 4
    config.loads(card_options(rate))  # they go together


def test_options_of_the_command_line_replace_what_excludes_them():
    """A stride that is given is one of source frames, not of frames at the card's rate."""
    rate = overridden(CARD, fps=15.0, resize=[128, 171], size=112)
    given = config.keys_given(["data.stride=2", "data.short_side", "120"])
    assert given == {"data.stride", "data.short_side"}
    data = yaml.safe_load(card_options(rate, given))["data"]
    assert "fps" not in data and "resize" not in data and "stride" not in data
    cfg = config.loads(card_options(rate, given), ["data.stride=2", "data.short_side=120"])
    assert (cfg.data.stride, cfg.data.fps, cfg.data.short_side, cfg.data.resize) == (2, 0, 120, [])
    assert "stride" not in yaml.safe_load(card_options(CARD, {"data.fps"}))["data"]


def test_a_crop_that_is_not_square_is_refused():
    with pytest.raises(UserError, match="crops of 224 x 112 pixels"):
        card_options(replace(CARD, size=(224, 112)))


# --- Layouts ---


@pytest.mark.parametrize(("alpha", "places"), [(4, [0, 4]), (8, [0])])
def test_two_pathways_are_a_list_of_clips(alpha, places):
    x = torch.rand(2, 3, 8, 4, 4)
    slow, fast = arranged(x, replace(CARD, layout="pathways", alpha=alpha))
    assert torch.equal(fast, x) and torch.equal(slow, x[:, :, places])


def test_pyslowfast_takes_frames_from_the_first_to_the_last():
    """linspace(0, 31, 8) rounded down, as its pack_pathway_output has them."""
    x = torch.arange(32.0).view(1, 1, 32, 1, 1)
    assert slow_pathway(x, 4, "linspace").flatten().tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert slow_pathway(x, 4, "stride").flatten().tolist() == [0, 4, 8, 12, 16, 20, 24, 28]


class TwoPathways(nn.Module):
    """A classifier of a list of two pathways that takes `most` clips at a time."""

    def __init__(self, most=99):
        super().__init__()
        self.most = most
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        slow, fast = x
        assert slow.shape[2] * 4 == fast.shape[2] and len(fast) <= self.most
        return self.last(torch.cat([p.mean((2, 3, 4)) for p in x], 1))


@pytest.mark.parametrize("most", [99, 1])
def test_a_module_of_two_pathways_is_wrapped(most):
    model = TwoPathways(most).eval()
    weight, bias = model.last.weight.clone(), model.last.bias.clone()
    source = wrapped(model, InputSpec(frames=8, size=(6, 6), layout="pathways"), "two")
    x = torch.rand(3, 3, 8, 6, 6, requires_grad=True)
    pooled = torch.cat([x[:, :, ::4].mean((2, 3, 4)), x.mean((2, 3, 4))], 1)
    logits = source.head(source.network(x))
    assert torch.allclose(logits, pooled @ weight.T + bias, atol=1e-6)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient.abs().sum((0, 1, 3, 4)) > 0).all()  # every frame counts


# --- Through the options of a run ---

OWN = """
import torch
from vidrobust.models.input_spec import InputSpec

WEIGHT = torch.randn(4, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))

def rgb():
    return lambda x: x.flatten(1) @ WEIGHT.T, InputSpec(frames=2, size=(8, 8))

def bgr():
    # the same function of pixels, written for another input
    def logits(x):
        x = (x.transpose(1, 2).flip(1) * 60 + 100) / 255
        return x.flatten(1) @ WEIGHT.T
    return logits
"""


def test_the_same_model_by_another_card_gives_the_same_logits(tmp_path):
    """Range, statistics, channels and layout are all undone inside: pixels mean the same."""
    (tmp_path / "own.py").write_text(OWN)
    words = ["frames=2", "size=[8]", "range=[0,255]", "mean=[100]", "std=[60]", "channels=bgr"]
    words = [f"model.input.{word}" for word in [*words, "layout=BTCHW"]]
    first = load_source(config.Config(), f"python:{tmp_path}/own.py:rgb", "")
    second = load_source(config.loads("", words), f"python:{tmp_path}/own.py:bgr", "")
    x = torch.rand(3, 3, 2, 8, 8, requires_grad=True)
    a, b = first.model(x), second.model(x)
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(each[:, 0].sum(), x)[0] for each in (a, b)]
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-5)
    assert second.input.text().startswith("2 frames; crop 8 x 8 (bilinear); bgr in [0, 255]")

"""vidrobust.load_model and wrap: the user's module stays whole, and results are of this model."""

import numpy as np
import pytest
import torch
from torch import nn

import vidrobust
from tests.helpers import tiny_ucf101
from tests.test_api import Brightness
from vidrobust.evaluation.natural.class_tables import KINETICS
from vidrobust.evaluation.own_head import own_head
from vidrobust.models.input_spec import InputSpec
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import places_of

CARD = {"frames": 2, "size": (16, 16), "layout": "BTCHW"}
CLIPS = torch.rand(6, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1] * 3)
OPTIONS = {"data.workers": 0, "eval.steps": 2, "eval.checks": 0, "eval.sensitivity": 0}


def measured(model, out, **more):
    return vidrobust.evaluate(
        model,
        [(CLIPS, LABELS)],
        threats=["linf-0"],
        output=out,
        options=OPTIONS,
        **more,
    )


class Whole(nn.Module):
    """A classifier whose last layer makes its output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Linear(3, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.body(x.mean((1, 3, 4))).relu())


def test_a_wrapped_module_stays_as_it_was(tmp_path):
    net = Whole().train()
    frames = CLIPS.transpose(1, 2)
    before = net(frames)
    for _ in range(2):
        model = vidrobust.wrap(net, **CARD)
        assert torch.equal(net(frames), before) and net.training
        assert torch.allclose(model.classifier(CLIPS), before, atol=1e-6)
        assert model.encoder(CLIPS).shape == (6, 5)


class Turned(Whole):
    """Other code with equal weights."""

    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize(
    "other",
    [
        lambda: vidrobust.wrap(Whole(), **CARD, channels="bgr"),
        lambda: vidrobust.wrap(Whole(), **CARD, mean=(0.9, 0.1, 0.1)),
        lambda: vidrobust.wrap(Turned(), **CARD),
        lambda: vidrobust.wrap(lambda x: x.mean((1, 3, 4))[:, :2], **CARD),
    ],
    ids=["channels", "mean", "code", "function"],
)
def test_results_of_another_model_are_not_returned(tmp_path, other):
    """Equal weights, or none, do not make two models the same."""
    first = vidrobust.wrap(Whole(), **CARD)
    report = measured(first, tmp_path / "out")
    assert measured(vidrobust.wrap(Whole(), **CARD), tmp_path / "out").summary == report.summary
    with pytest.raises(UserError, match="holds another evaluation, of other"):
        measured(other(), tmp_path / "out")


def test_two_functions_are_two_models(tmp_path):
    measured(vidrobust.wrap(lambda x: x.mean((1, 3, 4))[:, :2], **CARD), tmp_path / "out")
    with pytest.raises(UserError, match="holds another evaluation"):
        measured(vidrobust.wrap(lambda x: x.mean((1, 3, 4))[:, 1:], **CARD), tmp_path / "out")


@pytest.fixture
def finetuned(tmp_path):
    """A file of torchvision's ResNet-18 with two classes of the user's own."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(num_classes=2).eval()
    torch.save(network.state_dict(), tmp_path / "my.pth")
    return network, tmp_path / "my.pth"


def test_a_finetuned_file_has_classes_of_its_own(finetuned, tmp_path):
    """The 1,000 classes and the published accuracy of the source are not those of its weights."""
    network, path = finetuned
    model = vidrobust.load_model("torchvision:resnet18", weights=path, size=32)
    assert model.input.classes is None and model.input.published is None
    report = vidrobust.evaluate(
        model,
        [(CLIPS[:, :, 0].repeat(1, 1, 2, 2), LABELS)],
        threats=["linf-0"],
        output=tmp_path / "out",
        options=OPTIONS,
    )
    assert report.summary.classifier == "own head" and report.summary.chance == 0.5
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.input.mean, model.input.std))
    pixels = (CLIPS[:, :, 0].repeat(1, 1, 2, 2) * 255).round() / 255
    with torch.no_grad():
        right = network((pixels - mean) / std).argmax(1) == LABELS
    assert report.summary.clean_acc == float(right.float().mean())


def test_a_file_is_read_anew_after_a_mistake(finetuned):
    network, path = finetuned
    with pytest.raises(UserError, match="did you mean"):
        vidrobust.load_model("torchvision:resnet81", weights=path)
    with pytest.raises(UserError, match="another architecture"):
        vidrobust.load_model("torchvision:resnet50", weights=path)
    torch.save(network.state_dict() | {"fc.bias": torch.tensor([7.0, 7.0])}, path)
    model = vidrobust.load_model("torchvision:resnet18", weights=path)
    assert model.classifier.head.bias.tolist() == [7, 7]


def test_fields_of_the_card_are_given_as_values(finetuned):
    _, path = finetuned
    model = vidrobust.load_model(
        "torchvision:resnet18", weights=path, size=96, classes=["a", "b"], channels="bgr"
    )
    assert model.input.size == (96, 96) and model.input.classes == ("a", "b")
    with pytest.raises(UserError, match="torchvision:resnet18: channels='grb': use rgb or bgr"):
        vidrobust.load_model("torchvision:resnet18", weights=path, channels="grb")
    wrapped = vidrobust.wrap(Whole(), **CARD, stride=2, fps=None)
    assert (wrapped.input.stride, wrapped.input.fps) == (2, None)


@pytest.mark.parametrize(
    "values",
    [{"size": "a"}, {"frames": "16"}, {"alpha": 0, "layout": "pathways"}, {"breadth": 3}],
)
def test_values_that_no_model_has_are_one_line(values):
    with pytest.raises(UserError, match=r"^wrap: ") as error:
        vidrobust.wrap(Whole(), **(CARD | values))
    assert "\n" not in str(error.value)


class Fixed(nn.Module):
    """A model of clips of one shape."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3 * 2 * 16 * 16, 2)

    def forward(self, x):
        return self.last(x.flatten(1))


@pytest.mark.parametrize("clips", [CLIPS[:, :, :1], CLIPS[..., :8, :8]])
def test_clips_that_contradict_the_card_are_one_line(tmp_path, clips):
    model = vidrobust.wrap(Fixed(), **CARD)
    with pytest.raises(UserError, match="its input card says 2 frames of 16 x 16 pixels"):
        vidrobust.evaluate(
            model, [(clips, LABELS)], output=tmp_path, options=OPTIONS, threats=["linf-0"]
        )


def test_a_model_of_another_batch_size_is_told_apart():
    class Eight(Fixed):
        def forward(self, x):
            assert len(x) == 8, "a batch of 8"
            return super().forward(x)

    with pytest.raises(UserError, match=r"one or two at a time \(a batch of 8\).* its batch"):
        vidrobust.wrap(Eight(), **CARD)


@pytest.mark.parametrize("kind", [np.int64, torch.tensor, int])
def test_labels_of_any_integer_type_are_taken(tmp_path, kind):
    root = tiny_ucf101(tmp_path / "data", train=1, test=1)
    videos = sorted((root / "videos").rglob("*.avi"))
    files = [(path, kind(number % 2)) for number, path in enumerate(videos)]
    model = vidrobust.wrap(Brightness(), **CARD)
    report = vidrobust.evaluate(
        model, files, output=tmp_path / "out", options=OPTIONS, threats=["linf-0"]
    )
    assert report.summary.n == 4


def test_a_leak_between_given_lists_is_reported(tmp_path, caplog):
    root = tiny_ucf101(tmp_path / "data", train=2, test=1)
    files = [(path, n % 2) for n, path in enumerate(sorted((root / "videos").rglob("*.avi")))]
    vidrobust.evaluate(
        vidrobust.wrap(Brightness(), **CARD),
        files,
        train=files,
        output=tmp_path / "out",
        options=OPTIONS | {"eval.clips": 1},
    )
    assert "share their source with a training video" in caplog.text


def test_names_that_differ_in_punctuation_are_told_apart():
    assert places_of(["C", "C++", "C#"], ["C#", "C", "c", "C++"]) == [2, 0, None, 1]
    assert places_of(["Ice Cream"], ["ice_cream"]) == [0]


def test_400_unnamed_classes_are_those_of_kinetics_in_alphabetical_order():
    """Whatever order the lists of the data set have."""
    model = vidrobust.wrap(nn.Sequential(nn.Flatten(), nn.Linear(1536, 400)), **CARD)
    shuffled = [KINETICS[i] for i in torch.randperm(400).tolist()]
    head, doubts = own_head(model.measured, shuffled)
    for place in (0, 17, 399):
        row = KINETICS.index(shuffled[place])
        assert torch.equal(head.weight[place], model.classifier.head.weight[row])
    assert "Kinetics-400 in alphabetical order" in doubts[0]
    other = [f"class {i}" for i in range(400)]
    assert own_head(model.measured, other)[0] is model.classifier.head


def test_the_readme_s_lines_of_python(tmp_path):
    """Run them with a smaller data set and shorter clips."""
    from torchvision.models.video import r2plus1d_18

    root = tiny_ucf101(tmp_path / "data", train=2, test=1)
    torch.save(r2plus1d_18(num_classes=2).state_dict(), tmp_path / "my.pth")
    model = vidrobust.load_model("torchvision:r2plus1d_18", weights=tmp_path / "my.pth")
    report = vidrobust.evaluate(
        model,
        "ucf101",
        root=root,
        threats=["linf-2/255"],
        corruptions="quick",
        output=tmp_path / "out",
        options=OPTIONS
        | {"data.frames": 2, "data.size": 16, "data.short_side": 18, "eval.clips": 1},
    )
    assert 0 <= report.summary.robust_acc <= report.summary.clean_acc
    assert report.summary.corruption.n == 2 and (report.path / "report.md").is_file()
    assert report.summary.input.fps == 15 and report.summary.input.published is None
    assert (report.summary.input.frames, report.summary.input.size) == (2, (16, 16)), "as used"
    told = "says 16 frames of 112 x 112 pixels; it is measured on 2 of 16 x 16"
    assert any(told in line for line in report.summary.warnings)


def test_our_accuracy_stands_beside_the_published_one(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=1, test=3)
    card = {"acc": 0.9, "acc_dataset": "ucf101", "acc_views": "10x3", "acc_source": "Table 2"}
    model = vidrobust.wrap(Brightness(), **CARD, **card)
    report = vidrobust.evaluate(
        model, "ucf101", root=root, output=tmp_path / "out", options=OPTIONS | {"eval.clips": 1}
    )
    acc = 100 * report.summary.representation["head"].acc
    text = (report.path / "report.md").read_text()
    assert f"Own head here {acc:.1f} %, published 90.0 % (10x3 views, Table 2)." in text
    assert any("Table 2 reports 90.0 %" in line for line in report.summary.warnings)


def test_a_card_is_an_input_spec():
    assert vidrobust.wrap(Whole(), **CARD).input == InputSpec(**CARD)


class Nan(Whole):
    """A classifier whose outputs are NaN for clips that begin dark."""

    def forward(self, x):
        return torch.where(x[:, 0, 0, 0, :1] < 0.5, torch.nan, super().forward(x))


def test_nan_of_the_own_head_is_no_class(tmp_path):
    """The argmax of NaN is class 0, which would be right for half of these clips."""
    model = vidrobust.wrap(Nan(), **CARD)
    report = measured(model, tmp_path / "out")
    dark = (CLIPS[:, 0, 0, 0, 0] * 255).round() / 255 < 0.5
    assert dark.any() and not dark.all()
    finite = Whole()((CLIPS * 255).round().transpose(1, 2) / 255).argmax(1)
    right = (finite == LABELS) & ~dark
    assert report.summary.representation["head"].acc == int(right.sum()) / 6
    rows = (report.path / "predictions.jsonl").read_text()
    assert rows.count('"head": null') == int(dark.sum())
    assert any("count as wrong for head, which gives NaN" in w for w in report.summary.warnings)


def test_names_of_another_number_of_classes_are_refused():
    with pytest.raises(UserError, match="3 names for a classifier of 2 classes"):
        vidrobust.wrap(Whole(), **CARD, classes=("a", "b", "c"))


@pytest.mark.parametrize("model", [Whole(), "torchvision:r3d_18"])
def test_a_model_that_is_not_wrapped_is_one_line(model):
    with pytest.raises(UserError, match=r"wrap it, vidrobust.wrap\(model\), or load it by name"):
        vidrobust.evaluate(model, [(CLIPS, LABELS)])


def test_a_threat_may_be_a_text(tmp_path):
    model = vidrobust.wrap(Whole(), **CARD)
    report = vidrobust.evaluate(
        model, [(CLIPS, LABELS)], threats="linf-1/255", output=tmp_path, options=OPTIONS
    )
    assert report.summary.threats == ["linf-1/255"]


def test_a_layout_that_does_not_fit_is_one_line(finetuned, tmp_path):
    _, path = finetuned
    model = vidrobust.load_model("torchvision:resnet18", weights=path, size=32, layout="BTCHW")
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(UserError, match=r"fails on 1 frames .* in the layout BTCHW \("):
        vidrobust.evaluate(
            model,
            [(images, LABELS[:2])],
            threats=["linf-0"],
            output=tmp_path / "out",
            options=OPTIONS,
        )


@pytest.mark.parametrize("prefix", ["model.", "net.backbone.", "module.model."])
def test_a_file_may_put_any_name_before_all_keys(finetuned, tmp_path, prefix):
    """Lightning writes `model.`, a module around a network the name of its attribute."""
    network, _ = finetuned
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "wrapped.ckpt")
    model = vidrobust.load_model("torchvision:resnet18", weights=tmp_path / "wrapped.ckpt")
    weight = model.classifier.head.weight
    assert torch.equal(weight, network.fc.weight)
    assert torch.equal(model.encoder.stored.conv1.weight, network.conv1.weight)

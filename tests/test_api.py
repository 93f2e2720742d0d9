"""The README's lines of Python measure a model as the command line does."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import vidrobust
from tests.helpers import tiny_ucf101
from vidrobust.utils.errors import UserError

OPTIONS = {
    "data.workers": 0,
    "data.stride": 2,
    "eval.clips": 1,
    "eval.steps": 2,
    "eval.corruption.severities": [3],
}


class Brightness(nn.Module):
    """Logits of two classes from the mean of a clip, which is (B, T, C, H, W) in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        nn.init.normal_(self.fc.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return self.fc(x.mean((1, 3, 4)))


def test_evaluate_gives_the_summary_and_the_folder(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=3, test=3)
    card = {"frames": 2, "size": (16, 16), "short_side": 20, "layout": "BTCHW", "range": (-1, 1)}
    model = vidrobust.wrap(Brightness(), **card)
    assert model.encoder(torch.rand(1, 3, 2, 16, 16)).shape == (1, 3)
    arguments = {
        "root": root,
        "threats": ["linf-0", "linf-2/255"],
        "corruptions": ["contrast"],
        "output": tmp_path / "out",
        "options": OPTIONS,
    }
    report = vidrobust.evaluate(model, "ucf101", **arguments)
    assert 0 <= report.summary.robust_acc <= report.summary.clean_acc <= 1
    assert report.path == tmp_path / "out" and (report.path / "report.md").is_file()
    assert (
        report.summary.classifier == "own head"
        and "random_probe" not in report.summary.representation
    )
    assert report.summary.input.layout == "BTCHW"
    rows = [json.loads(line) for line in (report.path / "results.jsonl").open()]
    assert len(rows) == 12
    again = vidrobust.evaluate(model, "ucf101", **arguments)
    assert again.summary == report.summary, "read, not measured again"


class Noisy(Brightness):
    """A model that draws random numbers, and counts the clips of all its copies."""

    clips: ClassVar[list[int]] = []

    def forward(self, x):
        self.clips.append(len(x))
        return super().forward(x + 0.5 * torch.randn_like(x))


def test_a_random_model_is_reported_and_averaged_over_passes(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=3, test=3)
    clips = []
    for passes in (1, 4):
        network = Noisy()
        # sure of the first class: no noise or attack decides how long a video is attacked
        network.fc.bias.data = torch.tensor([10.0, 0.0])
        model = vidrobust.wrap(network, frames=2, size=(16, 16), short_side=20, layout="BTCHW")
        before = sum(network.clips)
        report = vidrobust.evaluate(
            model,
            "ucf101",
            root=root,
            threats=["linf-2/255"],
            output=tmp_path / f"out{passes}",
            options=OPTIONS | {"eval.eot": passes, "eval.checks": 6, "eval.suite": "rand"},
        )
        clips.append(sum(network.clips) - before)
        told = [line for line in report.summary.warnings if "draws random numbers" in line]
        assert not told, "the suite rand is for such models"
    assert clips[1] > 3.5 * clips[0]
    report = vidrobust.evaluate(
        vidrobust.wrap(Noisy(), frames=2, size=(16, 16), short_side=20, layout="BTCHW"),
        "ucf101",
        root=root,
        threats=["linf-2/255"],
        output=tmp_path / "out",
        options=OPTIONS | {"eval.checks": 6},
    )
    assert any("draws random numbers; use suite rand" in line for line in report.summary.warnings)


def test_a_model_known_to_be_random_is_not_reported_as_random(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=1, test=3)
    report = vidrobust.evaluate(
        vidrobust.wrap(Noisy(), frames=2, size=(16, 16), short_side=20, layout="BTCHW"),
        "ucf101",
        root=root,
        threats=["linf-2/255"],
        output=tmp_path / "out",
        options=OPTIONS | {"eval.checks": 6, "eval.eot": 2},
    )
    assert not any("draws random numbers" in line for line in report.summary.warnings)
    assert "averaged over 2 passes (EOT)" in (report.path / "report.md").read_text()


def test_load_model_reads_a_file_of_torchvision(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    whole = resnet18(num_classes=2).eval()
    torch.save(whole.state_dict(), tmp_path / "my.pth")
    model = vidrobust.load_model(
        "torchvision:resnet18", weights=tmp_path / "my.pth", mean=[0.5] * 3
    )
    clips = torch.rand(2, 3, 1, 32, 32)
    pixels = (clips[:, :, 0] - 0.5) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(model.classifier.eval()(clips), whole(pixels), atol=1e-5)
    assert vidrobust.load_model("torchvision:resnet18").classifier is None, "random weights"
    with pytest.raises(UserError, match="unknown name 'resnet17'"):
        vidrobust.load_model("torchvision:resnet17")


def test_the_package_has_no_other_lazy_names():
    assert np.all([hasattr(vidrobust, name) for name in ("evaluate", "load_model", "wrap")])
    with pytest.raises(AttributeError, match="no attribute 'measure'"):
        vidrobust.measure  # noqa: B018

"""vidrobust.evaluate on lists of files and on batches of clips."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import vidrobust
from tests.helpers import tiny_ucf101
from tests.test_api import OPTIONS, Brightness
from vidrobust.config import EvalConfig
from vidrobust.data import eval_dataset
from vidrobust.evaluation.loading import build_lists
from vidrobust.evaluation.representation.knn_and_probe import measure_representation
from vidrobust.models.feature_store import Features
from vidrobust.utils.errors import UserError

CARD = {"frames": 2, "stride": 2, "size": (16, 16), "short_side": 16, "layout": "BTCHW"}
THREATS = ["linf-0", "linf-2/255"]


def wrapped(**card):
    """The same small classifier each time."""
    torch.manual_seed(0)
    return vidrobust.wrap(Brightness(), **card)


@pytest.fixture(scope="module")
def by_name(tmp_path_factory):
    """An evaluation by the name of a data set: (its lists, the evaluation)."""
    top = tmp_path_factory.mktemp("by_name")
    root = tiny_ucf101(top / "data", train=3, test=3)
    model = wrapped(**CARD)
    cfg = vidrobust.config.loads(
        "", [f"data.root={root}", "data.frames=2", "data.size=16", "data.short_side=16"]
    )
    cfg.data.workers = 0
    report = vidrobust.evaluate(
        model, "ucf101", root=root, threats=THREATS, output=top / "out", options=OPTIONS
    )
    return cfg, build_lists(cfg.data), report


def labelled(records, names=None):
    return [(each.path, names[each.label] if names else each.label) for each in records]


def rows(report, *names):
    """The rows of an evaluation without what names the videos."""
    kept = []
    for name in names:
        for line in (report.path / name).open():
            row = json.loads(line)
            kept.append({key: value for key, value in row.items() if key not in ("uid", "fps")})
    return kept


@pytest.mark.parametrize("kind", ["names", "numbers"])
def test_a_list_of_files_has_the_rows_of_the_data_set(by_name, tmp_path, kind):
    _, (train, test, classes), expected = by_name
    names = [name.upper() for name in classes] if kind == "names" else None
    report = vidrobust.evaluate(
        wrapped(**CARD, classes=tuple(classes)),
        labelled(test, names),
        train=labelled(train, names),
        threats=THREATS,
        output=tmp_path / "out",
        options=OPTIONS,
    )
    assert rows(report, "results.jsonl", "predictions.jsonl") == rows(
        expected, "results.jsonl", "predictions.jsonl"
    )
    assert report.summary.representation == expected.summary.representation
    assert report.summary.dataset == "list" and report.summary.classifier == "own head"


def test_a_protocol_is_named_in_python_as_on_the_command_line(by_name, tmp_path):
    _, (train, test, classes), _ = by_name
    arguments = {"train": labelled(train), "options": OPTIONS | {"protocol.epochs": 2}}
    model = wrapped(**CARD, classes=tuple(classes))
    out = tmp_path / "out"
    report = vidrobust.evaluate(
        model, labelled(test), protocol="linear_sgd", output=out, **arguments
    )
    assert report.summary.classifier == report.summary.protocol == "linear_sgd"
    assert report.summary.fitted["settings"] == 24
    with pytest.raises(UserError, match="protocol slf trains the model; use tools/test_net"):
        vidrobust.evaluate(model, labelled(test), protocol="slf", output=out, **arguments)
    by_option = arguments | {"options": OPTIONS | {"protocol.name": "slf"}}
    with pytest.raises(UserError, match="protocol slf trains the model; use tools/test_net"):
        vidrobust.evaluate(model, labelled(test), output=out, **by_option)
    by_option = arguments | {"options": OPTIONS | {"protocol.splits": [1, 2]}}
    with pytest.raises(UserError, match="protocol.splits is for tools/test_net.py"):
        vidrobust.evaluate(model, labelled(test), output=out, **by_option)
    with pytest.raises(UserError, match="without training videos there is no kNN"):
        vidrobust.evaluate(model, labelled(test), protocol="linear_sgd", output=out)
    few = arguments | {"options": OPTIONS | {"data.labels": "1"}}
    report = vidrobust.evaluate(
        model, labelled(test), protocol="few_labels", output=tmp_path / "few", **few
    )
    chosen = (report.path / "labels/train.txt").read_text().splitlines()
    assert len(chosen) == len(classes)
    with pytest.raises(UserError, match="evaluate: protocol: unknown name 'linaer'"):
        vidrobust.evaluate(model, labelled(test), protocol="linaer", output=out, **arguments)


def batches(cfg, records, dtype):
    """The clips that the evaluation by name cuts from the videos, in batches of 4."""
    dataset = eval_dataset(cfg.data, records, 1)
    samples = [dataset[0, i] for i in range(len(records))]
    for start in range(0, len(samples), 4):
        part = samples[start : start + 4]
        clips = torch.stack([each["clips"][0] for each in part]).permute(0, 4, 1, 2, 3)
        clips = clips if dtype == torch.uint8 else clips.to(dtype) / 255
        yield clips, torch.tensor([each["label"] for each in part])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_clips_have_the_rows_of_the_videos_they_were_cut_from(by_name, tmp_path, dtype):
    cfg, (train, test, _), expected = by_name
    report = vidrobust.evaluate(
        wrapped(**CARD),
        batches(cfg, test, dtype),
        train=batches(cfg, train, dtype),
        threats=THREATS,
        corruptions=["contrast"],
        output=tmp_path / "out",
        options=OPTIONS,
    )
    found = rows(report, "results.jsonl", "predictions.jsonl")
    assert found == rows(expected, "results.jsonl", "predictions.jsonl")
    assert report.summary.corruption.clean_acc == expected.summary.clean_acc
    assert not list(tmp_path.rglob("*.npy"))


def test_without_training_videos_the_own_head_is_measured(by_name, tmp_path):
    cfg, (_, test, _), expected = by_name
    report = vidrobust.evaluate(
        wrapped(**CARD),
        list(batches(cfg, test, torch.float32)),
        threats=THREATS,
        output=tmp_path / "out",
        options=OPTIONS,
    )
    assert list(report.summary.representation) == ["head"] and report.summary.knn is None
    assert report.summary.curve == expected.summary.curve
    text = (report.path / "report.md").read_text()
    assert "| own head |" in text and "kNN" not in text
    others = [(clips.flip(0), labels) for clips, labels in batches(cfg, test, torch.float32)]
    with pytest.raises(UserError, match="holds another evaluation"):
        vidrobust.evaluate(
            wrapped(**CARD),
            others,
            threats=THREATS,
            output=tmp_path / "out",
            options=OPTIONS,
        )


def test_images_are_clips_of_one_frame(tmp_path):
    class Flat(nn.Module):
        def forward(self, x):
            assert x.shape[2] == 1
            return x.flatten(1)[:, :3]

    images = torch.rand(4, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 0])
    report = vidrobust.evaluate(
        vidrobust.wrap(Flat(), frames=1, size=(16, 16)),
        [(images, labels)],
        threats=["linf-1/255"],
        output=tmp_path / "out",
        options={"data.workers": 0, "eval.steps": 2, "eval.checks": 0},
    )
    rounded = (images * 255).round().flatten(1)[:, :3].argmax(1)
    assert report.summary.clean_acc == float((rounded == labels).float().mean())


CLIPS, LABELS = torch.rand(2, 3, 2, 16, 16), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([(CLIPS * 2 - 1, LABELS)], r"values from -.* give pixels in \[0, 1\] or uint8"),
        ([(CLIPS * torch.nan, LABELS)], "values from nan"),
        ([(CLIPS[..., :8], LABELS)], "square clips of one shape"),
        ([(CLIPS, LABELS), (CLIPS[:, :, :1], LABELS)], "clips of 1 frames of 16 x 16 pixels"),
        ([(CLIPS, LABELS[:1])], r"labels \(1,\); give \(B, 3, T, H, W\)"),
        ([(CLIPS, LABELS + 1)], "label 2 of clip 1 is none of the 2 classes"),
        ([(CLIPS, LABELS / 2)], "label 0.0 of clip 0"),
        ([CLIPS], "an item is Tensor; give pairs"),
        ([], "the iterable has no batch"),
        ([("no.mp4", "0")], "no file no.mp4"),
        ([(__file__, "0"), (__file__, "1")], "is listed twice"),
        ([(__file__, "0"), ("b.mp4", 1)], "some labels are names"),
    ],
)
def test_data_that_cannot_be_measured_are_refused_in_one_line(tmp_path, data, said):
    model = wrapped(**CARD)
    if data and data[0][1] == "0" and len(data) == 2 and data[1][1] == 1:
        model = wrapped(**CARD, classes=("a", "b"))
    with pytest.raises(UserError, match=said) as error:
        vidrobust.evaluate(model, data, output=tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_model_without_a_classifier_needs_training_videos(tmp_path):
    model = vidrobust.load_model("torchvision:resnet18")
    with pytest.raises(UserError, match="there is no linear probe; give training videos"):
        vidrobust.evaluate(
            model,
            [(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))],
            classes=["a", "b"],
            output=tmp_path / "out",
            options={"data.workers": 0},
        )
    with pytest.raises(
        UserError, match="data set ucf101 has its own train= and classes=; remove them"
    ):
        vidrobust.evaluate(model, "ucf101", classes=["a"], output=tmp_path / "out")


def test_an_array_of_frames_is_a_video(tmp_path):
    """Files of numpy, as clips are kept: other arrays are refused."""
    from vidrobust.data import read_frames
    from vidrobust.data.decoding.pyav import DecodeError

    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    np.save(tmp_path / "v.npy", frames)
    assert np.array_equal(read_frames(tmp_path / "v.npy", np.array([4, 1])), frames[[4, 1]])
    np.save(tmp_path / "f.npy", frames / 255)
    with pytest.raises(DecodeError, match="of float64; save frames as"):
        read_frames(tmp_path / "f.npy", np.array([0]))
    np.save(tmp_path / "o.npy", np.array([{"code": 1}], dtype=object))
    with pytest.raises(DecodeError, match="not an array, or cut short"):
        read_frames(tmp_path / "o.npy", np.array([0]))


@pytest.mark.parametrize(("average", "answer"), [("logits", 0), ("probabilities", 1)])
def test_the_own_head_averages_the_clips_of_a_video_as_asked(average, answer):
    """One clip prefers class 0 strongly, and two prefer 1; see the same test of corruptions."""
    logits = torch.tensor([[[4.0, 0.0], [0.0, 1.9], [0.0, 1.9]]])
    one = torch.zeros(1, dtype=torch.long)
    queries = Features(logits, one, one, torch.zeros(1, 3), torch.ones(1), ["v"], [])
    head = nn.Linear(2, 2, bias=False)
    nn.init.eye_(head.weight)
    result = measure_representation(
        [], [queries], 2, EvalConfig(view_average=average), torch.device("cpu"), {"head": (0, head)}
    )
    assert result.predictions["head"].tolist() == [answer]

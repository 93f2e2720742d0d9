"""A model that another package saved has the rows that the same weights have in a checkpoint."""

import json
import shutil

import numpy as np
import pytest
import torch

import vidrobust
from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.evaluation import Summary, evaluate, read_summary
from vidrobust.evaluation.representation.knn_and_probe import Accuracy
from vidrobust.evaluation.summary import unlike_published
from vidrobust.models.input_spec import InputSpec, Published
from vidrobust.training.loop import train

WORDS = [
    "data.frames=2",
    "optim.lr=0.001",
    "data.size=32",
    "data.short_side=36",
    "eval.clips=1",
    "eval.threats=[linf-0,linf-4/255]",
    "eval.corruption.names=[contrast]",
    "eval.corruption.severities=[3]",
    "eval.sensitivity=0",
]


def export(state, tmp_path):
    """Save a supervised run's weights as torchvision saves a ResNet."""
    weights = {
        key.removeprefix("backbone.trunk."): value
        for key, value in state["model"].items()
        if key.startswith("backbone.trunk.")
    }
    weights |= {f"fc.{key}": state["model"][f"head.{key}"] for key in ("weight", "bias")}
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A supervised ResNet-18: (folder, configuration, checkpoint, file as torchvision saves it)."""
    top = tmp_path_factory.mktemp("sources")
    root = tiny_ucf101(top / "data", train=3, test=3)
    words = [word for word in tiny(f"data.root={root}", *WORDS) if "model." not in word]
    words += ["method.name=supervised", "model.backbone=resnet18"]
    cfg = config.loads("", words)
    state = checkpoint.read_checkpoint(train(cfg, top / "run"))
    return top, words, cfg, state, export(state, top)


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_same_weights_have_the_same_rows(run):
    top, words, cfg, state, path = run
    own = evaluate(cfg, state, top / "own")
    words = [word for word in words if not word.startswith(("model.", "method."))]
    done = tool(
        "test_net",
        *("--model", "torchvision:resnet18", "--weights", path, "--output-dir", "other"),
        *words,
        cwd=top,
    )
    assert done.returncode == 0, done.stderr
    assert "recognised" in done.stderr and "a classifier of 2 classes" in done.stderr
    summary = read_summary(top / "other/summary.json")
    for name in ("results.jsonl", "corruptions.jsonl"):
        assert rows(top / "other", name) == rows(top / "own", name)
    assert summary.robust_acc == own.robust_acc and summary.clean_acc == own.clean_acc
    assert summary.representation["trained_probe"] == own.representation["trained_probe"]
    assert summary.representation["trained_knn"] == own.representation["trained_knn"]
    assert summary.classifier == own.classifier == "own head"
    assert summary.checkpoint.startswith("torchvision:resnet18, weights ")
    assert summary.input.mean == (0.485, 0.456, 0.406)
    text = (top / "other/report.md").read_text()
    assert "Input: 2 frames at stride" in text and "mean 0.485, 0.456, 0.406" in text


def test_the_probe_or_knn_is_attacked_where_it_is_asked_for(run):
    top, _, cfg, state, _ = run
    for classifier, name in (("probe", "linear probe"), ("knn", "kNN")):
        own = evaluate(
            config.loads(config.to_yaml(cfg), [f"eval.classifier={classifier}"]),
            state,
            top / f"own_{classifier}",
        )
        assert own.classifier == name
        trained = own.representation["trained_probe" if classifier == "probe" else "trained_knn"]
        assert own.clean_acc == trained.acc, "one clip of each video, so both see the same"
        assert own.curve[1].robust_acc <= own.clean_acc


def test_a_run_is_a_model_too(run, tmp_path):
    """--model RUN is --checkpoint RUN, and load_model takes its folder."""
    top, words, _, _, path = run
    words = [word for word in words if word.startswith("eval.")]
    done = tool("test_net", "--model", "run", "--output-dir", "as_model", *words, cwd=top)
    assert done.returncode == 0, done.stderr
    assert rows(top / "as_model", "results.jsonl") == rows(top / "own", "results.jsonl")
    done = tool("test_net", "--model", "run", "--weights", path, cwd=top)
    assert done.returncode == 1 and "the run run has its own weights" in done.stderr
    model = vidrobust.load_model(str(top / "run"))
    assert model.input.classes == ("Alpha", "Beta") and model.input.frames == 2
    report = vidrobust.evaluate(
        model,
        "ucf101",
        root=top / "data",
        threats=["linf-0", "linf-4/255"],
        output=tmp_path / "out",
        options={"data.workers": 0, "eval.clips": 1, "eval.steps": 2},
    )
    assert rows(tmp_path / "out", "results.jsonl") == rows(top / "own", "results.jsonl")
    assert report.summary.classifier == "own head"


def test_the_own_head_needs_no_training_videos(run, tmp_path):
    """Measure it where only the validation split of Kinetics is on the disk."""
    top, words, _, _, path = run
    data = tmp_path / "data"
    shutil.copytree(top / "data", data)
    (data / "ucfTrainTestlist/trainlist01.txt").unlink()
    words = [word for word in words if not word.startswith(("model.", "method.", "data.root"))]
    arguments = ("--model", "torchvision:resnet18", "--weights", path, "--output-dir", "out")
    done = tool("test_net", *arguments, *words, f"data.root={data}", cwd=tmp_path)
    assert done.returncode == 1 and "trainlist01.txt" in done.stderr
    words = [*words, "eval.classifier=head", f"data.root={data}"]
    done = tool("test_net", *arguments, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no training videos, so neither kNN nor the linear probe" in done.stderr
    assert list(read_summary(tmp_path / "out/summary.json").representation) == ["head"]
    assert rows(tmp_path / "out", "results.jsonl") == rows(top / "own", "results.jsonl")


def test_a_head_that_does_not_exist_is_refused(run):
    words = [word for word in run[1] if not word.startswith(("model.", "method."))]
    done = tool(
        "test_net",
        *("--model", "torchvision:resnet34", "--output-dir", "none", "eval.classifier=head"),
        *words,
        cwd=run[0],
    )
    assert done.returncode == 1
    assert "torchvision:resnet34 has random weights" in done.stderr
    assert "eval.classifier=head: the model has no classifier" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "torchvision:resnet19"), "did you mean"),
        (("--model", "torchvision:resnet18", "--weights", "none.pth"), "--weights: no checkpoint"),
        (("--model", "torchvision:r3d_18", "--weights", "mine.pth"), "is of another architecture"),
        (("--model", "torchvision:resnet18", "eval.branch=adv"), "eval.branch=adv"),
        ((), "one of the arguments --checkpoint --model is required"),
    ],
)
def test_mistakes_are_one_line(run, arguments, said):
    words = [word for word in run[1] if not word.startswith(("model.", "method."))]
    done = tool("test_net", *arguments, "--output-dir", "bad", *words, cwd=run[0])
    assert done.returncode > 0
    line = done.stderr.strip().splitlines()[-1]
    assert said in line and "Traceback" not in done.stderr
    assert not (run[0] / "bad").exists()


def test_a_file_of_acl_is_measured_in_both_of_its_norm_branches(tmp_path):
    """Each branch has results of its own; tests of layouts compare features with the original's."""
    from tests.models.checkpoints.originals import ListResNet, randomise

    torch.manual_seed(0)
    root = tiny_ucf101(tmp_path / "data", train=3, test=3)
    original = randomise(ListResNet(2, normalised=True, width=8))
    torch.save({"state_dict": original.state_dict()}, tmp_path / "acl.pt")
    accuracies = []
    for branch in ("clean", "adv"):
        words = tiny(f"data.root={root}", *WORDS, "model.backbone=resnet18", "model.width=8")
        words = [word for word in words if not word.startswith("model.backbone")]
        done = tool(
            "test_net",
            *("--model", "vidrobust:resnet18", "--weights", "acl.pt", "--output-dir", branch),
            f"eval.branch={branch}",
            *words,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "recognised ACL" in done.stderr and "model.stem=cifar" in done.stderr
        summary = read_summary(tmp_path / branch / "summary.json")
        assert summary.branch == branch and summary.classifier == "linear probe"
        accuracies.append(summary.geometry["trained"].uniformity)
    assert accuracies[0] != accuracies[1]


def test_features_of_a_source_are_those_of_the_same_checkpoint(run):
    top, words, _, _, _ = run
    words = [word for word in words if not word.startswith(("model.", "method."))]
    options = ("--split", "test", "--output")
    done = tool("extract_features", "--checkpoint", "run", *options, "own.npz", cwd=top)
    assert done.returncode == 0, done.stderr
    model = ("--model", "torchvision:resnet18", "--weights", "mine.pth")
    done = tool("extract_features", *model, *options, "other.npz", *words, cwd=top)
    assert done.returncode == 0, done.stderr
    own, other = np.load(top / "own.npz"), np.load(top / "other.npz")
    for name in ("features", "labels", "uids", "start_frame"):
        assert (own[name] == other[name]).all()
    meta = json.loads(str(other["meta"]))
    assert meta["model"] == "torchvision:resnet18" and "step" not in meta


def test_a_source_is_finetuned_resumed_and_measured(run, tmp_path):
    """Its weights come from a file, its run is resumed, and its backbone.pt begins another run."""
    _, words, _, _, path = run
    set_below = ("model.", "train.epochs", "train.max_steps", "optim.lr")
    words = [word for word in words if not word.startswith(set_below)]
    (tmp_path / "config.yaml").write_text("data: {workers: 0}")
    source = ("model.backbone=torchvision:resnet18", f"model.weights={path}")
    command = ("train_net", "--cfg", "config.yaml", "--output-dir")
    for more in (("train.epochs=1",), ("train.epochs=2", "--resume")):
        done = tool(*command, "first", *words, *source, "optim.lr=0.001", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stderr.count("recognised") == 1, "the file is described once"
    summary = read_summary(tmp_path / "first/eval/pgd/summary.json")
    done = tool("test_net", "--checkpoint", "first", "--output-dir", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_summary(tmp_path / "again/summary.json").curve == summary.curve
    trained = torch.load(tmp_path / "first/backbone.pt")
    assert "conv1.weight" in trained and "fc.weight" not in trained
    begins = ("model.weights=first/backbone.pt", "train.max_steps=1", "optim.lr=1e-20")
    done = tool(*command, "second", *words, source[0], *begins, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    begun = torch.load(tmp_path / "second/backbone.pt")
    assert torch.equal(begun["conv1.weight"], trained["conv1.weight"])


@pytest.mark.parametrize(
    ("acc", "dataset", "warns"),
    [
        (0.67, "kinetics400", False),
        (0.64, "kinetics400", True),
        (0.70, "kinetics400", True),
        (0.64, "ucf101", False),
    ],
)
def test_an_accuracy_unlike_the_published_one_is_reported_with_its_likely_causes(
    acc, dataset, warns
):
    card = InputSpec(published=Published(0.67463, "Kinetics-400", "5x1", "torchvision"))
    summary = Summary(
        n=9,
        dataset=dataset,
        split="test",
        branch="clean",
        views={},
        chance=0.0025,
        representation={"head": Accuracy(acc, [0, 1], 9)},
        failed=[],
        geometry=None,
        curve=[],
        warnings=[],
        corruption=None,
        input=card,
    )
    lines = unlike_published(summary)
    assert bool(lines) == warns
    for line in lines:
        assert f"is right on {100 * acc:.1f} %, but torchvision reports 67.5 % with 5x1" in line
        assert line.index("range of the pixels") < line.index("mean and std") < line.index("resize")

"""The tools on a data set whose videos have several labels."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.helpers import REPO, counting_video, tiny, tool
from vidrobust.evaluation import read_summary

CONFIG = REPO / "configs/ucf101_csl.yaml"


@pytest.fixture(scope="module")
def tiny_charades(tmp_path_factory):
    root = tmp_path_factory.mktemp("charades")
    rows = ["id,subject,actions"]
    for i in range(6):
        rows.append(f"V{i},S{i},c000 0.00 1.00;c00{i % 3} 0.00 1.00")
        counting_video(root / f"Charades_v1_480/V{i}.mp4", 20, first=50 * i)
    for split in ("train", "test"):
        (root / f"Charades_v1_{split}.csv").write_text("\n".join(rows) + "\n")
    (root / "Charades_v1_classes.txt").write_text("c000 Run\nc001 Jump\nc002 Sit\n")
    return root


def _train(root, folder, *words):
    options = tiny("data.name=charades", f"data.root={root}", "train.batch_size=4", *words)
    return tool("train_net", "--cfg", CONFIG, *options, "--output-dir", "out", cwd=folder)


def test_contrastive_training_needs_no_labels(tiny_charades, tmp_path):
    done = _train(tiny_charades, tmp_path, "eval.enabled=false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/backbone.pt").is_file()


@pytest.mark.parametrize("of_torchvision", [False, True])
def test_mean_average_precision_is_that_of_scikit_learn(tiny_charades, tmp_path, of_torchvision):
    if of_torchvision:
        words = ("data.name=charades", f"data.root={tiny_charades}", "data.size=32")
        words = (*words, "data.short_side=32", "data.frames=2", "data.workers=0", "eval.threats=[]")
        model = ("--model", "torchvision:r3d_18", "--output-dir", "out", "eval.clips=2")
        done = tool("test_net", *model, *words, cwd=tmp_path)
        folder = tmp_path / "out"
    else:
        done = _train(tiny_charades, tmp_path, "eval.threats=[]")
        folder = tmp_path / "out/eval/pgd"
    assert done.returncode == 0, done.stderr
    summary = read_summary(folder / "summary.json")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    targets = np.array([[k in row["labels"] for k in range(3)] for row in rows])
    scores = np.array([row["trained_probe"] for row in rows])
    measured = summary.average_precision["trained_probe"]
    for k, own in enumerate(measured.per_class):
        assert own == pytest.approx(average_precision_score(targets[:, k], scores[:, k]))
    assert measured.mean == pytest.approx(np.mean(measured.per_class))
    assert summary.clean_acc is None and not summary.representation
    report = (folder / "report.md").read_text()
    assert "| mean average precision | trained | random weights |" in report
    with open(folder / "per_class.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == ["Run", "Jump", "Sit"]
    assert [row["videos"] for row in table] == ["6", "2", "2"]


def _refused(tiny_charades, folder, *flags):
    words = (f"data.root={tiny_charades}", "data.name=charades", "data.workers=0")
    model = ("--model", "torchvision:r3d_18", "--output-dir", "out", "eval.threats=[]")
    done = tool("test_net", *model, *words, *flags, cwd=folder)
    assert done.returncode == 1 and not (folder / "out").exists()
    return done.stderr


def test_an_estimate_of_attacks_is_refused_at_the_start(tiny_charades, tmp_path):
    assert "--estimate: data.name=charades has several labels per video" in _refused(
        tiny_charades, tmp_path, "--estimate"
    )


def test_a_limit_of_an_accuracy_is_refused_at_the_start(tiny_charades, tmp_path):
    assert "--fail-under clean: data.name=charades has several labels per video" in _refused(
        tiny_charades, tmp_path, "--fail-under", "clean=10"
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.name=supervised", "method.name=supervised needs one label per video, and this"),
        ("eval.enabled=true", "is measured; set eval.threats=[]"),
    ],
)
def test_what_needs_one_label_is_refused_before_training(tiny_charades, tmp_path, word, message):
    words = [word] if word.startswith("eval") else [word, "eval.enabled=false"]
    done = _train(tiny_charades, tmp_path, *words)
    assert done.returncode == 1 and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out/checkpoints").exists()

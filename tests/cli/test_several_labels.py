"""The tools on a data set whose videos have several labels."""

import pytest

from tests.helpers import REPO, counting_video, tiny, tool

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


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.name=supervised", "method.name=supervised needs one label per video, and this"),
        ("eval.enabled=true", "evaluation (eval.enabled=false does without) needs one label per"),
    ],
)
def test_what_needs_one_label_is_refused_before_training(tiny_charades, tmp_path, word, message):
    words = [word] if word.startswith("eval") else [word, "eval.enabled=false"]
    done = _train(tiny_charades, tmp_path, *words)
    assert done.returncode == 1 and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out/checkpoints").exists()

"""Every cell of the table of docs/models.md: what each kind of model can do."""

import json
import re

import numpy as np
import pytest
import torch

from tests.helpers import REPO, tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.evaluation import fit_probe, knn_scores, read_summary
from vidrobust.models import configured_backbone
from vidrobust.training.loop import train

OWN = """
import torch
from torch import nn
from vidrobust.models.input_spec import InputSpec

CARD = InputSpec(frames=4, stride=1, short_side=28, size=(32, 32))

def module():
    torch.manual_seed(0)
    layers = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.AdaptiveAvgPool3d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 2)), CARD

def function():
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    return lambda x: (8 * x.mean((2, 3, 4))) @ weight.T, CARD
"""

COLUMNS = ("features", "kNN", "probe", "attack", "corruptions", "train")
TABLE = {
    cells[0].strip(): dict(zip(COLUMNS, (cell.strip() for cell in cells[1:]), strict=True))
    for line in (REPO / "docs/models.md").read_text().splitlines()
    if len(cells := line.strip("|").split("|")) == 7 and re.match(r"\| [`a]", line)
}
# model -> (its spec, number of frames, size of a crop)
SPECS = {
    "`torchvision:` video": ("torchvision:mc3_18", 4, 32),
    "`torchvision:` image": ("torchvision:resnet18", 1, 32),
    "`pytorchvideo:`": ("pytorchvideo:x3d_xs", 4, 64),
    "`hf:`": ("hf:mae", 4, 32),
    "`timm:`": ("timm:test_resnet", 2, 64),
    "`python:` module": ("python:own.py:module", 4, 32),
    "`python:` function": ("python:own.py:function", 4, 32),
    "`torchscript:`": ("torchscript:own.pt", 4, 32),
    "`vidrobust:`": ("vidrobust:resnet18", 1, 32),
    "a run's folder": ("run", 4, 32),
}
MEASURED: dict[str, object] = {}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the data set and the files that the specs name."""
    transformers = pytest.importorskip("transformers")
    from tests.models.test_hugging_face import small

    top = tmp_path_factory.mktemp("every")
    root = tiny_ucf101(top / "data", train=3, test=2)
    (top / "own.py").write_text(OWN)
    torch.manual_seed(0)
    assert transformers
    small("videomae").save_pretrained(top / "mae")
    inside: dict[str, object] = {}
    exec(OWN, inside)
    network, _ = inside["module"]()
    torch.jit.script(network.eval()).save(str(top / "own.pt"))
    own = configured_backbone(config.ModelConfig(backbone="resnet18"))
    torch.save(own.stored.state_dict(), top / "own18.pt")
    run = ("data.frames=4", "data.size=32", "data.short_side=36", "train.max_steps=1")
    cfg = config.loads("", tiny(f"data.root={root}", *run, "train.epochs=1", "data.stride=1"))
    train(cfg, top / "run")
    return top


def words_of(name, top):
    """Arguments and options for a model."""
    spec, frames, size = SPECS[name]
    chosen = ("--checkpoint", spec) if spec == "run" else ("--model", spec)
    if name == "`vidrobust:`":
        chosen += ("--weights", "own18.pt")
    options = [f"data.root={top}/data", "data.workers=0", "eval.clips=2", "eval.steps=2"]
    options += ["eval.checks=1", "eval.pictures=1"]
    if spec != "run":
        options += [f"data.frames={frames}", f"data.size={size}", f"data.short_side={size + 4}"]
    if spec.startswith("torchscript"):
        options += [f"model.input.frames={frames}", f"model.input.size=[{size}]"]
    return [*chosen, *options]


def measured(name, top):
    """The evaluation of a model, made once."""
    if name not in MEASURED:
        out = top / "out" / str(list(SPECS).index(name))
        done = tool(
            "test_net",
            *words_of(name, top),
            "eval.threats=[linf-0,linf-4/255]",
            "eval.corruption.names=[contrast]",
            "eval.corruption.severities=[5]",
            *("--output-dir", out),
            cwd=top,
        )
        assert done.returncode == 0, done.stderr
        MEASURED[name] = out, read_summary(out / "summary.json")
    return MEASURED[name]


def features(name, top, split):
    """Features and labels of a split, written by the tool."""
    file = f"{split}{list(SPECS).index(name)}.npz"
    if not (top / file).is_file():
        words = ("--split", split, "--output", file)
        done = tool("extract_features", *words_of(name, top), *words, cwd=top)
        assert done.returncode == 0, done.stderr
    saved = np.load(top / file)
    by_video = saved["features"].reshape(len(saved["labels"]) // 2, 2, -1)
    return torch.from_numpy(by_video), torch.from_numpy(saved["labels"][::2])


def check_features(name, top):
    found, _ = features(name, top, "test")
    assert found.shape[:2] == (4, 2) and found.isfinite().all()
    assert found.flatten(0, 1).std(0).max() > 0


def check_knn(name, top):
    """The tool's kNN is that of the features that it writes."""
    train, test = features(name, top, "train"), features(name, top, "test")
    votes = knn_scores(test[0], train[0].flatten(0, 1), train[1].repeat_interleave(2), 2)
    right = votes.argmax(1) == test[1]
    assert measured(name, top)[1].representation["trained_knn"].acc == float(right.float().mean())


def check_probe(name, top):
    """The tool's linear probe is that of the features that it writes."""
    train, test = features(name, top, "train"), features(name, top, "test")
    probe = fit_probe(train[0].flatten(0, 1), train[1].repeat_interleave(2), 2)
    right = probe(test[0]).mean(1).argmax(1) == test[1]
    accuracy = measured(name, top)[1].representation["trained_probe"]
    assert accuracy.acc == float(right.float().mean()) and accuracy.n == 4


def check_attack(name, top):
    out, summary = measured(name, top)
    rows = [json.loads(line) for line in (out / "results.jsonl").open()]
    moved = [row["measured"] for row in rows if row["eps"] and row["clean_pred"] == row["label"]]
    assert all(row["error"] is None and row["in_budget"] for row in rows) and len(rows) == 8
    assert all(0 < size <= 4 / 255 + 1e-6 for size in moved)
    assert summary.curve[1].robust_acc <= summary.clean_acc == summary.curve[0].robust_acc


def check_corruptions(name, top):
    """Unchanged clips have the accuracy of the attack's clean clips."""
    summary = measured(name, top)[1]
    table = summary.corruption
    assert table.n == 4 and set(table.corruptions) == {"contrast"}
    assert table.clean_acc == summary.clean_acc


def check_train(name, top):
    spec, frames, size = SPECS[name]
    options = [f"data.root={top}/data", f"data.frames={frames}", f"data.size={size}"]
    options += [f"data.short_side={size + 4}", "train.max_steps=1", "eval.enabled=false"]
    options += ["optim.lr=1e-12"]
    if spec == "run":
        options += ["model.weights=run/backbone.pt"]
    elif name == "`vidrobust:`":
        options += ["model.backbone=resnet18", "model.weights=own18.pt", "model.width=0"]
    else:
        options += [f"model.backbone={spec}", "model.width=0"]
    if spec.startswith("torchscript"):
        options += [f"model.input.frames={frames}", f"model.input.size=[{size}]"]
    (top / "base.yaml").write_text("data: {workers: 0}")
    out = f"trained{list(SPECS).index(name)}"
    done = tool("train_net", "--cfg", "base.yaml", "--output-dir", out, *tiny(*options), cwd=top)
    assert done.returncode == 0, done.stderr
    trained = torch.load(top / out / "backbone.pt", weights_only=True)
    assert trained and all(value.isfinite().all() for value in trained.values())
    given = {"`vidrobust:`": "own18.pt", "a run's folder": "run/backbone.pt"}.get(name)
    if given:  # a step of length 0 leaves the weights of the file
        before = torch.load(top / given, weights_only=True)
        weights = [key for key in before if key.endswith("weight")]
        assert all(torch.allclose(trained[key], before[key], atol=1e-6) for key in weights)


CHECKS = {
    "features": check_features,
    "kNN": check_knn,
    "probe": check_probe,
    "attack": check_attack,
    "corruptions": check_corruptions,
    "train": check_train,
}


def test_the_table_has_a_row_for_each_kind_of_model():
    assert list(TABLE) == list(SPECS)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", SPECS)
def test_a_cell_of_the_table(place, name, column):
    cell = TABLE[name][column]
    if cell == "yes":
        CHECKS[column](name, place)
        return
    reason = cell.removeprefix("no: it ")
    with pytest.raises(AssertionError, match=reason):
        CHECKS[column](name, place)

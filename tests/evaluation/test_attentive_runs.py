"""A run with a head of tokens is evaluated, attacked, loaded and asked as any other."""

import json

import pytest
import torch

import vidrobust
from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.data import batch_loader, eval_dataset
from vidrobust.evaluation import evaluate
from vidrobust.evaluation.loading import build_lists, load_method
from vidrobust.evaluation.own_head import own_head
from vidrobust.models.inference import to_clips
from vidrobust.training.loop import train

WORDS = [
    "method.name=supervised",
    "method.freeze=true",
    "model.head=attentive",
    "model.head_blocks=2",
    "eval.classifier=head",
    "eval.view_average=probabilities",
    "eval.threats=[linf-0,linf-2/255]",
    "optim.lr=0.01",
]


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module", params=["plain", "branches"])
def run(tmp_path_factory, request):
    top = tmp_path_factory.mktemp("attentive")
    root = tiny_ucf101(top / "data", train=2, test=3)
    words = tiny(f"data.root={root}", *WORDS)
    if request.param == "branches":
        words += ["method.adversary.name=pgd", "method.adversary.steps=1"]
        words += ["method.adversary.combine=branches", "eval.branch=average"]
    cfg = config.loads("", words)
    state = checkpoint.read_checkpoint(train(cfg, top / "run"))
    evaluate(cfg, state, top / "run/eval/first")
    return top, cfg, state


def logits_of_videos(cfg, state):
    """Return the logits (N, K) of the whole model, with the probabilities of clips averaged."""
    model = load_method(cfg, state, 2).model.eval()
    _, test, _ = build_lists(cfg.data)
    dataset = eval_dataset(cfg.data, test, cfg.eval.clips)
    averages = []
    for index in range(len(test)):
        (batch,) = batch_loader(dataset, [[(0, index)]], 0)
        with torch.no_grad(), model.use_branch(cfg.eval.branch):
            averages.append(model(to_clips(batch, torch.device("cpu"))).softmax(1).mean(0))
    return torch.stack(averages)


def test_its_predictions_are_those_of_the_whole_model(run):
    top, cfg, state = run
    table = rows(top / "run/eval/first", "predictions.jsonl")
    expected = logits_of_videos(cfg, state).argmax(1).tolist()
    assert [row["head"] for row in table] == expected
    assert {"trained_probe", "trained_knn"} <= table[0].keys()


def test_it_is_what_is_attacked(run):
    top, cfg, _ = run
    folder = top / "run/eval/first"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["classifier"] == "own head"
    assert set(summary["representation"]) >= {"head", "trained_probe", "random_probe"}
    assert {row["threat"] for row in rows(folder, "results.jsonl")} == set(cfg.eval.threats)


def test_it_is_loaded_with_its_head(run):
    top, cfg, state = run
    if cfg.eval.branch != "clean":
        return
    loaded = vidrobust.load_model(str(top / "run"))
    x = torch.rand(3, 3, 2, 16, 16)
    model = load_method(cfg, state, 2).model.eval()
    with torch.no_grad():
        assert torch.equal(loaded.classifier.eval()(x), model(x))
    evaluation = vidrobust.evaluate(
        loaded,
        "ucf101",
        root=cfg.data.root,
        output=top / "again",
        options={"data.workers": 0, "eval.clips": cfg.eval.clips, "eval.view_average": "logits"},
    )
    assert evaluation.summary.classifier == "own head"


def test_classes_in_another_order_reorder_its_logits(run):
    top, _, _ = run
    loaded = vidrobust.load_model(str(top / "run"))
    names = loaded.input.classes
    head, _ = own_head(loaded.measured, list(reversed(names)))
    tokens = torch.rand(2, 5, loaded.measured.model.head.query.shape[-1])
    with torch.no_grad():
        expected = loaded.measured.model.head(tokens).flip(1)
        assert torch.allclose(head(tokens), expected, atol=1e-6)


def test_loose_videos_are_predicted_by_it(run):
    top, _, _ = run
    videos = ["--videos", top / "data/videos/Beta"]
    done = tool("predict", "--checkpoint", top / "run", *videos, "--top", "2", cwd=top)
    assert done.returncode == 0, done.stderr
    assert "Alpha" in done.stdout and "Beta" in done.stdout

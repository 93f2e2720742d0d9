"""Unknown classes: AUROC and FPR@95 against loops, which classes count, kills, the report."""

import json
import math

import numpy as np
import pytest
import torch

from tests.evaluation.helpers import CPU, clips_of, random_model
from tests.helpers import counting_video, tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.data import build_records, eval_dataset
from vidrobust.evaluation import DiskStore, evaluate
from vidrobust.evaluation.natural.open_set import (
    auroc,
    evaluate_open_set,
    false_positive_rate,
    open_set_of,
    unknown_records,
)
from vidrobust.evaluation.report.open_set_text import open_set_lines
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import bootstrap_interval


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set with Alpha and Beta, and another with alpha and two unknown classes."""
    top = tmp_path_factory.mktemp("open_set")
    tiny_ucf101(top / "own", train=2, test=3)
    for number in range(6):
        name = ("alpha", "Gamma", "Delta")[number % 3]
        counting_video(top / f"other/{name}/{number}.avi", 20, first=3000 + 50 * number)
    return top


def _cfg(place, *words):
    options = [f"data.root={place / 'own'}", "data.frames=2", "data.stride=2", "data.short_side=20"]
    options += ["data.size=16", "data.workers=0", "data.name=ucf101", "eval.clips=2"]
    options += ["eval.open_set.name=class_folder", f"eval.open_set.root={place / 'other'}"]
    keys = {word.split("=")[0] for word in words}
    return config.loads("", [o for o in options if o.split("=")[0] not in keys] + list(words))


def _known(cfg):
    return build_records(cfg.data, "test")


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_that_of_a_double_loop(levels):
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(levels, size=40) / levels, rng.integers(levels, size=30) / levels
    wins = sum(float(a > b) + float(a == b) / 2 for a in known for b in unknown)
    assert auroc(known, unknown) == pytest.approx(wins / (40 * 30))


def test_auroc_of_separated_and_of_equal_scores():
    low, high = np.array([0.1, 0.2]), np.array([0.3, 0.9])
    assert auroc(high, low) == 1 and auroc(low, high) == 0
    assert auroc(np.full(3, 0.5), np.full(7, 0.5)) == 0.5


def test_auroc_accepts_videos_without_a_score():
    known, unknown = np.array([-np.inf, 0.5]), np.array([np.inf, 0.2])
    assert auroc(known, unknown) == 0.25


@pytest.mark.parametrize("n", [1, 7, 19, 20, 21, 100])
def test_fpr95_is_that_of_a_loop_over_thresholds(n):
    rng = np.random.default_rng(n)
    known, unknown = rng.integers(12, size=n) / 12, rng.integers(12, size=33) / 12
    accepted = [t for t in known if sum(a >= t for a in known) >= 0.95 * n]
    expected = sum(b >= max(accepted) for b in unknown) / 33
    assert false_positive_rate(known, unknown) == pytest.approx(expected)


def test_the_bootstrap_is_seeded_and_covers_the_measure():
    sample = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(lambda x: float(x.mean()), sample, seed=3)
    assert (low, high) == bootstrap_interval(lambda x: float(x.mean()), sample, seed=3)
    half = 1.96 * sample.std() / 20
    assert low == pytest.approx(sample.mean() - half, abs=0.02)
    assert high == pytest.approx(sample.mean() + half, abs=0.02)


def test_classes_of_both_sets_are_left_out_with_a_warning(place, caplog):
    cfg = _cfg(place)
    caplog.set_level("WARNING")
    records = unknown_records(cfg, _known(cfg)[1])
    assert {record.uid.split("/")[0] for record in records} == {"Gamma", "Delta"}
    assert len(records) == 4
    assert "2 of 6 videos are left out, as ucf101 also has their class: alpha" in caplog.text


def test_without_the_option_nothing_is_measured(place):
    cfg = _cfg(place, "eval.open_set.name=", "eval.open_set.root=")
    assert unknown_records(cfg, ["Alpha"]) == []
    assert evaluate_open_set(cfg, random_model(0), [], [], place, CPU) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["eval.open_set.name=ucf101", "eval.open_set.root=OWN"],
            "ucf101 has all of its classes, and none is unknown",
        ),
        (["eval.open_set.root=missing"], "eval.open_set.root"),
        (["eval.open_set.name=nothing"], "eval.open_set.name"),
    ],
)
def test_mistakes_are_named_by_their_option(place, words, message):
    cfg = _cfg(place, *[word.replace("OWN", str(place / "own")) for word in words])
    with pytest.raises(UserError, match=message):
        unknown_records(cfg, ["Alpha", "Beta"])


def test_a_root_without_a_format_is_refused(place):
    with pytest.raises(UserError, match="eval.open_set.root=.*: set its format"):
        _cfg(place, "eval.open_set.name=")


def test_own_videos_are_not_unknown(place):
    cfg = _cfg(place)
    records = unknown_records(cfg, ["Alpha", "Beta"])
    with pytest.raises(UserError, match="1 of 4 videos are in the own training or test split"):
        unknown_records(cfg, ["Alpha", "Beta"], [records[2]])


@pytest.mark.parametrize("frames", [1, 2])
def test_the_score_is_the_largest_mean_probability_of_the_clips(place, tmp_path, frames):
    cfg = _cfg(place, f"data.frames={frames}", "eval.view_average=probabilities")
    net = random_model(2)

    def model(x):
        return net(x if frames == 2 else x.repeat(1, 1, 2, 1, 1))

    known, classes = _known(cfg)
    unknown = unknown_records(cfg, classes)
    result = evaluate_open_set(cfg, model, unknown, known, tmp_path, CPU, identity="fixed")
    rows = [json.loads(line) for line in (tmp_path / "open_set.jsonl").read_text().splitlines()]
    assert [row["of"] for row in rows] == ["known"] * 6 + ["unknown"] * 4
    for side, records in (("known", known), ("unknown", unknown)):
        dataset = eval_dataset(cfg.data, records, 2)
        part = [row for row in rows if row["of"] == side]
        for i, row in enumerate(part):
            expected = model(clips_of(dataset, i)).softmax(1).mean(0).max()
            assert row["confidence"] == pytest.approx(float(expected), abs=1e-5)
    scores = [[r["confidence"] for r in rows if r["of"] == side] for side in ("known", "unknown")]
    assert result.auroc == auroc(*map(np.array, scores))
    assert result.known_confidence == pytest.approx(np.mean(scores[0]))
    assert result.ci95[0] <= result.auroc <= result.ci95[1]


def test_a_video_without_a_confidence_counts_against_the_model():
    rows = [
        {"uid": "a", "of": "known", "confidence": None, "error": "a: does not decode"},
        {"uid": "b", "of": "known", "confidence": 0.9, "error": None},
        {"uid": "c", "of": "unknown", "confidence": 0.8, "error": None},
    ]
    result = open_set_of("other", rows, 0)
    assert result.auroc == 0.5 and result.failed == ["a: does not decode"]
    assert result.known_confidence == 0.9
    rows[2] |= {"confidence": None, "error": "c: no finite numbers from the model: NaN"}
    result = open_set_of("other", rows, 0)
    assert result.auroc == 0 and result.fpr95 == 1 and result.unknown_confidence is None
    assert result.warnings[0].startswith("open set: 1 of 3 videos")


def test_nan_of_the_model_is_a_row_with_the_reason(place, tmp_path):
    cfg = _cfg(place)
    known, classes = _known(cfg)

    def model(x):
        return torch.full((len(x), 2), math.nan)

    result = evaluate_open_set(
        cfg, model, unknown_records(cfg, classes), known, tmp_path, CPU, identity="fixed"
    )
    assert result.auroc == 0 and "10 of 10 videos" in result.warnings[0]


def test_killed_it_continues(place, tmp_path, monkeypatch):
    cfg = _cfg(place, "eval.batch_size=2")
    known, classes = _known(cfg)
    lists = (unknown_records(cfg, classes), known)
    (tmp_path / "whole").mkdir()
    whole = evaluate_open_set(cfg, random_model(0), *lists, tmp_path / "whole", CPU, identity="x")
    appended = []
    original = DiskStore.append

    def killed(self, rows, features):
        if len(appended) == 7:
            raise KeyboardInterrupt
        appended.append(rows)
        original(self, rows, features)

    with monkeypatch.context() as patch:
        patch.setattr(DiskStore, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_open_set(cfg, random_model(0), *lists, tmp_path, CPU, identity="x")
    again = []
    monkeypatch.setattr(DiskStore, "append", lambda *args: again.append(args) or original(*args))
    cut = evaluate_open_set(cfg, random_model(0), *lists, tmp_path, CPU, identity="x")
    assert cut == whole and len(again) == 3
    assert not (tmp_path / "open_set.partial").exists()
    assert evaluate_open_set(cfg, random_model(0), *lists, tmp_path, CPU, identity="x") == cut
    assert len(again) == 3, "a finished one is read"


def test_rows_of_another_model_are_refused(place, tmp_path):
    cfg = _cfg(place)
    known, classes = _known(cfg)
    lists = (unknown_records(cfg, classes), known)
    evaluate_open_set(cfg, random_model(0), *lists, tmp_path, CPU, identity="x")
    with pytest.raises(UserError, match="another model"):
        evaluate_open_set(cfg, random_model(0), *lists, tmp_path, CPU, identity="y")


def test_an_evaluation_reports_it(place, tmp_path):
    cfg = config.loads("", tiny(f"data.root={place / 'own'}"))
    state = checkpoint.read_checkpoint(train(cfg, tmp_path / "run"))
    words = ["eval.threats=[]", "eval.open_set.name=class_folder"]
    words += [f"eval.open_set.root={place / 'other'}", "eval.limit=3"]
    summary = evaluate(config.loads(config.to_yaml(cfg), words), state, tmp_path / "out")
    assert (summary.open_set.known, summary.open_set.unknown) == (3, 3)
    assert summary.open_set_sha
    text = (tmp_path / "out/report.md").read_text()
    assert "\n".join(open_set_lines(summary.open_set)) in text
    assert "## Unknown classes: class_folder" in text
    done = tool("test_net", "--checkpoint", tmp_path / "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

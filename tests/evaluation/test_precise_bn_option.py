"""The option eval.precise_bn, and the size of the model, in an evaluation."""

import json

import numpy as np
import pytest
import torch

from tests.helpers import tiny, tiny_ucf101
from vidrobust import checkpoint, config
from vidrobust.evaluation import evaluate, load_method, write_features
from vidrobust.evaluation.loading import make_norms_precise
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("whole_reports")

PRECISE = "eval.precise_bn=6"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    top = tmp_path_factory.mktemp("precise")
    root = tiny_ucf101(top / "data")
    cfg = config.loads("", tiny(f"data.root={root}", "train.epochs=1"))
    return cfg, checkpoint.read_checkpoint(train(cfg, top / "run"))


def with_options(cfg, *overrides):
    return config.loads(config.to_yaml(cfg), list(overrides))


def test_the_summary_and_the_report_say_how_many_clips_and_how_large_the_model_is(
    trained, tmp_path
):
    cfg, state = trained
    summary = evaluate(with_options(cfg, PRECISE), state, tmp_path / "out")
    assert summary.precise_bn == 6
    model = load_method(cfg, state, 2).model
    assert summary.model.parameters == sum(p.numel() for p in model.parameters())
    assert summary.model.flops_per_clip > 1e5
    report = (tmp_path / "out/report.md").read_text()
    assert "recomputed from 6 training clips" in report
    assert "GFLOPs per clip" in report


def test_another_number_of_clips_is_another_evaluation(trained, tmp_path):
    cfg, state = trained
    first = evaluate(cfg, state, tmp_path / "out")
    assert first.precise_bn == 0
    assert "recomputed" not in (tmp_path / "out/report.md").read_text()
    with pytest.raises(UserError, match=r"of other options \(eval.precise_bn\)"):
        evaluate(with_options(cfg, PRECISE), state, tmp_path / "out")


def test_0_keeps_the_hash_of_configurations_that_are_older_than_the_option(trained):
    cfg, _ = trained
    without = config.config_sha(cfg, ignore=["eval.precise_bn"])
    assert config.config_sha(cfg) == without
    assert config.config_sha(with_options(cfg, PRECISE)) != without


def test_0_leaves_the_model_bitwise_as_it_was(trained):
    cfg, state = trained
    model = load_method(cfg, state, 2).model
    assert make_norms_precise(cfg, model.backbone, [], torch.device("cpu")) == 0
    weights = checkpoint.weights(state, average=False)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_extracted_features_use_the_same_statistics(trained, tmp_path):
    cfg, state = trained
    files = {}
    for name, overrides in (("plain", []), ("precise", [PRECISE])):
        write_features(with_options(cfg, *overrides), state, tmp_path / f"{name}.npz", "test")
        with np.load(tmp_path / f"{name}.npz") as saved:
            files[name] = saved["features"], json.loads(str(saved["meta"]))
    assert not np.allclose(files["plain"][0], files["precise"][0])
    assert "precise_bn" not in files["plain"][1]
    assert files["precise"][1]["precise_bn"] == 6
    with pytest.raises(UserError, match="holds other features"):
        write_features(with_options(cfg, PRECISE), state, tmp_path / "plain.npz", "test")


def test_the_log_of_training_begins_with_the_cost_of_a_clip(trained, tmp_path):
    cfg, _ = trained
    train(with_options(cfg, "train.max_steps=1"), tmp_path / "run")
    line = (tmp_path / "run/log.txt").read_text().splitlines()[0]
    assert " parameters, 0.0" in line
    assert "GFLOPs per clip)" in line

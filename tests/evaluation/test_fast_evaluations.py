"""The options eval.channels_last and eval.amp in evaluations and extractions."""

import numpy as np
import pytest

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.evaluation import evaluate
from vidrobust.training.loop import train

pytestmark = pytest.mark.usefixtures("whole_reports")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    top = tmp_path_factory.mktemp("fast")
    root = tiny_ucf101(top / "data")
    cfg = config.loads("", tiny(f"data.root={root}", "train.epochs=1"))
    train(cfg, top / "run")
    return cfg, top / "run"


def evaluated(trained, out, *words):
    cfg, run = trained
    changed = config.loads(config.to_yaml(cfg), list(words))
    return evaluate(changed, checkpoint.read_checkpoint(run), out)


def features(trained, folder, *words):
    run = trained[1]
    done = tool(
        *("extract_features", "--checkpoint", run, "--split", "test"),
        *("--output", folder / "features.npz", *words),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "features.npz")["features"].astype(float)


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_the_order_of_weights_changes_features_by_rounding(trained, tmp_path):
    both = []
    for kind in ("false", "true"):
        (tmp_path / kind).mkdir()
        both.append(features(trained, tmp_path / kind, f"eval.channels_last={kind}"))
    assert error(*both) < 1e-5


def test_an_evaluation_in_bf16_is_near_one_in_fp32_and_says_so(trained, tmp_path):
    both = []
    for kind in ("fp32", "bf16"):
        (tmp_path / kind).mkdir()
        both.append(features(trained, tmp_path / kind, f"eval.amp={kind}"))
    assert 1e-4 < error(*both) < 0.05
    full = evaluated(trained, tmp_path / "full")
    half = evaluated(trained, tmp_path / "half", "eval.amp=bf16")
    assert (full.bf16, half.bf16) == (False, True)
    assert full.config_sha != half.config_sha
    words = "computed in bf16"
    for out, says in (("full", False), ("half", True)):
        for name in ("report.md", "report.html"):
            text = (tmp_path / out / name).read_text()
            assert (words in text) == says, (out, name)


def test_defaults_keep_the_hash_of_configurations_that_are_older_than_the_options(trained):
    cfg, _ = trained
    ignored = ["eval.channels_last", "eval.amp"]
    assert config.config_sha(cfg) == config.config_sha(cfg, ignore=ignored)
    for word in ("eval.channels_last=false", "eval.amp=auto"):
        changed = config.loads(config.to_yaml(cfg), [word])
        assert config.config_sha(changed) != config.config_sha(cfg)

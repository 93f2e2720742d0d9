"""An evaluation that is killed goes on with the same bits, and a finished one is not done again."""

import json
import sys

import pytest

from tests.helpers import tiny, tiny_ucf101
from vidrobust import config
from vidrobust.engine import checkpoint
from vidrobust.engine.loop import train
from vidrobust.evaluation import evaluate

MODULE = sys.modules["vidrobust.evaluation.evaluate"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    top = tmp_path_factory.mktemp("evaluate")
    root = tiny_ucf101(top / "data")
    cfg = config.loads("", tiny(f"data.root={root}", "data.short_side=24"))  # a width that decord cannot make
    return cfg, checkpoint.read_checkpoint(train(cfg, top / "run"))


def _never(*args, **kwargs):
    raise KeyboardInterrupt


def _files(folder):
    """All but the seconds."""
    found = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".jsonl") and "timing" not in p.name]
    return {p.relative_to(folder): p.read_bytes() for p in found}


@pytest.mark.parametrize("killed_in", ["measure_representation", "evaluate_robust", "write_report"])
def test_killed_it_goes_on_without_decoding_for_features_again(trained, tmp_path, monkeypatch, killed_in):
    evaluate(*trained, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, killed_in, _never)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*trained, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "extract", _never)
        evaluate(*trained, tmp_path / "cut")
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")
    assert not list(tmp_path.rglob("features.pt"))


def test_a_finished_one_is_only_drawn_again(trained, tmp_path, monkeypatch):
    first = evaluate(*trained, tmp_path)
    (tmp_path / "report.md").unlink()
    for name in ("extract", "evaluate_robust"):
        monkeypatch.setattr(MODULE, name, _never)
    assert evaluate(*trained, tmp_path) == first == json.loads((tmp_path / "summary.json").read_text())
    assert (tmp_path / "report.md").is_file()

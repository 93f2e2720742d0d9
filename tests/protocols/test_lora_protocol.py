"""AutoLoRa by its protocol: a run of the package is finetuned and measured."""

import torch

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import checkpoint
from vidrobust.evaluation import read_summary


def test_a_run_is_finetuned_by_autolora_and_measured(tmp_path):
    tiny_ucf101(tmp_path / "data")
    (tmp_path / "config.yaml").write_text("data: {root: data}")
    words = tiny("eval.enabled=false", "train.epochs=1")
    done = tool("train_net", "--cfg", "config.yaml", "--output-dir", "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = ["protocol.name=lora", "train.epochs=3", "train.batch_size=4", "augment.shift=2"]
    words += ["eval.suite=pgd", "eval.threats=[linf-1/255]", "eval.checks=0", "data.workers=0"]
    done = tool("test_net", "--checkpoint", "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no effect" not in done.stderr
    run = tmp_path / "run/finetuned/lora"
    summary = read_summary(run / "eval/lora/summary.json")
    assert (summary.classifier, summary.protocol) == ("own head", "lora")
    state = checkpoint.read_checkpoint(run)
    assert state["step"] == 6 and len(state["auto_rate"]["accuracies"]) == 3
    assert len(state["method"]["branch.a.0"]) == 8 * 3  # rank 8, kernels of width 3
    # what is measured are the best weights
    best = state["auto_rate"]["best"]
    assert all(torch.equal(value, best[f"model.{key}"]) for key, value in state["model"].items())

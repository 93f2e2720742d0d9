"""What the loop tells methods, and what they keep."""

import dataclasses
import json

import pytest

from tests.engine.test_loop import _cfg, _equal, _train

REMOVAL = "method.false_negatives."
KEEPING = {
    "moco": ["method.name=moco", "method.queue=8", f"{REMOVAL}rule=cluster", f"{REMOVAL}clusters=2"],
    "byol": ["method.name=byol", "method.predictor=8"],
    "simsiam": ["method.name=simsiam", "method.predictor=8"],
    "detector": [f"{REMOVAL}rule=adaptive_rate", f"{REMOVAL}encoder=momentum", f"{REMOVAL}warmup=0.3"],
}


@pytest.mark.parametrize("kind", KEEPING)
def test_what_methods_keep_is_resumed_bitwise(ucf, tmp_path, kind):
    """Queue, momentum encoder, clusters, and the counts of an epoch that was cut in two."""
    cfg = _cfg(ucf, *KEEPING[kind], "train.checkpoint_every=1", "train.keep=9")
    whole = _train(cfg, tmp_path / "whole")
    rows = (tmp_path / "whole/metrics.jsonl").read_text()
    resumed = _train(cfg, tmp_path / "resumed", tmp_path / "whole/checkpoints/step_00000003.pt")
    for key in whole:
        assert _equal(whole[key], resumed[key]), key
    told = [[json.loads(line) for line in text.splitlines() if "train_epoch" in line]
            for text in (rows, (tmp_path / "resumed/metrics.jsonl").read_text())]  # fmt: skip
    if kind in ("moco", "detector"):
        assert [row["epoch"] for row in told[0]] == [0, 1] and told[0][1] == told[1][-1]
        assert 0 <= told[0][1]["fn_removed"] < 1


def test_a_method_is_told_how_far_training_is(ucf, tmp_path, monkeypatch):
    from vidrobust.methods import SimCLR

    told, whole = [], SimCLR.forward
    monkeypatch.setattr(SimCLR, "forward", lambda self, *args: told.append(self.progress) or whole(self, *args))
    _train(_cfg(ucf), tmp_path)
    assert told == [0, 0.25, 0.5, 0.75]


def test_labels_are_seen_by_no_rule_but_the_oracle(ucf, tmp_path, monkeypatch):
    """Weights after four steps, with the labels as they are and turned round."""
    from vidrobust.engine import loop

    build = loop.build_records
    turned = lambda cfg, split: (  # noqa: E731
        [
            dataclasses.replace(r, label=1 - r.label) if r.path.endswith("g01_c01.avi") else r
            for r in build(cfg, split)[0]
        ],
        build(cfg, split)[1],
    )
    for rule in ("topk", "quantile", "adaptive_rate", "mean_std", "cluster", "oracle"):
        words = [f"{REMOVAL}rule={rule}", f"{REMOVAL}siblings=false", f"{REMOVAL}k=2", f"{REMOVAL}clusters=2",
                 f"{REMOVAL}sigmas=0.3"]  # fmt: skip
        states = [_train(_cfg(ucf, *words), tmp_path / f"{rule}_1")]
        with monkeypatch.context() as patch:
            patch.setattr(loop, "build_records", turned)
            states.append(_train(_cfg(ucf, *words), tmp_path / f"{rule}_2"))
        assert _equal(*(state["model"] for state in states)) == (rule != "oracle"), rule

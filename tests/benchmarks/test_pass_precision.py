"""Passes in each order and precision are timed, and have gradients of about the same norm."""

import pytest
import torch

from vidrobust import config
from vidrobust.benchmarks.pass_precision import FORMS, measure_passes, print_passes

WORDS = ["model.backbone=resnet18", "model.width=8", "data.frames=1", "data.size=32"]


def test_every_form_is_timed_and_computes_the_same_gradient(capsys):
    cfg = config.loads("", [*WORDS, "train.batch_size=8", "device=cpu"])
    rows = measure_passes(cfg, 2, torch.device("cpu"))
    assert [(row.channels_last, row.amp) for row in rows] == [*FORMS, *FORMS]
    assert [row.kind for row in rows] == ["training"] * 4 + ["attack"] * 4
    for row in rows:
        first = next(each for each in rows if each.kind == row.kind)
        assert len(row.seconds) == 2 and row.median > 0
        exact = 1e-4 if row.amp == "fp32" else 0.3
        assert row.norms == pytest.approx(first.norms, rel=exact)
    print_passes(cfg, 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 8 and "| 1.00 |" in lines[3]

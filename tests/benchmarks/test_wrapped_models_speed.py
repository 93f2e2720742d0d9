"""Benchmark of models of other packages, `benchmark.py sources`."""

import torch

from tests.helpers import tool
from vidrobust.benchmarks.wrapped_models import measure_passes


def test_both_sides_are_timed_in_every_round():
    theirs, ours = measure_passes(torch.rand(2, 3, 2, 16, 16), 3)
    assert len(theirs) == len(ours) == 3 and min(theirs + ours) > 0


def test_the_tool_prints_a_row_for_passes_and_for_loading(tmp_path):
    words = ["device=cpu", "data.size=16", "data.frames=2"]
    done = tool("benchmark", "sources", "--rounds", 1, "--batch", 2, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 clips of 2 x 16 x 16 on cpu; a file of 98 MiB; 1 rounds" in done.stdout
    assert done.stdout.count("\n| ") == 2 + 1 and "| loading weights, resnet50 | " in done.stdout

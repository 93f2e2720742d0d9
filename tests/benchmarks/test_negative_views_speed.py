"""Benchmark of non-semantic negatives, `benchmark.py negatives`."""

import torch

from tests.helpers import tool
from vidrobust.benchmarks.negative_views import measure_negatives, texture_seconds
from vidrobust.views import NegativeSpec


def test_each_kind_of_negative_is_timed_in_every_round():
    times = measure_negatives(
        torch.rand(2, 3, 4, 16, 16), [NegativeSpec(("patch",)), NegativeSpec(("loop",))], 3
    )
    assert [len(seconds) for seconds in times] == [3, 3]
    assert min(min(seconds) for seconds in times) > 0
    assert 0 < texture_seconds(0, 24, 32) < 60


def test_the_tool_prints_a_row_per_kind_of_negative(tmp_path):
    words = [
        "model.backbone=r2plus1d_10",
        "model.width=4",
        "model.hidden=8",
        "device=cpu",
        "data.size=16",
    ]
    options = ["--rounds", 1, "--batch", 4, "--textures", 2]
    for frames, kinds in ((1, 3), (4, 8)):
        done = tool(
            "benchmark", "negatives", *options, f"data.frames={frames}", *words, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        head, textures = done.stdout.split("| texture,")
        assert (
            f"4 clips of {frames} x 16 x 16 on cpu; a step of SimCLR" in head
            and head.count("\n| ") == kinds + 1
        )
        assert "| 1 at a time (" in textures

import os

import pytest

from tests.helpers import tiny_ucf101, tool
from vidrobust import config
from vidrobust.data.speed import floor, measure_data, one_core


@pytest.fixture(scope="module")
def cfg(ucf):
    return config.loads("", [f"data.root={ucf}", "data.frames=2", "data.size=16", "data.short_side=28"], "test")


def test_every_loader_is_measured_every_round(cfg, ucf):
    rows = measure_data(cfg, videos=16, rounds=2, prepared=str(ucf))
    names = [row["name"] for row in rows]
    for loader in ("bare decoder", "vidrobust", "pytorchvideo"):
        assert {f"{loader}, pyav", f"{loader}, decord"} <= set(names)
    assert names[-1] == "vidrobust, re-encoded files"
    for row in rows:
        low, high = row["spread"]
        assert 0 < low <= row["clips_s"] * 1.0001 and row["clips_s"] <= high * 1.0001
        assert row["clips_s"] == pytest.approx(2 * row["videos_s"])


def test_the_floor_has_its_parts(cfg):
    parts = floor(cfg, videos=16, rounds=1)
    assert list(parts) == ["open", "decode", "colour", "crop, resize", "child, collate, transport"]
    assert parts["open"] > 0


def test_one_core_is_one_core_and_comes_back():
    before = os.sched_getaffinity(0)
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_command_prints_a_table(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    words = [f"data.root={root}", "data.frames=2", "data.size=16", "data.short_side=28", "--videos", 16, "--rounds", 1]
    done = tool("benchmark", "data", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 8 and "ms a video, one core: open" in lines[-1]

import math
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import counting_frames, encode, has_backend, tiny_ucf101, tool
from vidrobust import config
from vidrobust.benchmarks.data import lower_bound, measure_data, one_core, readable
from vidrobust.data.prepare.pack import pack


@pytest.fixture(scope="module")
def cfg(ucf):
    return config.loads(
        "", [f"data.root={ucf}", "data.frames=2", "data.size=16", "data.short_side=28"], "test"
    )


def test_every_loader_is_measured_in_every_round(cfg, ucf, tmp_path):
    archive = tmp_path / "x.tar"
    pack(Path(ucf), archive)
    chosen = readable(cfg, 16)
    rows = measure_data(cfg, chosen, rounds=2, prepared=str(ucf), archive=str(archive))
    names = [row.name for row in rows]
    for loader in ("bare decoder", "vidrobust", "pytorchvideo"):
        assert {f"{loader}, pyav", f"{loader}, decord"} <= set(names)
    assert names[-2:] == ["vidrobust, re-encoded files", "vidrobust, tar archive"]
    for row in rows:
        median, low, high = row.clips_s
        assert len(row.videos_s) == 2 and not row.reason and 0 < low <= median <= high


def test_images_are_measured_without_loaders_that_cannot_read_them(tmp_path):
    for n in range(10):
        path = tmp_path / "train" / "a" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    words = [
        "data.name=image_folder",
        f"data.root={tmp_path}",
        "data.frames=1",
        "data.size=16",
        "data.short_side=28",
    ]
    cfg = config.loads("", words, "test")
    rows = measure_data(cfg, readable(cfg, 16), rounds=1)
    assert [row.name for row in rows[:2]] == ["bare decoder, auto", "vidrobust, auto"] and len(
        rows
    ) == 3
    assert all(row.clips_s[0] > 0 for row in rows)
    stages = lower_bound(cfg, readable(cfg, 16), rounds=1)
    assert list(stages) == ["open", "decode", "colour", "crop, resize", "child, collate, transport"]
    # differences between times, which may be negative on a busy machine
    assert all(math.isfinite(milliseconds) for milliseconds in stages.values())


def test_videos_that_cannot_be_decoded_are_left_out_and_logged(tmp_path, caplog):
    root = tiny_ucf101(tmp_path)
    (root / "videos/Alpha/v_Alpha_g01_c01.avi").write_bytes(b"")
    cfg = config.loads(
        "", [f"data.root={root}", "data.frames=2", "data.size=16", "data.short_side=28"], "test"
    )
    rows = measure_data(cfg, readable(cfg, 9), rounds=1)
    assert (
        all(row.videos_s for row in rows)
        and caplog.text.count("v_Alpha_g01_c01.avi: the file is empty") == 1
    )


def test_a_loader_that_cannot_read_the_data_has_a_reason(tmp_path):
    root = tiny_ucf101(tmp_path)
    for path in root.rglob("*.avi"):
        encode(path, counting_frames(20), "libx264", options={"g": "6", "bf": "2"})
    cfg = config.loads(
        "", [f"data.root={root}", "data.frames=2", "data.size=16", "data.short_side=28"], "test"
    )
    rows = {row.name: row for row in measure_data(cfg, readable(cfg, 9), rounds=2)}
    assert rows["vidrobust, pyav"].clips_s[0] > 0
    for name in ("bare decoder, decord", "vidrobust, decord"):
        assert (
            "decord reads other frames of such a file" in rows[name].reason
            and not rows[name].videos_s
        )


def test_the_parts_of_the_lower_bound_are_named(cfg):
    parts = lower_bound(cfg, readable(cfg, 16), rounds=1)
    assert list(parts) == ["open", "decode", "colour", "crop, resize", "child, collate, transport"]
    assert parts["open"] > 0


def test_one_core_restricts_the_process_and_restores_it():
    before = os.sched_getaffinity(0)
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_command_prints_a_table(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    words = [
        f"data.root={root}",
        "data.frames=2",
        "data.size=16",
        "data.short_side=28",
        "--videos",
        16,
        "--rounds",
        1,
    ]
    done = tool("benchmark", "data", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert tool("benchmark", "data", *words[:1], "--videos", 4, cwd=tmp_path).stderr.startswith(
        "error: --videos"
    )
    rows = 10 if has_backend("torchcodec") else 8
    assert (
        sum(line.startswith("| ") for line in lines) == rows
        and "ms per video, one core: open" in lines[-1]
    )

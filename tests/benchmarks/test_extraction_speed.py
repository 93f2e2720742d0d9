"""Benchmark of extraction, `benchmark.py features`, and that memory does not grow with clips."""

import tracemalloc

import numpy as np
import pytest
import torch

from tests.helpers import tiny, tool
from vidrobust import config
from vidrobust.benchmarks.extraction import (
    DIM,
    Steady,
    Tick,
    measure_memory,
    measure_rates,
    measure_search,
    nearest,
)
from vidrobust.evaluation.representation.feature_files import (
    FeatureFile,
    FeatureRows,
    write_feature_file,
)
from vidrobust.models import stored_features
from vidrobust.models.feature_store import DiskStore

WORDS = tiny("eval.batch_size=4", "model.width=4", "device=cpu")


def test_both_sides_are_timed_in_every_round(ucf):
    cfg = config.loads("", [*WORDS, f"data.root={ucf}"])
    rows = measure_rates(cfg, torch.device("cpu"), videos=9, rounds=2)
    assert [(row.name, row.bound) for row in rows] == [
        (name, f"bare {bound}")
        for bound in ("model", "loader")
        for name in ("extraction", "clean testing")
    ]
    for row in rows:
        # batches of two videos with two clips; the first of each loader is left out
        assert row.clips == (14 if row.name == "extraction" else 28)
        assert len(row.times) == len(row.bound_times) == len(row.rest) == 2
        assert min(time.wall for time in row.times + row.bound_times) > 0
        assert min(row.rest) > 0 and row.fraction > 0 and row.cpu_fraction > 0


def test_the_time_before_the_first_batch_of_a_loader_is_left_out():
    times = [(5.0, True), (6.0, False), (8.0, False), (30.0, True), (30.5, False)]
    steady = Steady.of([Tick(wall, wall / 2, first) for wall, first in times])
    assert steady == Steady(wall=3.5, cpu=1.75)


def test_the_tool_prints_a_row_for_each_part_and_bound(ucf, tmp_path):
    words = [*WORDS, f"data.root={ucf}", "--videos", 9, "--rounds", 1, "--counts", ""]
    done = tool("benchmark", "features", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 rounds of 9 videos, 2 clips of 2 x 16 x 16, r2plus1d_10 on cpu" in done.stdout
    assert done.stdout.count("\n| clean testing | bare ") == 2
    done = tool("benchmark", "features", *words[:-1], "10,x", cwd=tmp_path)
    assert done.returncode == 1 and "other numbers at least 1" in done.stderr


@pytest.mark.slow
def test_streaming_needs_less_memory_than_gathering():
    memory = measure_memory(8000)
    assert memory.start <= memory.listed <= memory.streamed < memory.gathered


def _peak(tmp_path, videos, format):
    """Return the bytes that writing features of many videos allocates at most."""
    store = DiskStore(tmp_path / f"{videos}", "test", 1, "")
    values = np.random.default_rng(0).random((1000, 1, 64), np.float32)
    row = {"label": 1, "start": [0], "end": [8], "fps": 25.0, "dims": [64], "error": None}
    row |= {"repeats": False, "resized": False}
    for first in range(0, videos, 1000):
        rows = [row | {"index": n, "uid": f"{n:08}.avi"} for n in range(first, first + 1000)]
        store.append(rows, [values])
    store.close()
    tracemalloc.start()
    try:
        stored = store.stored()
        part = FeatureRows(stored, 0, stored.counts(), per_video=False, half=False)
        file = FeatureFile(tmp_path / f"{videos}.{format}", format)
        write_feature_file(file, part, {}, tmp_path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["npy", "npz"])
def test_memory_does_not_grow_with_the_features(tmp_path, monkeypatch, format):
    """A video has 256 bytes of features and 200 of a row; some integers of it are held."""
    monkeypatch.setattr(stored_features, "CHUNK_BYTES", 2**16)
    few, many = (_peak(tmp_path, videos, format) for videos in (5000, 15000))
    assert (many - few) / 10000 < 150, (few, many)
    assert len(np.load(tmp_path / f"15000.{format}", mmap_mode="r")) in (15000, 9)


def test_the_nearest_are_those_of_a_full_sort():
    features = np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)
    index = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = nearest(index, index[:7], 5)
    assert np.array_equal(rows, np.argsort(-(index[:7] @ index.T), axis=1)[:, :5])
    assert rows[:, 0].tolist() == list(range(7))
    assert [len(seconds) for seconds in measure_search(300, 2)] == [2, 2, 2] and DIM == 512

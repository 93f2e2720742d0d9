"""Test that extraction holds no pixels or files, resumes when killed, and is shared by ranks."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from tests.helpers import counting_video
from vidrobust.config import DataConfig
from vidrobust.data import Record, eval_dataset
from vidrobust.evaluation import DiskStore, extract
from vidrobust.models import stored_features
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError

CPU = torch.device("cpu")
CFG = DataConfig(frames=2, stride=2, short_side=20, size=16, workers=0, timeout_s=0.0)
N = 11


def _mean_colour(x):
    return x.mean((2, 3, 4))


def _corner(x):
    return x[:, 0, :, 0, :2].flatten(1)


MODELS = [_mean_colour, _corner]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Return records of videos, the fifth of which is an empty file."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [counting_video(folder / f"{n}.avi", 20, first=30 * n) for n in range(N)]
    paths[4].write_bytes(b"")
    return [Record(path.name, str(path), n % 3) for n, path in enumerate(paths)]


def _store(folder, identity="this"):
    return DiskStore(folder, "test", len(MODELS), identity)


def _extract(records, store=None, clips=3, **options):
    return extract(
        MODELS,
        eval_dataset(CFG, records, clips),
        CPU,
        batch_size=6,
        workers=0,
        store=store,
        **options,
    )


def _same(a, b):
    assert [f.reason for f in a.failed] == [f.reason for f in b.failed] and a.uids == b.uids
    for name in ("features", "labels", "index", "start", "fps"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and torch.equal(x, y), name


def test_features_on_disk_equal_those_in_memory(records, tmp_path):
    for in_memory, stored in zip(
        _extract(records), _extract(records, _store(tmp_path)), strict=True
    ):
        _same(in_memory, stored)
        assert stored.features.shape[:2] == (N - 1, 3) and [f.index for f in stored.failed] == [4]


@pytest.mark.parametrize("tail", ["none", "features", "half a row", "rows without features"])
def test_a_killed_extraction_resumes_with_bitwise_identical_features(
    records, tmp_path, monkeypatch, tail
):
    whole = _extract(records)
    calls = []
    append = DiskStore.append

    def append_until_killed(self, rows, features):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append([row["index"] for row in rows])
        append(self, rows, features)

    with monkeypatch.context() as patch:
        patch.setattr(DiskStore, "append", append_until_killed)
        with pytest.raises(KeyboardInterrupt):
            _extract(records, _store(tmp_path))
    if tail == "features":
        with open(tmp_path / "test.1.f32", "ab") as file:
            file.write(bytes(1000))
    if tail == "half a row":
        with open(tmp_path / "test.rows.jsonl", "ab") as file:
            file.write(b'{"index": 4, "uid": "4.a')
    if tail == "rows without features":
        os.truncate(tmp_path / "test.0.f32", os.path.getsize(tmp_path / "test.0.f32") - 1)
    monkeypatch.setattr(
        DiskStore,
        "append",
        lambda self, rows, features: calls.append(rows) or append(self, rows, features),
    )
    for in_memory, stored in zip(whole, _extract(records, _store(tmp_path)), strict=True):
        _same(in_memory, stored)
    assert calls[:2] == [[0, 1], [2, 3]], "two videos of three clips are a batch of six"
    assert calls[2][0]["index"] == (3 if tail == "rows without features" else 5)


def test_a_finished_extraction_reads_no_videos(records, tmp_path, monkeypatch):
    first = _extract(records, _store(tmp_path))
    monkeypatch.setattr("vidrobust.models.inference.batch_loader", lambda *_: pytest.fail("read"))
    for before, after in zip(first, _extract(records, _store(tmp_path)), strict=True):
        _same(before, after)


def test_files_of_another_identity_are_overwritten(records, tmp_path):
    _extract(records[:3], _store(tmp_path, "other"))
    (features, _) = _extract(records, _store(tmp_path))
    assert len(features.uids) == N - 1
    header = json.loads((tmp_path / "test.rows.jsonl").read_text().splitlines()[0])
    assert header["identity"] == "this"


def test_ranks_share_the_videos_and_give_the_features_of_one_rank(records, tmp_path, monkeypatch):
    alone = _extract(records, _store(tmp_path / "alone"))
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "patient_barrier", lambda: None)
    stores = {
        rank: _store(tmp_path / "shared") for rank in (1, 0)
    }  # all ranks read before any writes
    for rank, store in stores.items():
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        both = _extract(records, store)
    names = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert names == [
        "test.0.f32",
        "test.1.f32",
        "test.rank1.0.f32",
        "test.rank1.1.f32",
        "test.rank1.rows.jsonl",
        "test.rows.jsonl",
    ]
    for a, b in zip(alone, both, strict=True):
        _same(a, b)
    # and one process resumes from the files of two
    monkeypatch.setattr(distributed, "world", lambda: 1)
    (tmp_path / "shared/test.rows.jsonl").unlink()
    for a, b in zip(alone, _extract(records, _store(tmp_path / "shared")), strict=True):
        _same(a, b)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_batch_of_which_no_video_decodes_changes_no_other(records, tmp_path, on_disk):
    """Batches have one video each, and one of them has no features."""
    store = _store(tmp_path) if on_disk else None
    for whole, single in zip(_extract(records, clips=6), _extract(records, store, 6), strict=True):
        _same(whole, single)
        assert single.features.shape[:2] == (N - 1, 6)


def test_a_video_that_two_ranks_have_counts_once(records, tmp_path, monkeypatch):
    """The second rank has all videos, and the first one three of them."""
    whole = _extract(records, _store(tmp_path / "whole"))
    _extract(records, _store(tmp_path))
    for path in list(tmp_path.glob("test.*")):
        shutil.copy(path, path.with_name(path.name.replace("test.", "test.rank1.", 1)))
    lines = (tmp_path / "test.rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "test.rows.jsonl").write_text("".join(lines[:4]))
    monkeypatch.setattr(stored_features, "CHUNK_BYTES", 120)
    stored = _store(tmp_path).stored()
    assert stored.videos == N - 1 and stored.clips == 3 and stored.shape(1) == (4,)
    assert [row["index"] for row in stored.rows()] == list(range(N))
    for m, features in enumerate(whole):
        chunks = list(stored.features(m))
        assert len(chunks) > 2 and np.array_equal(np.concatenate(chunks), features.features)


def test_a_reader_of_nothing_has_no_rows(tmp_path):
    stored = _store(tmp_path).stored()
    assert stored.videos == stored.clips == 0 and stored.shape(0) == (0,)
    assert list(stored.rows()) == list(stored.features(0)) == []


def test_videos_that_all_fail_to_decode_are_refused(records, tmp_path):
    with pytest.raises(UserError, match="no video decodes .*is empty"):
        _extract(records[4:5], _store(tmp_path))


@pytest.mark.parametrize("on_disk", [False, True])
def test_no_batch_is_kept_in_memory(tmp_path, monkeypatch, on_disk):
    """Kept batches would take two file descriptors and 5.7 MB of shared memory per video."""
    count = 40
    path = counting_video(tmp_path / "v.avi", 20)
    records = []
    for n in range(count):
        (tmp_path / f"{n}.avi").symlink_to(path)
        records.append(Record(f"{n}.avi", str(tmp_path / f"{n}.avi"), n % 2))
    cfg = DataConfig(frames=4, stride=2, short_side=64, size=64, workers=1)
    dataset = eval_dataset(cfg, records, 2)
    usage = []

    def model(x):
        usage.append((len(os.listdir("/proc/self/fd")), _shared_bytes()))
        return _mean_colour(x)

    store = DiskStore(tmp_path / "features", "test", 1, "") if on_disk else None
    (features,) = extract([model], dataset, CPU, batch_size=2, workers=1, store=store)
    assert len(features.uids) == count == len(usage)
    files, sizes = np.array(usage).T
    batch = 2 * 4 * 64 * 64 * 3
    assert files[5:].max() - files[5:].min() <= 30, "constant, apart from batches in flight"
    assert sizes[5:].max() - sizes[5:].min() < 8 * batch
    assert files[-5:].mean() - files[5:10].mean() < 8


def _shared_bytes():
    """Return the bytes of shared memory that this process maps."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss_Shmem"))


def test_videos_shorter_than_a_clip_are_counted_once(tmp_path, caplog):
    paths = [counting_video(tmp_path / f"{n}.avi", frames) for n, frames in enumerate((3, 40, 5))]
    records = [Record(path.name, str(path), 0) for path in paths]
    cfg = DataConfig(frames=8, stride=2, short_side=20, size=16, workers=0, timeout_s=0.0)
    dataset = eval_dataset(cfg, records, 2)
    with caplog.at_level("WARNING", "vidrobust"):
        (features,) = extract([_mean_colour], dataset, CPU, batch_size=4, workers=0, title="test")
    assert features.repeats == 2
    (line,) = dataset.notes(features.repeats, features.resized, len(features.uids))
    assert line.startswith(
        "2 of 3 videos are shorter than a clip (15 frames) and show frames twice"
    )
    assert [
        record.getMessage() for record in caplog.records if "shorter" in record.getMessage()
    ] == [f"test: {line}"]


def test_features_are_returned_when_every_rank_has_read_them(records, tmp_path, monkeypatch):
    """Rank 0 may then delete the files."""
    store = _store(tmp_path)
    _extract(records, store)
    events = []
    original = stored_features.StoredFeatures.features

    def features(self, output):
        events.append("read")
        return original(self, output)

    monkeypatch.setattr(stored_features.StoredFeatures, "features", features)
    monkeypatch.setattr(distributed, "patient_barrier", lambda: events.append("wait"))
    store.load()
    assert events == ["wait", "read", "read", "wait"]

"""Faults while data loads: files that hang or crash, dying workers, growing memory, Ctrl-C."""

import contextlib
import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import children_begin_with, counting_video, same_batch
from tests.processes import PIPE, Process
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import (
    BACKENDS,
    ClipDataset,
    ClipSpec,
    EvalBatches,
    Record,
    TrainBatches,
    batch_loader,
    random_clips,
    train_dataset,
    ucf101,
    worker_deaths,
)
from vidrobust.data import loader as workers
from vidrobust.data.decoding.pyav import PyAV
from vidrobust.utils.errors import UserError
from vidrobust.views import AugmentSpec

CFG = DataConfig(frames=2, stride=3, short_side=32, size=24, workers=0)


class Misbehaves(PyAV):
    """A reader that hangs or crashes on files whose names say so."""

    def frames(self, indices):
        if "hang" in Path(self.path).name:
            while True:
                time.sleep(1)
        if "crash" in Path(self.path).name:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().frames(indices)


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKENDS, "auto", Misbehaves)
    children_begin_with(
        monkeypatch,
        "from tests.data.test_loader_faults import BACKENDS, Misbehaves; BACKENDS['auto'] ="
        " Misbehaves",
    )
    names = ["a", "hang", "b", "crash", "c", "d"]
    paths = [
        counting_video(tmp_path / f"{name}.avi", 12, first=100 * i) for i, name in enumerate(names)
    ]
    return [Record(path.name, str(path), i) for i, path in enumerate(paths)]


def _dataset(records, **options):
    return ClipDataset(
        records, ClipSpec(2, 2), random_clips, AugmentSpec(size=16), timeout_s=0.5, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_one_file_that_hangs_and_one_that_crashes_are_failures(misbehaving, workers):
    (batch,) = batch_loader(_dataset(misbehaving), EvalBatches(list(range(6)), 6), workers)
    assert batch.uids == ["a.avi", "b.avi", "c.avi", "d.avi"]
    reasons = [failure.reason for failure in batch.failed]
    assert reasons[0].endswith("hang.avi: no answer within 0.5 s")
    assert reasons[1].endswith("crash.avi: the decoder crashed (SIGSEGV)")


def test_a_file_that_hangs_is_tried_only_once(misbehaving):
    dataset = _dataset(misbehaving)
    assert isinstance(dataset[0, 0], dict)  # the process that reads has started
    began = time.perf_counter()
    assert all(dataset[epoch, 1].reason.endswith("no answer within 0.5 s") for epoch in range(8))
    assert time.perf_counter() - began < 2


def test_bad_videos_are_replaced_by_others_chosen_by_the_key(misbehaving):
    batches = [
        list(
            batch_loader(
                _dataset(misbehaving, seed=5, replace=True), TrainBatches(6, 3, 5, 0, 4), workers
            )
        )
        for workers in (0, 2)
    ]
    replaced = []
    for one, two in zip(*batches, strict=True):
        assert same_batch(one, two) and one.replaced == two.replaced and not one.failed
        assert one.clips.shape[0] == 3 and not {"hang.avi", "crash.avi"} & set(one.uids)
        assert one.labels.tolist() == one.index.tolist()  # of the video that is there
        replaced += [failure.uid for failure in one.replaced]
    assert (
        replaced.count("hang.avi") >= 2 and replaced.count("crash.avi") >= 2
    )  # each once an epoch, or more


def test_if_every_video_is_bad_there_is_no_batch(tmp_path):
    records = [Record(str(i), str(tmp_path / f"{i}.avi"), 0) for i in range(5)]
    sample = _dataset(records, replace=True)[0, 2]
    assert sample.uid == "2" and "no such file" in sample.reason


def test_a_video_that_the_manifest_calls_bad_is_not_opened(misbehaving):
    records = [dataclasses.replace(misbehaving[1], bad="hangs")]
    assert _dataset(records)[0, 0].reason.endswith("hang.avi: hangs (manifest)")


@pytest.mark.parametrize("timeout_s", [0, 20])
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_memory_and_open_files_do_not_grow_over_fifty_epochs(ucf, backend, timeout_s):
    """Over 600 files are opened; both this process and its reader are checked."""
    records, _ = ucf101(ucf, "train", 1)
    records += ucf101(ucf, "test", 1)[0]
    options = {"backend": backend, "timeout_s": timeout_s}
    dataset = ClipDataset(records, ClipSpec(4, 3, 2), random_clips, AugmentSpec(size=32), **options)
    held = []
    for epoch in range(50):
        for index in range(len(records)):
            assert dataset[epoch, index]["clips"].shape == (2, 4, 32, 32, 3)
        reader = dataset._child.child.pid if timeout_s else os.getpid()
        held.append((_resident_mb(reader), len(os.listdir(f"/proc/{reader}/fd"))))
    (early, early_files), (late, late_files) = held[9], held[-1]
    assert late - early < 4 and late_files <= early_files, held


def _resident_mb(pid):
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )


def test_the_death_of_a_worker_is_reported_with_the_file_it_read(tmp_path, monkeypatch):
    class KillsItself(PyAV):
        def frames(self, indices):
            if "killer" in Path(self.path).name:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().frames(indices)

    monkeypatch.setitem(BACKENDS, "auto", KillsItself)
    paths = [counting_video(tmp_path / f"{name}.avi", 12) for name in ("a", "killer", "b")]
    records = [Record(path.name, str(path), 0) for path in paths]
    dataset = ClipDataset(
        records, ClipSpec(2, 2), random_clips, AugmentSpec(size=16)
    )  # no child: the worker itself
    with (
        pytest.raises(UserError, match=r"died while it read .*killer.avi .*lower data.workers"),
        worker_deaths(dataset),
    ):
        list(batch_loader(dataset, EvalBatches([0, 1, 2], 1), 1))
    real = dataset.reading[0].clone()
    with pytest.raises(UserError, match="killer.avi .no batch came."), worker_deaths(dataset):
        raise EOFError  # what the fetch of a batch says whose sender has died
    late = f"DataLoader worker (pid {int(real[0])}) is killed by signal: Killed."
    monkeypatch.setattr(  # torch's handler raises wherever the process is: here, too
        workers.multiprocessing, "active_children", _raises_once(RuntimeError(late))
    )
    with pytest.raises(UserError, match="killer.avi .DataLoader worker"), worker_deaths(dataset):
        raise EOFError
    dataset.reading[0, 0] = -1  # no worker has begun
    with pytest.raises(FileNotFoundError), worker_deaths(dataset):
        raise FileNotFoundError("of the body")
    dataset.reading[0] = real
    with pytest.raises(RuntimeError, match="something else"), worker_deaths(dataset):
        raise RuntimeError("something else")


def _raises_once(error):
    left = [error]

    def children():
        if left:
            raise left.pop()
        return []

    return children


def test_ctrl_c_leaves_no_process(ucf, tmp_path):
    """Workers and readers are stopped as in a terminal: by a signal to the whole group."""
    script = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import TrainBatches, batch_loader, train_dataset, ucf101
from pathlib import Path
records, _ = ucf101(Path(sys.argv[1]), "train", 1)
cfg = DataConfig(frames=2, stride=3, short_side=32, size=24)
data = train_dataset(cfg, AugmentConfig(), records, clips=2, seed=7)
try:
    for step, batch in enumerate(batch_loader(data, TrainBatches(8, 4, 7, 0, 10**6), 2)):
        print(step, flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    (tmp_path / "script.py").write_text(script)
    run = Process(["script.py", ucf], cwd=tmp_path, stdout=PIPE, start_new_session=True)
    while run.stdout.readline() != "5\n":
        assert run.poll() is None, run.stderr.read()
    processes = _session(run.pid)
    assert len(processes) >= 5  # itself, two workers, and a reader of each
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert out.endswith("stopped\n") and err == "" and run.returncode == 0
    for _ in range(100):
        if not _session(run.pid):
            return
        time.sleep(0.05)
    raise AssertionError(f"{_session(run.pid)} live on")


def _session(leader):
    """Return the processes of a session that are not zombies."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                pids.append(int(stat.parent.name))
    return pids


def test_a_replacement_is_found_even_if_most_videos_are_bad(tmp_path):
    good = counting_video(tmp_path / "good.avi", 12)
    records = [
        Record(str(i), str(good if i in (3, 41) else tmp_path / f"{i}.avi"), i) for i in range(80)
    ]
    dataset = ClipDataset(records, ClipSpec(2, 2), random_clips, AugmentSpec(size=16), replace=True)
    for index in range(80):
        sample = dataset[1, index]
        assert sample["label"] in (3, 41) and (not sample["replaced"]) == (index in (3, 41))
        assert len({failure.index for failure in sample["replaced"]}) == len(
            sample["replaced"]
        )  # none is tried twice


def test_a_reader_ends_with_its_data_set(ucf):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, AugmentConfig(), records, 2, 7)
    assert dataset[0, 0]
    pid = dataset._child.child.pid
    os.kill(pid, 0)
    del dataset  # at once, not when cycles are collected
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import REPO, counting_video, read_numbers, tiny_ucf101
from vidrobust.config import Augment, Data
from vidrobust.data import (
    BACKENDS,
    ClipDataset,
    ClipSpec,
    EvalBatches,
    Record,
    TrainBatches,
    eval_dataset,
    loader,
    random_clips,
    train_dataset,
    ucf101,
    worker_deaths,
)
from vidrobust.data.decoders import PyAV
from vidrobust.errors import UserError
from vidrobust.views import AugmentSpec

CFG = Data(frames=2, stride=3, short_side=32, size=24, workers=0)


def _batches(ucf, workers, start=0, stop=4, rank=0, world=1):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, Augment(), records, clips=2, seed=7)
    return list(loader(dataset, TrainBatches(8, 4, 7, start, stop, rank, world), workers))


def _same(a, b):
    return torch.equal(a.clips, b.clips) and torch.equal(a.draws, b.draws) and a.uids == b.uids


def test_the_same_batches_for_any_number_of_workers(ucf):
    for a, b in zip(_batches(ucf, 0), _batches(ucf, 3), strict=True):
        assert _same(a, b)


def test_the_same_batches_after_a_resume_in_mid_epoch(ucf):
    whole, resumed = _batches(ucf, 0), _batches(ucf, 0, start=1)
    assert all(_same(a, b) for a, b in zip(whole[1:], resumed, strict=True))


def test_ranks_share_the_batch_of_one_process(ucf):
    parts = [_batches(ucf, 0, rank=rank, world=2) for rank in (0, 1)]
    for whole, first, second in zip(_batches(ucf, 0), *parts, strict=True):
        assert torch.equal(whole.clips, torch.cat([first.clips, second.clips]))


def test_epochs_and_seeds_differ(ucf):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, Augment(), records, clips=2, seed=7)
    assert not torch.equal(dataset[0, 0]["clips"], dataset[1, 0]["clips"])
    assert not torch.equal(dataset[0, 0]["draws"][0], dataset[0, 0]["draws"][1])
    other = train_dataset(CFG, Augment(), records, clips=2, seed=8)
    assert not torch.equal(dataset[0, 0]["draws"], other[0, 0]["draws"])


def test_a_training_epoch_is_a_permutation_without_its_remainder():
    epoch = [index for batch in TrainBatches(10, 4, 0, 0, 2) for _, index in batch]
    assert len(set(epoch)) == 8
    following = [key for batch in TrainBatches(10, 4, 0, 2, 4) for key in batch]
    assert {e for e, _ in following} == {1} and [i for _, i in following] != epoch


def test_evaluation_drops_and_pads_nothing():
    assert [len(b) for b in EvalBatches(list(range(7)), 3)] == [3, 3, 1]
    assert [i for b in EvalBatches([5, 1, 2, 0], 3) for _, i in b] == [5, 1, 2, 0]


def test_samples_hold_the_frames_that_they_say(ucf):
    """Through sampler, decoder, resize and crop: the pixels count."""
    records, _ = ucf101(ucf, "test", 1)
    cfg = Data(frames=3, stride=4, short_side=32, size=32, workers=0)
    batch = next(iter(loader(eval_dataset(cfg, records, 2), EvalBatches([0, 3], 2), 0)))
    assert batch.clips.shape == (2, 2, 3, 32, 32, 3) and batch.clips.dtype == torch.uint8
    assert batch.start.tolist() == [[0, 11], [0, 11]] and batch.labels.tolist() == [0, 1]
    first = [200, 1250]  # what frame 0 of test video 0 and 3 shows
    for video, offset in enumerate(first):
        for clip, start in enumerate((0, 11)):
            frames = batch.clips[video, clip].numpy()
            assert read_numbers(frames) == [offset + start + 4 * t for t in range(3)]


def test_random_clips_show_the_frames_of_the_sampler(tmp_path):
    path = counting_video(tmp_path / "v.avi", 50)
    view = AugmentSpec(size=64, scale=(1, 1), ratio=(1, 1), flip=0, jitter_prob=0, gray=0, blur=0)
    data = ClipDataset([Record("v", str(path), 0)], ClipSpec(4, 5, 3), random_clips, view, seed=1)
    sample = data[2, 0]
    for clip, start in zip(sample["clips"], sample["start"].tolist(), strict=True):
        assert read_numbers(clip.numpy()) == [start + 5 * t for t in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_a_failure_in_the_batch(tmp_path, workers):
    root = tiny_ucf101(tmp_path)
    (root / "videos/Beta/v_Beta_g05_c01.avi").write_bytes(b"")
    records, _ = ucf101(root, "test", 1)
    (batch,) = loader(eval_dataset(CFG, records, 1), EvalBatches(list(range(4)), 4), workers)
    assert len(batch.uids) == 3 and batch.clips.shape[0] == 3
    (failure,) = batch.failed
    assert failure.uid == "Beta/v_Beta_g05_c01.avi" and failure.index == 2 and "is empty" in failure.reason


def test_policy_error_makes_a_short_video_a_failure(ucf):
    records, _ = ucf101(ucf, "test", 1)
    failure = eval_dataset(Data(frames=16, stride=2, policy="error"), records, 1)[0, 0]
    assert "has 20 frames, a clip spans 31" in failure.reason and records[0].path in failure.reason


def test_images_are_clips_of_one_frame(tmp_path):
    from PIL import Image

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 1] = 200
    Image.fromarray(pixels).save(tmp_path / "i.png")
    data = eval_dataset(Data(frames=1, stride=1, short_side=32, size=32), [Record("i", str(tmp_path / "i.png"), 3)], 1)
    sample = data[0, 0]
    assert sample["clips"].shape == (1, 1, 32, 32, 3)
    assert sample["clips"][0, 0, 5, 5].tolist() == [0, 200, 0]


def test_the_same_samples_with_and_without_a_watchdog(ucf):
    records, _ = ucf101(ucf, "train", 1)
    spec, view = ClipSpec(3, 2, 2), AugmentSpec(size=24)
    plain = ClipDataset(records, spec, random_clips, view, seed=3)
    watched = ClipDataset(records, spec, random_clips, view, seed=3, timeout_s=20)
    for key in ((0, 0), (0, 5), (4, 5)):
        a, b = plain[key], watched[key]
        assert a.keys() == b.keys() and a["uid"] == b["uid"]
        assert all(torch.equal(a[name], b[name]) for name in ("clips", "draws", "start"))
    kept = watched[0, 1]["clips"].clone(), watched[0, 1]["clips"]
    assert watched[0, 2] and torch.equal(*kept)  # a sample is its own, not a window on the child's memory


class Misbehaves(PyAV):
    """Files whose names say so hang, or crash, in their decoder."""

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
    names = ["a", "hang", "b", "crash", "c", "d"]
    paths = [counting_video(tmp_path / f"{name}.avi", 12, first=100 * i) for i, name in enumerate(names)]
    return [Record(path.name, str(path), i) for i, path in enumerate(paths)]


def _dataset(records, **options):
    return ClipDataset(records, ClipSpec(2, 2), random_clips, AugmentSpec(size=16), timeout_s=0.5, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_file_that_hangs_and_one_that_crashes_are_failures(misbehaving, workers):
    (batch,) = loader(_dataset(misbehaving), EvalBatches(list(range(6)), 6), workers)
    assert batch.uids == ["a.avi", "b.avi", "c.avi", "d.avi"]
    reasons = [failure.reason for failure in batch.failed]
    assert reasons[0].endswith("hang.avi: no answer within 0.5 s")
    assert reasons[1].endswith("crash.avi: the decoder crashed (SIGSEGV)")


def test_a_file_that_hangs_costs_its_time_once(misbehaving):
    dataset = _dataset(misbehaving)
    began = time.perf_counter()
    assert all(dataset[epoch, 1].reason.endswith("no answer within 0.5 s") for epoch in range(8))
    assert time.perf_counter() - began < 2


def test_bad_videos_are_replaced_by_others_drawn_from_the_key(misbehaving):
    batches = [
        list(loader(_dataset(misbehaving, seed=5, replace=True), TrainBatches(6, 3, 5, 0, 4), workers))
        for workers in (0, 2)
    ]
    replaced = []
    for one, two in zip(*batches, strict=True):
        assert _same(one, two) and one.replaced == two.replaced and not one.failed
        assert one.clips.shape[0] == 3 and not {"hang.avi", "crash.avi"} & set(one.uids)
        assert one.labels.tolist() == one.index.tolist()  # of the video that is there
        replaced += [failure.uid for failure in one.replaced]
    assert replaced.count("hang.avi") >= 2 and replaced.count("crash.avi") >= 2  # each once an epoch, or more


def test_where_every_video_is_bad_no_batch_is_made_up(tmp_path):
    records = [Record(str(i), str(tmp_path / f"{i}.avi"), 0) for i in range(5)]
    sample = _dataset(records, replace=True)[0, 2]
    assert sample.uid == "2" and "no such file" in sample.reason


def test_a_video_that_the_manifest_calls_bad_is_not_opened(misbehaving):
    records = [dataclasses.replace(misbehaving[1], bad="hangs")]
    assert _dataset(records)[0, 0].reason.endswith("hang.avi: hangs (manifest)")


def test_no_sample_has_the_randomness_of_another(ucf):
    """Over epochs, videos and views, whichever worker drew them."""
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, Augment(jitter_prob=1), records, clips=2, seed=7)
    draws = torch.cat([batch.draws.flatten(0, 1) for batch in loader(dataset, TrainBatches(8, 4, 7, 0, 8), 4)])
    assert len(torch.unique(draws[:, :4], dim=0)) == len(draws) == 64


@pytest.mark.parametrize("timeout_s", [0, 20])
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_memory_and_open_files_do_not_grow_over_fifty_epochs(ucf, backend, timeout_s):
    """Over 600 opens, in this process and in its reader."""
    records, _ = ucf101(ucf, "train", 1)
    records += ucf101(ucf, "test", 1)[0]
    options = {"backend": backend, "timeout_s": timeout_s}
    dataset = ClipDataset(records, ClipSpec(4, 3, 2), random_clips, AugmentSpec(size=32), **options)
    held = []
    for epoch in range(50):
        for index in range(len(records)):
            assert dataset[epoch, index]["clips"].shape == (2, 4, 32, 32, 3)
        reader = dataset._reader[1].pid if timeout_s else os.getpid()
        held.append((_resident_mb(reader), len(os.listdir(f"/proc/{reader}/fd"))))
    (early, early_files), (late, late_files) = held[9], held[-1]
    assert late - early < 4 and late_files <= early_files, held


def _resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_worker_that_dies_is_told_with_the_file_that_it_read(tmp_path, monkeypatch):
    class KillsItself(PyAV):
        def frames(self, indices):
            if "killer" in Path(self.path).name:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().frames(indices)

    monkeypatch.setitem(BACKENDS, "auto", KillsItself)
    paths = [counting_video(tmp_path / f"{name}.avi", 12) for name in ("a", "killer", "b")]
    records = [Record(path.name, str(path), 0) for path in paths]
    dataset = ClipDataset(records, ClipSpec(2, 2), random_clips, AugmentSpec(size=16))  # no child: the worker itself
    with (
        pytest.raises(UserError, match=r"died while it read .*killer.avi .*lower data.workers"),
        worker_deaths(dataset),
    ):
        list(loader(dataset, EvalBatches([0, 1, 2], 1), 1))
    real = dataset.reading[0].clone()
    with pytest.raises(UserError, match="killer.avi .no batch came."), worker_deaths(dataset):
        raise EOFError  # what the fetch of a batch says whose sender has died
    dataset.reading[0, 0] = -1  # no worker has begun
    with pytest.raises(FileNotFoundError), worker_deaths(dataset):
        raise FileNotFoundError("of the body")
    dataset.reading[0] = real
    with pytest.raises(RuntimeError, match="something else"), worker_deaths(dataset):
        raise RuntimeError("something else")


def test_ctrl_c_leaves_no_process(ucf):
    """Workers and their readers, stopped as a terminal does it: a signal to the whole group."""
    script = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from vidrobust.config import Augment, Data
from vidrobust.data import TrainBatches, loader, train_dataset, ucf101
from pathlib import Path
records, _ = ucf101(Path(sys.argv[1]), "train", 1)
data = train_dataset(Data(frames=2, stride=3, short_side=32, size=24), Augment(), records, clips=2, seed=7)
try:
    for step, batch in enumerate(loader(data, TrainBatches(8, 4, 7, 0, 10**6), 2)):
        print(step, flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(ucf)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, cwd=REPO,
    )  # fmt: skip
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
    """Processes of a session that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("train", [True, False])
def test_a_data_set_travels_to_processes_that_are_not_forked(ucf, train):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, Augment(), records, 2, 7) if train else eval_dataset(CFG, records, 2, "dense")
    sample = dataset[1, 3]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1, 3]["clips"], sample["clips"])


def test_a_system_that_cannot_fork_says_what_to_set(ucf, monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(UserError, match="set data.timeout_s=0"):
        train_dataset(CFG, Augment(), ucf101(ucf, "train", 1)[0], 2, 7)


def test_records_are_kept_as_one_array(ucf):
    """A list of objects would be copied, page by page, into every worker (PyTorch's issue 13246)."""
    records, _ = ucf101(ucf, "train", 1)
    kept = train_dataset(CFG, Augment(), records * 1000, 2, 7).records
    assert [kept[i] for i in (0, 7, 4242, len(kept) - 1)] == [records[i % 8] for i in (0, 7, 4242, 7999)]
    held = [value for value in vars(kept).values() if not isinstance(value, np.ndarray)]
    assert len(kept) == 8000 and held == []
    with pytest.raises(IndexError):
        kept[8000]


def test_a_place_is_found_even_where_most_videos_are_bad(tmp_path):
    good = counting_video(tmp_path / "good.avi", 12)
    records = [Record(str(i), str(good if i in (3, 41) else tmp_path / f"{i}.avi"), i) for i in range(80)]
    dataset = ClipDataset(records, ClipSpec(2, 2), random_clips, AugmentSpec(size=16), replace=True)
    for index in range(80):
        sample = dataset[1, index]
        assert sample["label"] in (3, 41) and (not sample["replaced"]) == (index in (3, 41))
        assert len({failure.index for failure in sample["replaced"]}) == len(sample["replaced"])  # none is tried twice


def test_a_reader_ends_with_its_data_set(ucf):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, Augment(), records, 2, 7)
    assert dataset[0, 0]
    pid = dataset._reader[1].pid
    os.kill(pid, 0)
    del dataset  # at once, not when cycles are collected
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

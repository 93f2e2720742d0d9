"""Batches on their way from loader processes, and systems with little shared memory."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers import REPO, same_batch
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.corruptions import expand
from vidrobust.data import (
    TrainBatches,
    batch_loader,
    corrupted_loader,
    corrupted_videos,
    train_dataset,
    ucf101,
)
from vidrobust.data.batch_slots import BatchSlots, InSlot
from vidrobust.data.loader import worker_deaths
from vidrobust.data.records import Record
from vidrobust.views import make_views, to_float

CFG = DataConfig(frames=2, stride=3, short_side=32, size=24, workers=1)


def _dataset(ucf):
    records, _ = ucf101(ucf, "train", 1)
    return train_dataset(CFG, AugmentConfig(), records, 2, 7)


def _loader(dataset, stop, workers=1):
    return batch_loader(dataset, TrainBatches(8, 4, 7, 0, stop), workers)


def test_batches_that_are_kept_stay_as_they_were(ucf):
    """Four lie in slots; the others travel through a pipe, for want of a free slot."""
    dataset = _dataset(ucf)
    kept = list(_loader(dataset, 12))
    assert len({batch.clips.data_ptr() for batch in kept}) == 12
    assert all(same_batch(a, b) for a, b in zip(kept, _loader(dataset, 12, workers=0), strict=True))


def test_slots_are_used_again_once_nothing_shows_their_clips(ucf):
    dataset = _dataset(ucf)
    expected = [batch.clips.clone() for batch in _loader(dataset, 16, workers=0)]
    places, shown = [], None
    for step, batch in enumerate(_loader(dataset, 16)):
        places.append(batch.clips.data_ptr())
        assert torch.equal(batch.clips, expected[step])
        if step == 3:
            shown = batch.clips[2, 1]  # a part keeps the whole slot
        assert shown is None or torch.equal(shown, expected[3][2, 1])
    assert len(set(places)) <= 4 and places.count(places[3]) - places[:3].count(places[3]) == 1


def test_a_process_that_is_forked_later_frees_no_slot():
    slots = BatchSlots(1, 100, 10)
    slot = slots.take(0, 100)
    slot.bytes[:6] = 7
    clips = slots.tensor(InSlot(slot.number, (2, 3)))
    pid = os.fork()
    if not pid:
        del clips
        os._exit(0)
    os.waitpid(pid, 0)
    others = [slots.take(0, 50) for _ in range(3)]
    assert slots.take(0, 1) is None and slots.take(0, 5000) is None and (clips == 7).all()
    del clips
    assert slots.take(0, 100).number == slot.number
    assert len({slot.start, *(other.start for other in others)}) == 4


def test_a_slot_is_free_when_all_of_its_tensors_are_gone():
    slots = BatchSlots(1, 4000, 10)
    slot = slots.take(0, 4000)
    slot.bytes[:7] = np.arange(7)
    place = slots.add(slot, np.arange(12, dtype=np.float32).reshape(3, 4), used=7)
    clips, views = slots.tensor(InSlot(slot.number, (7,))), slots.tensor(place)
    assert views.dtype == torch.float32 and views.data_ptr() % 64 == 0
    assert torch.equal(views, torch.arange(12.0).view(3, 4)) and clips.tolist() == [*range(7)]
    assert [slots.take(0, 1) is None for _ in range(4)] == [False] * 3 + [True]
    del clips
    assert slots.take(0, 1) is None and views[2, 3] == 11
    del views
    assert slots.take(0, 1).number == slot.number


@pytest.mark.parametrize("timeout_s", [0, 60])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_bring_their_views(ucf, tmp_path, workers, timeout_s):
    """Those of step 2 have fewer videos, as one does not decode, and those of step 3 have none."""
    good, _ = ucf101(ucf, "train", 1)
    bad = [Record(str(i), str(tmp_path / f"{i}.avi"), 0) for i in range(3)]
    cfg = replace(CFG, timeout_s=timeout_s)
    options = {"solarize": 0.5, "motion": 0.5}
    dataset = train_dataset(cfg, AugmentConfig(**options), [*bad, *good], 2, 7, views=True)
    dataset.replace = False
    keys = [[(epoch, i) for i in range(3, 6)] for epoch in range(6)]
    keys[2][1] = (0, 0)
    keys[3] = [(0, 0), (0, 1)]
    batches = list(batch_loader(dataset, keys, workers))
    if workers:  # the first batches, which are kept, are in slots; both tensors of each
        first = batches[0]
        assert 0 < first.views.data_ptr() - first.clips.data_ptr() < dataset.batch_bytes(3)
    assert [len(batch.clips) for batch in batches] == [3, 3, 2, 0, 3, 3]
    assert batches[3].views is None
    for batch in batches[:3] + batches[4:]:
        assert torch.equal(batch.views, make_views(batch.clips, batch.draws))
        assert not torch.equal(batch.views, to_float(batch.clips))
        assert batch.views.dtype == torch.float32


def test_views_are_right_where_slots_are_used_again(ucf):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, AugmentConfig(), records, 2, 7, views=True)
    keys = [[(epoch, i) for i in range(3)] for epoch in range(12)]
    places = set()
    for batch in batch_loader(dataset, keys, 1):
        assert torch.equal(batch.views, make_views(batch.clips, batch.draws))
        places.add(batch.views.data_ptr())
    assert len(places) <= 4


def test_workers_do_not_take_each_others_slots():
    slots = BatchSlots(3, 5000, 10)
    taken = [slots.take(worker, 5000) for worker in (2, 0, 1) for _ in range(4)]
    for value, slot in enumerate(taken):
        slot.bytes[:] = value
    for worker in range(3):
        start = slots.spare(worker)
        assert (slots.memory.bytes[start : start + 10] == 0).all()
    assert all((slot.bytes == value).all() for value, slot in enumerate(taken))


def test_a_batch_of_failures_takes_no_slot(tmp_path, ucf):
    good, _ = ucf101(ucf, "train", 1)
    bad = [Record(str(i), str(tmp_path / f"{i}.avi"), 0) for i in range(7)]
    dataset = train_dataset(CFG, AugmentConfig(), [*bad, good[0]], 2, 7)
    dataset.replace = False
    batches = list(batch_loader(dataset, [[(0, i)] for i in range(8)], 1))
    assert [len(batch.failed) for batch in batches] == [1] * 7 + [0]
    assert batches[0].clips.shape[0] == 0 and batches[7].clips.shape[0] == 1


def test_corrupted_clips_come_as_tensors(ucf):
    records, _ = ucf101(ucf, "test", 1)
    dataset = corrupted_videos(CFG, records, 1, "uniform", "view", 0)
    dataset.work = [(0, [("clean", 0), *((name, 3) for name in expand(["contrast", "fog"]))])] * 3
    results = [list(corrupted_loader(dataset, workers)) for workers in (0, 1)]
    for one, other in zip(*results, strict=True):
        assert len(one.clips) == 3
        assert all(torch.equal(a, b) for a, b in zip(one.clips, other.clips, strict=True))


def test_an_exception_in_a_worker_is_not_reported_as_a_death(ucf):
    with pytest.raises(RuntimeError, match="a bug"), worker_deaths(_dataset(ucf)):
        raise RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: a bug"
        )


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import TrainBatches, batch_loader, train_dataset, ucf101
from vidrobust.utils.logging import start_logging
start_logging(None)
records, _ = ucf101(Path(sys.argv[1]), "train", 1)
cfg = DataConfig(frames=16, stride=1, short_side=112, size=112)
data = train_dataset(cfg, AugmentConfig(), records, clips=2, seed=7)
print(sum(len(batch.uids) for batch in batch_loader(data, TrainBatches(8, 8, 7, 0, 8), 2)))
"""


def test_a_run_needs_no_shared_memory_of_the_system(ucf):
    """A mount namespace gives as much as `docker run --shm-size=1m` does."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("this system permits no mount")
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    command = [unshare, "-m", "sh", "-c", script, "sh", sys.executable, "-c", SCRIPT, str(ucf)]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0 and done.stdout == "64\n" and not done.stderr, done.stderr

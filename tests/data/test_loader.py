"""Loader processes with little shared memory, such as the 64 MB of Docker."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

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
from vidrobust.data import loader as workers
from vidrobust.data.loader import worker_deaths
from vidrobust.utils.errors import UserError

CFG = DataConfig(frames=2, stride=3, short_side=32, size=24, workers=1)


def _dataset(ucf):
    records, _ = ucf101(ucf, "train", 1)
    return train_dataset(CFG, AugmentConfig(), records, 2, 7)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=30_000))
    warnings = []
    monkeypatch.setattr(workers.log, "warning", warnings.append)
    return warnings


def test_batches_travel_through_pipes_where_shared_memory_is_short(ucf, short, monkeypatch):
    dataset = _dataset(ucf)
    through_pipes = list(batch_loader(dataset, TrainBatches(8, 4, 7, 0, 6), 1))
    (warning,) = short
    assert "/dev/shm has 0 MB free" in warning and "docker run --shm-size=8g" in warning
    monkeypatch.undo()
    shared = list(batch_loader(dataset, TrainBatches(8, 4, 7, 0, 6), 1))
    assert len(shared) == len(through_pipes) == 6
    assert all(same_batch(a, b) for a, b in zip(through_pipes, shared, strict=True))
    assert through_pipes[0].clips.dtype == torch.uint8 and not through_pipes[0].clips.is_shared()


def test_corrupted_clips_travel_through_pipes_as_well(ucf, short):
    records, _ = ucf101(ucf, "test", 1)
    dataset = corrupted_videos(CFG, records, 1, "uniform", "view", 0)
    dataset.work = [(0, [("clean", 0), *((name, 3) for name in expand(["contrast", "fog"]))])] * 3
    through_pipes = list(corrupted_loader(dataset, 1))
    assert len(short) == 1 and len(through_pipes) == 3
    assert all(isinstance(clip, torch.Tensor) for result in through_pipes for clip in result.clips)


def test_enough_shared_memory_is_used_without_a_warning(ucf, monkeypatch):
    warnings = []
    monkeypatch.setattr(workers.log, "warning", warnings.append)
    assert (
        not batch_loader(_dataset(ucf), TrainBatches(8, 4, 7, 0, 6), 2).through_pipes
        and not warnings
    )


def test_the_need_for_shared_memory_counts_all_ranks_of_a_machine(ucf, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000))
    dataset, batches = _dataset(ucf), TrainBatches(8, 4, 7, 0, 6)
    assert not batch_loader(dataset, batches, 1).through_pipes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert batch_loader(dataset, batches, 1).through_pipes


@pytest.mark.parametrize(
    "message",
    [
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        "last):\n  ...\n"
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: No space left on "
        "device (28)",
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ],
    ids=["refused", "bus error"],
)
def test_full_shared_memory_is_reported_with_the_remedy(ucf, message):
    dataset = _dataset(ucf)
    with (
        pytest.raises(UserError, match="memory /dev/shm is full .*--shm-size=8g") as error,
        worker_deaths(dataset),
    ):
        raise RuntimeError(message)
    assert "\n" not in str(error.value) and "memory short" not in str(error.value)


def test_an_exception_in_a_worker_is_not_reported_as_a_death(ucf):
    with pytest.raises(RuntimeError, match="a bug"), worker_deaths(_dataset(ucf)):
        raise RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: a bug"
        )


SCRIPT = """
import sys
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


def test_a_run_survives_64_mb_of_shared_memory(ucf):
    """A mount namespace gives as much as `docker run` does."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("this system permits no mount")
    script = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
    command = [unshare, "-m", "sh", "-c", script, "sh", sys.executable, "-c", SCRIPT, str(ucf)]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0 and done.stdout == "64\n", done.stderr
    assert done.stderr.count("shared memory /dev/shm has 16 MB free") == 1

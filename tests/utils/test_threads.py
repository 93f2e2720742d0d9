import os
import socket

import pytest
import torch

from vidrobust.utils import distributed, threads
from vidrobust.utils.threads import available_cores, loads_seldom, use_threads


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000"}, 6),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "900000 100000"}, 6),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "?"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
    ],
)
def test_cores_are_those_of_the_mask_and_of_the_quota(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3, 9)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("cores", "workers", "ranks", "expected"),
    [(2, 1, 1, 1), (2, 0, 1, 2), (2, 2, 1, 1), (16, 2, 1, 14), (16, 2, 4, 2)],
)
def test_a_core_is_left_to_each_loading_process(monkeypatch, cores, workers, ranks, expected):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    use_threads(workers, ranks=ranks)
    assert chosen == [expected]


def test_the_users_number_of_threads_is_kept(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert use_threads(1) == torch.get_num_threads() and not chosen


@pytest.mark.parametrize(
    ("flops", "videos", "frames", "seldom"),
    [
        # R(2+1)D-18, four videos of two clips of 16 x 112 x 112: 20 s of a core, 0.1 s of loading
        (3 * 8 * 41e9, 4, 16, True),
        (3 * 512 * 1e9, 256, 1, True),  # ResNet-18 at 32 px, batch 256
        (3 * 512 * 0.02e9, 256, 1, False),  # the same of width 8
        (3 * 64 * 0.01e9, 32, 4, False),  # the demo
        (0, 4, 16, False),  # a network whose operations are not counted
    ],
)
def test_large_networks_need_no_core_for_loading(flops, videos, frames, seldom):
    assert loads_seldom(flops, videos, frames) == seldom


def test_seldom_loading_leaves_all_cores_to_torch(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    set_to = []
    monkeypatch.setattr(threads.torch, "set_num_threads", set_to.append)
    use_threads(3)
    use_threads(3, seldom=True)
    assert set_to == [1, 4]


def test_ranks_bound_to_cores_of_their_own_do_not_share_them(monkeypatch):
    """Slurm binds ranks to cores; those of torchrun have the launcher's mask."""
    masks = {0: {0, 1}, 10: {0, 1}, 11: {2, 3}, 12: {1, 2}}

    def mask(pid):
        if pid not in masks:
            raise ProcessLookupError
        return masks[pid]

    monkeypatch.setattr(os, "sched_getaffinity", mask)
    host = socket.gethostname()
    for processes, expected in (
        ([], 1),
        ([(host, 10), (host, 11)], 1),
        ([(host, 10), (host, 11), (host, 12), ("elsewhere", 10)], 2),
        ([(host, 10), (host, 99)], 2),  # one that has just ended counts
    ):
        monkeypatch.setattr(distributed._ranks, "processes", processes)
        assert distributed.ranks_on_these_cores() == expected

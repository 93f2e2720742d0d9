"""Choose how many threads torch computes with."""

import math
import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_VERSION_1 = ("quota", "period")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Return how many cores this process may use, at least 1.

    A job on a shared machine has fewer than the machine: its affinity mask names them, and a
    container has a quota of time.

    Args:
        cgroup: folder of the control group.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS
        cores = os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Return the cores that a control group may use, of either version; None for no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limits = [int((cgroup / f"cpu/cpu.cfs_{name}_us").read_text()) for name in _VERSION_1]
    except (OSError, ValueError):
        return None
    return limits[0] / limits[1] if min(limits) > 0 else None


def use_threads(workers: int) -> int:
    """Leave a core to each loading process, and return how many threads torch computes with.

    Threads wait for each other, so that two threads and a loading process on two cores are slower
    than one thread. What OMP_NUM_THREADS says is kept.

    Args:
        workers: loading processes of this rank.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, available_cores() // ranks - workers))
    return torch.get_num_threads()

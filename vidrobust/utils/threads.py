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


# Rough costs on a core, which only have to separate small networks from large ones.
_FLOPS_PER_S = 50e9
_VIDEO_S = 0.02
_IMAGE_S = 0.001
_SELDOM = 0.1


def loads_seldom(flops: float, videos: int, frames: int) -> bool:
    """Return whether loading takes so little of a step that it needs no core of its own.

    It is decided by arithmetic rather than by a measurement, because the number of threads decides
    the rounding of a run.

    Args:
        flops: floating-point operations of a step of this rank.
        videos: of the step.
        frames: of a clip; 1: the videos are images.
    """
    loading = videos * (_IMAGE_S if frames == 1 else _VIDEO_S)
    return loading < _SELDOM * flops / _FLOPS_PER_S


def use_threads(workers: int, *, ranks: int = 1, seldom: bool = False) -> int:
    """Leave a core to each loading process, and return how many threads torch computes with.

    Threads wait for each other, so that two threads and a busy loading process on two cores are
    slower than one thread. What OMP_NUM_THREADS says is kept.

    Args:
        workers: loading processes of this rank.
        ranks: how many ranks share the cores of this process, this one included.
        seldom: they take little time of a step, so that torch computes with all cores.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        left = 0 if seldom else workers
        torch.set_num_threads(max(1, available_cores() // ranks - left))
    return torch.get_num_threads()

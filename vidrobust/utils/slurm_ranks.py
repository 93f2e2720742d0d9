"""Read the number of a rank from Slurm, for processes that srun started without torchrun.

This file imports only the standard library, because tools use it before they import torch.
"""

import os
import re
import zlib
from collections.abc import MutableMapping

# Slurm gives numbers from here on to the steps of shells: batch scripts, interactive ones
_FIRST_SHELL_STEP = 4_294_967_280
_PORTS = range(10_000, 30_000)  # below the ports that Linux gives to clients
# a launcher, or the user, has set one of these
_SET_BY_OTHERS = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")


def adopt_slurm_ranks(env: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for a task of srun.

    Nothing is set for a step of one task, in the shell of sbatch or salloc, and if RANK or
    WORLD_SIZE is set: WORLD_SIZE=1 keeps the tasks of a step independent of each other.

    Args:
        env: environment, which is changed.
    """
    if any(name in env for name in _SET_BY_OTHERS):
        return
    # SLURM_STEP_NUM_TASKS is only set by srun; SLURM_NTASKS is also set in the shell of sbatch
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    numbers = [env.get(name, "") for name in (*names, "SLURM_LOCALID")]
    if not all(number.isdecimal() for number in numbers):
        return
    job, step, tasks, rank, local_rank = (int(number) for number in numbers)
    if tasks < 2 or rank >= tasks or step >= _FIRST_SHELL_STEP:
        return
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", "")
    # task 0 runs on the first node; srun itself may run elsewhere (SLURM_LAUNCH_NODE_IPADDR)
    address = first_node(nodes) if env.get("SLURM_STEP_NUM_NODES") != "1" else "127.0.0.1"
    env.setdefault("MASTER_ADDR", address or env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    env.setdefault("MASTER_PORT", str(port_of(f"{job}.{step}")))
    env["RANK"] = str(rank)
    env["LOCAL_RANK"] = str(local_rank)
    env["WORLD_SIZE"] = str(tasks)


def port_of(name: str) -> int:
    """Return the port at which the ranks of a job meet.

    Args:
        name: of the job, or of its step; others have other ports, but for rare collisions.
    """
    return _PORTS[zlib.crc32(name.encode()) % len(_PORTS)]


def started_by_srun() -> bool:
    """Return whether this process has its rank from Slurm, not from torchrun."""
    return "SLURM_STEP_NUM_TASKS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ


def first_node(nodes: str) -> str:
    """Return the first host of a list of Slurm, such as "gpu[07-09,12],cpu1"; "" for none.

    Args:
        nodes: the list, as in SLURM_STEP_NODELIST.
    """
    match = re.match(r"([^,\[]*)(?:\[([^\]]*)\])?([^,\[]*)", nodes.strip())
    assert match is not None  # every part may be empty
    prefix, numbers, suffix = match.groups()
    first_number = re.split("[,-]", numbers)[0] if numbers else ""
    return f"{prefix}{first_number}{suffix}"

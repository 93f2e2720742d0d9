"""Process groups and collectives, which do nothing in a single process."""

import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, report
from vidrobust.utils.peer_watch import (
    DIED,
    FAILED,
    HUNG,
    LEFT,
    STOPPED,
    PeerWatch,
    silence_limit_s,
)
from vidrobust.utils.phases import phase
from vidrobust.utils.rank_store import (
    answer,
    claim,
    launch_name,
    launcher_holds_store,
    linger,
    meet,
    open_store,
    own_part,
    store_before_meeting,
    wait_for_all,
)
from vidrobust.utils.slurm_ranks import adopt_slurm_ranks, started_by_srun
from vidrobust.utils.start_watch import (
    end_start_watch,
    first_to_tell_early,
    rank_ended_early,
    reason_of_early_end,
)
from vidrobust.utils.stopping import EXIT_STOPPED, end_with_parent
from vidrobust.utils.text import visible

HOW_TO_CONTINUE = (
    "files written so far are kept; run the same command again to continue, train_net with --resume"
)
_MOST_RANKS = 1_000_000
_CAUSE_WAIT_S = 3.0  # seconds to wait until a rank that has ended reports why


def start(device: str) -> torch.device:
    """Join the process group if this process is one of several ranks.

    torchrun, Slurm's srun or the user has then set RANK and WORLD_SIZE, or Slurm's own variables.
    The backend is NCCL on CUDA devices, and gloo on all others.

    Args:
        device: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps.

    Returns:
        The device of this rank.

    Raises:
        UserError: for a device that this machine does not have, and if the ranks do not meet.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _require(device)
    adopt_slurm_ranks()
    is_rank = "RANK" in os.environ or os.environ.get("WORLD_SIZE", "1") != "1"
    if is_rank and not dist.is_initialized():
        _require_variables(device)
        if device == "cuda":
            device = f"cuda:{_local_gpu()}"
            torch.cuda.set_device(device)
        _join(backend="nccl" if device.startswith("cuda") else "gloo")
    return torch.device(device)


def _require_variables(device: str) -> None:
    """Raise UserError if the variables of a rank are incomplete, or not numbers that fit."""
    names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    if device == "cuda":
        names.append("LOCAL_RANK")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        one = "RANK" if "RANK" in os.environ else "WORLD_SIZE"
        raise UserError(
            f"{one}={visible(os.environ[one])}, but {', '.join(missing)} not set: set"
            f" {', '.join(names)} on each rank, or none of them in a single process"
        )
    count = _variable("WORLD_SIZE", 1, _MOST_RANKS)
    _variable("RANK", 0, count - 1)
    _variable("MASTER_PORT", 1, 65_535)
    if device == "cuda":
        _variable("LOCAL_RANK", 0, count - 1)


def _variable(name: str, first: int, last: int) -> int:
    """Return a variable of the environment that must be a whole number in a range."""
    text = os.environ[name]
    if not text.isdecimal() or not first <= int(text) <= last:
        raise UserError(f"{name}={visible(text)}: must be a whole number from {first} to {last}")
    return int(text)


def _local_gpu() -> int:
    number = int(os.environ["LOCAL_RANK"])
    # Slurm's --gpus-per-task shows each rank its own GPU only
    return 0 if started_by_srun() and torch.cuda.device_count() == 1 else number


def _join(backend: str) -> None:
    """Join the process group, and exchange the process ids of all ranks."""
    timeout = timedelta(minutes=30)
    limit_s = silence_limit_s()
    _ranks.server, reports, number, count = open_store()
    _ranks.launch = launch_name(reports)
    # another try has left the addresses of its ranks in the whole store
    store = own_part(_ranks.server)
    _ranks.store = own_part(reports)
    meet(store, count)
    _start_watch(store, number, count, limit_s)  # before anything that waits for others
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    store.set(f"process {number}", f"{socket.gethostname()} {os.getpid()}")
    _gloo()  # created by all ranks together, so here
    # Read all now: without torchrun the store belongs to rank 0, and ends with it.
    entries = [store.get(f"process {other}").decode().split(" ") for other in range(count)]
    _ranks.processes = [(host, int(pid)) for host, pid in entries]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)  # as in cli/entry.py, for ranks of other programs
    unwatched = merged({number: _ranks.unwatched} if _ranks.unwatched else {})
    if unwatched and number == 0:
        log.warning(
            f"rank {', '.join(map(str, sorted(unwatched)))} cannot reach rank 0 directly"
            f" ({next(iter(unwatched.values()))}): a rank that hangs is noticed after 30 minutes"
        )


def _start_watch(store: Any, number: int, count: int, limit_s: float) -> None:
    """Let this rank and the others notice if one of them dies or hangs.

    Args:
        store: what `own_part` returns.
        number: of this rank.
        count: number of ranks.
        limit_s: see `PeerWatch`.
    """
    if count == 1:
        return
    watch = PeerWatch(number, limit_s, report_lost_rank)
    if number == 0:
        store.set("watch", watch.listen())
    wait_for_all(store, count, "invited")  # get() would wait for a rank 0 that has ended
    if number > 0:
        invitation = store.get("watch").decode()
        _ranks.unwatched = watch.connect(invitation, os.environ["MASTER_ADDR"])
    _ranks.watch = watch
    # a rank that ended before would let the others wait for half an hour in what follows
    wait_for_all(store, count, "watched")
    end_start_watch()


def _require(device: str) -> None:
    """Raise UserError for a missing device, before anything is built for it."""
    kind, _, number = device.partition(":")
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in counts or not (number or "0").isdigit():
        raise UserError(f"device={device}: choose auto, cpu, cuda, cuda:1 or mps")
    if int(number or 0) >= counts[kind]:
        raise UserError(
            f"device={device}: this machine has {counts[kind]} {kind} devices; set device=auto"
            " or cpu"
        )


def stop(status: int = 0) -> None:
    """Leave the process group, and record that this rank was not killed.

    Args:
        status: exit status of this process; the other ranks end too unless it is 0.
    """
    watch = _ranks.watch
    if watch is not None:
        watch.say({0: LEFT, EXIT_STOPPED: STOPPED}.get(status, FAILED), status)
    if dist.is_initialized():
        if watch is not None and status == 0:
            watch.wait_for_others()
            if watch.lost:
                report_lost_rank()
        with suppress(RuntimeError, ValueError, TimeoutError):
            # the store may have ended with its process, or is suspended
            answer(_record_leaving)
        _patient.clear()
        dist.destroy_process_group()
    elif (
        _ranks.early_store is not None and os.environ["RANK"] == "0" and not launcher_holds_store()
    ):
        linger(_ranks.early_store)
    if watch is not None:
        watch.close()
        _ranks.watch = None


def _record_leaving() -> None:
    store = _living_store()
    if store is None:
        return
    store.set(f"left {rank()}", "1")
    # if the store is rank 0's, rank 0 waits for the others, which still read it
    if rank() == 0 and not launcher_holds_store():
        left = [f"left {number}" for number in range(world())]
        deadline = time.monotonic() + _CAUSE_WAIT_S
        # not store.wait(), which prints warnings when its time is up
        while time.monotonic() < deadline and not store.check(left):
            time.sleep(0.05)


class _Ranks:
    """State that all ranks share.

    The store ends with the launcher. It ends with rank 0 if the launcher is not torchrun, or is the
    torchrun of torch 2.4.

    Attributes:
        store: key-value store that all ranks can reach, for reports; None before they have met.
        early_store: the same, of a rank that ends before they have met.
        server: another connection, which on rank 0 may serve the store until the process ends.
        processes: (host, process id) of each rank.
        launch: see `launch`.
        watch: notices ranks that die or hang; None in a single process.
        unwatched: why this rank has no connection to rank 0, or "".
    """

    store: Any = None
    early_store: Any = None
    server: Any = None
    processes: Sequence[tuple[str, int]] = ()
    launch: str = ""
    watch: PeerWatch | None = None
    unwatched: str = ""


_ranks = _Ranks()


def launch() -> str:
    """Return a name that all tries of a launch have in common, and no other launch.

    It is "" unless torchrun keeps a store, which outlives the ranks that it restarts.
    """
    return _ranks.launch


def first_to_tell(message: str) -> bool:
    """Return whether this rank should report why the run ends, so that only one does.

    The first rank that asks reports. If the ranks have no store any more, the lowest one reports.

    Args:
        message: the reason that this rank would report.
    """
    is_first = _claim(message)
    if is_first is None:
        is_first = not _is_lower_rank_alive()
    is_first = is_first and first_to_tell_early()
    if is_first and _ranks.watch is not None:
        _ranks.watch.tell()
    return is_first


def _claim(message: str) -> bool | None:
    """Return whether this rank is the first to report; None if there is no shared store."""
    if _ranks.watch is not None and _ranks.watch.told:
        return False
    with suppress(RuntimeError, ValueError, KeyError, TimeoutError):
        if _ranks.store is None:
            _ranks.early_store = _ranks.early_store or store_before_meeting()
        store = _ranks.early_store or _living_store()
        if store is not None:
            return claim(store, message)
    return None


def _living_store() -> Any:
    """Return the store; None if it ended with rank 0, where asking it prints warnings."""
    if _ranks.store is not None and _ranks.processes and not launcher_holds_store():
        host, pid = _ranks.processes[0]
        lost = _ranks.watch.lost if _ranks.watch is not None else {}
        if lost.get(0) in (HUNG, DIED) or (host == socket.gethostname() and not _is_alive(pid)):
            return None
    return _ranks.store


def main_ends() -> None:
    """Record that the main thread is ending this process, and needs some seconds more for it."""
    if _ranks.watch is not None:
        _ranks.watch.main_ends()


def ranks_on_these_cores() -> int:
    """Return how many ranks share the cores of this process, this rank included.

    Launchers differ: torchrun's ranks all have the affinity mask of the launcher, while Slurm may
    bind each rank to cores of its own. So masks are compared, not variables.
    """
    here = [pid for host, pid in _ranks.processes if host == socket.gethostname()]
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return max(1, len(here))
    cores = os.sched_getaffinity(0)
    count = 0
    for pid in here:
        theirs = cores
        with suppress(OSError):  # it has ended
            theirs = os.sched_getaffinity(pid)
        count += not cores.isdisjoint(theirs)
    return max(1, count)


def is_one_of_several() -> bool:
    """Return whether this process waits for other ranks, or works with them."""
    return world() > 1 or _ranks.store is not None


def is_rank_lost() -> bool:
    """Return whether another rank was killed, hangs, or has failed."""
    lost = _ranks.watch.lost if _ranks.watch is not None else {}
    return any(how != STOPPED for how in lost.values()) or bool(killed_ranks())


def report_lost_rank() -> None:
    """Report which rank was lost, unless another rank has."""
    reason = lost_rank()
    if reason and first_to_tell(reason):
        report(f"{reason}; {HOW_TO_CONTINUE}")


def _is_lower_rank_alive() -> bool:
    """Return whether a rank with a lower number has not ended: one on this machine, or rank 0."""
    watch = _ranks.watch
    if watch is None:
        return False
    number = int(os.environ.get("RANK", 0))
    # a rank that stops or has failed still reports, unless it has let this one know that it did
    gone = watch.left | {other for other, how in watch.lost.items() if how in (HUNG, DIED)}
    for other, (host, pid) in enumerate(_ranks.processes[:number]):
        here = host == socket.gethostname()
        lives = _is_alive(pid) if here else other == 0 and not _ranks.unwatched
        if lives and other not in gone:
            return True
    return False


def lost_rank() -> str:
    """Wait for the reason why other ranks have ended, and return it.

    A rank on this machine was killed if its process is gone and it has not left the group.

    Returns:
        The reason; "" if another rank has reported one.
    """
    deadline = time.monotonic() + _CAUSE_WAIT_S
    while time.monotonic() < deadline:
        reason = _hanging_ranks()
        if reason:
            return reason
        if _is_recorded("cause"):
            return ""
        killed = killed_ranks()
        if killed:
            return f"{' and '.join(killed)} was killed, by a person, a scheduler or for memory"
        ended_early = rank_ended_early()
        if ended_early:
            return reason_of_early_end(ended_early)
        if _this_rank_hung():
            return ""
        time.sleep(0.1)
    died = _lost(DIED)
    if died:
        return f"{' and '.join(died)} was killed, or its machine is gone"
    stopped = _lost(STOPPED)
    if stopped:
        return f"{' and '.join(stopped)} was stopped"
    return "another rank has ended, or its machine cannot be reached"


def _hanging_ranks() -> str:
    hung = _lost(HUNG)
    if not hung:
        return ""
    return (
        f"{' and '.join(hung)} has not answered for {silence_limit_s():.0f} s (stopped, swapped"
        " out, or its machine is gone)"
    )


def _this_rank_hung() -> bool:
    """Return whether the other ranks have ended because they heard nothing of this one."""
    watch = _ranks.watch
    return watch is not None and watch.lost.get(watch.rank) == HUNG


def _lost(how: str) -> list[str]:
    """Return other ranks that were lost in some way, with their process and machine."""
    watch = _ranks.watch
    if watch is None:
        return []
    identities = [
        watch.identities[number]
        for number, kind in sorted(watch.lost.items())
        if kind == how and number != watch.rank
    ]
    return [f"rank {each.rank} (process {each.pid} on {each.host})" for each in identities]


def killed_ranks() -> list[str]:
    """Return the ranks on this machine that have ended without leaving the group."""
    lost = _ranks.watch.lost if _ranks.watch is not None else {}
    killed = []
    for number, (host, pid) in enumerate(_ranks.processes):
        is_dead = host == socket.gethostname() and not _is_alive(pid)
        if is_dead and lost.get(number) != HUNG and not _has_left(number):
            killed.append(f"rank {number} (process {pid})")
    return killed


def _has_left(number: int) -> bool:
    """Return whether a rank has recorded that it left the group.

    The record may be lost with the store, but only if rank 0 was killed.
    """
    if _ranks.watch is not None and number in _ranks.watch.left:
        return True
    return _is_recorded(f"left {number}")


def _is_recorded(key: str) -> bool:
    """Return whether the store has a key; False if the store does not answer."""
    with suppress(RuntimeError, ValueError, TimeoutError):
        store = _living_store()
        return store is not None and answer(lambda: store.check([key]))
    return False


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        # a process that its parent has not waited for is a zombie (Z) or dead (X), not alive
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def rank() -> int:
    """Return the number of this rank; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of ranks; 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks, for at most the timeout of the process group."""
    if world() > 1:
        dist.barrier()


@contextmanager
def together() -> Iterator[None]:
    """Make all ranks leave the block together: an exception in one of them is raised in all."""
    refusal: Exception | None = None
    try:
        yield
    except Exception as error:
        if world() == 1:
            raise
        refusal = error
    if world() > 1:
        _share(refusal)


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 run the block before all other ranks, so that they can read what it writes.

    An exception of rank 0 is raised in the others too, without running the block. An exception of
    any other rank is then raised in all.
    """
    if world() == 1:
        yield
        return
    if rank() > 0:
        _share(None)  # waits for rank 0
    refusal: Exception | None = None
    try:
        yield
    except Exception as error:
        refusal = error
    if rank() == 0:
        _share(refusal)
        refusal = None
    _share(refusal)


def _share(refusal: Exception | None) -> None:
    """Wait for all ranks, then raise this rank's exception, or another rank's as a UserError."""
    refusals: list[str | None] = [None] * world()
    if isinstance(refusal, UserError):
        refusal.args = (_with_host(str(refusal)),)  # its type stays
    dist.all_gather_object(
        refusals, None if refusal is None else str(refusal) or repr(refusal), group=_gloo()
    )
    if refusal is not None:
        raise refusal
    for text in refusals:
        if text is not None:
            raise UserError(text)


def _with_host(message: str) -> str:
    """Return a message with the name of this machine, if the ranks run on several."""
    if len({host for host, _ in _ranks.processes}) <= 1:
        return message
    return f"{message} (rank {rank()}, on {socket.gethostname()})"


_patient: list[Any] = []  # the group of `_gloo`, once it is created


def patient_barrier() -> None:
    """Wait for all ranks, for up to a month.

    For work such as attacks, whose duration can differ between ranks by hours.
    """
    if world() > 1:
        dist.barrier(_gloo())


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, on any device, by those of rank 0."""
    if world() > 1:
        for tensor in tensors:
            on_cpu = tensor.detach().cpu()  # gloo's device, which every tensor can reach
            dist.broadcast(on_cpu, 0, _gloo())
            tensor.data.copy_(on_cpu)


def _gloo() -> Any:
    """Return a gloo group of all ranks, for any device; the first call is made by all together."""
    if not _patient:
        _patient.append(dist.new_group(backend="gloo", timeout=timedelta(days=30)))
    return _patient[0]


def here(rows: int) -> slice:
    """Return the slice of this rank's rows in the result of `gather`.

    Args:
        rows: number of rows per rank, which must be the same on all.
    """
    return slice(rank() * rows, (rank() + 1) * rows)


def gather(x: Tensor) -> Tensor:
    """Return the rows (N, ...) of all ranks as (world * N, ...), in order of rank.

    Gradients flow back to the rows of each rank, summed over the losses of all ranks.
    DistributedDataParallel then averages over ranks. A training step is therefore the same as in
    one process with the whole batch.
    """
    return _Gather.apply(x) if world() > 1 else x


class _Gather(torch.autograd.Function):
    """Differentiable all_gather, from all_gather and all_reduce only.

    torch's own differentiable all_gather is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        with phase("communication"):
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        with phase("communication"):
            dist.all_reduce(gradient)
        return gradient.chunk(world())[rank()]


def parallel(module: nn.Module, alike: Iterable[str] = (), skips: bool = False) -> nn.Module:
    """Wrap a module in DistributedDataParallel; return it unchanged in a single process.

    Args:
        module: the module.
        alike: prefixes of the names of buffers that are the same on all ranks anyway, such as a
            queue of gathered keys. Rank 0 does not send them before each forward pass.
        skips: whether some weights have no gradient in some steps.
    """
    if world() == 1:
        return module
    names = [name for name, _ in module.named_buffers() if name.startswith(tuple(alike))]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
    return DistributedDataParallel(module, find_unused_parameters=skips)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether a flag is set on any rank, so that all ranks stop at the same step.

    Args:
        flag: flag of this rank.
        device: device of the process group's tensors.
    """
    if world() == 1:
        return flag
    total = torch.tensor(float(flag), device=device)
    with phase("communication"):
        dist.all_reduce(total)
    return bool(total > 0)


def merged(items: dict[int, str]) -> dict[int, str]:
    """Return the items of all ranks in one dictionary."""
    if world() == 1:
        return items
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, items)
    result: dict[int, str] = {}
    for part in parts:
        result |= part
    return result


def gathered(item: Any) -> list[Any]:
    """Return the objects of all ranks, in order of rank, on every rank; wait for up to a month."""
    if world() == 1:
        return [item]
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, item, group=_gloo())
    return parts


def mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over ranks, without gradient."""
    if world() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world()

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
from vidrobust.utils.stopping import end_with_parent

_CAUSE_WAIT_S = 3.0  # seconds to wait until a rank that has ended reports why


def start(device: str) -> torch.device:
    """Join the process group if torchrun started this process.

    The backend is NCCL on CUDA devices, and gloo on all others.

    Args:
        device: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps.

    Returns:
        The device of this rank.

    Raises:
        UserError: for a device that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _require(device)
    if "RANK" in os.environ and not dist.is_initialized():
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        _join(backend="nccl" if device.startswith("cuda") else "gloo")
    return torch.device(device)


def _join(backend: str) -> None:
    """Join the process group, and exchange the process ids of all ranks."""
    timeout = timedelta(minutes=30)
    store, number, count = next(dist.rendezvous("env://", timeout=timeout))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    _ranks.store = dist.PrefixStore(_store_prefix(), store)
    _ranks.store.set(f"process {number}", f"{socket.gethostname()} {os.getpid()}")
    _gloo()  # created by all ranks together, so here
    # Read all now: without torchrun the store belongs to rank 0, and ends with it.
    entries = [_ranks.store.get(f"process {other}").decode().split(" ") for other in range(count)]
    _ranks.processes = [(host, int(pid)) for host, pid in entries]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)  # no rank outlives a launcher that was killed


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


def stop() -> None:
    """Leave the process group, and record that this rank was not killed."""
    if dist.is_initialized():
        with suppress(RuntimeError, ValueError):  # the store may have ended with its process
            _ranks.store.set(f"left {rank()}", "1")
            # if the store is rank 0's, rank 0 waits for the others, which still read it
            if rank() == 0 and not _launcher_holds_store():
                left = [f"left {number}" for number in range(world())]
                _ranks.store.wait(left, timedelta(seconds=_CAUSE_WAIT_S))
        _patient.clear()
        dist.destroy_process_group()


class _Ranks:
    """State that all ranks share.

    The store ends with the launcher. It ends with rank 0 if the launcher is not torchrun, or is the
    torchrun of torch 2.4.

    Attributes:
        store: key-value store that all ranks can reach; None before they have met.
        processes: (host, process id) of each rank.
    """

    store: Any = None
    processes: Sequence[tuple[str, int]] = ()


_ranks = _Ranks()


def _store_prefix() -> str:
    # torchrun restarts the ranks with the same store
    return f"vidrobust {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _launcher_holds_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def first_to_tell(message: str) -> bool:
    """Return whether this rank should report why the run ends, so that only one does.

    The first rank that asks reports. Without a shared store all ranks report: before they have met,
    and if the launcher has no store for them.

    Args:
        message: the reason that this rank would report.
    """
    store = _ranks.store
    with suppress(RuntimeError, ValueError, KeyError):
        if store is None and _launcher_holds_store():
            # the ranks have not met yet, for example because an option was refused
            address = os.environ["MASTER_ADDR"]
            port = int(os.environ["MASTER_PORT"])
            server = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
            store = dist.PrefixStore(_store_prefix(), server)
        if store is not None:
            mine = f"{os.environ.get('RANK', 0)} {os.getpid()} {message}"
            return bool(store.compare_set("cause", "", mine).decode(errors="replace") == mine)
    return True


def lost_rank() -> str:
    """Wait for the reason why other ranks have ended, and return it.

    A rank on this machine was killed if its process is gone and it has not left the group.

    Returns:
        The reason; "" if another rank has reported one.
    """
    deadline = time.monotonic() + _CAUSE_WAIT_S
    while time.monotonic() < deadline:
        with suppress(RuntimeError, ValueError):
            if _ranks.store.check(["cause"]):
                return ""
        killed = killed_ranks()
        if killed:
            return f"{' and '.join(killed)} was killed, by a person, a scheduler or for memory"
        time.sleep(0.1)
    return "another rank has ended, or its machine cannot be reached"


def killed_ranks() -> list[str]:
    """Return the ranks on this machine that have ended without leaving the group."""
    killed = []
    for number, (host, pid) in enumerate(_ranks.processes):
        if host == socket.gethostname() and not _is_alive(pid) and not _has_left(number):
            killed.append(f"rank {number} (process {pid})")
    return killed


def _has_left(number: int) -> bool:
    """Return whether a rank has recorded that it left the group.

    The record may be lost with the store, but only if rank 0 was killed.
    """
    with suppress(RuntimeError, ValueError):
        return bool(_ranks.store.check([f"left {number}"]))
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
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
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


def mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over ranks, without gradient."""
    if world() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world()

"""Collectives, which do nothing on a single process."""

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

_CAUSE_WAIT_S = 3.0  # how long the others wait for the words of a rank that has ended


def start(device: str) -> torch.device:
    """Join the process group that torchrun announces, if any; returns this rank's device.

    device: auto (a GPU where there is one), cpu, cuda, cuda:1, mps. NCCL on CUDA, gloo elsewhere.
    Raises UserError for a device that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _require(device)
    if "RANK" in os.environ and not dist.is_initialized():
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        backend, timeout = "nccl" if device.startswith("cuda") else "gloo", timedelta(minutes=30)
        store, number, count = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=timeout
        )
        _ranks.store = dist.PrefixStore(_store_prefix(), store)
        _ranks.store.set(f"process {number}", f"{socket.gethostname()} {os.getpid()}")
        _gloo()  # now that all ranks are at the same place
        # read now: a store that rank 0 holds, as without torchrun, ends with it
        found = [_ranks.store.get(f"process {rank}").decode().split(" ") for rank in range(count)]
        _ranks.processes = [(host, int(pid)) for host, pid in found]
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent(signal.SIGTERM)  # a launcher that is killed leaves no rank behind
    return torch.device(device)


def _require(device: str) -> None:
    """Refuse a device that is not there, before anything is built for it."""
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
    """Leave the process group. The others learn that this rank has ended by itself."""
    if dist.is_initialized():
        with suppress(RuntimeError, ValueError):  # the store may have ended with its process
            _ranks.store.set(f"left {rank()}", "1")
            if rank() == 0 and not _launcher_holds_store():
                left = [f"left {number}" for number in range(world())]
                _ranks.store.wait(left, timedelta(seconds=_CAUSE_WAIT_S))  # they still read it
        _patient.clear()
        dist.destroy_process_group()


class _Ranks:
    """The store that all ranks reach, and (host, process) of each rank.

    The store lives as long as the launcher, or as rank 0 where the launcher is not torchrun, or is
    that of torch 2.4.
    """

    store: Any = None
    processes: Sequence[tuple[str, int]] = ()


_ranks = _Ranks()


def _store_prefix() -> str:
    return f"vidrobust {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _launcher_holds_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def first_to_tell(message: str) -> bool:
    """Return whether this rank is to report why the run ends.

    One rank does, the first that asks. Ranks that have not met, and whose launcher has no store for
    them, all do.
    """
    store = _ranks.store
    with suppress(RuntimeError, ValueError, KeyError):
        if store is None and _launcher_holds_store():
            # a refusal before the ranks have met, of options for one
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            server = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
            store = dist.PrefixStore(_store_prefix(), server)
        if store is not None:
            mine = f"{os.environ.get('RANK', 0)} {os.getpid()} {message}"
            return bool(store.compare_set("cause", "", mine).decode(errors="replace") == mine)
    return True


def lost_rank() -> str:
    """Wait for why other ranks have ended, and return it; "" where another rank has reported it.

    A rank of this machine whose process is gone, and that has said nothing, was killed.
    """
    deadline = time.monotonic() + _CAUSE_WAIT_S
    while time.monotonic() < deadline:
        with suppress(RuntimeError, ValueError):
            if _ranks.store.check(["cause"]):
                return ""
        gone = killed_ranks()
        if gone:
            return f"{' and '.join(gone)} was killed, by a person, a scheduler or for memory"
        time.sleep(0.1)
    return "another rank has ended, or its machine cannot be reached"


def killed_ranks() -> list[str]:
    """Return the ranks of this machine that have ended without leaving the group."""
    found = []
    for number, (host, pid) in enumerate(_ranks.processes):
        if host == socket.gethostname() and not _is_alive(pid) and not _has_left(number):
            found.append(f"rank {number} (process {pid})")
    return found


def _has_left(number: int) -> bool:
    """Return whether a rank has said so; rank 0 takes the store along only when it is killed."""
    with suppress(RuntimeError, ValueError):
        return bool(_ranks.store.check([f"left {number}"]))
    return False


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if world() > 1:
        dist.barrier()


@contextmanager
def together() -> Iterator[None]:
    """Let all ranks leave the block together: what one of them refuses in it, all refuse."""
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
    """Rank 0 goes through the block before the others enter it: what it writes there, they find.

    What rank 0 refuses, the others refuse without entering; what one of them refuses, all do.
    """
    if world() == 1:
        yield
        return
    if rank() > 0:
        _share(None)
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
    """Wait for all ranks, then raise this rank's refusal, or that of another as a UserError."""
    refusals: list[str | None] = [None] * world()
    dist.all_gather_object(
        refusals, None if refusal is None else str(refusal) or repr(refusal), group=_gloo()
    )
    if refusal is not None:
        raise refusal
    for text in refusals:
        if text is not None:
            raise UserError(text)


_patient: list[Any] = []


def patient_barrier() -> None:
    """A barrier for work whose length differs between ranks by hours, as attacks' does: it waits
    for a month.
    """
    if world() > 1:
        dist.barrier(_gloo())


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors, which may lie on any device, with those of rank 0."""
    if world() > 1:
        for tensor in tensors:
            here = tensor.detach().cpu()  # NCCL takes no tensor of the CPU's
            dist.broadcast(here, 0, _gloo())
            tensor.data.copy_(here)


def _gloo() -> Any:
    """A group of all ranks on gloo, whatever the device is; made once, by all ranks together."""
    if not _patient:
        _patient.append(dist.new_group(backend="gloo", timeout=timedelta(days=30)))
    return _patient[0]


def here(rows: int) -> slice:
    """Where this rank's rows, of which each rank has as many, stand among those that `gather`
    gives.
    """
    return slice(rank() * rows, (rank() + 1) * rows)


def gather(x: Tensor) -> Tensor:
    """(N, ...) of each rank -> (world * N, ...) in order of rank, with the gradient of every rank's
    loss.

    The gradient of a rank's rows is the sum over the losses of all ranks; together with the mean
    over ranks that DistributedDataParallel takes, the step equals one process's on the whole batch.
    """
    return _Gather.apply(x) if world() > 1 else x


class _Gather(torch.autograd.Function):
    """torch's own differentiable all_gather is deprecated; this one needs no more than all_gather
    and all_reduce.
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
    """The module under DistributedDataParallel where there are several ranks, or as it is.

    alike: beginnings of the names of buffers that are the same on all ranks without its help, such
    as a queue of gathered keys; rank 0 need not send them before each forward pass. skips: some
    weights are in no loss of some steps.
    """
    if world() == 1:
        return module
    names = [name for name, _ in module.named_buffers() if name.startswith(tuple(alike))]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
    return DistributedDataParallel(module, find_unused_parameters=skips)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank: what one of them must stop for, all stop for, at the same
    step.
    """
    if world() == 1:
        return flag
    total = torch.tensor(float(flag), device=device)
    dist.all_reduce(total)
    return bool(total > 0)


def merged(items: dict[int, str]) -> dict[int, str]:
    """The items of all ranks in one dictionary."""
    if world() == 1:
        return items
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, items)
    return {key: value for part in parts for key, value in part.items()}


def mean(x: Tensor) -> Tensor:
    """The mean of a detached tensor over ranks."""
    if world() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world()

"""Every collective. Without torchrun's environment each of these is a no-op on one process."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidrobust.errors import UserError


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
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(minutes=30))
    return torch.device(device)


def _require(device: str) -> None:
    """Refuse a device that is not there, before anything is built for it."""
    kind, _, number = device.partition(":")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in counts or not (number or "0").isdigit():
        raise UserError(f"device={device}: choose auto, cpu, cuda, cuda:1 or mps")
    if int(number or 0) >= counts[kind]:
        raise UserError(f"device={device}: this machine has {counts[kind]} {kind} devices; set device=auto or cpu")


def stop() -> None:
    if dist.is_initialized():
        _patient.clear()
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if world() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the block before the others enter it: what it writes there, they find, and its UserError."""
    if rank() > 0:
        patient_barrier()
    try:
        yield
    except UserError:  # the others meet it as well, instead of waiting
        if rank() == 0:
            patient_barrier()
        raise
    if rank() == 0:
        patient_barrier()


_patient: list[Any] = []


def patient_barrier() -> None:
    """A barrier for work whose length differs between ranks by hours, as attacks' does: it waits for a month."""
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
    """Where this rank's rows, of which each rank has as many, stand among those that `gather` gives."""
    return slice(rank() * rows, (rank() + 1) * rows)


def gather(x: Tensor) -> Tensor:
    """(N, ...) of each rank -> (world * N, ...) in order of rank, with the gradient of every rank's loss.

    The gradient of a rank's rows is the sum over the losses of all ranks; together with the mean over ranks that
    DistributedDataParallel takes, the step equals one process's on the whole batch.
    """
    return _Gather.apply(x) if world() > 1 else x


class _Gather(torch.autograd.Function):
    """torch's own differentiable all_gather is deprecated; this one needs no more than all_gather and all_reduce."""

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

    alike: beginnings of the names of buffers that are the same on all ranks without its help, such as a queue of
    gathered keys; rank 0 need not send them before each forward pass. skips: some weights are in no loss of some steps.
    """
    if world() == 1:
        return module
    names = [name for name, _ in module.named_buffers() if name.startswith(tuple(alike))]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
    return DistributedDataParallel(module, find_unused_parameters=skips)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank: what one of them must stop for, all stop for, at the same step."""
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

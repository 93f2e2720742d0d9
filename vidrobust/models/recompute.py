"""Compute activations again in the backward pass, instead of keeping them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

# Attributes of modules on which a pass depends, and which change between passes of a step: the
# mode, whether statistics are updated, and the norm branch (`branch_norm`).
_STATE = ("training", "track_running_stats", "branch", "mixed")


def in_micro_batches(
    network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, size: int
) -> Tensor:
    """Return forward(x), computed for a few samples at a time.

    In the backward pass each part is computed again. With a loss of the whole batch this is
    GradCache (Gao et al. 2021): the gradient at the outputs is that of the whole batch, and the
    activations of one part are in memory. Batch norms have the statistics of a part each, as on
    several GPUs, and update their running statistics once for each part.

    Args:
        network: the module whose mode and norm branch `forward` depends on.
        forward: samples (n, ...) -> (n, D).
        x: samples (N, ...).
        size: samples at a time, at least 1.
    """
    return torch.cat([recomputed(network, forward, part) for part in x.split(size)])


def recomputed(network: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """Return forward(*inputs), and compute it again in the backward pass (Chen et al. 2016).

    Random numbers are the same again, and so are modes and norm branches, whatever they are by
    then. Running statistics are not updated a second time. Those that norms in evaluation mode use
    must not change before the backward pass, without recomputation as well as with it.

    Args:
        network: the module whose mode and norm branch `forward` depends on.
        forward: the computation.
        inputs: its arguments.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = nullcontext(), _AsBefore(network)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: contexts)


def recompute_blocks(blocks: list[nn.Module]) -> None:
    """Let modules compute their activations again in the backward pass, in place.

    Keys of the state dict stay as they are.

    Args:
        blocks: modules that are called one after the other, none of which contains another.
    """
    for block in blocks:
        block.forward = _Recomputed(block, block.forward)


class _Recomputed:
    """Replace the forward method of a module; a copy of the module has a copy of it."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        self.block = block
        self.forward = forward

    def __call__(self, *inputs: Any) -> Any:
        return recomputed(self.block, self.forward, *inputs)


class _AsBefore(AbstractContextManager[None]):
    """Put the modules of a network into the state of now, whenever it is entered."""

    def __init__(self, network: nn.Module) -> None:
        self.state = _state(network)
        self.network = network
        self.outside: list[tuple[nn.Module, str, Any]] = []
        self.statistics: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        self.outside = _state(self.network)
        for module, name, value in self.state:
            setattr(module, name, value)
        # norms update copies of their statistics, which are thrown away
        self.statistics = [
            (module, name, buffer)
            for module in self.network.modules()
            if isinstance(module, _BatchNorm) and module.training
            for name, buffer in module.named_buffers(recurse=False)
        ]
        for module, name, buffer in self.statistics:
            setattr(module, name, buffer.clone())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for module, name, value in (*self.outside, *self.statistics):
            setattr(module, name, value)


def _state(network: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return (module, attribute, value) of all that a pass depends on."""
    return [
        (module, name, getattr(module, name))
        for module in network.modules()
        for name in _STATE
        if hasattr(module, name)
    ]

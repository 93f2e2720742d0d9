"""Limit the clips that a model receives at a time to what memory holds."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidrobust.attacks import Predict, as_tensor
from vidrobust.utils.errors import UserError


class MicroBatches:
    """Run a model on at most `size` clips at a time, forward and backward.

    A batch that fits goes through as it is. A larger one is run in chunks without a graph, and
    again in chunks when its gradient is needed: one more forward pass, and the memory of one chunk.
    `size` is halved when memory runs out.
    """

    def __init__(self, predict: Predict, size: int) -> None:
        """Set the model, (B, 3, T, H, W) -> (B, K), and the largest batch."""
        self.predict = predict
        self.size = size

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs of x, with a gradient to x where it is needed.

        Raises:
            UserError: if memory does not hold one clip.
        """
        if x.requires_grad and torch.is_grad_enabled():
            return _Bounded.apply(x, self)
        return self.without_graph(x)

    @torch.no_grad()
    def without_graph(self, x: Tensor) -> Tensor:
        """Return the outputs of x, chunk by chunk."""
        return self.fitting(
            lambda: torch.cat([as_tensor(self.predict(part)) for part in x.split(self.size)])
        )

    def fitting(self, run: Callable[[], Tensor]) -> Tensor:
        """Return run(), repeated with a smaller size for as long as memory runs out."""
        while True:
            try:
                return run()
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not _is_memory(error):
                    raise
            # outside of the handler, whose traceback holds the tensors that are to be freed
            self.shrink()

    def shrink(self) -> None:
        """Halve the size, and free cached memory.

        Raises:
            UserError: if it is 1 already.
        """
        if self.size == 1:
            raise UserError(
                "memory does not hold one clip with its gradient; lower data.frames or data.size"
            )
        self.size = (self.size + 1) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Bounded(torch.autograd.Function):
    """Outputs of a batch of any size, whose backward pass may run in chunks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, owner: MicroBatches) -> Tensor:
        ctx.owner = owner
        ctx.x = x.detach()
        ctx.graph = None  # of a batch that fits
        if len(x) <= owner.size:
            try:
                with torch.enable_grad():
                    leaf = ctx.x.requires_grad_()
                    out = as_tensor(owner.predict(leaf))
                if out.requires_grad:
                    ctx.graph = leaf, out
                    return out.detach()
                # a model without a gradient: the attack that needs one reports it
                out = out.clone()
                ctx.mark_non_differentiable(out)
                return out
            except RuntimeError as error:
                if not _is_memory(error):
                    raise
            ctx.graph = None
            owner.shrink()
        return owner.without_graph(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.graph is not None:
            leaf, out = ctx.graph
            ctx.graph = None
            try:
                return torch.autograd.grad(out, leaf, gradient)[0], None
            except RuntimeError as error:
                if not _is_memory(error):
                    raise
            del out  # its graph, which holds the activations of the whole batch
            ctx.owner.shrink()
        return ctx.owner.fitting(lambda: _in_chunks(ctx.owner, ctx.x.detach(), gradient)), None


def _in_chunks(owner: MicroBatches, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient to x, with a forward and a backward pass per chunk."""
    gradients = []
    for part, part_gradient in zip(x.split(owner.size), gradient.split(owner.size), strict=True):
        with torch.enable_grad():
            leaf = part.detach().requires_grad_()
            out = owner.predict(leaf)
        gradients.append(torch.autograd.grad(out, leaf, part_gradient)[0])
    return torch.cat(gradients)

"""BPDA: a differentiable stand-in for parts of a model without useful gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class BPDA(nn.Module):
    """Compute one function forward, and the gradient of another one backward.

    Backward pass differentiable approximation (Athalye et al. 2018 (BPDA), section 4). It is for
    defences such as a codec or a quantisation,
    whose gradient is zero or undefined.

    Args:
        forward: x -> the exact output; its gradient is never asked for.
        backward: x -> an output of the same shape, whose gradient is taken; None: the identity.

    Example:
        model = nn.Sequential(BPDA(lambda x: (255 * x).round() / 255), network)
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.exact = forward
        self.surrogate = backward

    def forward(self, x: Tensor) -> Tensor:
        """Return the exact output, whose gradient is that of the surrogate."""
        with torch.no_grad():
            exact = self.exact(x)
        surrogate = x if self.surrogate is None else self.surrogate(x)
        if surrogate.shape != exact.shape:
            raise ValueError(
                f"BPDA: forward gives {tuple(exact.shape)}, but backward"
                f" {tuple(surrogate.shape)}; both must give the same shape"
            )
        return _ValueOfOther.apply(surrogate, exact)


class _ValueOfOther(torch.autograd.Function):
    """Give the value of the second argument and the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        surrogate, exact = tensors
        return exact.to(surrogate.dtype).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None

"""Compute 2-D convolutions of small maps faster on CPUs, as in the last stages of a ResNet.

oneDNN takes most of a training step for the weight gradients of maps of a few pixels: for 256
channels on a single pixel ten times as long as the same product of matrices, in bf16.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Largest maps, in pixels of the output, whose weight gradients a product of matrices computes
# faster: measured with 32 to 512 channels, kernels of 3 x 3, and batches of 512 (Intel, AMX).
_LARGEST = {torch.bfloat16: 16, torch.float32: 4}


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return what `F.conv2d` returns, up to rounding.

    Rows and columns of a kernel that meet nothing but padding are left out, such as eight of the
    nine weights of a 3 x 3 kernel on a single pixel. Their gradients are 0, as they are otherwise.

    Args:
        x: (B, C, H, W).
        weight: (C_out, C / groups, k, l).
        bias: (C_out,), or None.
        stride: see `F.conv2d`, and also for padding, dilation and groups.
    """
    sides = x.shape[2:]
    is_plain = x.is_cpu and bias is None and groups == 1 and tuple(dilation) == (1, 1)
    if not is_plain or weight.shape[2:] == (1, 1):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    used = [
        _used_taps(*each) for each in zip(sides, weight.shape[2:], stride, padding, strict=True)
    ]
    (top, bottom), (left, right) = used
    if (bottom - top, right - left) != weight.shape[2:]:
        weight = weight[:, :, top:bottom, left:right]
        padding = padding[0] - top, padding[1] - left
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    places = 1
    for side, kernel, step, edge in zip(sides, weight.shape[2:], stride, padding, strict=True):
        places *= _places(side, kernel, step, edge)
    is_trained = torch.is_grad_enabled() and weight.requires_grad
    if is_trained and places <= _LARGEST.get(x.dtype, 0):
        return _ByMatrices.apply(x, weight, tuple(stride), tuple(padding))
    return F.conv2d(x, weight, None, stride, padding)


def _places(side: int, kernel: int, stride: int, padding: int) -> int:
    """Return how many places a kernel takes along a side."""
    return (side + 2 * padding - kernel) // stride + 1


def _used_taps(side: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Return the range of a kernel's rows that meet more than padding.

    Args:
        side: rows of the map.
        kernel: rows of the kernel.
        stride: of the kernel.
        padding: rows on each side of the map.
    """
    last = (_places(side, kernel, stride, padding) - 1) * stride
    first, end = max(0, padding - last), min(kernel, side + padding)
    if first >= end:  # a stride may leap over the map
        return 0, kernel
    # the padding of both sides shrinks by as much, which must leave the places as they are
    kept = _places(side, end - first, stride, padding - first) * stride
    return (first, end) if last < kept <= last + stride else (0, kernel)


class _ByMatrices(torch.autograd.Function):
    """A convolution without bias, whose weight gradient is a product of matrices."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        """Return the convolution.

        Args:
            ctx: keeps what the gradient needs.
            x: (B, C, H, W).
            weight: (C_out, C, k, l).
            stride: down and right.
            padding: rows above and below, columns to the left and right.
        """
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        ctx.padding = padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x, _, _ = torch.ops.aten.convolution_backward(
                *(gradient, x, weight, None, ctx.stride, ctx.padding),
                *([1, 1], False, [0, 0], 1, [True, False, False]),
            )
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, gradient, weight.shape[2:], ctx.stride, ctx.padding)
        return of_x, of_weight, None, None


def _weight_gradient(
    x: Tensor,
    gradient: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Return the gradient of the weights (C_out, C, k, l).

    Args:
        x: (B, C, H, W), the input.
        gradient: (B, C_out, H_out, W_out), of the output.
        kernel: k and l.
        stride: of the convolution.
        padding: of the convolution.
    """
    (rows, columns), (down, right) = gradient.shape[2:], stride
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    # for each weight of the kernel, what it was multiplied with at each place
    shifted = [
        padded[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    inputs = torch.cat(shifted, 3).flatten(0, 2)  # (B H_out W_out, k l C)
    product = gradient.permute(0, 2, 3, 1).flatten(0, 2).t() @ inputs
    return product.view(len(product), *kernel, -1).permute(0, 3, 1, 2)

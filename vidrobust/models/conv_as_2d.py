"""Compute factorised 3-D convolutions as 2-D ones, which CPUs compute faster.

A clip in channels-last order, (B, T, H, W, C) in memory, is also a batch of B * T images, and a
batch of B images of T rows and H * W columns. A kernel (1, k, k) is a 2-D kernel of the former, and
a kernel (k, 1, 1) one of the latter, without a copy and with the same weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust.models.small_maps import conv2d


def compute_as_2d(network: nn.Module) -> int:
    """Let the factorised convolutions of a network compute in two dimensions, in place.

    Its 2-D convolutions compute small maps as `small_maps.conv2d` does. Weights and keys stay as
    they are. Results differ from those of `Conv3d` and `Conv2d` by rounding alone.

    Args:
        network: the network.

    Returns:
        How many `Conv3d` of the network keep their own form: kernels in time and space, kernels in
        time with a stride or padding in space, padding with anything but zeros, and modules that
        compute something else (a subclass or an object with a forward of its own).
    """
    others = 0
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            form = _form_of(module)
            if form is None:
                others += 1
            else:
                # partial, not a method: a copy of the module gets a copy with its own weights
                module.forward = partial(form, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Conv2d) and _is_plain(module, nn.Conv2d):
            module.forward = partial(_over_images, module)  # type: ignore[method-assign]
    return others


def _form_of(conv: nn.Conv3d) -> Callable[[nn.Conv3d, Tensor], Tensor] | None:
    """Return the function that computes a convolution in two dimensions, or None."""
    if not _is_plain(conv, nn.Conv3d):
        return None
    if conv.kernel_size[0] == 1 and conv.padding[0] == 0:
        return _over_places
    if conv.kernel_size[1:] == conv.stride[1:] == (1, 1) and conv.padding[1:] == (0, 0):
        return _over_time
    return None


def _is_plain(conv: Any, kind: Any) -> bool:
    """Return whether a module pads with zeros, and computes nothing but its convolution.

    Args:
        conv: the module.
        kind: nn.Conv2d or nn.Conv3d.
    """
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    if "forward" in vars(conv) and not _is_arranged(conv):
        return False
    # Masked or weight-standardised convolutions are subclasses too. Their outputs would be wrong.
    own = type(conv)
    return own.forward is kind.forward and own._conv_forward is kind._conv_forward


def _is_arranged(conv: nn.Module) -> bool:
    """Return whether an earlier call of `compute_as_2d` has replaced the forward of a module."""
    return getattr(conv.forward, "func", None) in (_over_places, _over_time, _over_images)


def _padding(conv: nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """Return the padding of each dimension, which `_is_plain` has found to be numbers."""
    return tuple(int(each) for each in conv.padding)


def _over_images(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the convolution of images (B, C, H, W)."""
    if x.dim() != 4:  # a single image
        return conv._conv_forward(x, conv.weight, conv.bias)
    weight, bias = conv.weight, conv.bias
    return conv2d(x, weight, bias, conv.stride, _padding(conv), conv.dilation, conv.groups)


def _over_places(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return the convolution of clips (B, C, T, H, W) by a kernel (1, k, k)."""
    x = x[:, :, :: conv.stride[0]].contiguous(memory_format=torch.channels_last_3d)
    batch, length = x.shape[0], x.shape[2]
    images = x.transpose(1, 2).flatten(0, 1)  # (B T, C, H, W)
    weight = conv.weight[:, :, 0]
    stride, dilation = conv.stride[1:], conv.dilation[1:]
    y = conv2d(images, weight, conv.bias, stride, _padding(conv)[1:], dilation, conv.groups)
    y = y.contiguous(memory_format=torch.channels_last)
    return y.unflatten(0, (batch, length)).transpose(1, 2)


def _over_time(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Return the convolution of clips (B, C, T, H, W) by a kernel (k, 1, 1)."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    images = x.flatten(3)  # (B, C, T, H W)
    weight = conv.weight[..., 0]
    stride, dilation = (conv.stride[0], 1), (conv.dilation[0], 1)
    y = conv2d(images, weight, conv.bias, stride, (_padding(conv)[0], 0), dilation, conv.groups)
    y = y.contiguous(memory_format=torch.channels_last)
    return y.unflatten(3, x.shape[3:])

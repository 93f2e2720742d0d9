"""Choose the order of weights in memory and the precision that a network computes fastest in."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from vidrobust import config
from vidrobust.models.backbone import Backbone
from vidrobust.models.conv_as_2d import compute_as_2d
from vidrobust.models.model import Model

# Modules of other code may reshape maps in a way that fails in channels-last order.
_KNOWN_CODE = ("torch.nn.", "vidrobust.", "torchvision.", "pytorchvideo.", "fvcore.")
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions of a weight
_CPUINFO = Path("/proc/cpuinfo")


def arrange_passes(
    network: nn.Module, device: torch.device, *, channels_last: str, amp: str
) -> bool:
    """Store the weights of a network in the order that is asked for, and choose its precision.

    Values and names of weights stay the same. Results in another order differ by rounding.

    Args:
        network: a method, a model or a backbone, on its device.
        device: where it computes.
        channels_last: "true", "false", or "auto": on CPUs, for networks of this package,
            torchvision and pytorchvideo.
        amp: "bf16", "fp32", or "auto": bf16 on GPUs that have it, and on CPUs that multiply bf16
            matrices for networks in channels-last order without other 3-D convolutions than
            factorised ones. The weight gradients of the others are not finite in some runs.

    Returns:
        Whether the network is to compute in bf16.
    """
    on_cpu = device.type == "cpu"
    wanted = on_cpu and _is_known(network) if channels_last == "auto" else channels_last == "true"
    sound = False
    if wanted:
        for p in network.parameters():
            if p.ndim in _FORMATS:
                p.data = p.data.contiguous(memory_format=_FORMATS[p.ndim])
        sound = on_cpu and compute_as_2d(network) == 0
    if amp != "auto":
        return amp == "bf16"
    return (sound or device.type == "cuda") and _has_bf16(device)


def with_amp_of_machine(cfg: config.Config, device: torch.device) -> config.Config:
    """Return a configuration whose eval.amp does not depend on the machine.

    Results in one precision then never count as those of an evaluation in another one.

    Args:
        cfg: with eval.amp=auto, this becomes "bf16" on a GPU that has it, and "fp32" on machines
            without; on other CPUs the network decides, and "auto" stays.
        device: where the network computes.
    """
    if cfg.eval.amp != "auto":
        return cfg
    amp = "fp32"
    if _has_bf16(device):
        amp = "bf16" if device.type == "cuda" else "auto"
    return replace(cfg, eval=replace(cfg.eval, amp=amp))


def _has_bf16(device: torch.device) -> bool:
    """Return whether a GPU, or the CPU, multiplies bf16 matrices."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else multiplies_bf16()


def to_measure(model: Model, device: torch.device, options: config.EvalConfig) -> Model:
    """Move a model to a device, and arrange its backbone's passes for an evaluation.

    Args:
        model: a model with a backbone; its head computes in float32.
        device: where it computes.
        options: its `channels_last` and `amp`.

    Returns:
        The model.
    """
    backbone = model.to(device).backbone
    backbone.bf16 = arrange_passes(
        backbone, device, channels_last=options.channels_last, amp=options.amp
    )
    return model


def _is_known(network: nn.Module) -> bool:
    """Return whether all modules of the backbones of a network are of known code."""
    backbones = [module for module in network.modules() if isinstance(module, Backbone)]
    modules = [module for backbone in backbones for module in backbone.modules()]
    return all(type(module).__module__.startswith(_KNOWN_CODE) for module in modules)


@cache
def multiplies_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether the CPU has instructions that multiply bf16 matrices: AVX512-BF16 or AMX.

    Args:
        cpuinfo: Linux's description of the CPU; other systems have none, and so no such CPU.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)

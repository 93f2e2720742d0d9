"""Decide whether bf16 autocast is used."""

import torch


def use_bf16(amp: str, device: torch.device) -> bool:
    """Return whether `train.amp` asks for bf16 autocast on this device.

    Args:
        amp: auto (on GPUs that have bf16), bf16 or fp32.
        device: of the model.
    """
    if amp == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return amp == "bf16"

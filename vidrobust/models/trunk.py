"""What a backbone's file hands over."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Trunk:
    """module: normalised clips (B, C, T, H, W) -> (B, dim); mean, std: the RGB statistics it was made for."""

    module: nn.Module
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def init_kaiming(module: nn.Module) -> nn.Module:
    """He initialisation of convolutions, unit norms: what torchvision gives its own residual networks."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return module

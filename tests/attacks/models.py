"""Small models to attack: some samples break at small budgets, some do not."""

import torch
from torch import Tensor, nn

from vidrobust.attacks import Misclassify


def small_net(
    frames: int = 4, classes: int = 6, size: int = 12, seed: int = 0, images: bool = False
) -> nn.Module:
    """(B, 3, T, size, size), or (B, 3, size, size) for images -> (B, classes); in eval mode, no
    flags on.
    """
    torch.manual_seed(seed)
    conv: nn.Module = nn.Conv2d(3, 6, 3, padding=1) if images else nn.Conv3d(3, 6, 3, padding=1)
    net = nn.Sequential(
        conv, nn.ReLU(), nn.Flatten(1), nn.Linear(6 * frames * size * size, classes)
    )
    return net.eval().requires_grad_(False)


def labelled(net: nn.Module, shape: tuple[int, ...], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Clips, and what the net says of them: several classes, as their mean logits are taken off its
    bias.
    """
    torch.manual_seed(seed)
    x = torch.rand(shape) * 0.7 + 0.15
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
        return x, net(x).argmax(1)


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def loss_of(net: nn.Module, y: Tensor, **options: object) -> Misclassify:
    return Misclassify(net, y, **options)  # type: ignore[arg-type]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

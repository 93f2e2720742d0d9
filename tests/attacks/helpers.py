"""Small models to attack, of which some samples break at small budgets, and threats for them."""

import itertools

import torch
from torch import Tensor, nn

from vidrobust.attacks import Misclassify, ThreatModel

# clips of one frame, of four, of as many as there are channels; and images
SHAPES = [(4, 3, 1, 6, 7), (4, 3, 4, 6, 7), (4, 3, 3, 6, 7), (4, 3, 6, 7)]

# every norm on every support, for clips of at least 6 x 7 pixels
EPS = {"linf": 0.1, "l2": 0.7, "l2_frame": 0.4, "l1": 3.0}
SUPPORTS = {
    "dense": 0,
    "tube": 0,
    "flicker": 0,
    "frames": 1,
    "patch": 3,
    "border": 1,
    "pixels": 4,
}
THREATS = [
    ThreatModel(norm, EPS[norm], support, SUPPORTS[support])  # type: ignore[arg-type]
    for norm, support in itertools.product(EPS, SUPPORTS)
]


def small_net(
    frames: int = 4, classes: int = 6, size: int = 12, seed: int = 0, images: bool = False
) -> nn.Module:
    """Return a network (B, 3, T, size, size) -> (B, classes), in eval mode, without gradients.

    images: the network takes (B, 3, size, size).
    """
    torch.manual_seed(seed)
    conv: nn.Module = nn.Conv2d(3, 6, 3, padding=1) if images else nn.Conv3d(3, 6, 3, padding=1)
    net = nn.Sequential(
        conv, nn.ReLU(), nn.Flatten(1), nn.Linear(6 * frames * size * size, classes)
    )
    return net.eval().requires_grad_(False)


def labelled(net: nn.Module, shape: tuple[int, ...], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return random clips, and the classes that the network predicts for them.

    The mean logits of the clips are subtracted from its bias, so that it predicts several classes.
    """
    torch.manual_seed(seed)
    # away from black and white, so that most perturbations are not clipped
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

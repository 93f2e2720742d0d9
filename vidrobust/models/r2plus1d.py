"""R(2+1)D (Tran et al., CVPR 2018)."""

from torch import nn
from torchvision.models import video
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

from vidrobust.models.backbone import Trunk, init_kaiming

# torchvision's Kinetics-400 statistics, those of its pretrained R(2+1)D weights
_MEAN, _STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


def r2plus1d_18() -> Trunk:
    """torchvision's R(2+1)D-18, 31 M parameters, 512 features; its state dict is torchvision's
    without `fc`.
    """
    trunk = video.r2plus1d_18(weights=None)
    trunk.fc = nn.Identity()
    return Trunk(trunk, 512, _MEAN, _STD)


def r2plus1d_10(width: int = 32) -> Trunk:
    """One block a stage; `width` channels in the first, doubled by each: 8 * width features. For
    CPU work.

    The layout is that of R(2+1)D-18: a stem of stride 2 in space, then stages of stride 1, 2, 2, 2.
    """
    half = max(1, width * 45 // 64)  # the stem's middle width, in torchvision's proportion
    stem = nn.Sequential(
        nn.Conv3d(3, half, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
        nn.BatchNorm3d(half),
        nn.ReLU(inplace=True),
        nn.Conv3d(half, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )
    stages = [_block(width, width, 1)] + [
        _block(width * 2**i, width * 2 ** (i + 1), 2) for i in range(3)
    ]
    pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(1))
    return Trunk(init_kaiming(nn.Sequential(stem, *stages, pool)), 8 * width, _MEAN, _STD)


def _block(inplanes: int, planes: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or inplanes != planes:
        shortcut = nn.Sequential(
            nn.Conv3d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm3d(planes)
        )
    return BasicBlock(inplanes, planes, Conv2Plus1D, stride, shortcut)

"""R(2+1)D (Tran et al., CVPR 2018)."""

from typing import Any

from torch import nn
from torchvision.models import video
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

from vidrobust.models.backbone import BackboneParts, init_kaiming

# torchvision's statistics of Kinetics-400, for which its pretrained weights of R(2+1)D were trained
_MEAN = (0.43216, 0.394666, 0.37645)
_STD = (0.22803, 0.22145, 0.216989)


def r2plus1d_18(dilated: bool = False) -> BackboneParts:
    """Build torchvision's R(2+1)D-18: 31 M parameters, 512 features.

    Its state dict is torchvision's without `fc`.

    Args:
        dilated: keep the number of frames in the last stage, as `dilate_last_stage` says.
    """
    network = video.r2plus1d_18(weights=None)
    network.fc = nn.Identity()
    if dilated:
        dilate_last_stage(network)
    return BackboneParts(network, 512, _MEAN, _STD)


def dilate_last_stage(network: Any) -> None:
    """Give the last stage of a torchvision network a dilation in time in place of a stride.

    TCLR (Dave et al. 2022) trains this network: the first convolution of the stage is replaced by a
    full 3 x 3 x 3 one (tclr_pretraining/model.py of its authors).
    """
    first = network.layer4[0]
    stride = (1, 2, 2)
    first.conv1[0] = nn.Conv3d(256, 512, 3, stride, (2, 1, 1), dilation=(2, 1, 1), bias=False)
    first.downsample[0] = nn.Conv3d(256, 512, 1, stride, bias=False)


def r2plus1d_10(width: int = 32) -> BackboneParts:
    """Build a small R(2+1)D for CPUs: one block per stage, 8 * width features.

    The layout is that of R(2+1)D-18: a stem of stride 2 in space, then stages of stride 1, 2, 2, 2.

    Args:
        width: channels of the first stage; every further stage has twice as many.
    """
    middle = max(1, width * 45 // 64)  # of the stem, in torchvision's proportion of 45 to 64
    stem = nn.Sequential(
        nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )
    stages = [_block(width, width, 1)] + [
        _block(width * 2**i, width * 2 ** (i + 1), 2) for i in range(3)
    ]
    pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(1))
    network = init_kaiming(nn.Sequential(stem, *stages, pool))
    return BackboneParts(network, 8 * width, _MEAN, _STD)


def _block(inplanes: int, planes: int, stride: int) -> BasicBlock:
    """Build a residual block, with a convolution in its shortcut where the shape changes."""
    shortcut = None
    if stride != 1 or inplanes != planes:
        shortcut = nn.Sequential(
            nn.Conv3d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm3d(planes)
        )
    return BasicBlock(inplanes, planes, Conv2Plus1D, stride, shortcut)

"""ResNet-18 (He et al. 2016) as an image trunk; on clips, the features of the frames are averaged."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from vidrobust.models.trunk import Trunk, init_kaiming

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def resnet18(width: int = 64, stem: str = "imagenet") -> Trunk:
    """8 * width features. With width 64 and the imagenet stem its state dict is torchvision's without `fc`.

    stem: "imagenet" (7x7, stride 2, max pool) or "cifar" (3x3, stride 1, no pool), for 32-pixel images.
    """
    return Trunk(init_kaiming(_ResNet18(width, stem)), 8 * width, _MEAN, _STD)


class _ResNet18(nn.Module):
    def __init__(self, width: int, stem: str) -> None:
        super().__init__()
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1)}[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[0], x.shape[2]
        x = x.transpose(1, 2).flatten(0, 1)  # (B*T, C, H, W)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3)).view(batch, frames, -1).mean(1)


def _stage(inplanes: int, planes: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1:
        shortcut = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
    return nn.Sequential(BasicBlock(inplanes, planes, stride, shortcut), BasicBlock(planes, planes))

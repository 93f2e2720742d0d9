"""ResNet-18 and ResNet-50 (He et al. 2016), averaged over the frames of a clip."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from vidrobust.models.backbone import BackboneParts, init_kaiming

# statistics of ImageNet
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def resnet18(
    width: int = 64, stem: str = "imagenet", stem_padding: int | None = None
) -> BackboneParts:
    """Build ResNet-18 with 8 * width features.

    With width 64 and the imagenet stem, its state dict is torchvision's without `fc`.

    Args:
        width: channels of the first stage.
        stem: "imagenet" (7x7, stride 2, max pool), or "cifar" (3x3, stride 1, no pool) for images
            of 32 pixels.
        stem_padding: pixels around the frames before the first convolution; None: half of its
            size. Weights of solo-learn and DeACL were trained with 2 instead of 1.
    """
    network = init_kaiming(_ResNet(BasicBlock, (2, 2, 2, 2), width, stem, stem_padding))
    return BackboneParts(network, 8 * width, _MEAN, _STD)


def resnet50(stem: str = "imagenet", stem_padding: int | None = None) -> BackboneParts:
    """Build ResNet-50 with 2048 features; for the options, see `resnet18`.

    With the imagenet stem, its state dict is torchvision's without `fc`.
    """
    network = init_kaiming(_ResNet(Bottleneck, (3, 4, 6, 3), 64, stem, stem_padding))
    return BackboneParts(network, 2048, _MEAN, _STD)


class _ResNet(nn.Module):
    """Apply a ResNet to every frame, and average its features over frames.

    Attribute names are torchvision's, because its checkpoints must load. As in torchvision, the
    stride of a Bottleneck is in its 3x3 convolution, not in the first one as in the paper.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        width: int,
        stem: str,
        stem_padding: int | None,
    ) -> None:
        super().__init__()
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1)}[stem]
        padding = kernel // 2 if stem_padding is None else stem_padding
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        stages = []
        inplanes = width
        for k, depth in enumerate(depths):
            stages.append(_stage(block, depth, inplanes, 2**k * width, 1 if k == 0 else 2))
            inplanes = 2**k * width * block.expansion
        self.layer1 = stages[0]
        self.layer2 = stages[1]
        self.layer3 = stages[2]
        self.layer4 = stages[3]

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, dim) of normalised clips (B, C, T, H, W)."""
        batch = x.shape[0]
        frames = x.shape[2]
        x = x.transpose(1, 2).flatten(0, 1)  # (B*T, C, H, W)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3)).view(batch, frames, -1).mean(1)


def _stage(
    block: type[BasicBlock | Bottleneck], depth: int, inplanes: int, planes: int, stride: int
) -> nn.Sequential:
    """Build a stage of `depth` blocks; the first one changes the resolution and the channels."""
    shortcut = None
    out = planes * block.expansion
    if stride != 1 or inplanes != out:
        shortcut = nn.Sequential(
            nn.Conv2d(inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )
    first = block(inplanes, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out, planes) for _ in range(depth - 1)))

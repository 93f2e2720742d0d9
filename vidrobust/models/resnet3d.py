"""3-D ResNets and ResNeXt (Hara et al., CVPR 2018), as in kenshohara/3D-ResNets-PyTorch."""

from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.models.backbone import BackboneParts, init_kaiming
from vidrobust.utils.errors import UserError

# statistics of Kinetics in that code
_MEAN = (0.4345, 0.4051, 0.3775)
_STD = (0.2768, 0.2713, 0.2737)
_CARDINALITY = 32  # groups of ResNeXt


def resnet3d_18(width: int = 64) -> BackboneParts:
    """Build the 3-D ResNet-18 with 8 * width features: 33 M parameters.

    Args:
        width: channels of the first stage; each further stage has twice as many.
    """
    return _parts((2, 2, 2, 2), width, kind="basic")


def resnet3d_34(width: int = 64) -> BackboneParts:
    """Build the 3-D ResNet-34 with 8 * width features: 63 M parameters; see `resnet3d_18`."""
    return _parts((3, 4, 6, 3), width, kind="basic")


def resnet3d_50(width: int = 64) -> BackboneParts:
    """Build the 3-D ResNet-50 with 32 * width features: 46 M parameters; see `resnet3d_18`."""
    return _parts((3, 4, 6, 3), width, kind="bottleneck")


def resnext3d_101(width: int = 64) -> BackboneParts:
    """Build the 3-D ResNeXt-101 with 32 * width features, which MARS uses: 47 M parameters.

    Args:
        width: channels of the stem, a multiple of 16.
    """
    if width % 16:
        raise UserError(f"model.width={width}: resnext3d_101 needs a multiple of 16")
    return _parts((3, 4, 23, 3), width, kind="resnext")


def _parts(depths: tuple[int, int, int, int], width: int, kind: str) -> BackboneParts:
    """Return a network with random weights."""
    network = init_kaiming(_ResNet3d(depths, width, kind))
    return BackboneParts(network, (8 if kind == "basic" else 32) * width, _MEAN, _STD)


class _Block(nn.Module):
    """Residual block of 3-D convolutions, whose names are those of the authors' files.

    Args:
        inputs: channels of the input.
        planes: channels of the stage, before they are expanded.
        stride: in time, height and width.
        kind: "basic", "bottleneck" or "resnext".
    """

    def __init__(self, inputs: int, planes: int, stride: int, kind: str) -> None:
        super().__init__()
        outputs = planes * _expansion(kind)
        groups = _CARDINALITY if kind == "resnext" else 1
        # kernel, stride and channels of each convolution
        shapes = [(1, 1, planes), (3, stride, planes), (1, 1, outputs)]
        if kind == "basic":
            shapes = [(3, stride, planes), (3, 1, planes)]
        self.count = len(shapes)
        channels = inputs
        for i, (kernel, step, out) in enumerate(shapes, 1):
            split = groups if kernel == 3 else 1
            conv = nn.Conv3d(channels, out, kernel, step, kernel // 2, groups=split, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm3d(out))
            channels = out
        self.downsample: nn.Module | None = None
        # shortcuts of type B in the paper
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features (B, C, T, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = F.relu(x + shortcut if i == self.count else x)
        return x


class _ResNet3d(nn.Module):
    """Run the stem and four stages, and average over time and space."""

    def __init__(self, depths: tuple[int, int, int, int], width: int, kind: str) -> None:
        super().__init__()
        # the stem keeps the number of frames; its pooling halves it, as each later stage does
        self.conv1 = nn.Conv3d(3, width, 7, (1, 2, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.maxpool = nn.MaxPool3d(3, 2, 1)
        channels = width
        for i, depth in enumerate(depths):
            planes = 2**i * width * (2 if kind == "resnext" else 1)
            blocks = []
            for k in range(depth):
                blocks.append(_Block(channels, planes, 2 if i > 0 and k == 0 else 1, kind))
                channels = planes * _expansion(kind)
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, dim) of normalised clips (B, C, T, H, W)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3, 4))


def _expansion(kind: str) -> int:
    """Return the ratio of a block's output to the channels of its stage."""
    return {"basic": 1, "bottleneck": 4, "resnext": 2}[kind]

"""Networks as other code arranges and names them, written from descriptions of that code.

They are narrow, so that tests are fast. Each maps pixels in [0, 1] to features, with the
normalisation where the original has it.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import video
from torchvision.models.resnet import BasicBlock

WIDTH = 4


def randomise(module):
    """Give every parameter and statistic a random value, as if it had been trained."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(
                    0.5 + torch.rand_like(tensor)
                    if tensor.ndim < 2
                    else torch.randn_like(tensor) / tensor[0].numel() ** 0.5
                )
    return module.eval()


class Normalize(nn.Module):
    """Statistics as buffers, inside the model."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x):
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


class KuangliuBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class KuangliuResNet(nn.Module):
    """pytorch-cifar's ResNet-18, as RoCL and SupCon use it: 3x3 stem, `shortcut`, `linear`."""

    def __init__(self, classes=None, width=WIDTH):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for number in range(4):
            outputs = width * 2**number
            stage = [KuangliuBlock(inputs, outputs, 2 if number else 1)]
            stage.append(KuangliuBlock(outputs, outputs, 1))
            setattr(self, f"layer{number + 1}", nn.Sequential(*stage))
            inputs = outputs
        if classes:
            self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return F.avg_pool2d(x, x.shape[-1]).flatten(1)


class BatchNormList(nn.Module):
    """ACL's norm: a list of batch norms, of which the call names one."""

    def __init__(self, width, count):
        super().__init__()
        self.bn_list = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(count)])

    def forward(self, x, index):
        return self.bn_list[index](x)


class ListDownsample(nn.Module):
    def __init__(self, inputs, outputs, stride, count):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = BatchNormList(outputs, count)

    def forward(self, x, index):
        return self.bn(self.conv(x), index)


class ListBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, count):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = BatchNormList(outputs, count)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = BatchNormList(outputs, count)
        if stride > 1 or inputs != outputs:
            self.downsample = ListDownsample(inputs, outputs, stride, count)
        else:
            self.downsample = None

    def forward(self, x, index):
        out = F.relu(self.bn1(self.conv1(x), index))
        out = self.bn2(self.conv2(out), index)
        return F.relu(out + (x if self.downsample is None else self.downsample(x, index)))


class ListResNet(nn.Module):
    """ACL's and AdvCL's ResNet-18: norms in lists, statistics inside (ACL) or none (AdvCL)."""

    def __init__(self, count, *, normalised, width=WIDTH):
        super().__init__()
        if normalised:
            self.normalize = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = BatchNormList(width, count)
        inputs = width
        for number in range(4):
            outputs = width * 2**number
            stage = [ListBlock(inputs, outputs, 2 if number else 1, count)]
            stage.append(ListBlock(outputs, outputs, 1, count))
            setattr(self, f"layer{number + 1}", nn.ModuleList(stage))
            inputs = outputs
        if normalised:
            self.fc = nn.Sequential(nn.Linear(inputs, inputs), nn.Linear(inputs, 8))
        else:
            for head in ("fc_002", "fc_500", "head_proj", "head_pred"):
                setattr(self, head, nn.Linear(inputs, 8))

    def forward(self, x, index):
        if hasattr(self, "normalize"):
            x = self.normalize(x)
        x = F.relu(self.bn1(self.conv1(x), index))
        for number in range(1, 5):
            for block in getattr(self, f"layer{number}"):
                x = block(x, index)
        return x.mean((2, 3))


class TorchvisionResNet(nn.Module):
    """torchvision's ResNet-18 with a width and a stem of any padding, `fc` included."""

    def __init__(self, stem=(7, 2, 3), classes=8, width=WIDTH):
        super().__init__()
        kernel, stride, padding = stem
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if kernel == 7 else nn.Identity()
        inputs = width
        for number in range(4):
            outputs, stride = width * 2**number, 2 if number else 1
            shortcut = None
            if number:
                shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            stage = [BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs)]
            setattr(self, f"layer{number + 1}", nn.Sequential(*stage))
            inputs = outputs
        if classes:
            self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))


def r2plus1d(dilated=False):
    """torchvision's R(2+1)D-18; `dilated`: with TCLR's last stage."""
    network = video.r2plus1d_18()
    if dilated:
        block = network.layer4[0]
        block.conv1[0] = nn.Conv3d(
            256, 512, (3, 3, 3), (1, 2, 2), (2, 1, 1), dilation=(2, 1, 1), bias=False
        )
        block.downsample[0] = nn.Conv3d(256, 512, (1, 1, 1), (1, 2, 2), bias=False)
    return network

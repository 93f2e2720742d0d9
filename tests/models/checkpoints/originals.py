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


class VideoMaeAttention(nn.Module):
    """Attention of VideoMAE: one matrix for three parts, biases of two."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.proj(attend(F.linear(x, self.qkv.weight, bias), self.heads))


def attend(qkv, heads):
    """Return attention of (B, N, 3 * dim), in which the heads of each part are contiguous."""
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
    )
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    def __init__(self, dim, attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 2 * dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim, patch=(2, 8, 8)):
        super().__init__()
        self.proj = nn.Conv3d(3, dim, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def sinusoid(tokens, dim):
    """Return VideoMAE's position embedding, by loops."""
    table = torch.zeros(tokens, dim)
    for position in range(tokens):
        for i in range(dim):
            angle = torch.tensor(position / 10000 ** (2 * (i // 2) / dim), dtype=torch.float64)
            table[position, i] = angle.cos() if i % 2 else angle.sin()
    return table


class VideoMae(nn.Module):
    """VideoMAE's encoder: finetuned with `fc_norm` and `head`, pretrained with `norm`.

    The pretrained encoder returns its first token, as transformers does without mean pooling.
    """

    def __init__(self, classes=0, dim=16, depth=2, heads=2):
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.blocks = nn.ModuleList(
            [TransformerBlock(dim, VideoMaeAttention(dim, heads)) for _ in range(depth)]
        )
        if classes:
            self.fc_norm = nn.LayerNorm(dim, eps=1e-6)
            self.head = nn.Linear(dim, classes)
        else:
            self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed(x)
        x = x + sinusoid(*x.shape[1:])
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x.mean(1)) if hasattr(self, "fc_norm") else self.norm(x)[:, 0]


class MvitAttention(nn.Module):
    """Attention of PySlowFast's MViT, with pooled query, key and value.

    Args:
        dim: of the input.
        out: of the output.
        heads: number of heads.
        sizes: time, height and width of the input, of queries and of keys.
        second: with the relative positions and the residual connection of MViTv2.
    """

    def __init__(self, dim, out, heads, sizes, second):
        super().__init__()
        self.heads = heads
        self.sizes = sizes
        self.second = second
        width = out // heads
        self.qkv = nn.Linear(dim, 3 * out)
        self.proj = nn.Linear(out, out)
        source, queries, keys = sizes
        strides = {
            "q": [a // b for a, b in zip(source, queries, strict=True)],
            "k": [a // b for a, b in zip(source, keys, strict=True)],
        }
        strides["v"] = strides["k"]
        for part, stride in strides.items():
            if part == "q" and not second and max(stride) == 1:
                continue  # the first version pools queries only where it reduces them
            pool = nn.Conv3d(width, width, 3, stride, 1, groups=width, bias=False)
            setattr(self, f"pool_{part}", pool)
            setattr(self, f"norm_{part}", nn.LayerNorm(width, eps=1e-6))
        if second:
            space = 2 * max(queries[1], keys[1]) - 1
            self.rel_pos_h = nn.Parameter(torch.zeros(space, width))
            self.rel_pos_w = nn.Parameter(torch.zeros(space, width))
            self.rel_pos_t = nn.Parameter(torch.zeros(2 * source[0] - 1, width))

    def pooled(self, x, part):
        if not hasattr(self, f"pool_{part}"):
            return x
        token, rest = x[:, :, :1], x[:, :, 1:]
        maps = rest.flatten(0, 1).transpose(1, 2).unflatten(2, self.sizes[0])
        maps = getattr(self, f"pool_{part}")(maps).flatten(2).transpose(1, 2)
        return getattr(self, f"norm_{part}")(
            torch.cat([token, maps.unflatten(0, x.shape[:2])], dim=2)
        )

    def positions(self, query):
        """Return the scores (B, heads, queries, keys) of relative places, by loops over axes."""
        _, queries, keys = self.sizes
        places = query[:, :, 1:].unflatten(2, queries)
        total = 0
        for axis, table in enumerate((self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)):
            ours, theirs = queries[axis], keys[axis]
            distance = (
                torch.arange(ours)[:, None] * max(theirs / ours, 1)
                + (theirs - 1 - torch.arange(theirs)) * max(ours / theirs, 1)
            ).long()
            rows = places.movedim(2 + axis, 4)  # the axis comes last, before the channels
            scores = torch.einsum("bnxyqc,qkc->bnxyqk", rows, table[distance])
            scores = scores.movedim(4, 2 + axis)
            shape = [1, 1, 1]
            shape[axis] = theirs
            total = total + scores.unflatten(-1, shape)
        return total.flatten(5).flatten(2, 4)

    def forward(self, x):
        query, key, value = (
            self.pooled(part.unflatten(-1, (self.heads, -1)).transpose(1, 2), name)
            for part, name in zip(self.qkv(x).chunk(3, dim=-1), "qkv", strict=True)
        )
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        if self.second:
            scores = scores + F.pad(self.positions(query), (1, 0, 1, 0))
        out = scores.softmax(-1) @ value
        if self.second:  # all places but the class token
            out = out + F.pad(query[:, :, 1:], (0, 0, 1, 0))
        return self.proj(out.transpose(1, 2).flatten(2))


class MvitBlock(nn.Module):
    """Block of PySlowFast's MViT; the second version changes the width in its attention."""

    def __init__(self, dim, out, heads, sizes, second):
        super().__init__()
        self.second = second
        self.sizes = sizes
        middle = out if second else dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MvitAttention(dim, middle, heads, sizes, second)
        self.norm2 = nn.LayerNorm(middle, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(middle, 4 * middle), "fc2": nn.Linear(4 * middle, out)}
        )
        if dim != out:
            self.proj = nn.Linear(dim, out)

    def forward(self, x):
        normed = self.norm1(x)
        attended = self.attn(normed)
        if self.second and hasattr(self, "proj"):
            x = self.proj(normed)
        if self.sizes[0] != self.sizes[1]:
            maps = x[:, 1:].transpose(1, 2).unflatten(2, self.sizes[0])
            maps = F.max_pool3d(maps, (1, 3, 3), (1, 2, 2), (0, 1, 1))
            x = torch.cat([x[:, :1], maps.flatten(2).transpose(1, 2)], 1)
        x = x + attended
        normed = self.norm2(x)
        if not self.second and hasattr(self, "proj"):
            x = self.proj(normed)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](normed)))


class Mvit(nn.Module):
    """PySlowFast's MViT of two blocks, of which the second reduces height and width.

    Inputs have 4 frames of 32 pixels.
    """

    def __init__(self, second, classes=7):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, 8, (3, 7, 7), (2, 4, 4), (1, 3, 3))})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        if not second:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, 64, 8))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, 2, 8))
            self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, 8))
        sizes = [((2, 8, 8), (2, 8, 8), (2, 2, 2)), ((2, 8, 8), (2, 4, 4), (2, 4, 4))]
        widths = [(8, 8), (8, 16)] if second else [(8, 16), (16, 16)]
        self.blocks = nn.ModuleList(
            [MvitBlock(*widths[i], 1 + i, sizes[i], second) for i in range(2)]
        )
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.head = nn.ModuleDict({"projection": nn.Linear(16, classes)})

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        if hasattr(self, "pos_embed_class"):
            places = self.pos_embed_temporal[:, :, None] + self.pos_embed_spatial[:, None]
            x = x + torch.cat([self.pos_embed_class, places.flatten(1, 2)], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class RotaryAttention(nn.Module):
    """Attention of V-JEPA 2: a third of each head's width turns with time, height and width.

    Args:
        dim: number of features.
        heads: number of heads.
        grid: number of tokens over time, height and width.
    """

    def __init__(self, dim, heads, grid):
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def rotated(self, x):
        """Turn (B, N, heads, width); the frequencies run twice over the pairs, as published."""
        part = 2 * (x.shape[-1] // 3 // 2)
        places = torch.cartesian_prod(*(torch.arange(n) for n in self.grid)).float()
        pieces = []
        for axis in range(3):
            piece = x[..., axis * part : (axis + 1) * part]
            rates = 10000 ** -(torch.arange(part // 2) * 2 / part)
            angles = (places[:, axis, None] * rates).repeat(1, 2)[:, None]
            turned = torch.stack([-piece[..., 1::2], piece[..., 0::2]], -1).flatten(-2)
            pieces.append(piece * angles.cos() + turned * angles.sin())
        return torch.cat([*pieces, x[..., 3 * part :]], -1)

    def forward(self, x):
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, -1)
        )
        parts = [self.rotated(query), self.rotated(key), value]
        return self.proj(attend(torch.cat([part.flatten(2) for part in parts], -1), self.heads))


class VJepa2(nn.Module):
    """V-JEPA 2's encoder for 4 frames of 32 pixels, averaged over its tokens."""

    def __init__(self, dim=32, depth=2, heads=2):
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.blocks = nn.ModuleList(
            [TransformerBlock(dim, RotaryAttention(dim, heads, (2, 4, 4))) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


def conv3d(inputs, outputs, kernel=1, stride=1, groups=1):
    """Return a convolution as 3-D ResNets have it, which keeps the size at stride 1."""
    return nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class HaraBasic(nn.Module):
    expansion = 1

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = conv3d(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = conv3d(planes, planes, 3)
        self.bn2 = nn.BatchNorm3d(planes)
        self.downsample = hara_shortcut(inputs, planes, stride)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))


class HaraBottleneck(nn.Module):
    expansion = 4
    groups = 1

    def __init__(self, inputs, planes, stride):
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = conv3d(inputs, planes)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = conv3d(planes, planes, 3, stride, self.groups)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = conv3d(planes, outputs)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.downsample = hara_shortcut(inputs, outputs, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class HaraResNeXt(HaraBottleneck):
    expansion = 2
    groups = 32


def hara_shortcut(inputs, outputs, stride):
    """Return a shortcut of type B: a convolution where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(conv3d(inputs, outputs, 1, stride), nn.BatchNorm3d(outputs))


class HaraResNet(nn.Module):
    """3-D ResNet of 3D-ResNets-PyTorch, whose ResNeXt has twice the channels in its stages."""

    def __init__(self, block, depths, width=WIDTH, classes=7):
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, (7, 7, 7), (1, 2, 2), (3, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        inputs = width
        planes = 2 * width if block is HaraResNeXt else width
        for number, depth in enumerate(depths):
            stage = []
            for k in range(depth):
                stage.append(block(inputs, planes, 2 if number and not k else 1))
                inputs = planes * block.expansion
            setattr(self, f"layer{number + 1}", nn.Sequential(*stage))
            planes *= 2
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.adaptive_avg_pool3d(x, 1).flatten(1)


class S3dConv(nn.Module):
    """CoCLR's convolution of one pixel, with its norm."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class S3dSeparable(nn.Module):
    """CoCLR's convolution in space and then in time, each with a norm of eps 1e-5."""

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__()
        half = kernel // 2
        self.conv1 = nn.Conv3d(
            inputs, outputs, (1, kernel, kernel), (1, stride, stride), (0, half, half), bias=False
        )
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(
            outputs, outputs, (kernel, 1, 1), (stride, 1, 1), (half, 0, 0), bias=False
        )
        self.bn2 = nn.BatchNorm3d(outputs)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class S3dMixed(nn.Module):
    def __init__(self, inputs, first, second, third, last):
        super().__init__()
        self.branch0 = nn.Sequential(S3dConv(inputs, first))
        self.branch1 = nn.Sequential(S3dConv(inputs, second[0]), S3dSeparable(*second, 3))
        self.branch2 = nn.Sequential(S3dConv(inputs, third[0]), S3dSeparable(*third, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), S3dConv(inputs, last))

    def forward(self, x):
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], 1)


# of each mixed block: inputs, and the channels of its four branches
S3D_MIXED = {
    "3b": (192, 64, (96, 128), (16, 32), 32),
    "3c": (256, 128, (128, 192), (32, 96), 64),
    "4b": (480, 192, (96, 208), (16, 48), 64),
    "4c": (512, 160, (112, 224), (24, 64), 64),
    "4d": (512, 128, (128, 256), (24, 64), 64),
    "4e": (512, 112, (144, 288), (32, 64), 64),
    "4f": (528, 256, (160, 320), (32, 128), 128),
    "5b": (832, 256, (160, 320), (32, 128), 128),
    "5c": (832, 384, (192, 384), (48, 128), 128),
}


class CoclrS3d(nn.Module):
    """CoCLR's S3D, in which each part has a second name in a list of blocks."""

    def __init__(self):
        super().__init__()
        self.Conv_1a = S3dSeparable(3, 64, 7, 2)
        self.Conv_2b = S3dConv(64, 64)
        self.Conv_2c = S3dSeparable(64, 192, 3)
        for name, channels in S3D_MIXED.items():
            setattr(self, f"Mixed_{name}", S3dMixed(*channels))
        mixed = {n: [getattr(self, f"Mixed_{k}") for k in S3D_MIXED if k[0] == n] for n in "345"}
        self.block1 = nn.Sequential(self.Conv_1a)
        self.block2 = nn.Sequential(
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), self.Conv_2b, self.Conv_2c
        )
        self.block3 = nn.Sequential(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), *mixed["3"])
        self.block4 = nn.Sequential(nn.MaxPool3d(3, 2, 1), *mixed["4"])
        self.block5 = nn.Sequential(nn.MaxPool3d(2, 2), *mixed["5"])

    def forward(self, x):
        for number in range(1, 6):
            x = getattr(self, f"block{number}")(x)
        return F.adaptive_avg_pool3d(x, 1).flatten(1)


class JointAttention(nn.Module):
    """Attention with one matrix and bias for query, key and value, over the last tokens axis."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        shape = x.shape
        return self.proj(attend(self.qkv(x.flatten(0, -3)), self.heads)).view(shape)


class TimeSformerBlock(nn.Module):
    """Attend over the frames of each place, then over the places of each frame.

    Tokens are (B, places, frames, dim), and the class token (B, 1, dim) sees each frame's places.
    """

    def __init__(self, dim, heads):
        super().__init__()
        self.temporal_norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.temporal_attn = JointAttention(dim, heads)
        self.temporal_fc = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = JointAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 2 * dim)

    def forward(self, token, x):
        x = x + self.temporal_fc(self.temporal_attn(self.temporal_norm1(x)))
        frames = x.transpose(1, 2)  # (B, frames, places, dim)
        first = token[:, None].expand(-1, frames.shape[1], -1, -1)
        attended = self.attn(self.norm1(torch.cat([first, frames], 2)))
        token = token + attended[:, :, 0].mean(1, keepdim=True)
        x = x + attended[:, :, 1:].transpose(1, 2)
        return token + self.mlp(self.norm2(token)), x + self.mlp(self.norm2(x))


class TimeSformer(nn.Module):
    """TimeSformer with divided attention, for 4 frames of 32 pixels."""

    def __init__(self, classes=7, dim=16, depth=2, heads=2):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 8, 8)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, dim))
        self.time_embed = nn.Parameter(torch.zeros(1, 4, dim))
        self.blocks = nn.ModuleList([TimeSformerBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        batch, _, frames = x.shape[:3]
        tokens = self.patch_embed["proj"](x.transpose(1, 2).flatten(0, 1)).flatten(2)
        tokens = tokens.unflatten(0, (batch, frames)).permute(0, 3, 1, 2)
        tokens = tokens + self.pos_embed[:, 1:, None] + self.time_embed[:, None]
        token = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        for block in self.blocks:
            token, tokens = block(token, tokens)
        return self.norm(token)[:, 0]

"""Write files of other code, load them as the package does, and compare features."""

import re
import warnings

import pytest
import torch
from torch import nn
from torchvision.models.video import mvit

from tests.models.checkpoints.originals import WIDTH
from vidrobust import checkpoint, config
from vidrobust.models import add_branches, configured_backbone
from vidrobust.training.weights_options import with_weights_options


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def loaded(path, backbone="resnet18", branches=()):
    """Return the configured backbone with the weights of a file, as training builds it."""
    width = WIDTH if backbone == "resnet18" else 0
    model = config.ModelConfig(backbone=backbone, width=width, weights=str(path))
    cfg = with_weights_options(config.Config(model=model))
    network = configured_backbone(cfg.model)
    if branches:
        add_branches(network, branches)
    names = ("clean", *branches)
    state = checkpoint.backbone_state(str(path), branches=names, head_key=network.head_key)
    checkpoint.load_state(network.stored, state, str(path))
    return network.eval(), cfg.model


def assert_same_features(network, original, frames=1, statistics=None, size=32):
    """Compare on clips in [0, 1]; `statistics`: mean and std of the original's data loader."""
    clips = torch.rand(2, 3, frames, size, size)
    x = clips
    if statistics:
        mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in statistics)
        x = (x - mean) / std
    with torch.no_grad():
        expected = original(x[:, :, 0] if frames == 1 else x)
        assert torch.allclose(network(clips), expected, rtol=1e-4, atol=1e-5)


def save(path, content):
    torch.save(content, path)
    return path


def pyslowfast_name(key, pooled=False):
    """Return PySlowFast's name of a tensor of pytorchvideo's SlowFast, Slow, C2D or I3D.

    Args:
        key: the name in pytorchvideo.
        pooled: a pooling after the second stage counts as a block, as in C2D and I3D.
    """
    block, rest = re.fullmatch(r"blocks\.(\d)\.(.*)", key).groups()
    stage = f"s{int(block) + 1 - (pooled and int(block) > 1)}"
    fusion = re.fullmatch(r"multipathway_fusion\.(conv_fast_to_slow|norm)\.(.*)", rest)
    if fusion:
        part = {"conv_fast_to_slow": "conv_f2s", "norm": "bn"}[fusion[1]]
        return f"{stage}_fuse.{part}.{fusion[2]}"
    pathway = re.match(r"multipathway_blocks\.(\d)\.", rest)
    number = pathway[1] if pathway else "0"
    rest = rest[pathway.end() :] if pathway else rest
    if block == "0":
        part, last = rest.split(".", 1)
        part = {"conv": "conv", "norm": "bn"}[part]
        return f"{stage}.pathway{number}_stem.{part}.{last}"
    unit, rest = re.fullmatch(r"res_blocks\.(\d+)\.(.*)", rest).groups()
    for theirs, ours in (("branch1", "branch1_conv"), ("branch1_bn", "branch1_norm")):
        rest = re.sub(rf"^{ours}\.", f"{theirs}.", rest)
    rest = re.sub(r"^branch2\.conv_([abc])\.", r"branch2.\1.", rest)
    rest = re.sub(r"^branch2\.norm_([abc])\.", r"branch2.\1_bn.", rest)
    return f"{stage}.pathway{number}_res{unit}.{rest}"


def hub(name):
    """Return a network of pytorchvideo with random weights and statistics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorchvideo.models.hub as models
    network = getattr(models, name)(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return network.eval()


def averaged(network, pathways, count=5):
    """Return features averaged over time and space.

    Args:
        network: of pytorchvideo.
        pathways: those of SlowFast, or clips for one.
        count: number of blocks before the head.
    """
    for block in network.blocks[:count]:
        pathways = block(pathways)
    parts = pathways if isinstance(pathways, list) else [pathways]
    return torch.cat([part.mean((2, 3, 4)) for part in parts], 1)


def videomae_folder(path, **options):
    """Write the config.json of a small VideoMAE; return the spec of a random one."""
    transformers = pytest.importorskip("transformers")
    transformers.VideoMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_frames=4,
        **options,
    ).save_pretrained(path)
    return f"hf:{path}@random"


def timesformer_folder(path):
    """Write the config.json of a small TimeSformer; return the spec of a random one."""
    transformers = pytest.importorskip("transformers")
    transformers.TimesformerConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_frames=4,
    ).save_pretrained(path)
    return f"hf:{path}@random"


def small_mvit(second):
    """Return torchvision's MViT in the sizes of `Mvit`."""
    empty = [] if not second else [1, 1, 1]
    kernel = [3, 3, 3]
    common = {"kernel_kv": kernel}
    widths = [(8, 8), (8, 16)] if second else [(8, 16), (16, 16)]
    first = mvit.MSBlockConfig(
        num_heads=1,
        input_channels=widths[0][0],
        output_channels=widths[0][1],
        kernel_q=kernel if second else [],
        stride_q=empty,
        stride_kv=[1, 4, 4],
        **common,
    )
    last = mvit.MSBlockConfig(
        num_heads=2,
        input_channels=widths[1][0],
        output_channels=widths[1][1],
        kernel_q=kernel,
        stride_q=[1, 2, 2],
        stride_kv=[1, 2, 2],
        **common,
    )
    network = mvit.MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=[first, last],
        residual_pool=second,
        residual_with_cls_embed=False,
        rel_pos_embed=second,
        proj_after_attn=second,
        num_classes=7,
    )
    network.head[1] = nn.Identity()
    return network.eval()

"""Layouts of mmaction2: SlowOnly and four transformers; its other networks are refused by name."""

import re
from typing import Any

from vidrobust.models.checkpoints.layout import Layout, Weights, dimensions
from vidrobust.models.checkpoints.transformer_layouts import (
    MVIT,
    VIDEOMAE,
    learned_positions,
    mvit_shapes,
    other_mvit,
    videomae_names,
)

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_MVIT_STATISTICS = {"mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225]}
_HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_CARD = {"view_average": "probabilities"}

# mmaction2's names of a Slow network -> pytorchvideo's; its layers 1 to 4 are blocks 1 to 4
_SLOW = (
    (r"^conv1\.conv\.", "blocks.0.conv."),
    (r"^conv1\.bn\.", "blocks.0.norm."),
    (r"^layer(\d)\.(\d+)\.", r"blocks.\1.res_blocks.\2."),
    (r"\.downsample\.conv\.", ".branch1_conv."),
    (r"\.downsample\.bn\.", ".branch1_norm."),
    *((rf"\.conv{n}\.conv\.", f".branch2.conv_{letter}.") for n, letter in enumerate("abc", 1)),
    *((rf"\.conv{n}\.bn\.", f".branch2.norm_{letter}.") for n, letter in enumerate("abc", 1)),
)
# mmaction2's names of TimeSformer -> those of transformers
_TIMESFORMER = (
    (r"^cls_token$", "timesformer.embeddings.cls_token"),
    (r"^pos_embed$", "timesformer.embeddings.position_embeddings"),
    (r"^time_embed$", "timesformer.embeddings.time_embeddings"),
    (r"^patch_embed\.", "timesformer.embeddings.patch_embeddings."),
    (r"^norm\.", "timesformer.layernorm."),
    (r"^transformer_layers\.layers\.", "timesformer.encoder.layer."),
    (r"\.attentions\.0\.norm\.", ".temporal_layernorm."),
    (r"\.attentions\.1\.norm\.", ".layernorm_before."),
    (r"\.attentions\.0\.temporal_fc\.", ".temporal_dense."),
    (r"\.attentions\.0\.attn\.", ".temporal_attention."),
    (r"\.attentions\.1\.attn\.", ".attention."),
    (r"\.in_proj_(weight|bias)$", r".attention.qkv.\1"),
    (r"\.out_proj\.", ".output.dense."),
    (r"\.ffns\.0\.norm\.", ".layernorm_after."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".intermediate.dense."),
    (r"\.ffns\.0\.layers\.1\.", ".output.dense."),
)
_VIDEOMAE = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
    *VIDEOMAE,
)
# the norm after the last of four stages has its number
_MVIT = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^norm3\.", "norm."),
    *MVIT,
)
# mmaction2's names of Video Swin -> torchvision's, which counts stages and reductions together
_SWIN = (
    *((rf"^layers\.{i}\.blocks\.(\d+)\.", rf"features.{2 * i}.\1.") for i in range(4)),
    *((rf"^layers\.{i}\.downsample\.", f"features.{2 * i + 1}.") for i in range(3)),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^norm3\.", "norm."),
)
# key of a network that no source here has -> what it is
_OTHERS = {
    r"slow_path\.": "its SlowFast has no norms where its pathways meet, unlike slowfast_r50",
    r"conv1\.conv\.conv_s\.": "its R(2+1)D is R(2+1)D-34, not r2plus1d_18",
    r"transformer_layers\.layers\.0\.norms\.": "its TimeSformer attends to space alone or to time"
    " and space together; TimeSformer with divided attention is read",
    r"layer1\.0\.conv1\.conv\.net\.": "its TSM shifts channels over time",
    r".*non_local_block\.": "it has non-local blocks",
}


def _options(values: dict[str, Any]) -> Any:
    """Return the function that gives these options for all weights."""
    return lambda weights: dict(values)


def _is_slow(weights: Weights) -> bool:
    """Return whether a ResNet has temporal kernels in its last two stages only."""
    names = [f"backbone.{part}.conv1.conv.weight" for part in ("layer2.0", "layer3.0")]
    names.insert(0, "backbone.conv1.conv.weight")
    if any("non_local_block" in key for key in weights):
        return False
    if any(dimensions(weights, name) != 5 for name in names):
        return False
    return [weights[name].shape[2] for name in names] == [1, 1, 3]


def _flow(weights: Weights) -> str:
    """Return the reason against a network of optical flow; "" for RGB."""
    channels = weights["backbone.conv1.conv.weight"].shape[1]
    if channels == 3:
        return ""
    return f"it takes inputs of {channels} channels, such as optical flow, not RGB"


def _other_mvit(weights: Weights) -> str:
    """Return the reason why torchvision has no such MViT; "" if it has."""
    return other_mvit({key.removeprefix("backbone."): value for key, value in weights.items()})


def _other_network(weights: Weights) -> str:
    """Return which network of mmaction2 a file has, and that none here takes it."""
    for pattern, what in _OTHERS.items():
        if any(re.match(rf"backbone\.{pattern}", key) for key in weights):
            return what
    stem = "backbone.conv1.conv.weight"
    if dimensions(weights, stem) == 5 and weights[stem].shape[2] == 5:
        return "its I3D halves the number of frames in its stem, unlike i3d_r50"
    if dimensions(weights, stem) == 4:
        return "its TSN, TSM and C2D are networks of single frames, which no source here has"
    return (
        "no source here has this network; SlowOnly R50, TimeSformer with divided attention,"
        " VideoMAE, MViT and Video Swin are read"
    )


LAYOUTS = (
    Layout(
        name="mmaction2 SlowOnly",
        origin="open-mmlab/mmaction2, mmaction/models/backbones/resnet3d_slowonly.py",
        needs=(r"backbone\.layer4\.0\.conv1\.conv\.",),
        when=_is_slow,
        prefix=r"backbone\.",
        renames=_SLOW,
        head=r"cls_head\.fc_cls\.",
        options=_options(_IMAGENET),
        refuse=_flow,
        card=_CARD,
        note="the network is pytorchvideo:slow_r50",
    ),
    Layout(
        name="mmaction2 TimeSformer",
        origin="open-mmlab/mmaction2, mmaction/models/backbones/timesformer.py",
        needs=(r"backbone\.transformer_layers\.layers\.0\.attentions\.0\.temporal_fc\.",),
        prefix=r"backbone\.",
        renames=_TIMESFORMER,
        head=r"cls_head\.fc_cls\.",
        options=_options(_HALF),
        card=_CARD,
        note="the network is hf:FOLDER with a TimeSformer",
    ),
    Layout(
        name="mmaction2 VideoMAE",
        origin="open-mmlab/mmaction2, mmaction/models/backbones/vit_mae.py",
        needs=(r"backbone\.blocks\.0\.attn\.q_bias", r"backbone\.patch_embed\.projection\."),
        prefix=r"backbone\.",
        renames=_VIDEOMAE,
        # a sinusoid
        drops=(r"pos_embed$",),
        head=r"cls_head\.fc_cls\.",
        options=_options(_IMAGENET),
        convert=videomae_names,
        refuse=learned_positions,
        card=_CARD,
        note="the network is hf:FOLDER, whose config.json says use_mean_pooling=true",
    ),
    Layout(
        name="mmaction2 MViT",
        origin="open-mmlab/mmaction2, mmaction/models/backbones/mvit.py",
        needs=(r"backbone\.patch_embed\.projection\.", r"backbone\.blocks\.0\.attn\.pool_k\."),
        prefix=r"backbone\.",
        renames=_MVIT,
        head=r"cls_head\.fc_cls\.",
        options=_options(_MVIT_STATISTICS),
        convert=mvit_shapes,
        refuse=_other_mvit,
        card=_CARD,
        note="the network is torchvision:mvit_v2_s",
    ),
    Layout(
        name="Video Swin of mmaction2 and its authors",
        origin="open-mmlab/mmaction2, mmaction/models/backbones/swin.py;"
        " SwinTransformer/Video-Swin-Transformer",
        needs=(r"backbone\.layers\.0\.blocks\.0\.attn\.relative_position_bias_table",),
        when=lambda weights: dimensions(weights, "backbone.patch_embed.proj.weight") == 5,
        prefix=r"backbone\.",
        renames=_SWIN,
        head=r"cls_head\.fc_cls\.",
        options=_options(_IMAGENET),
        card=_CARD,
        note="the network is torchvision:swin3d_t, swin3d_s or swin3d_b",
    ),
    Layout(
        name="mmaction2",
        origin="open-mmlab/mmaction2, mmaction/models/recognizers",
        needs=(r"backbone\.", r"cls_head\."),
        refuse=_other_network,
    ),
)

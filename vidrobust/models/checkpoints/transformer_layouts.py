"""Layouts of video transformers: VideoMAE, V-JEPA 2 and MViT, as their authors save them."""

import re
from functools import cache

import torch
from torch import Tensor

from vidrobust.models.checkpoints.layout import Layout, Weights, dimensions

# names of VideoMAE's authors -> those of transformers
VIDEOMAE = (
    (r"^patch_embed\.proj\.", "videomae.embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "videomae.encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.attention.qkv."),
    (r"\.attn\.q_bias$", ".attention.attention.query.bias"),
    (r"\.attn\.v_bias$", ".attention.attention.value.bias"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    # the norm of all tokens before pretraining's decoder; finetuned files have `fc_norm` instead
    (r"^norm\.", "videomae.layernorm."),
)
# transformers' older names of the two biases -> its present ones
_BIASES = (
    (r"\.attention\.q_bias$", ".attention.query.bias"),
    (r"\.attention\.v_bias$", ".attention.value.bias"),
)

# names of TimeSformer's authors -> those of transformers
_TIMESFORMER = (
    (r"^cls_token$", "timesformer.embeddings.cls_token"),
    (r"^pos_embed$", "timesformer.embeddings.position_embeddings"),
    (r"^time_embed$", "timesformer.embeddings.time_embeddings"),
    (r"^patch_embed\.proj\.", "timesformer.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "timesformer.layernorm."),
    (r"^blocks\.", "timesformer.encoder.layer."),
    (r"\.temporal_norm1\.", ".temporal_layernorm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.temporal_fc\.", ".temporal_dense."),
    (r"\.temporal_attn\.", ".temporal_attention."),
    (r"\.attn\.", ".attention."),
    (r"attention\.qkv\.", "attention.attention.qkv."),
    (r"attention\.proj\.", "attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
# names of V-JEPA 2's authors -> those of transformers
_VJEPA2 = (
    (r"^patch_embed\.", "vjepa2.encoder.embeddings.patch_embeddings."),
    (r"^blocks\.", "vjepa2.encoder.layer."),
    (r"\.attn\.", ".attention."),
    (r"^norm\.", "vjepa2.encoder.layernorm."),
)
# tokens of V-JEPA 1: 8 pairs of frames of 224 or 384 pixels
_VJEPA1_TOKENS = (8 * 14**2, 8 * 24**2)
# names of MViT in PySlowFast -> torchvision's
MVIT = (
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^cls_token$", "pos_encoding.class_token"),
    (r"^pos_embed_(spatial|temporal|class)$", r"pos_encoding.\1_pos"),
    (r"\.attn\.proj\.", ".attn.project.0."),
    (r"\.attn\.pool_([qkv])\.", r".attn.pool_\1.pool."),
    (r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^blocks\.(\d+)\.proj\.", r"blocks.\1.project."),
)
# key of an MViT that torchvision does not have -> what it is
_OTHER_MVITS = {
    r"pos_embed$": "one position embedding for time and space together",
    r"norm_stem\.": "a norm before its blocks",
    r"rev_backbone\.": "reversible blocks",
    r"blocks\.0\.attn\.q\.": "separate matrices for query, key and value",
    r"blocks\.0\.gamma_1": "scaled layers",
}


def split_qkv(weights: Weights) -> dict[str, Tensor]:
    """Return weights in which each `qkv` is three tensors: query, key and value."""
    split: dict[str, Tensor] = {}
    for name, value in weights.items():
        found = re.fullmatch(r"(.*\.)qkv(\.\w+)", name)
        if not found or value.ndim == 0 or len(value) % 3:
            split[name] = value
            continue
        for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
            split[f"{found[1]}{part}{found[2]}"] = tensor.clone()
    return split


@cache
def _has_old_biases() -> bool:
    """Return whether the installed transformers calls VideoMAE's biases q_bias and v_bias."""
    try:
        from transformers import VideoMAEConfig
        from transformers.models.videomae.modeling_videomae import VideoMAESelfAttention
    except ImportError:  # without the package nothing can get the weights
        return False
    attention = VideoMAESelfAttention(VideoMAEConfig(hidden_size=2, num_attention_heads=1))
    return "q_bias" in attention.state_dict()


def videomae_names(weights: Weights) -> dict[str, Tensor]:
    """Return VideoMAE's weights in the names of the installed transformers."""
    split = split_qkv(weights)
    if not _has_old_biases():
        return split
    return {
        re.sub(r"\.(query|value)\.bias$", lambda found: f".{found[1][0]}_bias", name): value
        for name, value in split.items()
    }


def mvit_shapes(weights: Weights) -> dict[str, Tensor]:
    """Return MViT's weights with position embeddings in the shapes of torchvision."""
    flat = {}
    for name, value in weights.items():
        if name.startswith("pos_encoding.class_"):
            value = value.flatten()  # (1, 1, C)
        elif name.startswith("pos_encoding.") and value.ndim == 3:
            value = value.flatten(0, 1)  # (1, N, C)
        flat[name] = value
    return flat


def other_mvit(weights: Weights) -> str:
    """Return the reason why torchvision has no such MViT; "" if it has."""
    for pattern, what in _OTHER_MVITS.items():
        if any(re.match(pattern, key) for key in weights):
            return f"it has {what}, which torchvision's MViT does not have"
    if "cls_token" not in weights:
        return "it has no class token, whose output is the feature of torchvision's MViT"
    return ""


def _other_vjepa(weights: Weights) -> str:
    """Return the reason why transformers' V-JEPA 2 does not take weights; "" if it does."""
    if any("patch_embed_img" in key or "img_mod_embed" in key for key in weights):
        return "V-JEPA 2.1 has an image branch, which transformers' V-JEPA 2 does not have"
    for key, value in weights.items():
        if not key.endswith("backbone.pos_embed") or value.ndim != 3:
            continue
        if value.shape[1] in _VJEPA1_TOKENS:
            return "V-JEPA 1 adds position embeddings, but V-JEPA 2 of transformers has rotary ones"
    return ""


def _sinusoid(tokens: int, dim: int) -> Tensor:
    """Return the position embedding (tokens, dim) of Vaswani et al. 2017, section 3.5."""
    rates = 10000 ** (-2 * torch.arange(dim).div(2, rounding_mode="floor").double() / dim)
    angles = torch.arange(tokens).double()[:, None] * rates
    angles[:, 0::2] = angles[:, 0::2].sin()
    angles[:, 1::2] = angles[:, 1::2].cos()
    return angles.float()


def learned_positions(weights: Weights) -> str:
    """Return the reason against position embeddings that were learned, "" for a sinusoid."""
    for key, value in weights.items():
        if re.fullmatch(r"((backbone|encoder)\.)?pos_embed", key) and value.ndim == 3:
            positions = value[0].float()
            if not torch.allclose(positions, _sinusoid(*positions.shape), atol=1e-3):
                return f"{key} was learned, but the network of transformers has a fixed sinusoid"
    return ""


LAYOUTS = (
    Layout(
        name="VideoMAE, finetuned",
        origin="MCG-NJU/VideoMAE, modeling_finetune.py",
        needs=(r"(backbone\.)?blocks\.0\.attn\.qkv\.weight", r"(backbone\.)?fc_norm\."),
        # image models of the same code family (BEiT, MAE) have a class token
        forbids=(r"(backbone\.)?cls_token",),
        prefix=r"(backbone\.)?",
        renames=VIDEOMAE,
        drops=(r"pos_embed$",),
        head=r"(backbone\.)?head\.",
        convert=videomae_names,
        refuse=learned_positions,
        note="the network is hf:FOLDER, whose config.json says use_mean_pooling=true",
    ),
    Layout(
        name="VideoMAE, pretrained",
        origin="MCG-NJU/VideoMAE, modeling_pretrain.py",
        needs=(r"encoder\.blocks\.0\.attn\.qkv\.weight", r"(decoder\.|mask_token)"),
        forbids=(r"encoder\.cls_token",),
        prefix=r"encoder\.",
        renames=VIDEOMAE,
        drops=(r"pos_embed$",),
        convert=videomae_names,
        refuse=learned_positions,
        note="the network is hf:FOLDER, whose config.json says use_mean_pooling=false",
    ),
    Layout(
        name="VideoMAE of transformers before its biases were renamed",
        origin="huggingface/transformers, models/videomae",
        needs=(r"videomae\.encoder\.layer\.0\.attention\.attention\.q_bias",),
        renames=_BIASES,
        drops=(r"decoder\.", r"encoder_to_decoder\.", r"mask_token"),
        head=r"classifier\.",
        convert=videomae_names,
    ),
    Layout(
        name="TimeSformer",
        origin="facebookresearch/TimeSformer, timesformer/models/vit.py",
        needs=(r"(model\.)?blocks\.0\.temporal_attn\.qkv\.", r"(model\.)?time_embed"),
        prefix=r"(model\.)?",
        renames=_TIMESFORMER,
        head=r"(model\.)?head\.",
        note="the network is hf:FOLDER with a TimeSformer",
    ),
    Layout(
        name="V-JEPA 2",
        origin="facebookresearch/vjepa2, src/hub/backbones.py",
        needs=(r"backbone\.blocks\.0\.attn\.qkv\.bias", r"backbone\.patch_embed\.proj\."),
        # image models in a `backbone`, which have a class token
        forbids=(r"backbone\.cls_token",),
        prefix=r"backbone\.",
        when=lambda weights: dimensions(weights, "backbone.patch_embed.proj.weight") == 5,
        renames=_VJEPA2,
        # a sinusoid that is not used beside rotary positions
        drops=(r"pos_embed$",),
        convert=split_qkv,
        refuse=_other_vjepa,
        note="the network is hf:FOLDER, whose config.json has architectures=[VJEPA2Model]",
    ),
    Layout(
        name="PySlowFast MViT",
        origin="facebookresearch/SlowFast, slowfast/models/attention.py",
        needs=(r"patch_embed\.proj\.", r"(blocks|rev_backbone.*)\.0\.attn\.(pool_k|norm_k)\."),
        renames=MVIT,
        drops=(r"head\.",),
        head=r"head\.projection\.",
        convert=mvit_shapes,
        refuse=other_mvit,
        note="the network is torchvision:mvit_v1_b or torchvision:mvit_v2_s",
    ),
)

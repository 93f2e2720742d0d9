"""Layouts of PySlowFast and pytorchvideo: SlowFast, and networks of one pathway."""

import re
from typing import Any

from torch import Tensor

from vidrobust.models.checkpoints.layout import Layout, Weights

# PySlowFast counts stages s1 to s5, pytorchvideo blocks 0 to 4
_STAGES = range(1, 6)
# PySlowFast's names of a residual block -> pytorchvideo's
_RESIDUAL = (
    (r"\.branch1\.", ".branch1_conv."),
    (r"\.branch1_bn\.", ".branch1_norm."),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
    (r"\.branch2\.([abc])_bn\.", r".branch2.norm_\1."),
)


def two_pathways() -> tuple[tuple[str, str], ...]:
    """Return the renames of a SlowFast network."""
    renames = [
        (r"^s1\.pathway(\d)_stem\.conv\.", r"blocks.0.multipathway_blocks.\1.conv."),
        (r"^s1\.pathway(\d)_stem\.bn\.", r"blocks.0.multipathway_blocks.\1.norm."),
    ]
    for stage in _STAGES:
        block = f"blocks.{stage - 1}"
        fusion = f"{block}.multipathway_fusion"
        renames += [
            (rf"^s{stage}_fuse\.conv_f2s\.", f"{fusion}.conv_fast_to_slow."),
            (rf"^s{stage}_fuse\.bn\.", f"{fusion}.norm."),
            (
                rf"^s{stage}\.pathway(\d)_res(\d+)\.",
                rf"{block}.multipathway_blocks.\1.res_blocks.\2.",
            ),
        ]
    return (*renames, *_RESIDUAL)


def one_pathway(pooled: bool = False) -> tuple[tuple[str, str], ...]:
    """Return the renames of a network of one pathway, such as Slow, C2D and I3D.

    Args:
        pooled: the network pools pairs of frames after its second stage, which pytorchvideo counts
            as a block.
    """
    renames = [
        (r"^s1\.pathway0_stem\.conv\.", "blocks.0.conv."),
        (r"^s1\.pathway0_stem\.bn\.", "blocks.0.norm."),
    ]
    for stage in _STAGES:
        block = stage - 1 + (pooled and stage > 2)
        renames.append((rf"^s{stage}\.pathway0_res(\d+)\.", rf"blocks.{block}.res_blocks.\1."))
    return (*renames, *_RESIDUAL)


def _find(weights: Weights, pattern: str) -> Tensor | None:
    """Return the first tensor whose whole name fits a pattern."""
    return next((value for key, value in weights.items() if re.fullmatch(pattern, key)), None)


def is_pooled(weights: Weights) -> bool:
    """Return whether a network of one pathway is a C2D or an I3D, from its temporal kernels.

    Slow has them in its last two stages only. C2D has none, and I3D also has one in its stem.

    Args:
        weights: in the names of PySlowFast's .pyth or caffe2 files.
    """
    stem = _find(weights, r"(s1\.pathway0_stem\.conv\.weight|conv1_w)")
    late = _find(weights, r"(s4\.pathway0_res0\.branch2\.a\.weight|res4_0_branch2a_w)")
    if stem is None or late is None or stem.ndim != 5 or late.ndim != 5:
        return False
    return stem.shape[2] > 1 or late.shape[2] == 1


def other_network(weights: Weights) -> str:
    """Return the reason why no network here takes weights of PySlowFast; "" if one does.

    Args:
        weights: in the names of PySlowFast's .pyth or caffe2 files, or pytorchvideo's.
    """
    if any("nonlocal" in key for key in weights):
        return "it has non-local blocks, which the networks of pytorchvideo do not have"
    if any("conv_xy" in key or key.startswith("conv1_xy") for key in weights):
        return (
            "X3D is not read in PySlowFast's names; give the file of pytorchvideo's model zoo, for"
            " pytorchvideo:x3d_s and others"
        )
    fusion = _find(
        weights,
        r"(s1_fuse\.conv_f2s\.weight|t_pool1_subsample_w"
        r"|(model\.)?blocks\.0\.multipathway_fusion\.conv_fast_to_slow\.weight)",
    )
    deep = _find(
        weights,
        r"(s4\.pathway0_res6\.branch2\.a\.weight|res4_6_branch2a_w"
        r"|(model\.)?blocks\.3\.multipathway_blocks\.0\.res_blocks\.6\.branch2\.conv_a\.weight)",
    )
    # R101 has this kernel in its 8x8 version too
    if fusion is not None and fusion.ndim == 5 and fusion.shape[2] == 5 and deep is None:
        return (
            "SlowFast 4x16 R50 (fusion kernel 5, ALPHA 8) is another network than SlowFast 8x8 R50"
            " (fusion kernel 7, ALPHA 4), which slowfast_r50 is"
        )
    return ""


def slow_frames(weights: Weights) -> dict[str, Any]:
    """Return the option of PySlowFast's choice of the slow pathway's frames."""
    return {"slow_frames": "linspace"}


LAYOUTS = (
    Layout(
        name="pytorchvideo SlowFast",
        origin="facebookresearch/pytorchvideo, pytorchvideo/models/slowfast.py",
        # PySlowFast's own wrapper of these networks is `model`
        needs=(r"(model\.)?blocks\.0\.multipathway_blocks\.0\.conv\.",),
        prefix=r"(model\.)?",
        refuse=other_network,
        drops=(r"blocks\.6\.proj\.",),
        head=r"(model\.)?blocks\.6\.proj\.",
    ),
    Layout(
        name="PySlowFast SlowFast",
        origin="facebookresearch/SlowFast, slowfast/models/video_model_builder.py",
        needs=(r"s1\.pathway0_stem\.", r"s1\.pathway1_stem\.", r"s1_fuse\."),
        renames=two_pathways(),
        drops=(r"head\.",),
        head=r"head\.projection\.",
        options=slow_frames,
        refuse=other_network,
    ),
    Layout(
        name="PySlowFast contrastive (MoCo, BYOL, SimCLR, SwAV on video)",
        origin="facebookresearch/SlowFast, slowfast/models/contrastive.py",
        needs=(r"backbone\.s1\.pathway0_stem\.",),
        forbids=(r"backbone\.s1\.pathway1_stem\.",),
        prefix=r"backbone\.",
        renames=one_pathway(),
        drops=(r"head\.",),
    ),
    Layout(
        name="PySlowFast C2D, I3D",
        origin="facebookresearch/SlowFast, slowfast/models/video_model_builder.py",
        needs=(r"s1\.pathway0_stem\.",),
        forbids=(r"s1\.pathway1_stem\.",),
        when=is_pooled,
        renames=one_pathway(pooled=True),
        drops=(r"head\.",),
        head=r"head\.projection\.",
        refuse=other_network,
        note="pairs of frames are pooled after the second stage, as in c2d_r50 and i3d_r50",
    ),
    Layout(
        name="PySlowFast of one pathway",
        origin="facebookresearch/SlowFast, slowfast/models/video_model_builder.py",
        needs=(r"s1\.pathway0_stem\.",),
        forbids=(r"s1\.pathway1_stem\.",),
        renames=one_pathway(),
        drops=(r"head\.",),
        head=r"head\.projection\.",
        refuse=other_network,
    ),
    Layout(
        name="pytorchvideo of one pathway",
        origin="facebookresearch/pytorchvideo, pytorchvideo/models/resnet.py",
        needs=(r"(model\.)?blocks\.0\.conv\.", r"(model\.)?blocks\.[56]\.proj\."),
        prefix=r"(model\.)?",
        drops=(r"blocks\.[56]\.proj\.",),
        head=r"(model\.)?blocks\.[56]\.proj\.",
    ),
)

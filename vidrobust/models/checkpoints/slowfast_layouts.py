"""Layouts of PySlowFast and pytorchvideo: SlowFast, and networks of one pathway."""

from typing import Any

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


def _two_pathways() -> tuple[tuple[str, str], ...]:
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


def _one_pathway() -> tuple[tuple[str, str], ...]:
    """Return the renames of a network of one pathway, such as Slow, C2D and I3D."""
    renames = [
        (r"^s1\.pathway0_stem\.conv\.", "blocks.0.conv."),
        (r"^s1\.pathway0_stem\.bn\.", "blocks.0.norm."),
    ]
    for stage in _STAGES:
        renames.append((rf"^s{stage}\.pathway0_res(\d+)\.", rf"blocks.{stage - 1}.res_blocks.\1."))
    return (*renames, *_RESIDUAL)


def _slow_frames(weights: Weights) -> dict[str, Any]:
    """Return the option of PySlowFast's choice of the slow pathway's frames."""
    return {"slow_frames": "linspace"}


LAYOUTS = (
    Layout(
        name="pytorchvideo SlowFast",
        origin="facebookresearch/pytorchvideo, pytorchvideo/models/slowfast.py",
        needs=(r"blocks\.0\.multipathway_blocks\.0\.conv\.",),
        drops=(r"blocks\.6\.proj\.",),
        head=r"blocks\.6\.proj\.",
    ),
    Layout(
        name="PySlowFast SlowFast",
        origin="facebookresearch/SlowFast, slowfast/models/video_model_builder.py",
        needs=(r"s1\.pathway0_stem\.", r"s1\.pathway1_stem\.", r"s1_fuse\."),
        renames=_two_pathways(),
        drops=(r"head\.",),
        head=r"head\.projection\.",
        options=_slow_frames,
    ),
    Layout(
        name="PySlowFast contrastive (MoCo, BYOL, SimCLR, SwAV on video)",
        origin="facebookresearch/SlowFast, slowfast/models/contrastive.py",
        needs=(r"backbone\.s1\.pathway0_stem\.",),
        forbids=(r"backbone\.s1\.pathway1_stem\.",),
        prefix=r"backbone\.",
        renames=_one_pathway(),
        drops=(r"head\.",),
    ),
    Layout(
        name="PySlowFast of one pathway",
        origin="facebookresearch/SlowFast, slowfast/models/video_model_builder.py",
        needs=(r"s1\.pathway0_stem\.",),
        forbids=(r"s1\.pathway1_stem\.",),
        renames=_one_pathway(),
        drops=(r"head\.",),
        head=r"head\.projection\.",
    ),
    Layout(
        name="pytorchvideo of one pathway",
        origin="facebookresearch/pytorchvideo, pytorchvideo/models/resnet.py",
        needs=(r"blocks\.0\.conv\.", r"blocks\.5\.proj\."),
        drops=(r"blocks\.5\.proj\.",),
        head=r"blocks\.5\.proj\.",
    ),
)

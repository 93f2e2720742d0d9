"""Layouts of R(2+1)D-18 from video self-supervision.

Prefixes as in the loaders of fmthoker/SEVERE-BENCHMARK, action_recognition/backbones.
"""

from vidrobust.models.checkpoints.layout import Layout, Weights

# mmaction2's names of torchvision's modules: spatial convolution, its norm, temporal convolution,
# and the norm after both
_MMACTION = (
    (r"^stem\.conv_s\.", "stem.0."),
    (r"^stem\.bn_s\.", "stem.1."),
    (r"^stem\.conv_t\.", "stem.3."),
    (r"^stem\.bn_t\.", "stem.4."),
    (r"\.conv(\d)\.conv_s\.", r".conv\1.0.0."),
    (r"\.conv(\d)\.bn_s\.", r".conv\1.0.1."),
    (r"\.conv(\d)\.conv_t\.", r".conv\1.0.3."),
    (r"\.bn(\d)\.", r".conv\1.1."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample_bn\.", ".downsample.1."),
)
# networks that are kept as a list of their five stages
_NUMBERED = (
    (r"^0\.", "stem."),
    (r"^(\d)\.", r"layer\1."),
)


def _dilated(weights: Weights) -> dict[str, bool]:
    """Return the option of TCLR's last stage, which keeps the number of frames."""
    return {"dilated": True}


LAYOUTS = (
    Layout(
        name="GDT, SeLaVi",
        origin="facebookresearch/GDT, facebookresearch/selavi",
        needs=(r"video_network\.base\.stem\.",),
        prefix=r"video_network\.base\.",
        drops=(r"fc\.",),
    ),
    Layout(
        # AVID-CMA's own repository has another network, whose first convolution is `conv1`
        name="AVID-CMA",
        origin="fmthoker/SEVERE-BENCHMARK, slowfast/models/avid_cma",
        needs=(r"video_model\.stem\.",),
        prefix=r"video_model\.",
        drops=(r"fc\.",),
    ),
    Layout(
        name="TCLR",
        origin="DAVEISHAN/TCLR, tclr_pretraining/model.py",
        needs=(r"0\.stem\.0\.", r"0\.layer4\.0\.conv1\.0\.weight"),
        prefix=r"0\.",
        drops=(r"fc\.",),
        options=_dilated,
    ),
    Layout(
        name="Pretext-Contrast",
        origin="BestJuly/Pretext-Contrastive-Learning",
        needs=(r"base_network\.0\.", r"base_network\.4\."),
        prefix=r"base_network\.",
        renames=_NUMBERED,
    ),
    Layout(
        name="RSPNet",
        origin="PeihaoChen/RSPNet",
        needs=(r"encoder_q\.encoder\.base_network\.0\.",),
        prefix=r"encoder_q\.encoder\.base_network\.",
        renames=_NUMBERED,
    ),
    Layout(
        name="CtP, Tubelet-Contrast",
        origin="microsoft/CtP",
        needs=(r"backbone\.stem\.conv_s\.",),
        prefix=r"backbone\.",
        renames=_MMACTION,
        drops=(r"fc\.",),
    ),
)

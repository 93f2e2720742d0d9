"""Layouts of S3D: CoCLR (Han et al. 2020)."""

import re

from torch import Tensor

from vidrobust.models.checkpoints.layout import Layout, Weights, dimensions

# CoCLR's names of S3D's parts, in the order of torchvision's list `features`; "" for a pooling
_FEATURES = (
    "Conv_1a",
    "",
    "Conv_2b",
    "Conv_2c",
    "",
    "Mixed_3b",
    "Mixed_3c",
    "",
    "Mixed_4b",
    "Mixed_4c",
    "Mixed_4d",
    "Mixed_4e",
    "Mixed_4f",
    "",
    "Mixed_5b",
    "Mixed_5c",
)
_RENAMES = (
    *((rf"^{name}\.", f"features.{i}.") for i, name in enumerate(_FEATURES) if name),
    # a convolution in space and one in time, each with a norm
    (r"\.conv1\.", ".0.0."),
    (r"\.bn1\.", ".0.1."),
    (r"\.conv2\.", ".1.0."),
    (r"\.bn2\.", ".1.1."),
    # torchvision's first branch is not in a list
    (r"\.branch0\.0\.", ".branch0."),
    (r"\.conv\.", ".0."),
    (r"\.bn\.", ".1."),
)
# of batch norms, in CoCLR and in torchvision's S3D
_EPS = 1e-5
_EPS_TORCHVISION = 1e-3


def _with_eps(weights: Weights) -> dict[str, Tensor]:
    """Return weights of norms that are right with torchvision's eps.

    Each norm divides by the root of its variance and an eps. Its weight takes up the difference
    between the two eps, so that outputs with running statistics stay the same.
    """
    scaled = dict(weights)
    for key, variance in weights.items():
        weight = key.replace("running_var", "weight")
        if not key.endswith("running_var") or weight not in weights:
            continue
        if weights[weight].shape == variance.shape:
            ratio = (variance.double() + _EPS_TORCHVISION) / (variance.double() + _EPS)
            scaled[weight] = (weights[weight].double() * ratio.sqrt()).to(weights[weight].dtype)
    return scaled


def _other_s3d(weights: Weights) -> str:
    """Return the reason why torchvision's S3D does not take weights; "" if it does."""
    if any(".gating_b0." in key for key in weights):
        return "S3D-G has gates in its blocks, which torchvision's S3D does not have"
    for key, value in weights.items():
        if not re.search(r"\.Conv_1a\.conv1\.weight$", key) or value.ndim != 5:
            continue
        if value.shape[1] != 3:
            return f"it takes inputs of {value.shape[1]} channels, such as optical flow, not RGB"
    return ""


def _r2d3d(weights: Weights) -> str:
    """Return the reason why no network here takes CoCLR's residual network."""
    return "R(2D3D)-50 is a residual network that no source here has; CoCLR's files of S3D are read"


_NOTE = (
    "the network is torchvision:s3d, trained on 128 x 128 pixels; larger ones are averaged in"
    " torchvision's windows"
)
# eval/main_classifier.py of CoCLR crops 224 of 256 pixels, and shrinks them to 128
_CARD = {
    "frames": 32,
    "stride": 1,
    "short_side": 146,
    "size": (128, 128),
    "view_average": "probabilities",
}
# of ImageNet
_STATISTICS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

LAYOUTS = (
    Layout(
        name="CoCLR S3D, finetuned",
        origin="TengdaHan/CoCLR, model/classifier.py",
        needs=(r"backbone\.Conv_1a\.conv1\.", r"final_fc\."),
        # with a norm between the features and the classifier, the latter is left out, see below
        forbids=(r"final_bn\.",),
        prefix=r"backbone\.",
        renames=_RENAMES,
        drops=(r"block\d\.",),
        head=r"final_fc\.\d\.",
        options=lambda weights: dict(_STATISTICS),
        convert=_with_eps,
        refuse=_other_s3d,
        card=_CARD,
        note=_NOTE,
    ),
    Layout(
        name="CoCLR S3D",
        origin="TengdaHan/CoCLR, model/pretrain.py",
        needs=(r"(encoder_q\.0|backbone)\.Conv_1a\.conv1\.",),
        prefix=r"(encoder_q\.0|backbone)\.",
        renames=_RENAMES,
        # each part has a second name in a list of blocks
        drops=(r"block\d\.",),
        options=lambda weights: dict(_STATISTICS),
        convert=_with_eps,
        refuse=_other_s3d,
        card=_CARD,
        note=_NOTE,
    ),
    Layout(
        name="CoCLR R(2D3D)-50",
        origin="TengdaHan/CoCLR, backbone/resnet_2d3d.py",
        needs=(r"encoder_q\.0\.layer4\.",),
        when=lambda weights: dimensions(weights, "encoder_q.0.conv1.weight") == 5,
        refuse=_r2d3d,
    ),
)

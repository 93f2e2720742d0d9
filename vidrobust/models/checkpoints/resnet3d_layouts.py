"""Layouts of 3-D ResNets: those of Hara et al. and MARS."""

from typing import Any

from vidrobust.models.checkpoints.layout import Layout, Weights, dimensions


def _is_hara(weights: Weights) -> bool:
    """Return whether the first convolution is one in time and space, unlike that of images."""
    return dimensions(weights, "conv1.weight") == 5


def _other_resnet3d(weights: Weights) -> str:
    """Return the reason why no 3-D ResNet here takes weights; "" if one does."""
    channels = weights["conv1.weight"].shape[1]
    if channels != 3:
        return f"it takes inputs of {channels} channels, such as optical flow, not RGB"
    if not any(key.startswith("layer2.0.downsample.") for key in weights):
        return (
            "its shortcuts are of type A (zeros), but those of resnet3d_* are of type B"
            " (convolutions)"
        )
    return ""


def _width(weights: Weights) -> dict[str, Any]:
    """Return the option of a network that is wider or narrower than the published ones."""
    width = weights["conv1.weight"].shape[0]
    return {"width": width} if width != 64 else {}


LAYOUTS = (
    Layout(
        name="3D-ResNets-PyTorch (also MARS)",
        origin="kenshohara/3D-ResNets-PyTorch, models/resnet.py; craston/MARS",
        needs=(r"layer4\.0\.conv1\.weight",),
        when=_is_hara,
        head=r"fc\.",
        options=_width,
        refuse=_other_resnet3d,
        note="inputs are normalised as in the present code of its authors; files of 2017 and of"
        " MARS need model.mean=[0.4501,0.4225,0.3901] and model.std=[0.00392,0.00392,0.00392]",
    ),
)

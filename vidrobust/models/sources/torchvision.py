"""Models of torchvision: video networks, and image classifiers averaged over frames."""

import re
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from vidrobust.models.input_spec import InputSpec, Published
from vidrobust.models.sources.source_model import (
    Adjust,
    Source,
    SourceModel,
    SourceTrunk,
    cut_last_linear,
    linear_of,
    per_frame,
    whole,
)
from vidrobust.utils.errors import UserError, lookup

_FIXED = ("mvit_v1_b", "mvit_v2_s")  # position embeddings of one number of frames and one size
_S3D_FRAMES = 9  # fewer leave less than the two frames that its last pooling takes


def names() -> Sequence[str]:
    """Return the names of video networks and image classifiers."""
    return [*list_models(module=torchvision.models.video), *list_models(module=torchvision.models)]


def build(name: str, weights: str, adjust: Adjust) -> SourceModel:
    """Return a model of torchvision.

    Args:
        name: as `torchvision.models.get_model` takes it.
        weights: name of pretrained weights, such as "KINETICS400_V1" or "DEFAULT", which are
            downloaded; "": random weights.
        adjust: changes the input card.

    Raises:
        UserError: for an unknown name, unknown weights, and weights that cannot be downloaded.
    """
    network: Any = torchvision.models.get_model(name, weights=None)
    published = get_model_weights(name)
    chosen = published.DEFAULT
    if weights:
        by_name = {each.name: each for each in published} | {"DEFAULT": chosen}
        chosen = lookup(by_name, weights, f"torchvision:{name}@")
        try:
            network.load_state_dict(chosen.get_state_dict(progress=True, check_hash=True))
        except OSError as error:
            raise UserError(
                f"torchvision:{name}@{weights}: {chosen.url} cannot be downloaded ({error}); give a"
                f" file that you have: torchvision:{name} with --weights FILE"
            ) from None
    card = _input_spec(chosen)
    spec = adjust(card)
    if name in list_models(module=torchvision.models):
        key, head = cut_last_linear(network)
        trunk = SourceTrunk(network, spec, per_frame, key)
    elif name == "s3d":
        head = linear_of(network.classifier[1])
        network.classifier = nn.Identity()
        trunk = SourceTrunk(network, spec, _s3d, "classifier.1", least_frames=_S3D_FRAMES)
    else:
        key, head = cut_last_linear(network)
        fixed = (card.frames, card.size) if name in _FIXED else None
        trunk = SourceTrunk(network, spec, whole, key, fixed=fixed)
    return SourceModel(trunk, head.in_features, head, spec, bool(weights))


def _s3d(network: Any, x: Tensor) -> Tensor:
    """Return the features of S3D, averaged as its classifier averages its outputs.

    Its window of 7 x 7 does not fit the features of frames below 224 pixels, whose plain mean is
    taken, as CoCLR (Han et al. 2020) does for 128 pixels.
    """
    x = network.features(x)
    window = network.avgpool.kernel_size
    if all(n >= w for n, w in zip(x.shape[2:], window, strict=True)):
        x = network.avgpool(x)
    return x.mean((2, 3, 4))


def _input_spec(weights: Any) -> InputSpec:
    """Return the input card of pretrained weights, from their metadata and transforms."""
    transforms = vars(weights.transforms())
    meta = weights.meta
    height_width = [*transforms["crop_size"], *transforms["crop_size"]][:2]
    resize = transforms["resize_size"]
    video = "Kinetics-400" in meta["_metrics"]
    # the frame rate and the number of clips stand in the text alone
    stated = dict(re.findall(r"`(\w+)=([\d.]+)`", meta["_docs"]))
    dataset = next(iter(meta["_metrics"]))
    return InputSpec(
        frames=int(stated.get("clip_len", 16)) if video else 1,
        fps=float(stated["frame_rate"]) if "frame_rate" in stated else None,
        short_side=resize[0] if len(resize) == 1 else None,
        resize=(resize[0], resize[1]) if len(resize) == 2 else None,
        size=(height_width[0], height_width[1]),
        interpolation=transforms["interpolation"].value,
        mean=tuple(transforms["mean"]),
        std=tuple(transforms["std"]),
        classes=tuple(meta["categories"]),
        published=Published(
            meta["_metrics"][dataset]["acc@1"] / 100,
            dataset,
            f"{stated['clips_per_video']}x1" if "clips_per_video" in stated else "1x1",
            f"torchvision {torchvision.__version__}, {weights}",
        ),
    )


TORCHVISION = Source(build, names, "a name of torchvision.models, video or image, such as r3d_18")

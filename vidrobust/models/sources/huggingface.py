"""Video models of Hugging Face: VideoMAE, TimeSformer, ViViT and V-JEPA 2 through transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidrobust.models.input_spec import InputSpec
from vidrobust.models.sources.source_model import Adjust, Source, SourceModel, SourceTrunk
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

# model_type -> its position embeddings: for one number of frames and one size alone, interpolated
# for others as its authors do, or rotary, for any
_POSITIONS = {
    "videomae": "fixed",
    "vivit": "fixed",
    "timesformer": "interpolated",
    "vjepa2": "rotary",
}
# of ImageNet, with which models without a processor's file were trained (VideoMAE, V-JEPA 2)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


def names() -> Sequence[str]:
    """Return no names, because a folder or any name on the hub may be given."""
    return []


def build(name: str, weights: str, adjust: Adjust) -> SourceModel:
    """Return a model for video classification.

    Args:
        name: a folder that `save_pretrained` has written, or a name on the hub.
        weights: "": those of the folder or the hub; "random": fresh ones.
        adjust: changes the input card.

    Raises:
        UserError: for a folder or name without a video model, and for one that cannot be read.
    """
    import transformers
    from transformers import AutoConfig

    transformers.logging.set_verbosity_error()  # what is missing is logged below, in one line
    if weights not in ("", "random"):
        raise UserError(f"hf:{name}@{weights}: the weights are those of {name}; leave @ out")
    if "/" not in name and not Path(name).is_dir():
        raise UserError(f"hf:{name}: no such folder; names on the hub are OWNER/NAME")
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in _POSITIONS:
            raise UserError(
                f"hf:{name}: a model of type {config.model_type}; video models are"
                f" {', '.join(_POSITIONS)}; use python: for others"
            )
        kind = _class_of(config)
        if weights == "random":
            network, missing = kind.from_config(config), ["classifier"]
        else:
            network, info = kind.from_pretrained(name, output_loading_info=True)
            missing = sorted(info["missing_keys"])
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"hf:{name}: {reason}") from None
    if absent := [key for key in missing if not key.startswith("classifier")]:
        log.warning(f"hf:{name}: random weights for {', '.join(absent[:5])}: missing in its files")
    head = network.classifier
    network.classifier = nn.Identity()
    card = _input_spec(name, config)
    spec = adjust(card)
    # how the network treats other shapes than this one
    shape = {_POSITIONS[config.model_type]: (card.frames, card.size)}
    trunk = SourceTrunk(
        network,
        spec,
        _features,
        "classifier",
        fixed=shape.get("fixed"),
        interpolated=shape.get("interpolated"),
    )
    trained = not any(key.startswith("classifier") for key in missing)
    return SourceModel(
        trunk, head.in_features, head if trained else None, spec, weights != "random"
    )


def _class_of(config: Any) -> Any:
    """Return the class of a network: for classification, or V-JEPA 2's encoder by itself."""
    if "VJEPA2Model" in (config.architectures or ()):
        from vidrobust.models.sources.vjepa2_encoder import VJepa2Encoder

        return VJepa2Encoder
    from transformers import AutoModelForVideoClassification

    return AutoModelForVideoClassification


def _require_same_arrangement(config: Any, x: Tensor) -> None:
    """Check that transformers arranges the tokens of clips as the model's authors do.

    TimeSformer's layers of transformers find the frames of a place by the `num_frames` of the
    configuration, and V-JEPA 2's the tokens of a row by its `crop_size`, whatever the clips are.

    Args:
        config: of the model.
        x: frames (B, T, C, H, W).

    Raises:
        UserError: for another number of frames or size, with which features would be wrong.
    """
    frames = config.num_frames if config.model_type == "timesformer" else x.shape[1]
    if x.shape[1] != frames:
        raise UserError(
            f"TimeSformer of transformers takes {frames} frames, not {x.shape[1]}; set"
            f" data.frames={frames}, or num_frames in its config.json"
        )
    size = config.crop_size if config.model_type == "vjepa2" else 0
    if size and x.shape[-2:] != (size, size):
        raise UserError(
            f"V-JEPA 2 of transformers takes {size} x {size} pixels, not {x.shape[-2]} x"
            f" {x.shape[-1]}; set data.size={size}, or crop_size in its config.json"
        )


def _features(network: Any, x: Tensor) -> Tensor:
    """Return what the classifier takes, for frames (B, T, C, H, W)."""
    _require_same_arrangement(network.config, x)
    return network(x).logits


def _input_spec(name: str, config: Any) -> InputSpec:
    """Return the input card, from the configuration and the file of the processor."""
    from transformers.utils import cached_file

    processor: dict[str, Any] = {}
    for file in _PROCESSORS:
        try:
            path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        except OSError:
            path = None
        if path:
            with open(path) as text:
                processor = json.load(text)
            break
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", 16)
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    resize = processor.get("size", {})
    if not isinstance(resize, dict):
        resize = {"shortest_edge": resize}
    labels = config.id2label or {}
    named = labels and not labels.get(0, "LABEL_0").startswith("LABEL_")
    return InputSpec(
        frames=int(frames or 16),
        short_side=resize.get("shortest_edge"),
        resize=(resize["height"], resize["width"]) if "height" in resize else None,
        size=(height, width),
        # Pillow's numbers, in which processors' files are written
        interpolation="bicubic" if processor.get("resample") == 3 else "bilinear",
        **_pixels(processor),
        layout="BTCHW",
        classes=tuple(labels[i] for i in range(len(labels))) if named else None,
    )


def _pixels(processor: dict[str, Any]) -> dict[str, Any]:
    """Return range, mean and std of an input card, from the file of a processor.

    A processor multiplies pixels of 0 to 255 by rescale_factor, subtracts 1 if it has an offset
    (ViViT), and normalises the result.
    """
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    low = -1.0 if processor.get("offset") else 0.0
    normalises = processor.get("do_normalize", True)
    return {
        "range": (low, round(255 * factor + low, 6)),
        "mean": tuple(processor.get("image_mean", _MEAN)) if normalises else (0.0,) * 3,
        "std": tuple(processor.get("image_std", _STD)) if normalises else (1.0,) * 3,
    }


HUGGINGFACE = Source(
    build,
    names,
    "a folder of save_pretrained or a name on the hub: VideoMAE, TimeSformer, ViViT, V-JEPA 2",
    package="transformers",
    extra="hf",
)

"""Read the input card that a file of weights holds, and apply it to that of a source."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import yaml

from vidrobust.models.checkpoints.layout import Recognised
from vidrobust.models.input_spec import InputSpec
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

# PySlowFast's have about 10,000; a parser in Python would need minutes for a huge one
_LONGEST = 200_000
_STATISTICS = ("mean", "std")
_ALPHA = 4  # frames of the fast pathway per frame of the slow one, in slowfast_r50 and r101


def pyslowfast_config(contents: Any) -> dict[str, Any]:
    """Return the configuration that PySlowFast keeps as YAML in its files; {} without one.

    Args:
        contents: of a file.
    """
    text = contents.get("cfg") if isinstance(contents, Mapping) else None
    if not isinstance(text, str) or len(text) > _LONGEST:
        return {}
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):  # damaged, or of another program
        return {}
    return settings if isinstance(settings, dict) else {}


def require_fitting(settings: Mapping[str, Any]) -> None:
    """Check what the weights of PySlowFast do not show.

    Args:
        settings: see `pyslowfast_config`.

    Raises:
        UserError: for settings of a network that none here computes.
    """
    arch = _entry(settings, "MODEL", "ARCH")
    alpha = _entry(settings, "SLOWFAST", "ALPHA")
    if arch == "slowfast" and isinstance(alpha, int) and alpha != _ALPHA:
        raise UserError(
            f"PySlowFast SlowFast: trained with SLOWFAST.ALPHA={alpha}, but slowfast_r50 and"
            f" slowfast_r101 have {_ALPHA}"
        )
    if arch == "mvit" and _entry(settings, "MVIT", "USE_MEAN_POOLING") is True:
        raise UserError(
            "PySlowFast MViT: trained with MVIT.USE_MEAN_POOLING=True, but torchvision's MViT"
            " classifies its class token"
        )


def pyslowfast_card(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `InputSpec` that a configuration of PySlowFast says.

    Entries of an unexpected type are left out.

    Args:
        settings: see `pyslowfast_config`.
    """
    card: dict[str, Any] = {}
    for name, key in (("frames", "NUM_FRAMES"), ("stride", "SAMPLING_RATE")):
        if _is_count(value := _entry(settings, "DATA", key)):
            card[name] = value
    if _is_count(crop := _entry(settings, "DATA", "TEST_CROP_SIZE")):
        card["size"] = (crop, crop)
        card["short_side"] = crop
        # With one crop per clip, frames are as large as the smallest ones of training.
        scales = _entry(settings, "DATA", "TRAIN_JITTER_SCALES")
        if _entry(settings, "TEST", "NUM_SPATIAL_CROPS") == 1 and isinstance(scales, list):
            card["short_side"] = scales[0] if scales and _is_count(scales[0]) else crop
    if _entry(settings, "DATA", "REVERSE_INPUT_CHANNEL") is True:
        card["channels"] = "bgr"
    # its head returns probabilities in tests, which are summed over views
    if _entry(settings, "MODEL", "HEAD_ACT") == "softmax":
        card["view_average"] = "probabilities"
    return card


def pyslowfast_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options `model.mean` and `model.std` that a configuration of PySlowFast says.

    Args:
        settings: see `pyslowfast_config`.
    """
    mean = _entry(settings, "DATA", "MEAN")
    std = _entry(settings, "DATA", "STD")
    for values in (mean, std):
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            return {}
    return {"mean": mean, "std": std} if min(std) > 0 else {}


def file_adjustment(found: Recognised) -> Callable[[InputSpec], InputSpec]:
    """Return the change that a file makes to the input card of a source.

    Args:
        found: weights of the file.
    """
    statistics = {name: found.options[name] for name in _STATISTICS if name in found.options}
    fields = {**found.card, **{name: tuple(value) for name, value in statistics.items()}}
    if statistics:  # in the units of pixels in [0, 1]
        fields["range"] = (0.0, 1.0)
    # of two fields that exclude each other, the file says one
    for name, other in (("stride", "fps"), ("short_side", "resize")):
        if name in fields:
            fields[other] = None

    def adjust(card: InputSpec) -> InputSpec:
        pathways = card.layout == "pathways"
        frames = (
            {"slow_frames": found.options.get("slow_frames", card.slow_frames)} if pathways else {}
        )
        return replace(card, **fields, **frames)

    return adjust


def source_options(options: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """Return those options of `model.*` that each model of another package has: mean and std.

    A warning names the others, but for `slow_frames` and `channels`, which the input card has.

    Args:
        options: that the weights need.
        spec: of the source, for messages.
    """
    for name, value in options.items():
        if name not in (*_STATISTICS, "slow_frames", "channels"):
            log.warning(
                f"the weights need model.{name}={value}, but {spec} has no such option: features"
                " will differ from those of their authors; use a backbone of this package"
            )
    return {name: options[name] for name in _STATISTICS if name in options}


def _entry(settings: Mapping[str, Any], group: str, key: str) -> Any:
    """Return an entry of a group of a configuration, or None."""
    held = settings.get(group)
    return held.get(key) if isinstance(held, Mapping) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

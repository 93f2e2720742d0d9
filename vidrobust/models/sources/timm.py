"""Image classifiers of timm, averaged over frames."""

from collections.abc import Sequence
from typing import Any

from vidrobust.models.input_spec import InputSpec
from vidrobust.models.sources.source_model import (
    Adjust,
    Source,
    SourceModel,
    SourceTrunk,
    per_frame,
)
from vidrobust.utils.errors import UserError


def names() -> Sequence[str]:
    """Return the names of timm's models; none where timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return timm.list_models()


def build(name: str, weights: str, adjust: Adjust) -> SourceModel:
    """Return a model of timm.

    Args:
        name: as `timm.create_model` takes it.
        weights: tag of pretrained weights, or "DEFAULT", which are downloaded; "": random weights.
        adjust: changes the input card.

    Raises:
        UserError: for a network without a linear classifier, and weights that cannot be downloaded.
    """
    import timm
    from torch import nn

    full = name if weights in ("", "DEFAULT") else f"{name}.{weights}"
    try:
        network: Any = timm.create_model(full, pretrained=bool(weights))
    except Exception as error:  # hubs raise many types
        raise UserError(f"timm:{name}: {(str(error).splitlines() or [''])[0]}") from None
    head = network.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UserError(f"timm:{name}: its classifier is no linear layer; use python: for it")
    key = network.default_cfg["classifier"]
    network.reset_classifier(0)
    data = timm.data.resolve_model_data_config(network)
    size = data["input_size"][1:]
    spec = InputSpec(
        frames=1,
        short_side=round(min(size) / data["crop_pct"]),
        size=(size[0], size[1]),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    spec = adjust(spec)
    trunk = SourceTrunk(network, spec, per_frame, key)
    return SourceModel(trunk, head.in_features, head, spec, bool(weights))


TIMM = Source(
    build, names, "a name of timm.list_models(), such as resnet50", package="timm", extra="timm"
)

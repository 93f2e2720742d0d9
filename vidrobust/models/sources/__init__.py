"""Models of other packages, by a spec such as `torchvision:r3d_18`."""

from vidrobust.models.sources.known_sources import (
    SOURCES,
    build_source,
    fresh,
    is_spec,
    require_spec,
)
from vidrobust.models.sources.source_model import Adjust, Source, SourceModel

__all__ = [
    "SOURCES",
    "Adjust",
    "Source",
    "SourceModel",
    "build_source",
    "fresh",
    "is_spec",
    "require_spec",
]

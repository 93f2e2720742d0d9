"""Natural corruptions of clips, usable alone: no import from the rest of the package."""

from vidrobust.corruptions.catalogue import (
    BENCHMARKS,
    CONSECUTIVE,
    CORRUPTIONS,
    INDEX_MAPS,
    OVER_TIME,
    SEVERITIES,
    Corrupt,
    CorruptionSpec,
    corrupt,
    expand,
    map_frames,
    require_encoders,
)
from vidrobust.corruptions.clip import Corruption
from vidrobust.corruptions.codec import MissingEncoder, h264
from vidrobust.corruptions.temporal import IndexMap

__all__ = [
    "BENCHMARKS",
    "CONSECUTIVE",
    "CORRUPTIONS",
    "INDEX_MAPS",
    "OVER_TIME",
    "SEVERITIES",
    "Corrupt",
    "Corruption",
    "CorruptionSpec",
    "IndexMap",
    "MissingEncoder",
    "corrupt",
    "expand",
    "h264",
    "map_frames",
    "require_encoders",
]

"""Weights that other code has saved: read safely, recognised by their keys, renamed."""

from vidrobust.models.checkpoints.file_card import file_adjustment, source_options
from vidrobust.models.checkpoints.layout import Layout, Recognised
from vidrobust.models.checkpoints.read_file import Contents, read_weights
from vidrobust.models.checkpoints.recognise import LAYOUTS, recognise, recognise_contents

__all__ = [
    "LAYOUTS",
    "Contents",
    "Layout",
    "Recognised",
    "file_adjustment",
    "read_weights",
    "recognise",
    "recognise_contents",
    "source_options",
]

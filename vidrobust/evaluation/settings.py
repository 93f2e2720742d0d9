"""Hold the settings that every measurement of a classifier shares."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vidrobust.attacks import Predict


@dataclass(frozen=True)
class MeasureSettings:
    """Say which model is measured, how it is run, and where its rows are written.

    Attributes:
        predict: maps clips (B, 3, T, H, W) in [0, 1] to logits (B, K), in evaluation mode.
        out: folder that receives the rows; it must exist.
        batch_size: largest number of clips per forward pass.
        workers: number of processes that load videos.
        device: device that the clips are moved to.
        identity: name of the model, such as the hash of its checkpoint. If empty,
            `identify_model` recognises the model by its weights and outputs.
        view_average: how the clips of a video are averaged; see `average_views`.
    """

    predict: Predict
    out: Path
    batch_size: int
    workers: int
    device: torch.device
    identity: str = ""
    view_average: str = "logits"

"""Keep clips that an attack breaks, losslessly, for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidrobust.attacks import ThreatModel
from vidrobust.evaluation.adversarial.targets import Unit


@dataclass(frozen=True)
class BrokenClip:
    """A clip that an attack breaks.

    Attributes:
        kind: of the threat, as part of a file name.
        index: of the video.
        content: arrays and values of the .npz file.
    """

    kind: str
    index: int
    content: dict[str, Any]


def broken_clips(
    unit: Unit,
    rows: Sequence[int],
    x_adv: Tensor,
    clean: Tensor,
    adv: Tensor,
    threat: ThreatModel,
) -> list[BrokenClip]:
    """Return some clips of a batch that a threat breaks.

    Args:
        unit: the batch.
        rows: which of its clips.
        x_adv: (B, 3, T, H, W), adversarial clips.
        clean: (B,), predictions without an attack.
        adv: (B,), predictions for adversarial clips.
        threat: the budget.
    """
    kind = threat.kind.replace("@", "-at-")  # part of a file name
    clips = []
    for i in rows:
        content = {
            "clip": (unit.x[i] * 255).round().to(torch.uint8).cpu().numpy(),
            "adversarial": x_adv[i].cpu().numpy(),
            "uid": unit.uids[i],
            "label": int(unit.labels[i]),
            "clean_pred": int(clean[i]),
            "adv_pred": int(adv[i]),
            "threat": str(threat),
        }
        clips.append(BrokenClip(kind, unit.index[i], content))
    return clips


def save_broken_clips(folder: Path, clips: Sequence[BrokenClip], most: int) -> None:
    """Save clips, as long as there are fewer than `most` of their kind.

    Args:
        folder: is made if there is something to save.
        clips: to save.
        most: files per kind of threat.
    """
    for clip in clips:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{clip.kind}-{clip.index:06d}.npz"
        others = [p for p in folder.glob(f"{clip.kind}-??????.npz") if p != path]
        if len(others) < most:
            np.savez_compressed(path, **clip.content)

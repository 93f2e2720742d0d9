"""Measure when and where an attack changes clips: by frame, and as a coarse map."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidrobust.evaluation.adversarial.attack_row import AttackRow

FRAMES = 32  # largest number of values over time that a row keeps
GRID = 16  # a map has GRID x GRID cells


def change_per_frame(change: Tensor) -> list[list[float]]:
    """Return the root mean square change of each frame, at most FRAMES values per clip.

    Longer clips have the root mean square of parts of equal length.

    Args:
        change: adversarial clips minus clips, (B, 3, T, H, W).
    """
    energy = change.float().square().mean((1, 3, 4))  # (B, T)
    if energy.shape[1] > FRAMES:
        energy = F.adaptive_avg_pool1d(energy[:, None], FRAMES)[:, 0]
    return [[float(f"{value:.4g}") for value in clip] for clip in energy.sqrt().tolist()]


def change_maps(change: Tensor) -> list[str]:
    """Return the mean absolute change by place in the frame, as text that `read_map` reads.

    Args:
        change: adversarial clips minus clips, (B, 3, T, H, W).
    """
    mean = change.float().abs().mean((1, 2))  # (B, H, W)
    cells = F.adaptive_avg_pool2d(mean[:, None], GRID)[:, 0]
    texts = []
    for cell in cells:
        # a byte per cell keeps a row short: the largest cell, then all cells relative to it
        largest = float(cell.max())
        relative = (255 * cell / max(largest, 1e-12)).round().to(torch.uint8).cpu().numpy()
        texts.append(f"{largest:.4g} {relative.tobytes().hex()}")
    return texts


def read_map(text: str) -> np.ndarray:
    """Return the map of a row, (GRID, GRID), in units of pixel values in [0, 1].

    Raises:
        ValueError: for text that `change_maps` has not written.
    """
    largest, _, cells = text.partition(" ")
    values = np.frombuffer(bytes.fromhex(cells), np.uint8).reshape(GRID, GRID)
    return values * (float(largest) / 255)


@dataclass(frozen=True)
class Fingerprint:
    """When and where a threat changes clips, as the mean over the attacked videos.

    Attributes:
        n: number of videos.
        frames: root mean square change by frame, or by part of a longer clip.
        place: mean absolute change by place, (GRID, GRID).
    """

    n: int
    frames: list[float]
    place: np.ndarray


def fingerprint(rows: Sequence[AttackRow]) -> Fingerprint | None:
    """Return the fingerprint of a threat; None where no row holds changes.

    Videos that were wrong before the attack are not attacked, and do not count.

    Args:
        rows: of one threat.
    """
    attacked = [row for row in rows if row.killed_by not in ("clean", "error")]
    known = [row for row in attacked if row.change_frames and row.change_map]
    if not known:
        return None
    # source frames of videos differ in number: all are drawn at the positions of the longest
    length = max(len(row.change_frames or ()) for row in known)
    positions = np.linspace(0, 1, length)
    frames = []
    for row in known:
        values = np.square(row.change_frames or ())
        frames.append(np.interp(positions, np.linspace(0, 1, len(values)), values))
    maps = [read_map(row.change_map or "") for row in known]
    return Fingerprint(
        len(known), np.sqrt(np.mean(frames, 0)).tolist(), np.asarray(np.mean(maps, 0))
    )

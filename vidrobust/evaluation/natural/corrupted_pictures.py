"""Keep a moving picture of one video under each corruption and severity, for the report."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vidrobust.data import ClipSpec, Corrupted
from vidrobust.utils.atomic_files import read_json, replacing

_FRAMES = 8  # largest number of frames of a picture
_SIDE = 160  # pixels; of larger clips the centre is shown: shrinking would hide noise
_QUALITY = 85
_NAME = "video.json"
_FPS = 8.0  # where the rate of the clip is not known


def save_pictures(folder: Path, corrupted: Corrupted, spec: ClipSpec) -> None:
    """Write folder/NAME-SEVERITY.webp for each condition of one video, the first that decodes.

    folder/video.json names it, so that a call that is repeated goes on with the same one.

    The pictures are lossy: a corruption is visible, unlike an adversarial perturbation.

    Args:
        folder: is made.
        corrupted: the clips of each condition; the first clip is shown.
        spec: how clips are sampled.
    """
    shown = shown_video(folder)
    if shown is None and all(isinstance(clips, Tensor) for clips in corrupted.clips):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / _NAME) as file:
            file.write(json.dumps({"index": corrupted.index}).encode())
        shown = corrupted.index
    if shown != corrupted.index:
        return
    fps = spec.fps / spec.stride if spec.fps else _FPS
    for (name, severity), clips in zip(corrupted.conditions, corrupted.clips, strict=True):
        if isinstance(clips, Tensor):
            with replacing(folder / f"{name}-{severity}.webp") as file:
                file.write(_moving_picture(clips[0].numpy(), fps))


def shown_video(folder: Path) -> int | None:
    """Return the index of the video that the pictures show; None without pictures."""
    path = folder / _NAME
    return read_json(path, f"delete {folder}")["index"] if path.is_file() else None


def _moving_picture(clip: np.ndarray, fps: float) -> bytes:
    """Return a clip (T, H, W, 3) uint8 as an animated WebP that loops."""
    height, width = clip.shape[1:3]
    top, left = max(height - _SIDE, 0) // 2, max(width - _SIDE, 0) // 2
    kept = np.linspace(0, len(clip) - 1, min(len(clip), _FRAMES)).round().astype(int)
    shown = clip[kept, top : top + _SIDE, left : left + _SIDE]
    first, *others = [Image.fromarray(frame) for frame in shown]
    # the frames that are left out keep their time
    duration = round(1000 * len(clip) / len(kept) / max(fps, 0.1))
    file = io.BytesIO()
    first.save(
        file,
        format="WEBP",
        save_all=bool(others),
        append_images=others,
        duration=max(duration, 20),
        loop=0,
        quality=_QUALITY,
    )
    return file.getvalue()

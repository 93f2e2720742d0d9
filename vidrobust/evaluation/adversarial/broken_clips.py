"""Keep clips that an attack breaks, losslessly, for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidrobust.attacks import Predict, ThreatModel
from vidrobust.evaluation.adversarial.targets import Unit
from vidrobust.utils.atomic_files import replacing

_FRAMES = 32  # largest number of frames whose confidence is measured one by one


@dataclass(frozen=True)
class BrokenClip:
    """A clip that an attack breaks.

    Attributes:
        kind: of the threat, as part of a file name.
        index: of the video.
        content: arrays and values of the .npz file.
        predict: the classifier that it breaks.
        device: of its clips.
    """

    kind: str
    index: int
    content: dict[str, Any]
    predict: Predict
    device: torch.device


def broken_clips(
    unit: Unit,
    rows: Sequence[int],
    x_adv: Tensor,
    predictions: tuple[Tensor, Tensor],
    killed_by: Sequence[str | None],
    threat: ThreatModel,
) -> list[BrokenClip]:
    """Return some clips of a batch that a threat breaks.

    Args:
        unit: the batch.
        rows: which of its clips.
        x_adv: (B, 3, T, H, W), adversarial clips.
        predictions: (B,) each, without an attack and for adversarial clips.
        killed_by: the attack that broke each clip.
        threat: the budget.
    """
    kind = threat.kind.replace("@", "-at-")  # part of a file name
    clean, adv = predictions
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
            "killed_by": killed_by[i] or "",
            "fps": unit.rates[i],
        }
        clips.append(BrokenClip(kind, unit.index[i], content, unit.predict, unit.x.device))
    return clips


def save_broken_clips(folder: Path, clips: Sequence[BrokenClip], most: int) -> None:
    """Save clips, as long as there are fewer than `most` of their kind.

    After that, a clip of a class that is not shown yet takes the place of one of the class that is
    shown most often. So the clips are of many classes, although videos come sorted by class.

    Args:
        folder: is made if there is something to save.
        clips: to save.
        most: files per kind of threat.
    """
    for clip in clips:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{clip.kind}-{clip.index:06d}.npz"
        others = [p for p in sorted(folder.glob(f"{clip.kind}-??????.npz")) if p != path]
        surplus = None
        if len(others) >= most:
            surplus = _surplus(others, clip.content["label"])
            if surplus is None:
                continue
        content = clip.content | _confidence_by_frame(clip)
        with replacing(path) as file:
            np.savez_compressed(file, **content)
        if surplus is not None:
            surplus.unlink()


def _surplus(paths: Sequence[Path], label: int) -> Path | None:
    """Return the last file of the class with most files, if `label` has none; otherwise None.

    Args:
        paths: .npz files of clips, sorted.
        label: class of another clip.
    """
    by_label: dict[int, list[Path]] = {}
    for path in paths:
        with np.load(path) as saved:
            by_label.setdefault(int(saved["label"]), []).append(path)
    most = max(by_label.values(), key=len, default=[])
    return most[-1] if label not in by_label and len(most) > 1 else None


@torch.no_grad()
def _confidence_by_frame(clip: BrokenClip) -> dict[str, np.ndarray]:
    """Return the probabilities of the true and of the predicted class, frame by frame.

    A classifier of clips has no output per frame. Here each frame alone fills a clip: what the
    classifier takes from this frame without motion.

    Args:
        clip: the clip.

    Returns:
        "frames": which frames, (F,), at most _FRAMES; "clean_by_frame" and "adv_by_frame": (F, 2),
        probabilities of the true class and of that of the adversarial clip.
    """
    content = clip.content
    original = torch.from_numpy(content["clip"]).float() / 255
    length = original.shape[1]
    frames = np.unique(np.linspace(0, length - 1, min(length, _FRAMES)).round().astype(int))
    classes = [content["label"], content["adv_pred"]]
    answers = {"frames": frames}
    # a random model must not take numbers from the attacks that follow
    with torch.random.fork_rng([clip.device] if clip.device.type == "cuda" else []):
        for name, x in (("clean", original), ("adv", torch.from_numpy(content["adversarial"]))):
            by_frame = []
            for t in frames:
                held = x[None, :, t : t + 1].expand(1, *x.shape).contiguous()
                logits = clip.predict(held.to(clip.device)).float()
                by_frame.append(logits.softmax(1)[0, classes].cpu().numpy())
            answers[f"{name}_by_frame"] = np.stack(by_frame)
    return answers

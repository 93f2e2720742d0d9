"""Keep clips that an attack breaks, losslessly, for the report."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


def file_part(kind: str) -> str:
    """Return the kind of a threat as part of a file name."""
    return kind.replace("@", "-at-")


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
    kind = file_part(threat.kind)
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


def save_broken_clips(
    folder: Path,
    clips: Sequence[BrokenClip],
    most: int,
    mine: Callable[[int], bool] = lambda index: True,
) -> None:
    """Save clips, of as many classes as possible, and at most `most` of their kind of threat.

    The first clip of each class comes before the second one of any class, as videos come sorted by
    class. A file that is not among these any more is deleted.

    Args:
        folder: is made if there is something to save.
        clips: to save.
        most: files per kind of threat.
        mine: whether a video, by its index, belongs to this rank; files of others are left alone.
    """
    for clip in clips:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{clip.kind}-{clip.index:06d}.npz"
        labels = _labels(folder, clip.kind, mine) | {path: clip.content["label"]}
        kept = _first_of_classes(labels, most)
        if path in kept:
            content = clip.content | _confidence_by_frame(clip) | _after_rounding(clip)
            with replacing(path) as file:
                np.savez_compressed(file, **content)
        _delete_others(labels, kept)


def select_broken_clips(folder: Path, most: int) -> None:
    """Delete what several ranks, or a killed call, have saved beyond `most` files per kind.

    Args:
        folder: of the clips.
        most: files per kind of threat.
    """
    for kind in {path.stem.rpartition("-")[0] for path in folder.glob("*-??????.npz")}:
        labels = _labels(folder, kind)
        _delete_others(labels, _first_of_classes(labels, most))


def _labels(
    folder: Path, kind: str, mine: Callable[[int], bool] = lambda index: True
) -> dict[Path, int]:
    """Return file -> class of the saved clips of a kind of threat, in the order of the videos."""
    labels = {}
    for path in sorted(folder.glob(f"{kind}-??????.npz")):
        if mine(int(path.stem.rpartition("-")[2])):
            with np.load(path) as saved:
                labels[path] = int(saved["label"])
    return labels


def _first_of_classes(labels: Mapping[Path, int], most: int) -> set[Path]:
    """Return at most `most` files: the first of each class, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    order = []
    for path in sorted(labels):
        order.append((seen[labels[path]], path))
        seen[labels[path]] += 1
    return {path for _, path in sorted(order)[:most]}


def _delete_others(labels: Mapping[Path, int], kept: set[Path]) -> None:
    for path in labels:
        if path not in kept:
            path.unlink(missing_ok=True)  # a clip that was not saved has no file
            path.with_suffix(".png").unlink(missing_ok=True)


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


@torch.no_grad()
def _after_rounding(clip: BrokenClip) -> dict[str, int]:
    """Return {"rounded_pred"}: the class of the adversarial clip as 8-bit pixels.

    Pages show these pixels.
    """
    x = torch.from_numpy(clip.content["adversarial"])[None]
    with torch.random.fork_rng([clip.device] if clip.device.type == "cuda" else []):
        logits = clip.predict(((255 * x).round() / 255).to(clip.device))
    return {"rounded_pred": int(logits.argmax(1))}

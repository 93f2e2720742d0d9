"""Save adversarial clips as a data set that data.name=list reads, and as floats.

adversarial/saved.json               what was saved, of which weights and videos
adversarial/linf-8_255/000012.mkv    clip of video 12 as 8-bit pixels; .png for one frame
adversarial/linf-8_255/000012.npz    the floats that the attack returned, and the clean clip
adversarial/linf-8_255/clips.jsonl   a row per video
adversarial/linf-8_255/test.txt      list of the files; also classes.txt and README.md
"""

import io
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidrobust.attacks import rounded
from vidrobust.data import Record, write_list
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings
from vidrobust.evaluation.adversarial.targets import Unit
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.logging import log
from vidrobust.utils.text import visible

FOLDER = "adversarial"  # in the folder of an evaluation
_PIXELS = (".mkv", ".png")
_FPS = 25  # of the files; a clip is read frame by frame
# columns of clips.jsonl, from AttackRow
_COLUMNS = (
    *("index", "uid", "label", "clean_pred", "adv_pred", "killed_by"),
    *("uint8_pred", "uint8_killed_by", "error"),
)


def threat_folder(threat: str) -> str:
    """Return the name of the folder of a threat: `patch30@center-linf-1/255` has / and @."""
    return threat.replace("/", "_").replace("@", "-at-")


def stem_of(out: Path, threat: str, index: int) -> Path:
    """Return the path of the files of a clip, without suffix.

    Args:
        out: folder of the evaluation.
        threat: name of the threat.
        index: of the video.
    """
    return out / FOLDER / threat_folder(threat) / f"{index:06d}"


def is_kept(row: AttackRow, save: str) -> bool:
    """Return whether the clip of a row is saved.

    Args:
        row: of a video and threat.
        save: "none", "broken" (by an attack, as floats or after rounding) or "all".
    """
    by_attack = {row.killed_by, row.uint8_killed_by} - {None, "clean", "error"}
    return row.error is None and (save == "all" or (save == "broken" and bool(by_attack)))


def is_complete(out: Path, row: AttackRow, save: str) -> bool:
    """Return whether the files of a row exist, if it should have any.

    Args:
        out: folder of the evaluation.
        row: of a video and threat.
        save: as in `is_kept`.
    """
    stem = stem_of(out, row.threat, row.index)
    has_files = stem.with_suffix(".npz").is_file() and pixel_file(stem) is not None
    return has_files or not is_kept(row, save)


def pixel_file(stem: Path) -> Path | None:
    """Return the file of a clip as 8-bit pixels, or None if there is none."""
    return next((p for p in map(stem.with_suffix, _PIXELS) if p.is_file()), None)


# --- While clips are attacked ---


def save_clips(
    out: Path,
    unit: Unit,
    rows: Sequence[AttackRow],
    x_adv: Tensor,
    x_round: Tensor,
    save: str,
) -> None:
    """Save the clips of a batch under one threat. Existing files are replaced.

    Args:
        out: folder of the evaluation.
        unit: the batch.
        rows: of its B clips.
        x_adv: (B, 3, T, H, W) in [0, 1], which `adv_pred` of the rows belongs to.
        x_round: the same, before it is rounded; `uint8_pred` belongs to the rounded clip.
        save: "broken" or "all".
    """
    clean = as_pixels(unit.x)
    pixels = as_pixels(rounded(x_round, unit.x))
    for i, row in enumerate(rows):
        if not is_kept(row, save):
            continue
        stem = stem_of(out, row.threat, row.index)
        suffix = ".png" if len(pixels[i]) == 1 else ".mkv"
        with replacing(stem.with_suffix(suffix)) as file:
            file.write(png(pixels[i][0]) if suffix == ".png" else ffv1(pixels[i]))
        content = {
            "adversarial": x_adv[i].cpu().numpy(),
            "clip": clean[i].transpose(3, 0, 1, 2),
            "uid": row.uid,
            "label": row.label,
            "clean_pred": row.clean_pred,
            "adv_pred": row.adv_pred,
            "threat": row.threat,
            "killed_by": row.killed_by or "",
            # which frames of the clip each view shows
            **({} if unit.shown is None else {"shown": unit.shown}),
        }
        _write_arrays(stem.with_suffix(".npz"), content)


def as_pixels(x: Tensor) -> np.ndarray:
    """Return clips (B, 3, T, H, W) in [0, 1] as 8-bit pixels (B, T, H, W, 3)."""
    return (x * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()


def ffv1(frames: np.ndarray) -> bytes:
    """Return a video file (Matroska, FFV1, RGB) of frames (T, H, W, 3) uint8, without any loss.

    Equal frames give equal bytes.
    """
    buffer = io.BytesIO()
    # without bitexact, Matroska has a random identifier
    with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream("ffv1", rate=_FPS)
        stream.height = frames.shape[1]
        stream.width = frames.shape[2]
        stream.pix_fmt = "bgr0"  # FFV1's RGB of 8 bits
        stream.options = {"threads": "1", "level": "3", "flags": "+bitexact"}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="bgr0")))
        out.mux(stream.encode())
    return buffer.getvalue()


def png(frame: np.ndarray) -> bytes:
    """Return a PNG file of a frame (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _write_arrays(path: Path, content: Mapping[str, Any]) -> None:
    """Write a .npz file, whole or not at all."""
    with replacing(path) as file:
        np.savez_compressed(file, **content)


# --- When all rows are known ---


def finish_saving(
    out: Path,
    measured: Sequence[AttackRow],
    carried: Sequence[AttackRow],
    attack: AttackSettings,
    about: Mapping[str, Any],
) -> None:
    """Write the lists of the saved clips, when all rows are known.

    Args:
        out: folder of the evaluation.
        measured: rows as they were measured.
        carried: the same rows, a video that a budget breaks broken under all larger ones.
        attack: threats, what is saved, and names of the classes.
        about: model, list of videos and protocol, as results.identity.json has them.
    """
    for family in attack.families:
        for smaller, larger in pairwise(map(str, family)):
            for before, row in zip(measured, carried, strict=True):
                if row.threat == larger and row != before:
                    _carry_files(out, smaller, before, row)
    for threat in map(str, attack.ordered):
        rows = [row for row in carried if row.threat == threat]
        _write_lists(out, threat, rows, attack, about["protocol"])
    saved = {"save": attack.save, "threats": [str(threat) for threat in attack.ordered], **about}
    with replacing(out / FOLDER / "saved.json") as file:
        file.write((json.dumps(saved, indent=2) + "\n").encode())
    log.info(f"adversarial clips {_SAVED[attack.save]}, and how to read them: {out / FOLDER}")


def _carry_files(out: Path, smaller: str, before: AttackRow, row: AttackRow) -> None:
    """Copy the files of a clip that a smaller budget has broken.

    Args:
        out: folder of the evaluation.
        smaller: threat of the smaller budget.
        before: row of the larger budget, as it was measured.
        row: the same, carried from the smaller one.
    """
    source = stem_of(out, smaller, row.index)
    target = stem_of(out, row.threat, row.index)
    floats = target.with_suffix(".npz")
    # with save=broken, a clip that only rounding breaks has floats too, at every budget
    if row.killed_by != before.killed_by or not floats.is_file():
        with np.load(source.with_suffix(".npz"), allow_pickle=False) as arrays:
            _write_arrays(floats, {**arrays, "threat": row.threat})
    pixels = pixel_file(source)
    if pixels and (row.uint8_killed_by != before.uint8_killed_by or not pixel_file(target)):
        with replacing(target.with_suffix(pixels.suffix)) as file:
            file.write(pixels.read_bytes())


def _write_lists(
    out: Path,
    threat: str,
    rows: Sequence[AttackRow],
    attack: AttackSettings,
    protocol: Mapping[str, Any],
) -> None:
    """Write clips.jsonl, test.txt, classes.txt and README.md of a threat.

    Args:
        out: folder of the evaluation.
        threat: name of the threat.
        rows: of the threat, one per video.
        attack: what is saved, and names of the classes.
        protocol: of the evaluation.
    """
    folder = out / FOLDER / threat_folder(threat)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    lines = []
    for row in rows:
        stem = stem_of(out, threat, row.index)
        pixels = pixel_file(stem) if is_kept(row, attack.save) else None
        if pixels:
            records.append(Record(pixels.name, str(pixels), row.label))
        else:
            # of a clip that was left out after an attack on it had begun
            for suffix in (*_PIXELS, ".npz"):
                stem.with_suffix(suffix).unlink(missing_ok=True)
        line = {name: getattr(row, name) for name in _COLUMNS}
        lines.append(json.dumps(line | {"file": pixels.name if pixels else None}) + "\n")
    with replacing(folder / "clips.jsonl") as file:
        file.write("".join(lines).encode())
    (folder / "classes.txt").unlink(missing_ok=True)
    largest = max((row.label for row in rows), default=0)
    names = attack.classes or [str(label) for label in range(largest + 1)]
    write_list(records, listed_names(names), folder / "test.txt")
    with replacing(folder / "README.md") as file:
        file.write(_readme(threat, attack.save, protocol).encode())


def listed_names(classes: Sequence[str]) -> list[str]:
    """Return names of classes that a list can hold, which are the names themselves where it can."""
    names: list[str] = []
    for label, name in enumerate(classes):
        plain = visible(name).strip().rstrip(", ")
        while not plain or plain in names:
            plain = f"{plain} ({label})".strip()
        names.append(plain)
    return names


_SAVED = {"all": "of all videos that decode", "broken": "that an attack broke"}
_HOW_CLIP = """\
    vidrobust evaluate --checkpoint RUN eval.threats=[] eval.classifier=head data.name=list \\
        data.root=THIS_FOLDER data.frames={frames} data.stride=1 data.fps=0 data.resize=[] \\
        data.short_side={size} data.size={size}

These options read every pixel as it is: all frames, without resize and crop."""
_HOW_VIDEO = """\
The frames of a video are those that its views show, each once: `shown` of the `.npz` file has the
number of each frame of each view. Frames of videos differ in size; their centre crop of {size}
pixels is read by data.name=list with data.root=THIS_FOLDER, data.stride=1, data.fps=0 and
{resize}."""


def _readme(threat: str, save: str, protocol: Mapping[str, Any]) -> str:
    """Return the text of README.md.

    Args:
        threat: name of the threat.
        save: "broken" or "all".
        protocol: of the evaluation.
    """
    if protocol["unit"] == "clip":
        how = _HOW_CLIP.format(frames=protocol["frames"], size=protocol["size"])
    else:
        sides = protocol.get("resize")
        resize = f"data.resize=[{sides[0]},{sides[1]}]" if sides else "data.resize=[]"
        resize += f", data.short_side={protocol['short_side']}"
        how = _HOW_VIDEO.format(size=protocol["size"], resize=resize)
    return f"""\
# Adversarial clips under {threat}

Clips {_SAVED[save]}, numbered as in `clips.jsonl`: `.npz` files of the floats that the attack
returned, and `.mkv` (FFV1) or `.png` files of 8-bit pixels. The latter are the adversarial clip
that is worst after rounding, which need not be the same one. A clip that a smaller budget of this
kind of threat broke keeps that smaller change.

{how}

The model needs a classifier of its own. `eval.transfer=[FOLDER]`, with the folder of the
evaluation, measures any other model on the floats, also by a linear probe.
"""

"""motionshapes: the built-in synthetic data set, real video files in UCF101's layout.

A textured shape moves over a textured background. The class is its motion, one of eight that
survive a horizontal flip. In the training list the shape and its texture go with the class in a
configurable share of the clips, so both are shortcuts. Three list files:

    trainlist01 = trainlist02    correlated
    testlist01                   the same distribution as training
    testlist02                   texture-swapped: the shape carries another class's texture

`attributes.csv` says for each video what was drawn. Everything is a function of the options and the
seed.
"""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidrobust.utils.atomic_files import read_json
from vidrobust.utils.errors import UserError

CLASSES = ("Bounce", "Down", "Grow", "Orbit", "Shrink", "Sideways", "Spin", "Up")
_VERSION = 1
_MARK = "motionshapes.json"


def make_motionshapes(root: str | Path, **spec: Any) -> Path:
    """Draw the data set under `root` unless it is there already; returns root.

    spec: the options of `config.MotionShapes`. A second call with the same options returns at once;
    other options than those it was drawn with raise UserError. An interrupted call leaves nothing
    behind that counts.
    """
    root = Path(root)
    spec = {"version": _VERSION, **spec}
    if (root / _MARK).is_file():
        found = read_json(
            root / _MARK, "delete the data set, which is drawn again, or set another data.root"
        )
        if found != spec:
            different = ", ".join(
                f"{k}={found.get(k)} there, {v} asked" for k, v in spec.items() if found.get(k) != v
            )
            raise UserError(
                f"{root} holds motionshapes of other options ({different}); set another data.root,"
                " or delete it"
            )
        return root
    if root.is_file():
        raise UserError(f"data.root {root} is a file: motionshapes needs a folder of its own")
    left = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    if left:
        raise UserError(
            f"data.root {root} holds other files ({left[0]}): motionshapes needs a folder of"
            " its own"
        )
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".drawing-", dir=root.parent))
    try:
        drawn = work / "drawn"
        drawn.mkdir()
        _draw_all(drawn, spec)
        os.replace(drawn, root)  # in one step: root is empty, or whole
    except OSError:
        if not (root / _MARK).is_file():  # unless another run has drawn it meanwhile
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def _draw_all(top: Path, spec: dict[str, Any]) -> None:
    plans = [
        *_plans("train", spec["train_per_class"], 0, spec),
        *_plans("test", spec["test_per_class"], 1, spec),
        *_plans("swapped", spec["test_per_class"], 2, spec),
    ]
    bank = _textures(spec)
    lists: dict[str, list[str]] = {"train": [], "test": [], "swapped": []}
    for number, plan in enumerate(plans):
        rng = np.random.default_rng([spec["seed"], 3, number])
        file = top / "videos" / plan["uid"]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, _draw(plan, bank, spec, rng))
        label = f" {CLASSES.index(plan['class']) + 1}" if plan["split"] == "train" else ""
        lists[plan["split"]].append(plan["uid"] + label)
    folder = top / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_text(
        "".join(f"{i} {name}\n" for i, name in enumerate(CLASSES, 1))
    )
    names = {
        "trainlist01": "train",
        "trainlist02": "train",
        "testlist01": "test",
        "testlist02": "swapped",
    }
    for name, split in names.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lists[split]))
    with open(top / "attributes.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(plans[0]))
        table.writeheader()
        table.writerows(plans)
    (top / _MARK).write_text(json.dumps(spec))


def texture_classes(top: Path) -> dict[str, str]:
    """uid -> the class whose texture a video's shape carries, of all videos of a drawn data set."""
    with open(top / "attributes.csv", newline="") as file:
        return {row["uid"]: row["texture_class"] for row in csv.DictReader(file)}


def _plans(split: str, per_class: int, stream: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """What each video of a list shows. Groups number on from list to list, as no source is
    shared.
    """
    rng = np.random.default_rng([spec["seed"], stream])
    first = {
        "train": 1,
        "test": 1 + spec["train_per_class"],
        "swapped": 1 + spec["train_per_class"] + per_class,
    }
    plans = []
    for label, name in enumerate(CLASSES):
        for i in range(per_class):
            others = [k for k in range(len(CLASSES)) if k != label]
            tied = rng.random() < spec["texture_correlation"]
            texture = label if tied else int(rng.integers(spec["textures"]))
            if split == "swapped":
                texture = int(rng.choice(others))
            shape = (
                label
                if rng.random() < spec["shape_correlation"]
                else int(rng.integers(len(SHAPES)))
            )
            background = int(rng.choice([k for k in range(spec["textures"]) if k != texture]))
            plans.append(
                {
                    "uid": f"{name}/v_{name}_g{first[split] + i:03d}_c01.avi",
                    "split": split,
                    "class": name,
                    "shape": SHAPES[shape],
                    "texture": texture,
                    "background": background,
                    "texture_class": CLASSES[texture] if texture < len(CLASSES) else "",
                }
            )
    return plans


def _textures(spec: dict[str, Any]) -> np.ndarray:
    """The pool: (K, 2S, 2S, 3) float32 in [0, 1], oriented gratings and blobs in two colours,
    tileable.
    """
    rng = np.random.default_rng([spec["seed"], 4])
    side = 2 * spec["size"]
    y, x = np.mgrid[0:side, 0:side] * (2 * np.pi / side)
    bank = []
    for k in range(spec["textures"]):
        waves = 2 if k % 2 == 0 else 4  # gratings and plaids, blobs
        field = np.zeros((side, side))
        for _ in range(waves):
            angle, cycles = rng.uniform(0, np.pi), rng.uniform(8, 20)
            fy, fx = round(cycles * np.sin(angle)), round(cycles * np.cos(angle))
            field += np.sin(fy * y + fx * x + rng.uniform(0, 2 * np.pi))
        mix = 1 / (1 + np.exp(-4 * field / waves**0.5))[..., None]
        dark, light = rng.uniform(0.05, 0.5, 3), rng.uniform(0.5, 0.95, 3)
        bank.append(dark + mix * (light - dark))
    return np.stack(bank).astype(np.float32)


def _motion(
    name: str, frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre y, centre x, radius (in units of the frame size) and angle of the shape in each frame,
    (T,) each.
    """
    t = np.linspace(0, 1, frames)
    still = np.zeros(frames)
    y, x = still + rng.uniform(0.4, 0.6), still + rng.uniform(0.35, 0.65)
    radius, angle = still + rng.uniform(0.24, 0.3), still + rng.uniform(0, 2 * np.pi)
    sign, phase = rng.choice([-1, 1]), rng.uniform(0, 1)
    speed = rng.uniform(0.8, 1.2)
    if name in ("Up", "Down"):  # wraps round, so it goes one way at all times
        y = (phase + (-1 if name == "Up" else 1) * 1.3 * speed * t) % 1.3 - 0.15
    elif name == "Sideways":
        x = (phase + sign * 1.3 * speed * t) % 1.3 - 0.15
    elif name == "Bounce":
        y = 0.74 - 0.48 * np.abs(np.sin(np.pi * (phase + 2.5 * speed * t)))
    elif name == "Orbit":
        turn = 2 * np.pi * (phase + sign * 1.4 * speed * t)
        y, x = 0.5 + 0.26 * np.sin(turn), 0.5 + 0.26 * np.cos(turn)
    elif name in ("Grow", "Shrink"):
        saw = (phase + 1.5 * speed * t) % 1
        radius = 0.14 + 0.26 * (saw if name == "Grow" else 1 - saw)
    elif name == "Spin":
        angle = angle + sign * 2 * np.pi * 1.6 * speed * t
    return y, x, radius, angle


# Whether points lie inside a shape of radius 1: u to the right, v down.
_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: u**2 + v**2 < 0.8,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
    "triangle": lambda u, v: (v < 0.6) & (v > 2 * abs(u) - 1),
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.75) < 0.25,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.35) & (np.maximum(abs(u), abs(v)) < 1),
    "star": lambda u, v: np.hypot(u, v) < 0.65 + 0.35 * np.cos(5 * np.arctan2(v, u)),
    "bar": lambda u, v: (abs(u) < 1) & (abs(v) < 0.4),
    "heart": lambda u, v: (u**2 + v**2 - 0.5) ** 3 + u**2 * v**3 < 0,
}
SHAPES = tuple(_INSIDE)


def _draw(
    plan: dict[str, Any], bank: np.ndarray, spec: dict[str, Any], rng: np.random.Generator
) -> np.ndarray:
    """(T, S, S, 3) uint8. The texture moves with the shape; the background stands still.

    It is fainter than the shape: at full contrast it is all that a small network learns in minutes.
    """
    frames, size = spec["frames"], spec["size"]
    cy, cx, radius, angle = (
        m[:, None, None].astype(np.float32) for m in _motion(plan["class"], frames, rng)
    )
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dy, dx = grid[None, :, None] - cy, grid[None, None, :] - cx
    v, u = dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)
    mask = _INSIDE[plan["shape"]](u / radius, v / radius)[..., None]
    side = bank.shape[1]
    top, left = rng.integers(0, side, 2)
    rows, cols = np.rint(v * size).astype(int) + top, np.rint(u * size).astype(int) + left
    figure = bank[plan["texture"]][rows % side, cols % side]
    top, left = rng.integers(0, side - size, 2)
    ground = bank[plan["background"]][top : top + size, left : left + size]
    ground = 0.45 + spec["background_contrast"] * (ground - 0.5)
    noise = 0.02 * rng.standard_normal((frames, size, size, 1), dtype=np.float32)
    return np.rint(255 * np.clip(np.where(mask, figure, ground) + noise, 0, 1)).astype(np.uint8)


def write_video(
    path: str | Path, frames: np.ndarray, *, fps: int = 25, codec: str = "mpeg4", quality: int = 2
) -> None:
    """Encode (T, H, W, 3) uint8 RGB to a video file, H and W even. quality: the quantiser, 2 is
    near lossless.
    """
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes do not depend on the machine's cores
        if codec == "mpeg4":
            stream.codec_context.qmin = stream.codec_context.qmax = quality
        else:
            stream.options = {"crf": str(quality)}
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)

"""motionshapes: the built-in synthetic data set, written as real video files in UCF101's layout.

A textured shape moves over a textured background. The class is the motion, one of eight that are
unchanged by a horizontal flip. In a configurable fraction of the training clips, the shape and its
texture are those of the class, so that both are shortcuts; in the others they are random. There are
four lists:

    trainlist01 = trainlist02    correlated
    testlist01                   the same distribution as training
    testlist02                   texture-swapped: the shape carries the texture of another class

`attributes.csv` lists the shape and textures of each video. Everything is a function of the options
and the seed.
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
_VERSION = 1  # of the drawing; another version is another data set
_MARK = "motionshapes.json"  # holds the options; written last, so that it marks a whole data set


def make_motionshapes(root: str | Path, **spec: Any) -> Path:
    """Draw the data set under `root` if it does not exist; return root.

    A second call with the same options returns at once. An interrupted call leaves nothing behind
    that a later call would use.

    Args:
        root: folder of the data set.
        spec: the options of `config.MotionShapes`.

    Raises:
        UserError: the folder holds other files, or a data set of other options.
    """
    root = Path(root)
    spec = {"version": _VERSION, **spec}
    if (root / _MARK).is_file():
        existing = read_json(
            root / _MARK, "delete the data set, which is drawn again, or set another data.root"
        )
        if existing != spec:
            different = ", ".join(
                f"{key}={existing.get(key)} there, {value} asked"
                for key, value in spec.items()
                if existing.get(key) != value
            )
            raise UserError(
                f"data.root={root}: holds motionshapes of other options ({different}); set another"
                " data.root, or delete it"
            )
        return root
    if root.is_file():
        raise UserError(f"data.root={root}: is a file; motionshapes needs a folder of its own")
    other_files = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    if other_files:
        raise UserError(
            f"data.root={root}: holds other files ({other_files[0]}); motionshapes needs a folder"
            " of its own"
        )
    # Draw in a folder next to root, then move everything there in one step.
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
    """Write the videos, the lists, the attributes and the mark of a data set."""
    plans = [
        *_plans("train", spec["train_per_class"], 0, spec),
        *_plans("test", spec["test_per_class"], 1, spec),
        *_plans("swapped", spec["test_per_class"], 2, spec),
    ]
    textures = _textures(spec)
    lists: dict[str, list[str]] = {"train": [], "test": [], "swapped": []}
    for number, plan in enumerate(plans):
        rng = np.random.default_rng([spec["seed"], 3, number])
        file = top / "videos" / plan["uid"]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, _draw(plan, textures, spec, rng))
        # In UCF101's layout, training lists name the id of the class, which starts at 1.
        label = f" {CLASSES.index(plan['class']) + 1}" if plan["split"] == "train" else ""
        lists[plan["split"]].append(plan["uid"] + label)
    # The lists; both training lists are the same.
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
    """Return for each video of a drawn data set the class that its shape's texture belongs to."""
    with open(top / "attributes.csv", newline="") as file:
        return {row["uid"]: row["texture_class"] for row in csv.DictReader(file)}


def _plans(split: str, per_class: int, stream: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each video of a list shows.

    The numbers of groups continue from list to list, because no source is shared.

    Args:
        split: "train", "test" or "swapped".
        per_class: number of videos of each class.
        stream: stream of random numbers from the seed.
        spec: the options.
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
            # The first textures and shapes belong to the classes, in their order.
            is_correlated = rng.random() < spec["texture_correlation"]
            texture = label if is_correlated else int(rng.integers(spec["textures"]))
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
    """Return the pool of textures, (K, 2S, 2S, 3) float32 in [0, 1].

    S is the size of a frame. The textures are oriented gratings and blobs in two colours, and can
    be tiled.
    """
    rng = np.random.default_rng([spec["seed"], 4])
    side = 2 * spec["size"]
    y, x = np.mgrid[0:side, 0:side] * (2 * np.pi / side)
    textures = []
    for k in range(spec["textures"]):
        waves = 2 if k % 2 == 0 else 4  # 2: gratings and plaids; 4: blobs
        field = np.zeros((side, side))
        for _ in range(waves):
            angle = rng.uniform(0, np.pi)
            cycles = rng.uniform(8, 20)
            # Whole numbers of cycles make the texture tileable.
            fy = round(cycles * np.sin(angle))
            fx = round(cycles * np.cos(angle))
            field += np.sin(fy * y + fx * x + rng.uniform(0, 2 * np.pi))
        # A steep sigmoid turns the waves into two colours with soft edges.
        mix = 1 / (1 + np.exp(-4 * field / waves**0.5))[..., None]
        dark = rng.uniform(0.05, 0.5, 3)
        light = rng.uniform(0.5, 0.95, 3)
        textures.append(dark + mix * (light - dark))
    return np.stack(textures).astype(np.float32)


def _motion(
    name: str, frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the centre y, centre x, radius and angle of the shape in each frame, (T,) each.

    Lengths are in units of the frame size, angles in radians.

    Args:
        name: the class.
        frames: number of frames, T.
        rng: source of randomness.
    """
    t = np.linspace(0, 1, frames)
    # A shape that does not move; each class changes one or two of these.
    still = np.zeros(frames)
    y = still + rng.uniform(0.4, 0.6)
    x = still + rng.uniform(0.35, 0.65)
    radius = still + rng.uniform(0.24, 0.3)
    angle = still + rng.uniform(0, 2 * np.pi)
    sign = rng.choice([-1, 1])
    phase = rng.uniform(0, 1)
    speed = rng.uniform(0.8, 1.2)
    if name in ("Up", "Down"):  # wraps round, so that it always moves in one direction
        y = (phase + (-1 if name == "Up" else 1) * 1.3 * speed * t) % 1.3 - 0.15
    elif name == "Sideways":
        x = (phase + sign * 1.3 * speed * t) % 1.3 - 0.15
    elif name == "Bounce":
        y = 0.74 - 0.48 * np.abs(np.sin(np.pi * (phase + 2.5 * speed * t)))
    elif name == "Orbit":
        turn = 2 * np.pi * (phase + sign * 1.4 * speed * t)
        y = 0.5 + 0.26 * np.sin(turn)
        x = 0.5 + 0.26 * np.cos(turn)
    elif name in ("Grow", "Shrink"):
        sawtooth = (phase + 1.5 * speed * t) % 1
        radius = 0.14 + 0.26 * (sawtooth if name == "Grow" else 1 - sawtooth)
    elif name == "Spin":
        angle = angle + sign * 2 * np.pi * 1.6 * speed * t
    return y, x, radius, angle


# (u, v) -> whether points lie inside a shape of radius 1; u points to the right, v down.
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
    plan: dict[str, Any], textures: np.ndarray, spec: dict[str, Any], rng: np.random.Generator
) -> np.ndarray:
    """Return a video (T, S, S, 3) uint8.

    The texture moves with the shape; the background stands still. The background is fainter than
    the shape. At full contrast, a small network would learn nothing else in the first minutes.

    Args:
        plan: what the video shows.
        textures: (K, 2S, 2S, 3) float32 in [0, 1], the pool of textures.
        spec: the options.
        rng: source of randomness.
    """
    frames = spec["frames"]
    size = spec["size"]
    cy, cx, radius, angle = (
        m[:, None, None].astype(np.float32) for m in _motion(plan["class"], frames, rng)
    )
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dy = grid[None, :, None] - cy
    dx = grid[None, None, :] - cx
    # Coordinates of every pixel in the frame of the shape, (T, S, S).
    v = dy * np.cos(angle) - dx * np.sin(angle)
    u = dy * np.sin(angle) + dx * np.cos(angle)
    mask = _INSIDE[plan["shape"]](u / radius, v / radius)[..., None]
    side = textures.shape[1]
    # The shape shows a random part of its texture, repeated where the texture ends.
    top, left = rng.integers(0, side, 2)
    rows = np.rint(v * size).astype(int) + top
    cols = np.rint(u * size).astype(int) + left
    figure = textures[plan["texture"]][rows % side, cols % side]
    top, left = rng.integers(0, side - size, 2)
    ground = textures[plan["background"]][top : top + size, left : left + size]
    ground = 0.45 + spec["background_contrast"] * (ground - 0.5)
    noise = 0.02 * rng.standard_normal((frames, size, size, 1), dtype=np.float32)
    return np.rint(255 * np.clip(np.where(mask, figure, ground) + noise, 0, 1)).astype(np.uint8)


def write_video(
    path: str | Path, frames: np.ndarray, *, fps: int = 25, codec: str = "mpeg4", quality: int = 2
) -> None:
    """Encode frames to a video file.

    Args:
        path: the file.
        frames: (T, H, W, 3) uint8 RGB, with even H and W.
        fps: frames per second.
        codec: name of the encoder.
        quality: quantiser, where 2 is near lossless; the CRF of encoders other than mpeg4.
    """
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        height, width = frames.shape[1:3]
        stream.height = height
        stream.width = width
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes must not depend on the number of cores
        if codec == "mpeg4":
            stream.codec_context.qmin = quality
            stream.codec_context.qmax = quality
        else:
            stream.options = {"crf": str(quality)}
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)

"""Read images, folders of frames and torchvision's data sets like videos."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust.data.decoding.pyav import DecodeError, one_line

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
TORCHVISION = "torchvision:"


class Image:
    """One frame."""

    backend, num_frames, fps, resized = "image", 1, 0.0, 0

    def __init__(self, path: str) -> None:
        self.path = path

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        yield _read_image(self.path)

    def close(self) -> None:
        pass


class FrameFolder:
    """Read a folder of images, in the order of the numbers in their names, as one video.

    All frames that are read get the size of the first of them; `resized` counts those that had
    another one, as crops of a tracker have.

    Args:
        path: the folder.
        frames: how many images there are, from a list or a manifest; 0 counts them.
        series: which of several series of images is the video: the beginning of its names.
    """

    backend, fps = "frames", 0.0

    def __init__(self, path: str, frames: int = 0, series: str = "") -> None:
        self.files = frame_files(Path(path), series, frames)
        self.num_frames = frames or len(self.files)
        self.resized = 0
        if len(self.files) < max(self.num_frames, 1):
            raise DecodeError(
                f"{path}: the folder holds {len(self.files)} images of {self.num_frames or 1}"
            )

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        size: tuple[int, ...] | None = None
        for number in indices:
            frame = _read_image(str(self.files[number]))
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                self.resized += 1
                frame = _resized(frame, *size)
            yield frame

    def close(self) -> None:
        pass


def is_image(path: str) -> bool:
    """Whether a record's path is one image, which is all there is of it: by its name, nothing is
    read.
    """
    return path.startswith(TORCHVISION) or Path(path).suffix.lower() in IMAGE_SUFFIXES


def in_memory(path: str) -> bool:
    """Whether an image is part of an array that its torchvision data set holds: no file is read for
    it.
    """
    if not path.startswith(TORCHVISION):
        return False
    _, name, split, _, root = path.split(":", 4)
    return hasattr(torchvision_dataset(name, split, root), "data")


class TorchvisionImage:
    """Image `number` of a torchvision data set: "torchvision:CIFAR10:<split>:<number>:<root>"."""

    backend, num_frames, fps, resized = "image", 1, 0.0, 0

    def __init__(self, path: str) -> None:
        _, name, split, number, root = path.split(":", 4)
        self.image = torchvision_dataset(name, split, root)[int(number)][0]

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        yield np.asarray(self.image.convert("RGB"))

    def close(self) -> None:
        pass


@functools.lru_cache(maxsize=4)
def torchvision_dataset(name: str, split: str, root: str) -> Any:
    """Data set `name` of torchvision.datasets, opened once a process; nothing is downloaded.

    split: "train" or "test"; what the data set calls it is found. A data set of one list is all
    "train". Raises ValueError when it has no such split.
    """
    import inspect

    from torchvision import datasets

    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        return kind(root, train=split == "train")
    if "split" not in parameters and split == "train":
        return kind(root)
    if "split" not in parameters:
        raise ValueError("it has one list, and data.validation holds out a part of it")
    problem: ValueError | None = None
    for called in (
        ("train", "trainval", "train-standard") if split == "train" else ("test", "val", "valid")
    ):
        try:
            return kind(root, split=called)
        except ValueError as error:
            problem = problem or error
    raise ValueError(str(problem))


def frame_files(folder: Path, series: str = "", count: int = 0) -> list[Path]:
    """Return the images of a folder that are one video, `img_2.jpg` before `img_10.jpg`.

    Args:
        folder: its images, hidden files left out, are series of names that differ in their last
            number: `img_*.jpg`, `flow_x_*.jpg`.
        series: the series that is wanted, as `img_*.jpg`, or the beginning of its name alone; ""
            where one series is all there is.
        count: how many images a list promises: of several series, the one that has as many.

    Raises:
        DecodeError: several series, such as optical flow beside RGB, and nothing that chooses one;
            or none of that name.
    """
    found: dict[str, list[Path]] = {}
    for file in folder.iterdir():
        if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".":
            name = re.sub(r"\d+(?=\D*$)", "*", file.stem) + file.suffix.lower()
            found.setdefault(name, []).append(file)
    chosen = {name: files for name, files in found.items() if series in ("", name)}
    chosen = chosen or {name: files for name, files in found.items() if name.startswith(series)}
    images = [file for files in chosen.values() for file in files]
    fitting = [files for files in chosen.values() if len(files) == count]
    if len(chosen) > 1 and len(fitting) == 1:
        return sorted(fitting[0], key=_in_order)
    # names that share nothing are one series, but not rgb_1.png and depth_1.png
    named = all(re.fullmatch(r"\D*\*\D*", name) for name in chosen)
    several = len(chosen) > 1 and (len(chosen) < len(images) or named)
    if found and (several or not chosen):
        listed = ", ".join(f"{name} ({len(files)})" for name, files in sorted(found.items())[:6])
        what = (
            f"{len(found)} series of images" if several else f"no series data.series={series}, but"
        )
        raise DecodeError(f"{folder}: holds {what}: {listed}; set data.series to one of them")
    return sorted(images, key=_in_order)


def _in_order(file: Path) -> tuple[list[int | str], str]:
    """Sort by the numbers in a name; f_01 and f_1 by their names, not as the disk has them."""
    parts = re.split(r"(\d+)", file.name)
    return [int(part) if part.isdecimal() else part for part in parts], file.name


def missing_numbers(files: Sequence[Path]) -> str:
    """Return what says that the numbers of a series have gaps; "" where all steps are alike."""
    found = [re.findall(r"\d+", file.stem) for file in files]
    if not all(found):
        return ""
    numbers = [int(digits[-1]) for digits in found]
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    usual = min(steps, default=1)
    lost = [file for file, step in zip(files, steps, strict=False) if step > usual]
    if not lost or usual < 1:
        return ""
    return f"numbers are missing after {lost[0].name}" + (
        f" and {len(lost) - 1} more" if lost[1:] else ""
    )


def pages(path: str) -> int:
    """Return how many pictures an image file holds, as an animation; 1 where it does not say."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # whatever a damaged file makes of it; reading it says so
        return 1


def _resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(frame).resize((width, height), Pillow.Resampling.BILINEAR))


def _read_image(path: str) -> np.ndarray:
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown range")
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip to the lowest 8
                upright = Pillow.fromarray(
                    (np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8)
                )
            # contiguous whatever the turn: views of negative strides break torch
            return np.ascontiguousarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise DecodeError(f"{path}: no such file") from None
    except Exception as error:
        raise DecodeError(f"{path}: not an image, or cut short ({one_line(error)})") from None

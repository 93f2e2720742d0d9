"""Images, folders of frames and torchvision's data sets, read as videos are."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust.data.decoders import DecodeError, one_line

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
TORCHVISION = "torchvision:"


class Image:
    """One frame."""

    backend, num_frames, fps = "image", 1, 0.0

    def __init__(self, path: str) -> None:
        self.path = path

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        yield _read_image(self.path)

    def close(self) -> None:
        pass


class FrameFolder:
    """The images of a folder in the order of the numbers in their names; all of the size of the first one asked for."""

    backend, fps = "frames", 0.0

    def __init__(self, path: str, frames: int = 0) -> None:
        self.files = frame_files(Path(path))
        self.num_frames = frames or len(self.files)
        if len(self.files) < max(self.num_frames, 1):
            raise DecodeError(f"{path}: the folder holds {len(self.files)} images of {self.num_frames or 1}")

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        shape = None
        for number in indices:
            frame = _read_image(str(self.files[number]))
            shape = shape or frame.shape
            if frame.shape != shape:
                raise DecodeError(
                    f"{self.files[number]}: its size {frame.shape[:2]} is not that of the clip {shape[:2]}"
                )
            yield frame

    def close(self) -> None:
        pass


def is_image(path: str) -> bool:
    """Whether a record's path is one image, which is all there is of it: by its name, nothing is read."""
    return path.startswith(TORCHVISION) or Path(path).suffix.lower() in IMAGE_SUFFIXES


def in_memory(path: str) -> bool:
    """Whether an image is part of an array that its torchvision data set holds: no file is read for it."""
    if not path.startswith(TORCHVISION):
        return False
    _, name, split, _, root = path.split(":", 4)
    return hasattr(torchvision_dataset(name, split, root), "data")


class TorchvisionImage:
    """Image `number` of a torchvision data set: "torchvision:CIFAR10:<split>:<number>:<root>"."""

    backend, num_frames, fps = "image", 1, 0.0

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

    split: "train" or "test"; what the data set calls it is found. A data set of one list is all "train". Raises
    ValueError when it has no such split.
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
    for called in ("train", "trainval", "train-standard") if split == "train" else ("test", "val", "valid"):
        try:
            return kind(root, split=called)
        except ValueError as error:
            problem = problem or error
    raise ValueError(str(problem))


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder, `img_2.jpg` before `img_10.jpg`."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    return sorted(files, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.name)])


def _read_image(path: str) -> np.ndarray:
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown range")
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip to the lowest 8
                upright = Pillow.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise DecodeError(f"{path}: no such file") from None
    except Exception as error:
        raise DecodeError(f"{path}: not an image, or cut short ({one_line(error)})") from None

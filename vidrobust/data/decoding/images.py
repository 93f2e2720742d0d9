"""Read images, folders of frames and data sets of torchvision as if they were videos."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vidrobust.data.decoding.pyav import DecodeError, one_line
from vidrobust.data.places import children, readable

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
TORCHVISION = "torchvision:"  # how the paths of images in data sets of torchvision begin


class Image:
    """A video of one frame: an image file."""

    backend = "image"
    num_frames = 1
    fps = 0.0
    resized = 0

    def __init__(self, path: str) -> None:
        self.path = path

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the one frame; see `Video.frames`."""
        yield _read_image(self.path)

    def close(self) -> None:
        """Do nothing: no file is kept open."""


class FrameFolder:
    """Read a folder of images as one video, in the order of the numbers in their names.

    All frames of one read get the size of the first of them. `resized` counts those that had
    another size, as the crops of a tracker do.

    Args:
        path: the folder.
        frames: number of images, from a list or a manifest; 0 counts them.
        series: which of several series of images is the video: the beginning of its names.
    """

    backend = "frames"
    fps = 0.0

    def __init__(self, path: str, frames: int = 0, series: str = "") -> None:
        self.files = frame_files(Path(path), series, frames)
        self.num_frames = frames or len(self.files)
        self.resized = 0
        if len(self.files) < max(self.num_frames, 1):
            raise DecodeError(
                f"{path}: the folder holds {len(self.files)} images of {self.num_frames or 1}"
            )

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of some indices; see `Video.frames`."""
        size: tuple[int, ...] | None = None
        for number in indices:
            frame = _read_image(str(self.files[number]))
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                self.resized += 1
                frame = _resized(frame, *size)
            yield frame

    def close(self) -> None:
        """Do nothing: no file is kept open."""


class ArrayFile:
    """Read a file of numpy, (T, H, W, 3) uint8, as a video.

    Args:
        path: the file.
    """

    backend = "frames"
    fps = 0.0
    resized = 0

    def __init__(self, path: str) -> None:
        try:
            content = readable(path)
            # an array in an archive is read whole
            mode: Literal["r"] | None = "r" if isinstance(content, str) else None
            self.array = np.load(content, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DecodeError(f"{path}: not an array, or cut short ({one_line(error)})") from None
        if self.array.ndim != 4 or self.array.shape[3] != 3 or self.array.dtype != np.uint8:
            raise DecodeError(
                f"{path}: an array {self.array.shape} of {self.array.dtype}; save frames as"
                " (T, H, W, 3) uint8"
            )
        self.num_frames = len(self.array)

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of some indices; see `Video.frames`."""
        for number in indices:
            yield np.array(self.array[number])

    def close(self) -> None:
        """Do nothing: the array is closed with the last reference to it."""


def is_image(path: str) -> bool:
    """Return whether a record is a single image, judging by its path; nothing is read."""
    return path.startswith(TORCHVISION) or Path(path).suffix.lower() in IMAGE_SUFFIXES


def in_memory(path: str) -> bool:
    """Return whether an image is part of an array that its torchvision data set holds in memory.

    No file is read for such an image.
    """
    if not path.startswith(TORCHVISION):
        return False
    _, name, split, _, root = path.split(":", 4)
    return hasattr(torchvision_dataset(name, split, root), "data")


class TorchvisionImage:
    """An image of a torchvision data set, as a video of one frame.

    Args:
        path: "torchvision:CIFAR10:<split>:<number>:<root>".
    """

    backend = "image"
    num_frames = 1
    fps = 0.0
    resized = 0

    def __init__(self, path: str) -> None:
        _, name, split, number, root = path.split(":", 4)
        self.image = torchvision_dataset(name, split, root)[int(number)][0]

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the one frame; see `Video.frames`."""
        yield np.array(self.image.convert("RGB"))

    def close(self) -> None:
        """Do nothing: no file is kept open."""


class ImageInMemory:
    """An image that was read before, as a video of one frame.

    Args:
        image: (H, W, 3) uint8.
    """

    backend = "image"
    num_frames = 1
    fps = 0.0
    resized = 0

    def __init__(self, image: np.ndarray) -> None:
        self.image = image

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the one frame; see `Video.frames`."""
        yield self.image

    def close(self) -> None:
        """Do nothing: no file is open."""


@functools.lru_cache(maxsize=4)
def torchvision_dataset(name: str, split: str, root: str) -> Any:
    """Return a data set of torchvision.datasets, opened once per process; nothing is downloaded.

    Data sets name their splits differently; the right name is found. A data set with a single list
    is all "train".

    Args:
        name: name of its class.
        split: "train" or "test".
        root: the folder that torchvision is given as root.

    Raises:
        ValueError: the data set has no such split.
    """
    import inspect

    from torchvision import datasets

    # The parameters of its constructor show how a data set names its splits.
    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        return kind(root, train=split == "train")
    if "split" not in parameters and split == "train":
        return kind(root)
    if "split" not in parameters:
        raise ValueError("it has one list, and data.validation holds out a part of it")
    names = ("test", "val", "valid")
    if split == "train":
        names = ("train", "trainval", "train-standard")
    first_error: ValueError | None = None
    for split_name in names:
        try:
            return kind(root, split=split_name)
        except ValueError as error:
            first_error = first_error or error
    raise ValueError(str(first_error))


def frame_files(folder: Path, series: str = "", count: int = 0) -> list[Path]:
    """Return the images of a folder that are one video, with `img_2.jpg` before `img_10.jpg`.

    Images whose names differ only in the last number are one series, such as `img_*.jpg` or
    `flow_x_*.jpg`. Hidden files are left out.

    Args:
        folder: a folder of images.
        series: the series to read, as `img_*.jpg` or the beginning of its name; "" if there is only
            one.
        count: how many images a list promises; of several series, the one with as many is read.

    Raises:
        DecodeError: there are several series, such as optical flow and RGB, and nothing to choose
            one by; or there is none of that name.
    """
    files_by_series: dict[str, list[Path]] = {}
    for file in children(folder):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".":
            # The last number of a name is replaced by "*".
            name = re.sub(r"\d+(?=\D*$)", "*", file.stem) + file.suffix.lower()
            files_by_series.setdefault(name, []).append(file)
    chosen = {name: files for name, files in files_by_series.items() if series in ("", name)}
    chosen = chosen or {
        name: files for name, files in files_by_series.items() if name.startswith(series)
    }
    images = list(itertools.chain.from_iterable(chosen.values()))
    # Of several series, a list chooses the only one that has as many images as it promises.
    fitting = [files for files in chosen.values() if len(files) == count]
    if len(chosen) > 1 and len(fitting) == 1:
        return sorted(fitting[0], key=_in_order)
    # Names that have nothing in common, each a series of one image, are one video in alphabetical
    # order. rgb_1.png and depth_1.png are two series, however: each name has exactly one number.
    all_numbered = all(re.fullmatch(r"\D*\*\D*", name) for name in chosen)
    several = len(chosen) > 1 and (len(chosen) < len(images) or all_numbered)
    if files_by_series and (several or not chosen):
        listed = ", ".join(
            f"{name} ({len(files)})" for name, files in sorted(files_by_series.items())[:6]
        )
        problem = f"no series data.series={series}, but"
        if several:
            problem = f"{len(files_by_series)} series of images"
        raise DecodeError(f"{folder}: holds {problem}: {listed}; set data.series to one of them")
    return sorted(images, key=_in_order)


def _in_order(file: Path) -> tuple[list[int | str], str]:
    """Return a key that sorts files by the numbers in their names.

    Names with equal numbers, such as f_01 and f_1, are sorted as text, so that the order does not
    depend on the disk.
    """
    parts = re.split(r"(\d+)", file.name)
    return [int(part) if part.isdecimal() else part for part in parts], file.name


def missing_numbers(files: Sequence[Path]) -> str:
    """Return a clause about gaps in the numbers of a series; "" if all steps are equal."""
    digits = [re.findall(r"\d+", file.stem) for file in files]
    if not all(digits):
        return ""
    numbers = [int(parts[-1]) for parts in digits]
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    # A folder that holds every n-th frame has no gaps: the smallest step is the usual one.
    usual = min(steps, default=1)
    before_gap = [file for file, step in zip(files, steps, strict=False) if step > usual]
    if not before_gap or usual < 1:
        return ""
    more = f" and {len(before_gap) - 1} more" if len(before_gap) > 1 else ""
    return f"numbers are missing after {before_gap[0].name}{more}"


def pages(path: str) -> int:
    """Return how many pictures an image file holds, as an animation does; 1 if unknown."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(readable(path)) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged file may raise anything; reading it reports the damage
        return 1


def _resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a frame (H, W, 3) uint8 resized to (height, width, 3)."""
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(frame).resize((width, height), Pillow.Resampling.BILINEAR))


def _read_image(path: str) -> np.ndarray:
    """Return an image, upright: (H, W, 3) uint8 RGB; raise DecodeError if it cannot be read."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(readable(path)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown range")
            # Of 16 bits keep the upper 8; Pillow would clip the values at 255.
            if upright.mode.startswith("I"):
                upright = Pillow.fromarray(
                    (np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8)
                )
            # a copy: Pillow's own array is read-only, which torch warns of
            return np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise DecodeError(f"{path}: no such file") from None
    except Exception as error:
        raise DecodeError(f"{path}: not an image, or cut short ({one_line(error)})") from None

"""InputSpec: what a model trained elsewhere expects of its input, and how clips become it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LAYOUTS = ("BCTHW", "BTCHW", "pathways")
SLOW_FRAMES = ("stride", "linspace")
VIEW_AVERAGES = ("logits", "probabilities")


@dataclass(frozen=True)
class Published:
    """Accuracy that a model's authors report.

    Attributes:
        acc: fraction of right predictions.
        dataset: on which data set, as its authors write it.
        views: clips x crops that were averaged, such as "5x1"; "" if unknown.
        source: where it is reported.
    """

    acc: float
    dataset: str
    views: str
    source: str


@dataclass(frozen=True)
class InputSpec:
    """Input card of a model. Everything refers to its own input, not to clips in [0, 1].

    Attributes:
        frames: number of frames, T.
        stride: frames from one to the next; None: `fps` says it, or the source does not.
        fps: frames per second at which a clip is sampled; None: `stride` says it.
        short_side: pixels to which the shorter side is resized; None: see `resize`.
        resize: height and width to which frames are resized, whatever their shape; None: the
            aspect ratio is kept.
        size: height and width of the crop.
        interpolation: of the resize.
        mean: subtracted from each channel, in units of `range`.
        std: by which each channel is then divided.
        range: pixel values of black and white before the mean is subtracted.
        channels: "rgb" or "bgr".
        layout: order of the dimensions, one of LAYOUTS; "pathways": a list of the slow and the fast
            pathway's clips, each BCTHW.
        alpha: with "pathways", frames of the fast pathway for one of the slow pathway.
        slow_frames: with "pathways", which frames these are, one of SLOW_FRAMES; see
            `slow_pathway`.
        view_average: what is averaged over several views, one of VIEW_AVERAGES.
        classes: names of the classes in the order of the logits; None: unknown.
        published: accuracy that the authors report; None: unknown.
    """

    frames: int = 16
    stride: int | None = None
    fps: float | None = None
    short_side: int | None = None
    resize: tuple[int, int] | None = None
    size: tuple[int, int] = (112, 112)
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    range: tuple[float, float] = (0.0, 1.0)
    channels: str = "rgb"
    layout: str = "BCTHW"
    alpha: int = 4
    slow_frames: str = "stride"
    view_average: str = "logits"
    classes: tuple[str, ...] | None = None
    published: Published | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that no model has."""
        allowed = {
            "layout": LAYOUTS,
            "slow_frames": SLOW_FRAMES,
            "channels": ("rgb", "bgr"),
            "interpolation": ("bilinear", "bicubic"),
            "view_average": VIEW_AVERAGES,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {' or '.join(values)}")
        counts = {"frames": self.frames, "alpha": self.alpha, "stride": self.stride or 1}
        sides = (*self.size, *(self.resize or ()), self.short_side or 1)
        if any(type(value) is not int or value < 1 for value in (*counts.values(), *sides)):
            raise ValueError(
                f"frames={self.frames}, stride={self.stride}, size={self.size},"
                f" resize={self.resize}, short_side={self.short_side}, alpha={self.alpha}: give"
                " whole numbers of at least 1"
            )
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(
                f"mean={self.mean}, std={self.std}: give three numbers each, or one each"
            )
        if len(self.size) != 2 or len(self.range) != 2 or len(self.resize or (0, 0)) != 2:
            raise ValueError(
                f"size={self.size}, resize={self.resize}, range={self.range}: give two numbers each"
            )
        if min(self.std) <= 0 or self.range[1] <= self.range[0]:
            raise ValueError(
                f"std={self.std}, range={self.range}: deviations must be above 0, and white above"
                " black"
            )

    def text(self) -> str:
        """Return the card as one line for a report."""
        height, width = self.size
        rate = f" at {self.fps:g} frames/s" if self.fps else ""
        rate = f" at stride {self.stride}" if self.stride else rate
        resize = f"resized to {self.resize[0]} x {self.resize[1]}, " if self.resize else ""
        resize = f"short side {self.short_side}, " if self.short_side else resize
        low, high = self.range
        layout = self.layout
        if layout == "pathways":
            layout = f"slow and fast pathway (alpha {self.alpha}, {self.slow_frames})"
        parts = [
            f"{self.frames} frame{'s' if self.frames > 1 else ''}{rate}",
            f"{resize}crop {height} x {width} ({self.interpolation})",
            f"{self.channels} in [{low:g}, {high:g}], mean {_numbers(self.mean)}, std"
            f" {_numbers(self.std)}",
            f"{layout}, views averaged as {self.view_average}",
        ]
        if self.classes:
            parts.append(f"{len(self.classes)} classes")
        if self.published:
            published = self.published
            parts.append(
                f"published {100 * published.acc:.1f} % on {published.dataset}"
                + (f" with {published.views} views" if published.views else "")
                + (f" ({published.source})" if published.source else "")
            )
        return "; ".join(parts)

    @property
    def unit_mean(self) -> tuple[float, ...]:
        """Means of pixels in [0, 1]: range and normalisation are one affine map."""
        low, high = self.range
        return tuple((value - low) / (high - low) for value in self.mean)

    @property
    def unit_std(self) -> tuple[float, ...]:
        """Standard deviations of pixels in [0, 1]."""
        low, high = self.range
        return tuple(value / (high - low) for value in self.std)


# of two fields that exclude each other, the other one
_INSTEAD = {
    "stride": "fps",
    "fps": "stride",
    "short_side": "resize",
    "resize": "short_side",
}


def overridden(card: InputSpec, **values: Any) -> InputSpec:
    """Return a card with other values.

    Args:
        card: the card.
        values: fields of InputSpec, where lists stand for tuples. `size` may be one number for both
            sides, and `classes` a file with a name in each line. The published accuracy is acc,
            acc_dataset, acc_views and acc_source.

    Raises:
        OSError: the file of classes cannot be read.
        ValueError: for values that no model has, and for two that exclude each other.
    """
    changed: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    for key in [key for key in values if key in _INSTEAD and values[key] is not None]:
        if values.get(_INSTEAD[key]) is not None:
            raise ValueError(f"{key} and {_INSTEAD[key]} exclude each other; set one of them")
        changed[_INSTEAD[key]] = None
    if isinstance(changed.get("classes"), str):
        lines = Path(changed["classes"]).expanduser().read_text().splitlines()
        changed["classes"] = tuple(line.strip() for line in lines if line.strip())
    if isinstance(changed.get("size"), int):
        changed["size"] = (changed["size"],) * 2
    elif isinstance(changed.get("size"), tuple) and len(changed["size"]) == 1:
        changed["size"] *= 2
    reported = {
        key.removeprefix("acc_"): changed.pop(key)
        for key in ("acc", "acc_dataset", "acc_views", "acc_source")
        if key in changed
    }
    if reported:
        known = asdict(card.published) if card.published else {"views": "", "source": ""}
        if not {"acc", "dataset"} <= {*known, *reported}:
            raise ValueError("a published accuracy needs acc and acc_dataset; set both")
        changed["published"] = Published(**(known | reported))
    return replace(card, **changed)


def arranged(x: Tensor, card: InputSpec) -> Tensor | list[Tensor]:
    """Return RGB clips (B, 3, T, H, W) in the layout and order of channels of a card."""
    if card.channels == "bgr":
        x = x.flip(1)
    if card.layout == "BTCHW":
        return x.transpose(1, 2)
    if card.layout == "pathways":
        return [slow_pathway(x, card.alpha, card.slow_frames), x]
    return x


def slow_pathway(x: Tensor, alpha: int, slow_frames: str) -> Tensor:
    """Return the frames of SlowFast's slow pathway from those of the fast one.

    Args:
        x: (B, C, T, H, W).
        alpha: frames of the fast pathway for one of the slow pathway.
        slow_frames: "stride": every alpha-th from the first, as in pytorchvideo. "linspace": as
            many, from the first to the last, rounded down, as PySlowFast's pack_pathway_output.
    """
    if slow_frames == "stride":
        return x[:, :, ::alpha]
    frames = x.shape[2]
    count = -(-frames // alpha)  # as many as the other way, which the connections expect
    return x[:, :, torch.linspace(0, frames - 1, count, device=x.device).long()]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)

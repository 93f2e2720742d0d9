"""InputSpec: what a model trained elsewhere expects of its input, and how clips become it."""

from dataclasses import dataclass

LAYOUTS = ("BCTHW", "BTCHW")
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
        layout: order of the dimensions, one of LAYOUTS.
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
    view_average: str = "logits"
    classes: tuple[str, ...] | None = None
    published: Published | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that no model has."""
        allowed = {
            "layout": LAYOUTS,
            "channels": ("rgb", "bgr"),
            "view_average": VIEW_AVERAGES,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {' or '.join(values)}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(
                f"mean={self.mean}, std={self.std}: give three numbers each, or one each"
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
        parts = [
            f"{self.frames} frame{'s' if self.frames > 1 else ''}{rate}",
            f"{resize}crop {height} x {width} ({self.interpolation})",
            f"{self.channels} in [{low:g}, {high:g}], mean {_numbers(self.mean)}, std"
            f" {_numbers(self.std)}",
            f"{self.layout}, views averaged as {self.view_average}",
        ]
        if self.classes:
            parts.append(f"{len(self.classes)} classes")
        if self.published:
            published = self.published
            parts.append(
                f"published {100 * published.acc:.1f} % on {published.dataset} with"
                f" {published.views} views ({published.source})"
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


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)

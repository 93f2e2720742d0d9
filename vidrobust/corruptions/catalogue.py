"""CORRUPTIONS and BENCHMARKS by name; corrupt a clip or a whole video.

Tables: ImageNet-C (Hendrycks and Dietterich 2019), Mini-Kinetics-C and SSv2-C (Yi et al. 2021),
UCF101-P, HMDB51-P, Kinetics400-P and SSv2-P (Schiappa et al. 2023). ViTTA's twelve corruptions (Lin
et al. 2023) have the tables of those sets; salt and pepper have those of Zeng et al. 2023.
"""

import difflib
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidrobust.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from vidrobust.corruptions.clip import Corruption, require_clip
from vidrobust.corruptions.codec import (
    bit_error,
    h264_abr,
    h264_crf,
    h265_abr,
    h265_crf,
    mpeg1,
    mpeg2,
    packet_loss,
)
from vidrobust.corruptions.digital import (
    brightness,
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from vidrobust.corruptions.noise import (
    gaussian_noise,
    impulse_noise,
    pepper_noise,
    salt_noise,
    shot_noise,
    speckle_noise,
)
from vidrobust.corruptions.temporal import (
    IndexMap,
    box_jumble,
    frame_drop,
    frame_rate,
    freeze,
    jumble,
    mapped,
    reverse_sampling,
    rotate,
    sampling,
    static_rotate,
    static_translate,
    temporal_blur,
    translate,
)
from vidrobust.corruptions.weather import fog, frost, rain, snow, spatter

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class CorruptionSpec:
    """Describe a corruption, an entry of CORRUPTIONS; calling it corrupts a clip.

    Attributes:
        function: (clip, severity, rng) -> clip; it may also take fps.
        consecutive: it needs consecutive frames, even if the clip itself skips frames.
        over_time: it leaves a clip of one frame unchanged.
        index_map: for corruptions that only choose frames, the map (frames, severity, rng) ->
            (frames,) that `function` applies.
    """

    function: Corruption
    consecutive: bool = False
    over_time: bool = False
    index_map: IndexMap | None = None

    @property
    def takes_fps(self) -> bool:
        """Return whether the corruption depends on the frame rate of the video."""
        return "fps" in inspect.signature(self.index_map or self.function).parameters

    def __call__(
        self, clip: np.ndarray, severity: int, rng: np.random.Generator, **options: Any
    ) -> np.ndarray:
        """Return the corrupted clip, without checking the arguments as `corrupt` does.

        Args:
            clip: (T, H, W, 3) uint8.
            severity: 1 to 5.
            rng: decides everything that is random.
            options: of the function, such as fps.
        """
        return self.function(clip, severity, rng, **options)


def _choose_frames(index_map: IndexMap) -> CorruptionSpec:
    """Return the entry of a corruption that only chooses frames."""
    return CorruptionSpec(mapped(index_map), over_time=True, index_map=index_map)


# Some tables differ between benchmarks. The plain name has the table of ImageNet-C and
# Mini-Kinetics-C; names with a suffix have the table of another benchmark.
CORRUPTIONS: dict[str, CorruptionSpec] = {
    "gaussian_noise": CorruptionSpec(gaussian_noise),
    "shot_noise": CorruptionSpec(shot_noise),
    "impulse_noise": CorruptionSpec(impulse_noise),
    "salt_noise": CorruptionSpec(salt_noise),
    "pepper_noise": CorruptionSpec(pepper_noise),
    "speckle_noise": CorruptionSpec(speckle_noise),
    "gaussian_blur": CorruptionSpec(gaussian_blur),
    "defocus_blur": CorruptionSpec(defocus_blur),
    "glass_blur": CorruptionSpec(glass_blur),
    "motion_blur": CorruptionSpec(motion_blur),
    "zoom_blur": CorruptionSpec(zoom_blur),
    "snow": CorruptionSpec(snow),
    "frost": CorruptionSpec(frost),
    "fog": CorruptionSpec(fog),
    "rain": CorruptionSpec(rain),
    "spatter": CorruptionSpec(spatter),
    "brightness": CorruptionSpec(brightness),
    "contrast": CorruptionSpec(contrast),
    "saturate": CorruptionSpec(saturate),
    "elastic_transform": CorruptionSpec(elastic_transform),
    "pixelate": CorruptionSpec(pixelate),
    "jpeg_compression": CorruptionSpec(jpeg_compression),
    "frame_rate": _choose_frames(frame_rate),
    "sampling": _choose_frames(sampling),
    "reverse_sampling": _choose_frames(reverse_sampling),
    "jumble": _choose_frames(jumble),
    "box_jumble": _choose_frames(box_jumble),
    "freeze": _choose_frames(freeze),
    "frame_drop": _choose_frames(frame_drop),
    "frame_rate_ssv2": _choose_frames(functools.partial(frame_rate, rates=(10, 8, 6, 4, 2))),
    "temporal_blur": CorruptionSpec(temporal_blur, consecutive=True, over_time=True),
    "static_translate": CorruptionSpec(static_translate),
    "translate": CorruptionSpec(translate),
    "static_rotate": CorruptionSpec(static_rotate),
    "rotate": CorruptionSpec(rotate),
    "h264_crf": CorruptionSpec(h264_crf, consecutive=True),
    "h264_abr": CorruptionSpec(h264_abr, consecutive=True),
    "h265_crf": CorruptionSpec(h265_crf, consecutive=True),
    "h265_abr": CorruptionSpec(h265_abr, consecutive=True),
    "mpeg1": CorruptionSpec(mpeg1, consecutive=True),
    "mpeg2": CorruptionSpec(mpeg2, consecutive=True),
    "bit_error": CorruptionSpec(bit_error, consecutive=True),
    "packet_loss": CorruptionSpec(packet_loss, consecutive=True),
    "shot_noise_p": CorruptionSpec(functools.partial(shot_noise, photons=(250, 100, 50, 30, 15))),
    "speckle_noise_p": CorruptionSpec(
        functools.partial(speckle_noise, sigmas=(0.15, 0.2, 0.25, 0.3, 0.35))
    ),
    "contrast_kinetics": CorruptionSpec(
        functools.partial(contrast, kept=(0.5, 0.4, 0.3, 0.2, 0.1))
    ),
    "temporal_blur_ssv2": CorruptionSpec(
        functools.partial(temporal_blur, frames=(1, 2, 3, 4, 6)), consecutive=True, over_time=True
    ),
}

# corruptions that only choose frames, as maps for a whole video
INDEX_MAPS: dict[str, IndexMap] = {
    name: spec.index_map for name, spec in CORRUPTIONS.items() if spec.index_map is not None
}
# corruptions that leave a clip of one frame unchanged
OVER_TIME = tuple(name for name, spec in CORRUPTIONS.items() if spec.over_time)
# corruptions that need consecutive frames even if the clip itself skips frames
CONSECUTIVE = tuple(name for name, spec in CORRUPTIONS.items() if spec.consecutive)

_IMAGENET_C = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
# what mini-kinetics-c and ssv2-c have in common (Yi et al. 2021)
_SHARED_C = [
    "shot_noise",
    "rain",
    "contrast_kinetics",
    "brightness",
    "saturate",
    "fog",
    "bit_error",
    "packet_loss",
    "h264_crf",
    "h264_abr",
    "h265_crf",
    "h265_abr",
]
# what the four sets of Schiappa et al. 2023 have in common: everything
_SCHIAPPA = [
    "gaussian_noise",
    "shot_noise_p",
    "impulse_noise",
    "speckle_noise_p",
    "defocus_blur",
    "motion_blur",
    "zoom_blur",
    "jpeg_compression",
    "mpeg1",
    "mpeg2",
    "static_translate",
    "static_rotate",
    "rotate",
    "sampling",
    "reverse_sampling",
    "jumble",
    "box_jumble",
    "freeze",
]

# Names of the corruptions in each published set. The name of a set is accepted wherever names of
# corruptions are.
BENCHMARKS: dict[str, list[str]] = {
    "imagenet-c": _IMAGENET_C,
    "mini-kinetics-c": [*_SHARED_C, "temporal_blur", "frame_rate"],
    "ssv2-c": [*_SHARED_C, "temporal_blur_ssv2", "frame_rate_ssv2"],
    "ucf101-p": _SCHIAPPA,
    "hmdb51-p": _SCHIAPPA,
    "kinetics400-p": _SCHIAPPA,
    "ssv2-p": _SCHIAPPA,
    # measured at severity 5 alone in Lin et al. 2023, and in the order of their table
    "vitta": [
        "gaussian_noise",
        "pepper_noise",
        "salt_noise",
        "shot_noise",
        "zoom_blur",
        "impulse_noise",
        "defocus_blur",
        "motion_blur",
        "jpeg_compression",
        "contrast",
        "rain",
        "h265_abr",
    ],
    # one corruption of each kind, for a quick evaluation
    "quick": [
        "gaussian_noise",
        "defocus_blur",
        "fog",
        "contrast",
        "jpeg_compression",
        "h264_crf",
        "packet_loss",
        "frame_rate",
    ],
    "all": list(CORRUPTIONS),
}


def expand(names: Sequence[str]) -> list[str]:
    """Replace names of sets (BENCHMARKS) by their members, and return each corruption once.

    Raises ValueError for a name that is neither in CORRUPTIONS nor in BENCHMARKS.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"names={names!r}: must be a list of names, such as ['fog']")
    members: dict[str, None] = {}  # a dictionary keeps the order of the names
    for name in names:
        if not isinstance(name, str) or name not in {*BENCHMARKS, *CORRUPTIONS}:
            raise ValueError(_unknown(name, [*BENCHMARKS, *CORRUPTIONS]))
        members |= dict.fromkeys(BENCHMARKS.get(name, [name]))
    return list(members)


def _unknown(name: object, choices: Sequence[str]) -> str:
    """Return the message for an unknown name, with the closest name or all names."""
    if str(name) in BENCHMARKS:
        return (
            f"unknown corruption {name!r}: it is a set; name its members,"
            f" {', '.join(BENCHMARKS[str(name)])}"
        )
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), choices, n=1)
    if close:
        return f"unknown corruption {name!r}; did you mean {close[0]!r}?"
    return f"unknown corruption {name!r}; must be one of {', '.join(choices)}"


def require_encoders(names: Sequence[str]) -> None:
    """Raise MissingEncoder if PyAV does not have an encoder that one of the corruptions needs."""
    for name in names:
        corrupt(np.zeros((1, 16, 16, 3), np.uint8), name, 1, np.random.default_rng(0))


def corrupt(
    clip: np.ndarray, name: str, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Apply a corruption to a clip, and return the corrupted copy.

    Args:
        clip: (T, H, W, 3) uint8, RGB; it is not changed.
        name: of CORRUPTIONS.
        severity: 1 (mildest) to 5.
        rng: decides everything that is random.
        fps: frames per second of the clip, for the corruptions that depend on it.

    Returns:
        A new clip of the same shape.

    Raises:
        ValueError: unknown name, severity out of range, or a clip or generator of another type.
        MissingEncoder: PyAV does not have the codec.

    Example:
        foggy = corrupt(clip, "fog", severity=3, rng=np.random.default_rng(0))
    """
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise ValueError(_unknown(name, list(CORRUPTIONS)))
    # A legacy RandomState would sample other numbers, or fail inside the corruption.
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng is {type(rng).__name__}: pass numpy.random.default_rng(seed)")
    corruption = CORRUPTIONS[name]
    options = {"fps": fps} if corruption.takes_fps else {}
    return corruption(clip, severity, rng, **options)


def map_frames(
    name: str, severity: int, frames: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Return which frame of a video an index map shows in place of each frame.

    Args:
        name: of INDEX_MAPS.
        severity: 1 (mildest) to 5.
        frames: number of frames of the video.
        rng: decides everything that is random.
        fps: frames per second of the video, for the maps that depend on it.

    Returns:
        (frames,) int64, indices of frames.
    """
    options = {"fps": fps} if CORRUPTIONS[name].takes_fps else {}
    return INDEX_MAPS[name](frames, severity, rng, **options)


@dataclass(frozen=True)
class Corrupt:
    """Augment a clip by one random corruption at one random severity, with a probability.

    Names and severities are equally likely. Construction raises ValueError for a name or severity
    that `corrupt` refuses, and for a chance outside [0, 1].

    Attributes:
        names: of CORRUPTIONS or BENCHMARKS, at least one.
        severities: 1 to 5, at least one.
        chance: probability that a clip is corrupted, 0 to 1.

    Example:
        augment = Corrupt(["imagenet-c"], severities=(1, 2, 3), chance=0.5)
        augmented = augment(clip, np.random.default_rng(0))
    """

    names: Sequence[str]
    severities: Sequence[int] = SEVERITIES
    chance: float = 1.0

    def __post_init__(self) -> None:
        if not expand(self.names):
            raise ValueError("names=[]: list at least one corruption")
        severities = self.severities if isinstance(self.severities, Sequence) else []
        if not severities or not set(severities) <= set(SEVERITIES):
            raise ValueError(f"severities={self.severities}: must be a list of numbers from 1 to 5")
        if not isinstance(self.chance, int | float) or not 0 <= self.chance <= 1:
            raise ValueError(f"chance={self.chance!r}: must be 0 to 1")

    def __call__(self, clip: np.ndarray, rng: np.random.Generator, fps: float = 25.0) -> np.ndarray:
        """Return the clip, or a corrupted copy of it.

        Args:
            clip: (T, H, W, 3) uint8.
            rng: decides everything that is random.
            fps: frames per second of the clip.
        """
        if rng.random() >= self.chance:
            require_clip(clip)
            return clip
        names = expand(self.names)
        name = names[rng.integers(len(names))]
        severity = int(rng.choice(self.severities))
        return corrupt(clip, name, severity, rng, fps)

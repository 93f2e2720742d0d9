"""CORRUPTIONS and BENCHMARKS by name; corrupt a clip or a whole video."""

import difflib
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

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
from vidrobust.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from vidrobust.corruptions.temporal import (
    INDEX_MAPS,
    frame_rate,
    mapped,
    rotate,
    static_rotate,
    static_translate,
    temporal_blur,
    translate,
)
from vidrobust.corruptions.weather import fog, frost, rain, snow, spatter

SEVERITIES = (1, 2, 3, 4, 5)

# variants whose tables differ from one benchmark to the next; the plain name has ImageNet-C's and
# Mini-Kinetics-C's
INDEX_MAPS["frame_rate_ssv2"] = functools.partial(frame_rate, rates=(10, 8, 6, 4, 2))

# name -> (clip (T, H, W, 3) uint8, severity 1 to 5, rng) -> clip
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "rain": rain,
    "spatter": spatter,
    "brightness": brightness,
    "contrast": contrast,
    "saturate": saturate,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    **{name: mapped(choose) for name, choose in INDEX_MAPS.items()},
    "temporal_blur": temporal_blur,
    "static_translate": static_translate,
    "translate": translate,
    "static_rotate": static_rotate,
    "rotate": rotate,
    "h264_crf": h264_crf,
    "h264_abr": h264_abr,
    "h265_crf": h265_crf,
    "h265_abr": h265_abr,
    "mpeg1": mpeg1,
    "mpeg2": mpeg2,
    "bit_error": bit_error,
    "packet_loss": packet_loss,
    "shot_noise_p": functools.partial(shot_noise, photons=(250, 100, 50, 30, 15)),
    "speckle_noise_p": functools.partial(speckle_noise, sigmas=(0.15, 0.2, 0.25, 0.3, 0.35)),
    "contrast_kinetics": functools.partial(contrast, kept=(0.5, 0.4, 0.3, 0.2, 0.1)),
    "temporal_blur_ssv2": functools.partial(temporal_blur, frames=(1, 2, 3, 4, 6)),
}

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

# those that leave a clip of one frame as it is
OVER_TIME = (*INDEX_MAPS, "temporal_blur", "temporal_blur_ssv2")

# those that need consecutive frames, where a clip skips some
CONSECUTIVE = (
    "temporal_blur",
    "temporal_blur_ssv2",
    "h264_crf",
    "h264_abr",
    "h265_crf",
    "h265_abr",
    "mpeg1",
    "mpeg2",
    "bit_error",
    "packet_loss",
)

# the names of a published set; any of them may stand where names of corruptions are asked for
BENCHMARKS: dict[str, list[str]] = {
    "imagenet-c": _IMAGENET_C,
    "mini-kinetics-c": [*_SHARED_C, "temporal_blur", "frame_rate"],
    "ssv2-c": [*_SHARED_C, "temporal_blur_ssv2", "frame_rate_ssv2"],
    "ucf101-p": [
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
    ],
    # one of each kind
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
    """Names of CORRUPTIONS, each once, of names of them and of BENCHMARKS. Raises ValueError for
    any other.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"names {names!r}: a list of them, such as ['fog']")
    found: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or name not in {*BENCHMARKS, *CORRUPTIONS}:
            raise ValueError(_unknown(name, [*BENCHMARKS, *CORRUPTIONS]))
        found |= dict.fromkeys(BENCHMARKS.get(name, [name]))
    return list(found)


def _unknown(name: object, known: Sequence[str]) -> str:
    if str(name) in BENCHMARKS:
        return f"no corruption {name!r}: that is a set, of {', '.join(BENCHMARKS[str(name)])}"
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), known, n=1)
    return f"no corruption {name!r}; " + (
        f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    )


def require_encoders(names: Sequence[str]) -> None:
    """Raises MissingEncoder where PyAV lacks one that a corruption needs."""
    for name in names:
        corrupt(np.zeros((1, 16, 16, 3), np.uint8), name, 1, np.random.default_rng(0))


def corrupt(
    clip: np.ndarray, name: str, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """The corruption `name` of a clip, (T, H, W, 3) uint8 -> the same shape; the clip stays as it
    was.

    severity: 1 to 5. fps: frames a second of the clip, for those that depend on it. Raises
    ValueError for an unknown name, another severity, and what is no clip; MissingEncoder for a
    codec that this PyAV lacks.
    """
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise ValueError(_unknown(name, list(CORRUPTIONS)))
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng is {type(rng).__name__}: give numpy.random.default_rng(seed)")
    return CORRUPTIONS[name](clip, severity, rng, **({"fps": fps} if _takes_fps(name) else {}))


def map_frames(
    name: str, severity: int, frames: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """(frames,): which frame of a video an index map shows in the place of each. name: of
    INDEX_MAPS.
    """
    return INDEX_MAPS[name](frames, severity, rng, **({"fps": fps} if _takes_fps(name) else {}))


def _takes_fps(name: str) -> bool:
    function = INDEX_MAPS.get(name, CORRUPTIONS[name])
    return "fps" in inspect.signature(function).parameters


@dataclass(frozen=True)
class Corrupt:
    """Augmentation: with a chance, one of some corruptions at one of some severities, each as
    likely.

    `Corrupt(["imagenet-c"], severities=(1, 2, 3))(clip, rng)` -> a clip of the same shape; rng
    decides everything. names: of CORRUPTIONS or BENCHMARKS. Raises ValueError for what `corrupt`
    refuses, and a chance outside [0, 1].
    """

    names: Sequence[str]
    severities: Sequence[int] = SEVERITIES
    chance: float = 1.0

    def __post_init__(self) -> None:
        if not expand(self.names):
            raise ValueError("names []: at least one corruption")
        severities = self.severities if isinstance(self.severities, Sequence) else []
        if not severities or not set(severities) <= set(SEVERITIES):
            raise ValueError(f"severities {self.severities}: a list of them, each of 1 to 5")
        if not isinstance(self.chance, int | float) or not 0 <= self.chance <= 1:
            raise ValueError(f"chance {self.chance!r}: 0 to 1")

    def __call__(self, clip: np.ndarray, rng: np.random.Generator, fps: float = 25.0) -> np.ndarray:
        if rng.random() >= self.chance:
            require_clip(clip)
            return clip
        names = expand(self.names)
        return corrupt(
            clip, names[rng.integers(len(names))], int(rng.choice(self.severities)), rng, fps
        )

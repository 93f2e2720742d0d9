"""Sensor noise, independent per frame.

Tables: ImageNet-C (Hendrycks and Dietterich 2019); salt and pepper: Zeng et al. 2023. All noise is
sampled anew for every frame.
"""

from collections.abc import Sequence

import numpy as np

from vidrobust.corruptions.clip import each_frame, level


def gaussian_noise(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return x + n, where n is normal noise.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: standard deviation of 0.08, 0.12, 0.18, 0.26 or 0.38 of the value range.
        rng: samples the noise of every frame.
    """
    sigma = 255 * level(clip, severity, (0.08, 0.12, 0.18, 0.26, 0.38))
    return each_frame(clip, lambda frame: frame + np.float32(sigma) * _normal(frame, rng))


def shot_noise(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    photons: Sequence[float] = (60, 25, 12, 5, 3),
) -> np.ndarray:
    """Return Poisson(c x) / c of x in [0, 1], where a white value is c photons.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: index into `photons`.
        rng: samples the photon counts of every frame.
        photons: c at each severity.
    """
    c = level(clip, severity, photons)
    return each_frame(
        clip, lambda frame: rng.poisson(frame * (c / 255)).astype(np.float32) * np.float32(255 / c)
    )


def impulse_noise(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with salt and pepper: values set to 0 or 255, equally often.

    Channels are changed independently of each other.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: a fraction of 0.03, 0.06, 0.09, 0.17 or 0.27 of all values.
        rng: samples the changed values of every frame.
    """
    fraction = level(clip, severity, (0.03, 0.06, 0.09, 0.17, 0.27))

    def add_impulses(frame: np.ndarray) -> np.ndarray:
        u = rng.random(frame.shape, dtype=np.float32)
        salted = np.where(u > 1 - fraction / 2, np.uint8(255), frame)
        return np.where(u < fraction / 2, np.uint8(0), salted)

    return each_frame(clip, add_impulses)


def salt_noise(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with values set to 255, channels independently of each other.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: a fraction of 0.1, 0.2, 0.3, 0.4 or 0.5 of all values.
        rng: samples the changed values of every frame.
    """
    return _set_values(clip, level(clip, severity, _ONE_SIDED), 255, rng)


def pepper_noise(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip with values set to 0, channels independently of each other.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: a fraction of 0.1, 0.2, 0.3, 0.4 or 0.5 of all values.
        rng: samples the changed values of every frame.
    """
    return _set_values(clip, level(clip, severity, _ONE_SIDED), 0, rng)


# fraction of the values that salt or pepper changes, at severities 1 to 5 (Zeng et al. 2023)
_ONE_SIDED = (0.1, 0.2, 0.3, 0.4, 0.5)


def _set_values(
    clip: np.ndarray, fraction: float, value: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the clip with a random fraction of its values set to one value.

    Args:
        clip: (T, H, W, 3) uint8.
        fraction: probability that a value is changed.
        value: what changed values become, 0 to 255.
        rng: samples the changed values of every frame.
    """
    new = np.uint8(value)
    return each_frame(
        clip,
        lambda frame: np.where(rng.random(frame.shape, dtype=np.float32) < fraction, new, frame),
    )


def speckle_noise(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    sigmas: Sequence[float] = (0.15, 0.2, 0.35, 0.45, 0.6),
) -> np.ndarray:
    """Return x + x n, where n is normal noise: bright pixels get more of it.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: index into `sigmas`.
        rng: samples the noise of every frame.
        sigmas: standard deviation of n at each severity.
    """
    sigma = np.float32(level(clip, severity, sigmas))
    return each_frame(clip, lambda frame: frame + frame * (sigma * _normal(frame, rng)))


def _normal(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample standard normal noise of a frame's shape."""
    # float32 is precise enough: the result is rounded to uint8
    return rng.standard_normal(frame.shape, dtype=np.float32)

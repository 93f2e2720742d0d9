"""Sensor noise, independent per frame, with the tables of ImageNet-C."""

from collections.abc import Sequence

import numpy as np

from vidrobust.corruptions.clip import each_frame, level


def gaussian_noise(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """x + n, n normal of standard deviation .08 to .38 of the range. A draw a frame."""
    sigma = 255 * level(clip, severity, (0.08, 0.12, 0.18, 0.26, 0.38))
    return each_frame(clip, lambda frame: frame + np.float32(sigma) * _normal(frame, rng))


def shot_noise(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    photons: Sequence[float] = (60, 25, 12, 5, 3),
) -> np.ndarray:
    """Poisson(c x) / c of x in [0, 1], where white is c = 60 to 3 photons. A draw a frame."""
    c = level(clip, severity, photons)
    return each_frame(
        clip, lambda frame: rng.poisson(frame * (c / 255)).astype(np.float32) * np.float32(255 / c)
    )


def impulse_noise(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: .03 to .27 of all values, channel by channel, become 0 or 255, evenly. A
    draw a frame.
    """
    share = level(clip, severity, (0.03, 0.06, 0.09, 0.17, 0.27))

    def change(frame: np.ndarray) -> np.ndarray:
        u = rng.random(frame.shape, dtype=np.float32)
        return np.where(
            u < share / 2, np.uint8(0), np.where(u > 1 - share / 2, np.uint8(255), frame)
        )

    return each_frame(clip, change)


def speckle_noise(
    clip: np.ndarray,
    severity: int,
    rng: np.random.Generator,
    sigmas: Sequence[float] = (0.15, 0.2, 0.35, 0.45, 0.6),
) -> np.ndarray:
    """x + x n, n normal of standard deviation .15 to .6: noise that grows with the light. A draw a
    frame.
    """
    sigma = np.float32(level(clip, severity, sigmas))
    return each_frame(clip, lambda frame: frame + frame * (sigma * _normal(frame, rng)))


def _normal(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(frame.shape, dtype=np.float32)

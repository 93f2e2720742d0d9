import numpy as np


def smooth_clip(frames: int = 16, height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    """Return a clip (T, H, W, 3) uint8 of drifting blobs of colour, some of them with a sharp edge.

    Like real pictures, it has smooth and sharp parts, and motion.
    """
    rng = np.random.default_rng(seed)
    y, x, t = np.ogrid[0 : 1 : height * 1j, 0 : width / height : width * 1j, 0 : 1 : frames * 1j]
    clip = np.full((frames, height, width, 3), 110.0)
    for _ in range(16):
        cy, cx, vy, vx, size = (
            *rng.uniform(0, 1, 2),
            *rng.uniform(-0.6, 0.6, 2),
            rng.uniform(0.02, 0.25),
        )
        blob = np.exp(-((y - cy - vy * t) ** 2 + (x - cx - vx * t) ** 2) / (2 * size**2)).transpose(
            2, 0, 1
        )
        clip += (blob if size > 0.15 else blob > 0.6)[..., None] * rng.uniform(-110, 110, 3)
    return clip.clip(0, 255).round().astype(np.uint8)


def still_clip(frames: int = 4, **size: int) -> np.ndarray:
    """Return the first frame of `smooth_clip` repeated, so that nothing moves."""
    return np.repeat(smooth_clip(1, **size), frames, axis=0)


def error(clip: np.ndarray, other: np.ndarray) -> float:
    """Return the mean absolute difference of two clips, on a scale of 255."""
    return float(np.abs(clip.astype(float) - other).mean())

"""Compare fingerprints: two numbers per severity that any change of a table or sample moves.

The numbers are the same with the lowest and the newest supported versions of the dependencies. They
were recorded after the tables were compared with the published ones (test_published_constants.py),
and change only together with docs/corruptions.md.
"""

import numpy as np
import pytest

from vidrobust.benchmarks.corruptions import drawn_clip
from vidrobust.corruptions import CORRUPTIONS, corrupt
from vidrobust.corruptions.codec import _TO_YUV

FRAMES, HEIGHT, WIDTH = 12, 64, 72
# For severities 1 to 5: the mean change of a value, then the mean value weighted by frame, row and
# column.
FINGERPRINTS = {
    "gaussian_noise": [16.25, 127.06, 24.23, 127.05, 35.59, 127.05, 49.06, 127.07, 65.02, 127.14],
    "shot_noise": [18.08, 127.02, 27.59, 126.65, 38.86, 125.35, 57.14, 121.41, 71.09, 116.58],
    "impulse_noise": [3.81, 127.1, 7.6, 127.11, 11.35, 127.04, 21.55, 127.04, 34.33, 127.09],
    "salt_noise": [12.72, 139.72, 25.71, 152.66, 38.59, 165.43, 51.48, 178.33, 64.17, 191.06],
    "pepper_noise": [12.57, 114.4, 25.23, 101.7, 37.89, 89.03, 50.55, 76.29, 63.09, 63.63],
    "speckle_noise": [15.06, 127, 19.92, 126.82, 33.75, 125.57, 42.18, 124.36, 53.18, 122.67],
    "gaussian_blur": [2.06, 127.07, 2.52, 127.07, 3.03, 127.07, 3.84, 127.07, 5.78, 127.06],
    "defocus_blur": [2.23, 127.08, 3.2, 127.08, 3.69, 127.08, 4.53, 127.09, 5.49, 127.09],
    "glass_blur": [7.4, 126.99, 5.44, 127.05, 8.17, 126.9, 6.97, 126.99, 7.15, 126.99],
    "motion_blur": [3.19, 127.07, 6.05, 127.06, 10.18, 127.04, 14.84, 126.99, 18.1, 126.94],
    "zoom_blur": [9.39, 127.33, 12.32, 127.4, 14.87, 127.44, 17.16, 127.48, 19.46, 127.49],
    "snow": [41.71, 168.74, 66.46, 193.4, 66.48, 193.48, 78.85, 205.7, 94.38, 221.24],
    "frost": [43.92, 171.22, 42, 168.25, 42.96, 166.63, 39.89, 160.65, 41.33, 159.83],
    "fog": [32, 110.39, 35.31, 108.66, 41, 101.78, 45.58, 95.51, 47.64, 96.34],
    "rain": [7.96, 127.85, 8.98, 129.54, 13.54, 131.74, 18.23, 134.59, 23.85, 139.75],
    "spatter": [1.14, 128.29, 6.06, 133.46, 7.25, 134.5, 1.77, 125.01, 3, 123.9],
    "brightness": [19.59, 146.69, 38.49, 165.63, 53.02, 180.13, 62.66, 189.68, 67.67, 194.6],
    "contrast": [22.4, 126.77, 26.13, 126.71, 29.86, 126.65, 33.59, 126.6, 35.45, 126.58],
    "saturate": [27.58, 154.52, 35.46, 162.37, 28.43, 98.37, 42.32, 84.12, 44.08, 82.54],
    "elastic_transform": [26.03, 126.63, 41.27, 126.37, 7.28, 127.01, 7.62, 127.04, 8.85, 127.11],
    "pixelate": [5.39, 127.48, 6.19, 127.57, 7.99, 127.24, 10.16, 127.19, 11.66, 127.33],
    "jpeg_compression": [7.83, 126.98, 9.28, 127.04, 10.32, 126.91, 12.78, 127.1, 15.85, 127.12],
    "frame_rate": [3.02, 127.08, 4.04, 127.07, 6.92, 127.04, 11.57, 126.99, 17.5, 127.03],
    "sampling": [30.34, 127.04, 31.25, 127, 34.88, 127.27, 40.34, 127.27, 40.34, 127.27],
    "reverse_sampling": [38.86, 126.98, 36.33, 127, 37.66, 127.27, 40.34, 127.27, 40.34, 127.27],
    "jumble": [30.03, 127.04, 30.03, 127.04, 22.15, 127.07, 11.34, 127.06, 4.01, 127.07],
    "box_jumble": [27.12, 126.97, 0, 127.07, 0, 127.07, 0, 127.07, 0, 127.07],
    "freeze": [19.45, 127.04, 25.93, 127.09, 39.87, 127.57, 25.93, 127.09, 39.87, 127.57],
    "frame_drop": [1.01, 127.06, 1.01, 127.06, 6.8, 127.05, 9.47, 127, 9.47, 127],
    "frame_rate_ssv2": [8.81, 127.05, 12.42, 127.06, 17.5, 127.03, 26.3, 127.08, 40.34, 127.27],
    "temporal_blur": [9.32, 127.02, 16.84, 126.97, 23.1, 126.96, 26.05, 126.98, 26.7, 127.01],
    "static_translate": [22.79, 124.5, 44.59, 121.88, 57.85, 118.69, 62.22, 117.63, 69.11, 114.18],
    "translate": [20.59, 122.16, 39.45, 116.6, 49.88, 112.42, 55.86, 108.67, 61.5, 104.59],
    "static_rotate": [30.21, 119.28, 48.43, 113.73, 63.62, 106.67, 68.84, 104.11, 59.74, 112.95],
    "rotate": [18.29, 122.36, 28.79, 119.56, 37.6, 116.9, 43.68, 114.72, 49.03, 112.7],
    "h264_crf": [7.36, 127.28, 9.8, 127.07, 13.14, 127.32, 17.97, 126.91, 26.5, 126.15],
    "h264_abr": [9.14, 127.31, 14.58, 127.84, 22.5, 126.11, 28.33, 131.44, 33.8, 125.22],
    "mpeg1": [6.37, 127.11, 7.64, 127.04, 9.94, 127.16, 12.71, 127.06, 16.18, 127.16],
    "mpeg2": [6.4, 127.11, 7.7, 127.15, 9.96, 127.09, 12.69, 127, 16.3, 127.66],
    "bit_error": [7.36, 127.28, 7.36, 127.28, 9.85, 126.55, 9.85, 126.55, 10.22, 126.62],
    "packet_loss": [7.89, 127.21, 7.89, 127.21, 7.89, 127.21, 7.89, 127.21, 7.89, 127.21],
    "shot_noise_p": [8.91, 127.06, 14.02, 127.07, 19.77, 127.01, 25.31, 126.67, 35.05, 125.88],
    "speckle_noise_p": [15.06, 127, 19.92, 126.82, 24.66, 126.53, 29.27, 126.1, 33.75, 125.57],
    "contrast_kinetics": [18.67, 126.79, 22.4, 126.77, 26.13, 126.71, 29.86, 126.65, 33.59, 126.6],
    "temporal_blur_ssv2": [5.55, 127.04, 6.7, 127.03, 9.32, 127.02, 12.99, 126.99, 20.31, 126.96],
}
# These depend on the version of libx264, so they are compared with a tolerance.
ENCODED = {"h264_crf", "h264_abr", "mpeg1", "mpeg2", "bit_error", "packet_loss"}


def test_every_corruption_except_libx265_has_a_fingerprint():
    """Outputs of libx265 differ by half between its minor versions."""
    assert CORRUPTIONS.keys() - FINGERPRINTS.keys() == {"h265_crf", "h265_abr"}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprint_is_unchanged(name):
    clip = drawn_clip(FRAMES, HEIGHT, WIDTH)
    place = 2.0 * np.arange(HEIGHT)[:, None, None] + np.arange(WIDTH)[None, :, None]
    weights = (place / place.mean())[None] * np.linspace(0.5, 1.5, FRAMES)[:, None, None, None]
    for severity in range(1, 6):
        change, weighted = FINGERPRINTS[name][2 * severity - 2 : 2 * severity]
        output = corrupt(clip, name, severity, np.random.default_rng(7)).astype(float)
        close = {"rel": 0.05, "abs": 0.1} if name in ENCODED else {"rel": 0, "abs": 0.02}
        assert np.abs(output - clip).mean() == pytest.approx(change, **close), severity
        assert (output * weights).mean() == pytest.approx(weighted, **close), severity


def test_colour_conversion_follows_bt_601():
    """Compare with ITU-R BT.601: luma from 16 to 235, chroma from 16 to 240."""
    red, green, blue = 0.299, 0.587, 0.114
    luma = np.array([red, green, blue])
    chroma = [(np.eye(3)[2] - luma) / (2 * (1 - blue)), (np.eye(3)[0] - luma) / (2 * (1 - red))]
    expected = np.stack([219 * luma, 224 * chroma[0], 224 * chroma[1]]) / 255
    np.testing.assert_allclose(_TO_YUV.numpy(), expected, atol=5e-6)

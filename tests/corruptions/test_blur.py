import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.corruptions.clips import error, smooth_clip
from vidrobust.corruptions import CORRUPTIONS, blur, corrupt
from vidrobust.corruptions.blur import gaussian_filter, line_filter

BLURS = [name for name in CORRUPTIONS if name.endswith("_blur") and "temporal" not in name]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def dot(size: int = 224) -> np.ndarray:
    """Return a white pixel in the middle of a black frame."""
    clip = np.zeros((1, size, size, 3), np.uint8)
    clip[0, size // 2, size // 2] = 255
    return clip


@pytest.mark.parametrize("name", BLURS)
def test_blur_keeps_a_uniform_clip(name):
    even = np.full((2, 40, 56, 3), (200, 100, 30), np.uint8)
    assert np.abs(corrupt(even, name, 5, rng()).astype(int) - even).max() <= 1


@pytest.mark.parametrize(("size", "sigma"), [(224, 6), (112, 3), (32, 1)])
def test_gaussian_blur_matches_scipy(size, sigma):
    clip = smooth_clip(2, size, size + 9) // 2 + np.random.default_rng(1).integers(
        0, 99, (2, size, size + 9, 3)
    )
    clip = clip.astype(np.uint8)
    output = corrupt(clip, "gaussian_blur", 5, rng())
    expected = ndimage.gaussian_filter(
        clip.astype(float), (0, sigma, sigma, 0), mode="nearest", truncate=4
    )
    assert np.abs(output - expected).max() <= 0.51


def test_filters_match_scipy_at_the_edges():
    x = np.random.default_rng(0).random((3, 20, 31)).astype(np.float32)
    for mirror, mode in ((False, "nearest"), (True, "reflect")):
        for sigma in (0.8, 3.0, 15.0):  # the last one reaches beyond the frame
            output = gaussian_filter(20, 31, sigma, mirror=mirror)(torch.from_numpy(x)).numpy()
            expected = ndimage.gaussian_filter(x, (0, sigma, sigma), mode=mode, truncate=4)
            assert np.abs(output - expected).max() < 1e-5


def test_defocus_blur_spreads_light_over_a_disk():
    clip = np.zeros((1, 224, 224, 3), np.uint8)
    clip[0, 80:144, 80:144] = 255
    output = corrupt(clip, "defocus_blur", 3, rng())[0, ..., 0].astype(float)  # radius 6
    assert output[112, 112] == 255 and output[112, 79 - 8] == 0, "the disk ends"
    assert output[112, 79:81].mean() == pytest.approx(127, abs=8), (
        "half of the disk lies beyond the edge"
    )
    x = (np.random.default_rng(0).random((1, 60, 70, 3)) * 255).astype(np.uint8)
    y, z = np.ogrid[-7:8, -7:8]
    disk = (3 * 60 / 224 + 0.5 - np.hypot(y, z)).clip(0, 1)
    expected = np.stack(
        [
            ndimage.convolve(x[0, ..., c].astype(float), disk / disk.sum(), mode="mirror")
            for c in range(3)
        ],
        -1,
    )
    assert np.abs(corrupt(x, "defocus_blur", 1, rng())[0] - expected).max() <= 0.51


@pytest.mark.parametrize("degrees", [0, 30, -45, 90])
def test_line_filter_spreads_a_dot_along_the_line(degrees):
    x = np.zeros((1, 61, 61), np.float32)
    x[0, 30, 30] = 1
    output = line_filter(10, 3, degrees)(torch.from_numpy(x)).numpy()[0]
    weights = np.exp(-0.5 * (np.arange(21) / 3) ** 2)
    weights /= weights.sum()
    expected = np.zeros_like(output)
    for i, weight in enumerate(
        weights
    ):  # the dot reaches outputs i pixels away, against the direction of the line
        down, across = i * np.sin(np.radians(degrees)), i * np.cos(np.radians(degrees))
        expected[30 - int(np.rint(down)), 30 - int(np.rint(across))] += weight
    assert np.abs(output - expected).max() < 1e-6


def test_motion_blur_direction_is_within_45_degrees_of_the_horizontal(monkeypatch):
    angles = []
    monkeypatch.setattr(
        blur, "line_filter", lambda radius, sigma, degrees: angles.append(degrees) or torch.clone
    )
    for seed in range(200):
        corrupt(dot(8), "motion_blur", 5, np.random.default_rng(seed))
    expected_degrees = [-45 + 90 * np.random.default_rng(seed).random() for seed in range(200)]
    assert angles == pytest.approx(expected_degrees, abs=1e-9), "uniform in that range"
    monkeypatch.undo()
    for seed in range(10):
        output = corrupt(dot(), "motion_blur", 5, np.random.default_rng(seed))[0, ..., 0]
        y, x = np.nonzero(output)
        assert np.ptp(x) >= np.ptp(y) and np.ptp(x) > 10


def test_glass_blur_moves_pixels_no_farther_than_its_reach():
    clip = np.zeros((1, 224, 224, 3), np.uint8)
    clip[0, :, :112] = 255  # an edge
    output = corrupt(clip, "glass_blur", 1, rng())[
        0, ..., 0
    ]  # two rounds of one pixel, blurred by .7 twice: 6 at most
    assert (output[:, : 112 - 9] == 255).all() and (output[:, 112 + 9 :] == 0).all()
    edge = output[:, 112 - 4 : 112 + 4].astype(float)
    assert edge.std(0).max() > 20, "pixels move by different distances"


@pytest.mark.parametrize(
    ("severity", "reach", "rounds"), [(1, 1, 2), (2, 2, 1), (3, 2, 3), (4, 3, 2), (5, 4, 2)]
)
def test_glass_blur_distances_match_its_reach_and_rounds(monkeypatch, severity, reach, rounds):
    monkeypatch.setattr(blur, "gaussian_filter", lambda *_: lambda planes: planes)
    clip = np.zeros((1, 224, 224, 3), np.uint8)
    clip[0, ..., 0], clip[0, ..., 1] = np.indices((224, 224))
    moved = (corrupt(clip, "glass_blur", severity, rng()).astype(int) - clip)[0, 20:-20, 20:-20, :2]
    assert np.abs(moved).max() == reach * rounds
    assert moved.std((0, 1)) == pytest.approx((rounds * reach * (reach + 1) / 3) ** 0.5, rel=0.03)


def test_zoom_blur_keeps_the_centre_and_spreads_the_rest_outward():
    y, x = np.mgrid[-64:64, -64:64]
    clip = np.repeat((np.hypot(y + 0.5, x + 0.5) < 20)[None, ..., None] * np.uint8(255), 3, -1)
    output = corrupt(clip, "zoom_blur", 5, rng())[0, ..., 0].astype(float)
    assert (output[60:68, 60:68] == 255).all()
    distance = np.hypot(y + 0.5, x + 0.5)
    assert (
        output[distance > 28].max() == 0
        and 0 < output[(distance > 22) & (distance < 24)].mean() < 200
    )
    same = corrupt(clip, "zoom_blur", 5, rng())
    assert error(same, same[:, ::-1]) < 1 and error(same, same[:, :, ::-1]) < 1, "symmetric"

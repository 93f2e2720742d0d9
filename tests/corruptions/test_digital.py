import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.corruptions.clips import error, smooth_clip
from vidrobust.corruptions import corrupt, digital
from vidrobust.corruptions.digital import _random_affine, _sampled


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def colours(count: int = 300) -> np.ndarray:
    """Return (1, 1, count + 3, 3): random colours, then black, gray and white."""
    output = rng(5).integers(0, 256, (1, 1, count, 3), dtype=np.uint8)
    return np.concatenate([output, np.array([[[[0] * 3, [90] * 3, [255] * 3]]], np.uint8)], 2)


def through_hsv(clip, change):
    """Change a clip in HSV, pixel by pixel, with the standard library."""
    flat = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(p / 255)))) for p in clip.reshape(-1, 3)
    ]
    return 255 * np.array(flat).reshape(clip.shape)


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_adds_to_the_value_of_hsv(severity):
    expected = through_hsv(colours(), lambda h, s, v: (h, s, min(v + severity / 10, 1)))
    assert np.abs(corrupt(colours(), "brightness", severity, rng()) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("severity", "factor", "added"),
    [(1, 0.3, 0), (2, 0.1, 0), (3, 2, 0), (4, 5, 0.1), (5, 20, 0.2)],
)
def test_saturate_scales_the_saturation_of_hsv(severity, factor, added):
    expected = through_hsv(colours(), lambda h, s, v: (h, min(s * factor + added, 1), v))
    assert np.abs(corrupt(colours(), "saturate", severity, rng()) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("name", "factors"),
    [("contrast", (0.4, 0.3, 0.2, 0.1, 0.05)), ("contrast_kinetics", (0.5, 0.4, 0.3, 0.2, 0.1))],
)
def test_contrast_pulls_colours_towards_the_mean_of_their_frame(name, factors):
    clip = np.concatenate([smooth_clip(1), smooth_clip(1) // 3])
    means = clip.mean((1, 2), keepdims=True)
    for severity, kept in enumerate(factors, 1):
        assert (
            np.abs(corrupt(clip, name, severity, rng()) - ((clip - means) * kept + means)).max()
            <= 0.51
        )


def test_pixelate_averages_blocks():
    clip = smooth_clip(1, 64, 96)
    output = corrupt(clip, "pixelate", 5, rng())[0]
    blocks = clip[0].reshape(16, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(output - blocks.repeat(4, 0).repeat(4, 1)).max() <= 1


def test_jpeg_compression_matches_pillow():
    clip = smooth_clip(2, 40, 60)
    for severity, quality in enumerate((25, 18, 15, 10, 7), 1):
        file = io.BytesIO()
        Image.fromarray(clip[1]).save(file, "JPEG", quality=quality)
        assert (
            corrupt(clip, "jpeg_compression", severity, rng())[1] == np.asarray(Image.open(file))
        ).all()


def test_sampling_reads_the_given_source_pixels():
    clip = smooth_clip(2, 30, 44)
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(44.0), indexing="ij")
    assert (_sampled(clip, torch.stack([y, x])) == clip).all()
    assert (_sampled(clip, torch.stack([y, x + 3]))[:, :, :41] == clip[:, :, 3:]).all()
    beyond = _sampled(clip, torch.stack([y - 5, x]))
    assert (beyond[:, 5:] == clip[:, :-5]).all() and (beyond[:, 4] == clip[:, 1]).all(), "mirrored"


def test_random_affine_maps_three_moved_points_back():
    affine = _random_affine(90, 120, 6, rng()).numpy()
    points = np.array([45, 60]) + 30 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng().uniform(-6, 6, (3, 2))
    back = np.column_stack([moved, np.ones(3)]) @ affine.T
    assert np.abs(back - points).max() < 1e-3
    assert np.abs(_random_affine(90, 120, 0, rng()).numpy() - np.eye(2, 3)).max() < 1e-5


def test_elastic_transform_scales_its_published_lengths_by_244_pixels(monkeypatch):
    """Record the affine shifts and the smoothing at a size of 224, as fractions of 244 pixels."""
    lengths = []
    monkeypatch.setattr(
        digital,
        "_random_affine",
        lambda h, w, most, _: lengths.append(most / 244) or torch.eye(2, 3),
    )
    monkeypatch.setattr(
        digital,
        "gaussian_filter",
        lambda h, w, sigma, mirror: lengths.append(sigma / 244) or (lambda noise: noise),
    )
    for severity in range(1, 6):
        corrupt(np.zeros((1, 224, 224, 3), np.uint8), "elastic_transform", severity, rng())
    assert lengths == pytest.approx([0.7, 0.1, 0.08, 0.2, 0.01, 0.02, 0.01, 0.02, 0.01, 0.02])


def test_elastic_transform_gets_worse_within_each_of_its_two_kinds():
    clip = smooth_clip(1, 112, 112)
    for kinds in ((1, 2), (3, 4, 5)):
        errors = [
            np.mean([error(clip, corrupt(clip, "elastic_transform", s, rng(k))) for k in range(6)])
            for s in kinds
        ]
        assert errors == sorted(errors)


@pytest.mark.parametrize("size", [224, 64])
def test_elastic_transform_moves_by_the_same_fraction_of_the_frame_at_any_size(size):
    """At severity 2, smooth noise moves pixels of a 224-pixel frame by about four, as published.

    The affine map is switched off.
    """
    ramp = np.zeros((1, size, size, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, size).round()
    moved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digital, "_random_affine", lambda *_: torch.eye(2, 3))
        for seed in range(5):
            output = corrupt(ramp, "elastic_transform", 2, rng(seed))[..., 0].astype(float)
            inner = slice(size // 4, 3 * size // 4)
            moved.append((output - ramp[..., 0])[:, inner, inner].std() / 255)
    assert np.mean(moved) == pytest.approx(4 / 224, rel=0.35)

"""Compare the tables of the published corruptions with a literal copy of their numbers.

ImageNet-C (Hendrycks and Dietterich 2019), Mini-Kinetics-C and SSv2-C (Yi et al. 2021), UCF101-P
(Schiappa et al. 2023), salt and pepper (Zeng et al. 2023). Effects of the tables that no other test
covers are measured too: the drops of spatter, and the slant and streaks of rain.
"""

import functools
import math
import sys

import numpy as np
import pytest

from vidrobust.corruptions import BENCHMARKS, CORRUPTIONS, INDEX_MAPS, corrupt, map_frames

TABLES = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "shot_noise_p": (250, 100, 50, 30, 15),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "salt_noise": (0.1, 0.2, 0.3, 0.4, 0.5),
    "pepper_noise": (0.1, 0.2, 0.3, 0.4, 0.5),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "speckle_noise_p": (0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "rain": ((770, 10, 0.8), (770, 30, 0.8), (770, 60, 0.7), (500, 60, 0.6), (400, 80, 0.5)),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    ),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "contrast_kinetics": (0.5, 0.4, 0.3, 0.2, 0.1),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "elastic_transform": (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "frame_rate": (20, 16, 12, 9, 6),
    "frame_rate_ssv2": (10, 8, 6, 4, 2),
    "sampling": (2, 4, 8, 16, 32),
    "reverse_sampling": (2, 4, 8, 16, 32),
    "jumble": (32, 16, 8, 4, 2),
    "box_jumble": (4, 9, 16, 25, 36),
    "freeze": ((0.4, 1), (0.2, 1), (0.1, 1), (0.05, 2), (0, 1)),
    "frame_drop": (0.1, 0.2, 0.35, 0.5, 0.7),
    "temporal_blur": (3, 5, 7, 9, 11),
    "temporal_blur_ssv2": (1, 2, 3, 4, 6),
    "static_translate": (8, 16, 24, 32, 40),
    "translate": (8, 16, 24, 32, 40),
    "static_rotate": (7.5, 15, 30, 45, 90),
    "rotate": (7, 13, 19, 25, 31),
    "h264_crf": (23, 30, 37, 44, 51),
    "h265_crf": (27, 33, 39, 45, 51),
    "h264_abr": (2, 4, 8, 16, 32),
    "h265_abr": (2, 4, 8, 16, 32),
    "mpeg1": (4, 8, 14, 21, 31),
    "mpeg2": (4, 8, 14, 21, 31),
    "bit_error": (100_000, 50_000, 30_000, 20_000, 10_000),
    "packet_loss": (0.01, 0.02, 0.03, 0.04, 0.06),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _module(name):
    function = CORRUPTIONS[name].index_map or CORRUPTIONS[name].function
    function = function.func if isinstance(function, functools.partial) else function
    return sys.modules[function.__module__]


def test_every_corruption_has_a_table_in_this_file():
    assert set(TABLES) == set(CORRUPTIONS)


@pytest.mark.parametrize("name", TABLES)
def test_table_matches_the_published_one(name, monkeypatch):
    module, tables = _module(name), []
    for reader in ("level", "pick"):
        if hasattr(module, reader):
            real = getattr(module, reader)

            def recorded(*args, real=real):
                tables.append(args[-1])
                return real(*args)

            monkeypatch.setattr(module, reader, recorded)
    if name in INDEX_MAPS:
        map_frames(name, 1, 64, rng())
    else:
        corrupt(np.zeros((2, 80, 80, 3), np.uint8), name, 1, rng())
    assert tables
    assert all(tuple(table) == TABLES[name] for table in tables)


SETS = {
    "imagenet-c": {
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
    },
    "mini-kinetics-c": {
        "shot_noise",
        "rain",
        "fog",
        "contrast_kinetics",
        "brightness",
        "saturate",
        "temporal_blur",
        "frame_rate",
        "h264_crf",
        "h264_abr",
        "h265_crf",
        "h265_abr",
        "bit_error",
        "packet_loss",
    },
    "ssv2-c": {
        "shot_noise",
        "rain",
        "fog",
        "contrast_kinetics",
        "brightness",
        "saturate",
        "temporal_blur_ssv2",
        "frame_rate_ssv2",
        "h264_crf",
        "h264_abr",
        "h265_crf",
        "h265_abr",
        "bit_error",
        "packet_loss",
    },
    "ucf101-p": {
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
    },
    "vitta": {
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
    },
}


@pytest.mark.parametrize("name", SETS)
def test_benchmark_has_its_published_members(name):
    assert set(BENCHMARKS[name]) == SETS[name]
    assert len(BENCHMARKS[name]) == len(SETS[name])


@pytest.mark.parametrize("name", ["hmdb51-p", "kinetics400-p", "ssv2-p"])
def test_the_sets_of_schiappa_have_the_same_members(name):
    assert BENCHMARKS[name] == BENCHMARKS["ucf101-p"]


# ------------------------------------------------------------------ effects of the tables


def _spatter(severity, size=224, seeds=6):
    """Return (brightest value, fraction of wet or muddy pixels) of spatter on black frames."""
    black = np.zeros((1, size, size, 3), np.uint8)
    output = np.concatenate(
        [corrupt(black, "spatter", severity, rng(seed)) for seed in range(seeds)]
    ).astype(float)
    return output.max(), (output.max(-1) > 0).mean()


def test_spatter_brightness_is_its_strength_and_less_blur_covers_more():
    """The strength of water is 0.6, 0.6 and 0.5 of turquoise, (175, 238, 238)."""
    light, wet = zip(*(_spatter(severity) for severity in (1, 2, 3)), strict=True)
    assert light == tuple(round(238 * strength) for strength in (0.6, 0.6, 0.5))
    assert wet[0] < wet[1] < wet[2]


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_of_spatter_covers_the_fraction_above_its_threshold(severity, monkeypatch):
    """Liquid is normal around 0.65, has the deviation that its blur leaves, and is thresholded."""
    loc, sigma, blur, threshold = TABLES["spatter"][severity - 1][:4]
    deviation = sigma / (2 * math.sqrt(math.pi) * blur)
    expected = 0.5 * math.erfc((threshold - loc) / deviation / math.sqrt(2))
    module, wet_fractions = _module("spatter"), []
    real = module._relief

    def relief(wet):
        wet_fractions.append(float(wet.float().mean()))
        return real(wet)

    monkeypatch.setattr(module, "_relief", relief)
    for seed in range(8):
        corrupt(np.zeros((1, 224, 224, 3), np.uint8), "spatter", severity, rng(seed))
    assert np.mean(wet_fractions) == pytest.approx(expected, rel=0.12)


def _drawn_lines(monkeypatch, severity, seed, frames=3, size=224):
    """Return the streaks of rain per frame: (x, y) of the upper end, (x, y) of the lower, value."""
    module, lines = _module("rain"), []
    real = module.ImageDraw.Draw

    class Draw:
        def __init__(self, image):
            self.draw = real(image)
            lines.append([])

        def line(self, ends, fill):
            lines[-1].append((*ends, fill))
            self.draw.line(ends, fill=fill)

    monkeypatch.setattr(module.ImageDraw, "Draw", Draw)
    corrupt(np.full((frames, size, size, 3), 90, np.uint8), "rain", severity, rng(seed))
    return [np.array(frame) for frame in lines]


@pytest.mark.parametrize(
    ("severity", "area", "length"),
    [(1, 770, 10), (2, 770, 30), (3, 770, 60), (4, 500, 60), (5, 400, 80)],
)
def test_rain_has_the_published_length_and_number_of_streaks(monkeypatch, severity, area, length):
    frames = _drawn_lines(monkeypatch, severity, seed=1)
    for lines in frames:
        assert len(lines) == round(224 * 224 / area)
        assert (lines[:, 3] - lines[:, 1] == length).all(), "downwards"
        assert (lines[:, 4] == 220).all()
    assert not np.array_equal(frames[0], frames[1]), "each frame has its own drops"


def test_rain_has_one_slant_per_video_of_up_to_ten_pixels_either_way(monkeypatch):
    slants = set()
    for seed in range(120):
        frames = _drawn_lines(monkeypatch, 2, seed, frames=2)
        output = {int(slant) for lines in frames for slant in lines[:, 2] - lines[:, 0]}
        assert len(output) == 1, "all streaks of all frames have one slant"
        slants |= output
        monkeypatch.undo()
    assert slants == set(range(-10, 11))


@pytest.mark.parametrize("sign", [-1, 1])
def test_rain_starts_beyond_the_edge_that_its_slant_points_away_from(monkeypatch, sign):
    """Upper ends lie from -slant to the width, or from 0 to the width minus the slant."""
    seed = next(s for s in range(200) if sign * int(rng(s).integers(-10, 11)) >= 8)
    lines = np.concatenate(_drawn_lines(monkeypatch, 3, seed, frames=12))
    slant = int(lines[0, 2] - lines[0, 0])
    assert sign * slant >= 8
    lowest, highest = (-slant, 224) if sign > 0 else (0, 224 - slant)
    upper = lines[:, 0]
    assert lowest <= upper.min() <= lowest + 2
    assert highest - 3 <= upper.max() < highest


def test_fog_uses_the_brightest_value_of_the_whole_clip():
    """The published code uses that of each frame (docs/corruptions.md)."""
    clip = np.full((2, 64, 64, 3), 60, np.uint8)
    clip[1] = 200
    alone = corrupt(clip[:1], "fog", 2, rng())[0].astype(int)
    together = corrupt(clip, "fog", 2, rng())[0].astype(int)
    assert (together >= alone).all()
    assert together.mean() > 1.5 * alone.mean()


def test_static_translate_uncovers_black():
    """The published code crops a larger frame instead (docs/corruptions.md)."""
    output = corrupt(np.full((2, 224, 224, 3), 200, np.uint8), "static_translate", 5, rng(3))
    assert set(np.unique(output)) == {0, 200}
    assert (output[0] == output[1]).all()

import numpy as np
import pytest

from tests.corruptions.clips import error, smooth_clip, still_clip
from vidrobust.corruptions import corrupt
from vidrobust.corruptions.weather import plasma, snow


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_plasma_is_a_torus_in_0_to_1_that_gets_rougher_with_less_decay():
    for size in (32, 100, 224):
        output = plasma(size, 2.0, rng())
        side = 1 << (size - 1).bit_length()
        assert (
            output.shape == (side, side) and output.min() == 0 and output.max() == pytest.approx(1)
        )
        inside, across = (
            np.abs(np.diff(output, axis=0)).mean(),
            np.abs(output[0] - output[-1]).mean(),
        )
        assert across < 3 * inside, "opposite edges continue each other"
    rough = [
        np.mean([np.abs(np.diff(plasma(128, d, rng(s)))).mean() for s in range(5)])
        for d in (1.4, 1.7, 2.0, 3.0)
    ]
    assert rough == sorted(rough, reverse=True)


def test_noise_of_plasma_decreases_by_the_square_of_decay():
    """Compare the noise of the finest scale with that of the next coarser one."""
    for decay in (1.5, 2.0):
        output = plasma(256, decay, rng())
        finest = (
            output[1::2, 1::2]
            - (
                output[:-1:2, :-1:2]
                + np.roll(output[:-1:2, :-1:2], -1, 0)
                + np.roll(output[:-1:2, :-1:2], -1, 1)
                + np.roll(output[:-1:2, :-1:2], (-1, -1), (0, 1))
            )
            / 4
        )
        coarse = output[::4, ::4]
        middle = (
            output[2::4, 2::4]
            - (
                coarse
                + np.roll(coarse, -1, 0)
                + np.roll(coarse, -1, 1)
                + np.roll(coarse, (-1, -1), (0, 1))
            )
            / 4
        )
        assert middle.std() / finest.std() == pytest.approx(decay**2, rel=0.1)


def test_fog_matches_its_formula():
    clip = smooth_clip(3, 50, 64) // 2  # dark, because fog is no brighter than the brightest value
    layer = 2.5 * plasma(64, 1.7, rng())[:50, :64, None]
    top = clip.max() / 255
    expected = (clip / 255 + layer) * top / (top + 2.5)
    assert np.abs(corrupt(clip, "fog", 3, rng()) - 255 * expected).max() <= 0.51


def test_snow_falls_along_its_smear_at_a_constant_speed():
    black = np.zeros((4, 96, 96, 3), np.uint8)
    output = corrupt(black, "snow", 3, rng()).astype(float)
    across = []
    for t in (1, 2, 3):
        moves = [(dy, dx) for dy in range(4 * t, 8 * t + 1) for dx in range(-6 * t, 6 * t + 1)]
        dy, dx = min(moves, key=lambda move: error(np.roll(output[0], move, (0, 1)), output[t]))
        assert error(np.roll(output[0], (dy, dx), (0, 1)), output[t]) < 1, "the same flakes"
        assert np.hypot(dy, dx) == pytest.approx(t * 96 / 12, abs=1), (
            "a twelfth of the height per frame"
        )
        across.append(dx / t)
    assert np.ptp(across) < 1, "straight"
    dark, light = ((corrupt(black + v, "snow", 3, rng()).astype(float)).mean() - v for v in (0, 60))
    assert dark > 20 and light > 20


def test_snow_layer_is_symmetric_under_rotation_by_180_degrees():
    output = corrupt(np.zeros((1, 96, 96, 3), np.uint8), "snow", 2, rng())[0]
    assert error(output, output[::-1, ::-1]) < 0.01 and error(output, output[::-1]) > 1


def test_frost_weights_of_picture_and_ice_are_the_published_ones():
    black, gray = np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 64, 64, 3), 100, np.uint8)
    pane = corrupt(black, "frost", 1, rng()) / 0.4
    for severity, (kept, ice) in enumerate(
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), 1
    ):
        expected = (100 * kept + pane * ice).clip(0, 255)
        assert np.abs(corrupt(gray, "frost", severity, rng()) - expected).max() <= 2


def test_rain_and_water_drops_have_the_expected_brightness():
    gray = np.full((1, 112, 112, 3), 200, np.uint8)
    output = corrupt(
        gray, "rain", 1, rng()
    )  # adds at most 255 * 220/255 * (55/255)^2, of which contrast leaves 0.8
    assert 203 < output.max() < 210
    drops = corrupt(gray * 0, "spatter", 3, rng())[0].reshape(-1, 3).max(0).astype(float)
    assert drops[1] == drops[2] and drops[0] / drops[1] == pytest.approx(175 / 238, abs=0.02), (
        "turquoise"
    )


def test_frost_adds_one_pane_per_video():
    clip = still_clip(2, height=80, width=100)
    output = corrupt(clip, "frost", 1, rng()).astype(float)
    pane = output[0] - clip[0]
    assert (pane >= -0.5).all() and pane.std() > 8, "ice adds uneven light"
    other = corrupt(clip, "frost", 1, rng(1)).astype(float)[0] - clip[0]
    assert abs(np.corrcoef(pane.ravel(), other.ravel())[0, 1]) < 0.6, (
        "another seed gives another pane"
    )


def test_rain_lightens_streaks_and_reduces_contrast():
    clip = smooth_clip(3, 112, 112) // 2
    output = corrupt(clip, "rain", 4, rng()).astype(float)
    assert output.std() < clip.std() and output.mean() > clip.mean()
    wet = corrupt(np.full_like(clip, 40), "rain", 4, rng())[0, ..., 0]
    assert 0.01 < (wet > wet.min() + 10).mean() < 0.6
    assert (np.diff(wet.astype(int), axis=0) == 0).mean() > (
        np.diff(wet.astype(int), axis=1) == 0
    ).mean(), "streaks are upright"


@pytest.mark.parametrize(
    ("severity", "mud"), [(1, False), (2, False), (3, False), (4, True), (5, True)]
)
@pytest.mark.parametrize("size", [224, 64])
def test_spatter_is_water_that_lightens_or_mud_that_covers(severity, mud, size):
    clip = np.full((1, size, size, 3), 100, np.uint8)
    output = np.concatenate(
        [corrupt(clip, "spatter", severity, rng(seed)) for seed in range(6)]
    ).astype(int)
    hit = (output != 100).any(-1)
    assert 0.002 < hit.mean() < 0.6
    if mud:
        assert np.abs(output[hit].min(0) - (63, 42, 20)).max() <= 8
        hidden = (100 - output[hit]).mean(
            0
        )  # each channel moves by the same fraction towards brown
        assert hidden / hidden[2] == pytest.approx([37 / 80, 58 / 80, 1], abs=0.005)
    else:
        black = np.zeros_like(clip)
        lit = np.concatenate([corrupt(black, "spatter", severity, rng(n)) for n in range(6)])
        drops = lit[(lit[..., 1] > 20) & (lit[..., 1] < 250)].astype(float).mean(0)
        assert drops / drops[2] == pytest.approx([175 / 238, 1, 1], abs=0.005)
        assert (output >= 100).all() and (output[..., 0] <= output[..., 1]).all(), "turquoise"


def test_snow_falls_within_45_degrees_of_straight_down():
    """The direction is between 45 and 135 degrees, as in ImageNet-C."""
    ranges = []

    class Spy:
        def normal(self, *args):
            return rng().normal(*args)

        def uniform(self, low, high):
            ranges.append((low, high))
            return 90.0

    snow(np.zeros((1, 40, 40, 3), np.uint8), 1, Spy())
    assert ranges == [(45, 135)]

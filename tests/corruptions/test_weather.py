import numpy as np
import pytest

from tests.corruptions.clips import error, smooth_clip, still_clip
from vidrobust.corruptions import corrupt
from vidrobust.corruptions.weather import plasma, snow


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_plasma_is_a_torus_of_0_to_1_that_gets_rougher_with_less_decay():
    for size in (32, 100, 224):
        found = plasma(size, 2.0, rng())
        side = 1 << (size - 1).bit_length()
        assert found.shape == (side, side) and found.min() == 0 and found.max() == pytest.approx(1)
        inside, across = np.abs(np.diff(found, axis=0)).mean(), np.abs(found[0] - found[-1]).mean()
        assert across < 3 * inside, "its upper edge follows on its lower one"
    rough = [
        np.mean([np.abs(np.diff(plasma(128, d, rng(s)))).mean() for s in range(5)])
        for d in (1.4, 1.7, 2.0, 3.0)
    ]
    assert rough == sorted(rough, reverse=True)


def test_the_noise_of_plasma_falls_by_the_square_of_decay():
    """Heights of the finest scale against those two coarser: decay ** 4, as published."""
    for decay in (1.5, 2.0):
        found = plasma(256, decay, rng())
        finest = (
            found[1::2, 1::2]
            - (
                found[:-1:2, :-1:2]
                + np.roll(found[:-1:2, :-1:2], -1, 0)
                + np.roll(found[:-1:2, :-1:2], -1, 1)
                + np.roll(found[:-1:2, :-1:2], (-1, -1), (0, 1))
            )
            / 4
        )
        coarse = found[::4, ::4]
        middle = (
            found[2::4, 2::4]
            - (
                coarse
                + np.roll(coarse, -1, 0)
                + np.roll(coarse, -1, 1)
                + np.roll(coarse, (-1, -1), (0, 1))
            )
            / 4
        )
        assert middle.std() / finest.std() == pytest.approx(decay**2, rel=0.1)


def test_fog_is_its_formula():
    clip = smooth_clip(3, 50, 64) // 2  # dark: fog is no brighter than the brightest there is
    layer = 2.5 * plasma(64, 1.7, rng())[:50, :64, None]
    top = clip.max() / 255
    expected = (clip / 255 + layer) * top / (top + 2.5)
    assert np.abs(corrupt(clip, "fog", 3, rng()) - 255 * expected).max() <= 0.51


def test_snow_falls_along_its_smear():
    black = np.zeros((4, 96, 96, 3), np.uint8)
    found = corrupt(black, "snow", 3, rng()).astype(float)
    across = []
    for t in (1, 2, 3):
        moves = [(dy, dx) for dy in range(4 * t, 8 * t + 1) for dx in range(-6 * t, 6 * t + 1)]
        dy, dx = min(moves, key=lambda move: error(np.roll(found[0], move, (0, 1)), found[t]))
        assert error(np.roll(found[0], (dy, dx), (0, 1)), found[t]) < 1, "the same flakes"
        assert np.hypot(dy, dx) == pytest.approx(t * 96 / 12, abs=1), (
            "a twelfth of the height a frame"
        )
        across.append(dx / t)
    assert np.ptp(across) < 1, "straight"
    dark, light = ((corrupt(black + v, "snow", 3, rng()).astype(float)).mean() - v for v in (0, 60))
    assert dark > 20 and light > 20


def test_snow_lies_on_black_as_it_does_upside_down():
    found = corrupt(np.zeros((1, 96, 96, 3), np.uint8), "snow", 2, rng())[0]
    assert error(found, found[::-1, ::-1]) < 0.01 and error(found, found[::-1]) > 1


def test_frost_keeps_its_share_of_the_picture_and_adds_its_share_of_ice():
    black, gray = np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 64, 64, 3), 100, np.uint8)
    pane = corrupt(black, "frost", 1, rng()) / 0.4
    for severity, (kept, ice) in enumerate(
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), 1
    ):
        expected = (100 * kept + pane * ice).clip(0, 255)
        assert np.abs(corrupt(gray, "frost", severity, rng()) - expected).max() <= 2


def test_rain_and_drops_have_their_light():
    gray = np.full((1, 112, 112, 3), 200, np.uint8)
    found = corrupt(
        gray, "rain", 1, rng()
    )  # at most 255 * 220/255 * (55/255)^2 more, of which contrast leaves .8
    assert 203 < found.max() < 210
    drops = corrupt(gray * 0, "spatter", 3, rng())[0].reshape(-1, 3).max(0).astype(float)
    assert drops[1] == drops[2] and drops[0] / drops[1] == pytest.approx(175 / 238, abs=0.02), (
        "turquoise"
    )


def test_frost_is_one_pane_that_keeps_the_picture_under_it():
    clip = still_clip(2, height=80, width=100)
    found = corrupt(clip, "frost", 1, rng()).astype(float)
    pane = found[0] - clip[0]
    assert (pane >= -0.5).all() and pane.std() > 8, "ice adds light, unevenly"
    other = corrupt(clip, "frost", 1, rng(1)).astype(float)[0] - clip[0]
    assert abs(np.corrcoef(pane.ravel(), other.ravel())[0, 1]) < 0.6, "another draw, another pane"


def test_rain_lightens_streaks_and_takes_contrast():
    clip = smooth_clip(3, 112, 112) // 2
    found = corrupt(clip, "rain", 4, rng()).astype(float)
    assert found.std() < clip.std() and found.mean() > clip.mean()
    wet = corrupt(np.full_like(clip, 40), "rain", 4, rng())[0, ..., 0]
    assert 0.01 < (wet > wet.min() + 10).mean() < 0.6
    assert (np.diff(wet.astype(int), axis=0) == 0).mean() > (
        np.diff(wet.astype(int), axis=1) == 0
    ).mean(), "upright"


@pytest.mark.parametrize(
    ("severity", "mud"), [(1, False), (2, False), (3, False), (4, True), (5, True)]
)
@pytest.mark.parametrize("size", [224, 64])
def test_spatter_is_water_that_lightens_or_mud_that_hides(severity, mud, size):
    clip = np.full((1, size, size, 3), 100, np.uint8)
    found = np.concatenate(
        [corrupt(clip, "spatter", severity, rng(seed)) for seed in range(6)]
    ).astype(int)
    hit = (found != 100).any(-1)
    assert 0.002 < hit.mean() < 0.6
    if mud:
        assert np.abs(found[hit].min(0) - (63, 42, 20)).max() <= 8
        hidden = (100 - found[hit]).mean(0)  # each channel goes as far towards brown
        assert hidden / hidden[2] == pytest.approx([37 / 80, 58 / 80, 1], abs=0.005)
    else:
        black = np.zeros_like(clip)
        lit = np.concatenate([corrupt(black, "spatter", severity, rng(n)) for n in range(6)])
        drops = lit[(lit[..., 1] > 20) & (lit[..., 1] < 250)].astype(float).mean(0)
        assert drops / drops[2] == pytest.approx([175 / 238, 1, 1], abs=0.005)
        assert (found >= 100).all() and (found[..., 0] <= found[..., 1]).all(), "turquoise"


def test_snow_falls_within_45_degrees_of_straight_down():
    """As in ImageNet-C: a direction between 45 and 135 degrees."""
    drawn = []

    class Spy:
        def normal(self, *args):
            return rng().normal(*args)

        def uniform(self, low, high):
            drawn.append((low, high))
            return 90.0

    snow(np.zeros((1, 40, 40, 3), np.uint8), 1, Spy())
    assert drawn == [(45, 135)]

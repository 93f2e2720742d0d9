import numpy as np
import pytest

from vidrobust.corruptions import corrupt

GRAY = np.full((4, 64, 64, 3), 128, np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def spread(output: np.ndarray) -> float:
    """Estimate the standard deviation of a normal from its quartiles.

    Values that are clipped at 0 and 255 do not affect the quartiles.
    """
    return np.subtract(*np.quantile(output, [0.75, 0.25])) / 1.349


@pytest.mark.parametrize(("severity", "sigma"), enumerate((0.08, 0.12, 0.18, 0.26, 0.38), 1))
def test_gaussian_noise_has_the_published_standard_deviation(severity, sigma):
    output = corrupt(GRAY, "gaussian_noise", severity, rng()).astype(float)
    assert spread(output) == pytest.approx(
        255 * sigma, rel=0.03
    ) and output.mean() == pytest.approx(128, abs=1)
    channels = output.reshape(-1, 3).T
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 0.05, "channels are independent"


@pytest.mark.parametrize(
    ("name", "photons"),
    [("shot_noise", (60, 25, 12, 5, 3)), ("shot_noise_p", (250, 100, 50, 30, 15))],
)
def test_shot_noise_is_poisson_distributed(name, photons):
    for severity, c in enumerate(photons, 1):
        value = 30 if c < 15 else 64  # dark, so that few values are clipped at white
        output = corrupt(np.full_like(GRAY, value), name, severity, rng()) / 255
        assert output.mean() == pytest.approx(value / 255, rel=0.02)
        assert output.var() == pytest.approx(value / 255 / c, rel=0.05)
        assert np.abs(output * c - np.rint(output * c)).max() <= c / 255 / 2 + 1e-9, "whole photons"
    assert not corrupt(GRAY * 0, name, 5, rng()).any(), "black stays black"


@pytest.mark.parametrize(("severity", "fraction"), enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1))
def test_impulse_noise_is_half_salt_half_pepper(severity, fraction):
    output = corrupt(GRAY, "impulse_noise", severity, rng())
    salt, pepper = (output == 255).mean(), (output == 0).mean()
    assert salt == pytest.approx(fraction / 2, rel=0.08) and pepper == pytest.approx(
        fraction / 2, rel=0.08
    )
    assert ((output == 128) | (output == 0) | (output == 255)).all()


@pytest.mark.parametrize(("name", "value"), [("salt_noise", 255), ("pepper_noise", 0)])
@pytest.mark.parametrize(("severity", "fraction"), enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1))
def test_salt_and_pepper_noise_set_a_tenth_of_the_values_per_severity(
    name, value, severity, fraction
):
    output = corrupt(GRAY, name, severity, rng())
    changed = output == value
    assert changed.mean() == pytest.approx(fraction, abs=0.01)
    assert (output[~changed] == 128).all()


@pytest.mark.parametrize("name", ["salt_noise", "pepper_noise"])
def test_salt_and_pepper_noise_choose_values_of_each_channel_and_frame_anew(name):
    changed = corrupt(GRAY, name, 5, rng()) != 128
    assert np.abs(np.corrcoef(changed.reshape(-1, 3).T) - np.eye(3)).max() < 0.05
    assert np.abs(np.corrcoef(changed.reshape(4, -1)) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize(
    ("name", "sigmas"),
    [
        ("speckle_noise", (0.15, 0.2, 0.35, 0.45, 0.6)),
        ("speckle_noise_p", (0.15, 0.2, 0.25, 0.3, 0.35)),
    ],
)
def test_speckle_noise_grows_with_the_light(name, sigmas):
    for severity, sigma in enumerate(sigmas, 1):
        for value in (60, 120):
            output = corrupt(np.full_like(GRAY, value), name, severity, rng()).astype(float)
            assert spread(output) == pytest.approx(value * sigma, rel=0.06), (
                "the tolerance covers rounding to 1/255"
            )

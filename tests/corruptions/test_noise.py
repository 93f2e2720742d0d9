import numpy as np
import pytest

from vidrobust.corruptions import corrupt

GRAY = np.full((4, 64, 64, 3), 128, np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.08), (2, 0.12), (3, 0.18)])
def test_gaussian_noise_has_its_standard_deviation(severity, sigma):
    found = corrupt(GRAY, "gaussian_noise", severity, rng()).astype(float)
    assert found.std() == pytest.approx(255 * sigma, rel=0.02) and found.mean() == pytest.approx(128, abs=1)
    channels = found.reshape(-1, 3).T
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 0.05, "each channel has its own"


@pytest.mark.parametrize(("name", "photons"), [("shot_noise", (60, 25, 12)), ("shot_noise_p", (250, 100, 50))])
def test_shot_noise_has_poissons_moments_and_values(name, photons):
    for severity, c in enumerate(photons, 1):
        found = corrupt(GRAY // 2, name, severity, rng()) / 255
        assert found.mean() == pytest.approx(64 / 255, rel=0.02)
        assert found.var() == pytest.approx(64 / 255 / c, rel=0.05)
        assert np.abs(found * c - np.rint(found * c)).max() <= c / 255 / 2 + 1e-9, "whole photons"
    assert not corrupt(GRAY * 0, name, 5, rng()).any(), "black gives no light"


@pytest.mark.parametrize(("severity", "share"), [(1, 0.03), (5, 0.27)])
def test_impulse_noise_is_half_salt_half_pepper(severity, share):
    found = corrupt(GRAY, "impulse_noise", severity, rng())
    salt, pepper = (found == 255).mean(), (found == 0).mean()
    assert salt == pytest.approx(share / 2, rel=0.1) and pepper == pytest.approx(share / 2, rel=0.1)
    assert ((found == 128) | (found == 0) | (found == 255)).all()


@pytest.mark.parametrize(("name", "sigma"), [("speckle_noise", 0.35), ("speckle_noise_p", 0.25)])
def test_speckle_noise_grows_with_the_light(name, sigma):
    for value in (30, 90):
        found = corrupt(np.full_like(GRAY, value), name, 3, rng()).astype(float)
        assert found.std() == pytest.approx(value * sigma, rel=0.03)

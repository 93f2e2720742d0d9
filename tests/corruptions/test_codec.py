import numpy as np
import pytest

from vidrobust.corruptions import h264


@pytest.mark.parametrize("shape", [(8, 32, 48, 3), (1, 33, 31, 3), (3, 16, 17, 3)])
def test_clips_come_back_in_order_and_shape_and_worse_with_the_rate(shape):
    rng = np.random.default_rng(0)
    t, h, w, _ = shape
    base = np.add.outer(np.arange(h) * 3, np.arange(w) * 2)[None, :, :, None] + 25 * np.arange(t)[:, None, None, None]
    frames = ((base + rng.integers(0, 12, shape)) % 200 + 20).astype(np.uint8)
    fine, coarse = h264(frames, 10), h264(frames, 45)
    assert fine.shape == coarse.shape == shape and fine.dtype == np.uint8
    error = [np.abs(back.astype(int) - frames).mean() for back in (fine, coarse)]
    assert error[0] < 12 and error[0] < error[1]
    if t > 1:  # each frame is nearest to itself
        gray = [c.astype(float).mean((1, 2, 3)) for c in (frames, fine)]
        assert all(np.abs(gray[0] - gray[1][i]).argmin() == i for i in range(t))
    for _ in range(5):
        assert np.array_equal(fine, h264(frames, 10)), "the same bits every time"


def test_small_noise_does_not_survive_it():
    frames = np.full((4, 32, 32, 3), 120, np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, frames.shape).astype(np.uint8)
    change = h264(frames + noise, 30).astype(int) - h264(frames, 30)
    assert abs(np.corrcoef(change.ravel(), noise.ravel())[0, 1]) < 0.5
    kept = h264(frames + noise, 0).astype(int) - h264(frames, 0)
    assert np.corrcoef(kept.ravel(), noise.ravel())[0, 1] > 0.2  # at the finest rate some of it does


def test_colours_survive_a_fine_rate():
    bars = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [90, 160, 30]], np.uint8)
    frames = np.tile(bars.repeat(8, axis=0)[None, None], (2, 16, 1, 1))
    assert np.abs(h264(frames, 0).astype(int) - frames).max() <= 4


@pytest.mark.parametrize("size", [(8, 112, 112), (6, 46, 34), (9, 56, 56)])
def test_the_same_bits_whatever_memory_held(size):
    rng = np.random.default_rng(0)
    t, y, x = np.ogrid[0 : size[0], 0 : size[1], 0 : size[2]]
    gray = 120 + 60 * np.sin(x / 9 + t / 2) * np.cos(y / 7 - t / 3)
    frames = np.stack([gray, gray[:, ::-1], 255 - gray], -1).astype(np.uint8)
    first = h264(frames, 30)
    for held in rng.integers(1000, 200_000, 25):
        junk = rng.integers(0, 255, held)
        del junk
        assert np.array_equal(first, h264(frames, 30))

"""Test textures: pixels come from examples in coherent pieces; colours stay, the layout changes."""

import numpy as np
import pytest
from numpy.random import default_rng

from vidrobust.views.texture_synthesis import patch_side, patches_of, show, synthesize


def noise(seed, side, frames=1):
    """Return an example (frames, side, side, 3) whose pixels all differ, also over frames."""
    numbers = (2 * default_rng(seed).permutation(frames * side * side) + seed) * 211
    colors = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], -1)
    return colors.astype(np.uint8).reshape(frames, side, side, 3)


def texture(examples, size, rng, guide=None):
    """Return the frames (T, size, size, 3) of a texture."""
    return np.stack(list(show(examples, synthesize(examples, size, rng, guide))))


def code(x):
    """Encode colours (..., 3) uint8 as one number per pixel."""
    x = x.astype(np.int64)
    return x[..., 0] << 16 | x[..., 1] << 8 | x[..., 2]


@pytest.mark.parametrize(
    ("frames", "side", "size"), [(1, 40, 64), (3, 31, 50), (7, 20, 33), (1, 14, 32), (2, 96, 128)]
)
def test_each_pixel_shows_one_place_of_one_example_in_all_frames(frames, side, size):
    examples = [noise(0, side, frames), noise(1, side, frames)]
    output = texture(examples, size, default_rng(0))
    assert output.shape == (frames, size, size, 3) and output.dtype == np.uint8
    places_by_pixel = {
        tuple(tube): (e, place)
        for e, example in enumerate(examples)
        for place, tube in enumerate(code(example).reshape(frames, -1).T.tolist())
    }
    places = [places_by_pixel[tuple(tube)] for tube in code(output).reshape(frames, -1).T.tolist()]
    assert {e for e, _ in places} == {0, 1}, "both examples are used"
    grid = np.array([e * 10**6 + place for e, place in places]).reshape(size, size)
    whole = (np.diff(grid, axis=1) == 1).mean(), (np.diff(grid, axis=0) == side).mean()
    assert min(whole) > 0.15, f"pixels come in coherent pieces: {whole}"
    shown = np.bincount([e for e, _ in places]) / size**2
    assert shown.min() > 0.15, "neither example is crowded out"


def test_the_generator_decides_the_texture():
    examples = [noise(0, 24)]
    a, b, c = (texture(examples, 32, default_rng(seed)) for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize("side", [14, 48, 96])
def test_colours_are_kept_and_the_layout_is_not(side):
    """The example is red on the left and blue on the right; the texture is both on both sides."""
    example = np.zeros((1, side, side, 3))
    example[:, :, : side // 2, 0], example[:, :, side // 2 :, 2] = 200, 200
    example = (example + default_rng(0).uniform(0, 40, example.shape)).astype(np.uint8)
    for seed in range(3):
        output = texture([example], 224 * side // 96, default_rng(seed))[0].astype(float)
        assert abs(output.mean((0, 1)) - example.mean((0, 1, 2))).max() < 40, "of 200"
        left, right = np.split(output[:, : output.shape[1] // 2 * 2], 2, axis=1)
        assert abs(left.mean((0, 1)) - right.mean((0, 1))).max() < 80, "of 200"
        apart = abs(np.diff(output[..., 0] > 100, axis=1)).sum(1)
        assert apart.mean() > 1.5, "more borders than the one of the example"


@pytest.mark.parametrize(("side", "frames"), [(96, 1), (96, 3), (48, 1), (27, 1)])
def test_rare_things_of_the_examples_keep_their_frequency(side, frames):
    """Test objects before a plain wall, whose plain pixels would fit everywhere a little."""
    for seed in range(4):
        rng = default_rng(seed)
        examples = []
        for _ in range(2):
            wall = np.full((frames, side, side, 3), rng.integers(90, 160, 3), float)
            top, left = rng.integers(side // 6, side // 2, 2)
            wall[:, top : top + side // 3, left : left + side // 4] = rng.integers(0, 256, 3)
            examples.append((wall + rng.normal(0, 3, wall.shape)).clip(0, 255).astype(np.uint8))
        output = (
            texture(examples, 224 * side // 96, default_rng(seed))[0].reshape(-1, 3).astype(float)
        )
        pixels = np.concatenate([example[0].reshape(-1, 3) for example in examples])
        assert abs(output.mean(0) - pixels.mean(0)).max() < 15, "of 255"
        assert output.std(0).mean() == pytest.approx(pixels.std(0).mean(), rel=0.25)


def test_periodic_texture_keeps_its_period_and_direction():
    """Test horizontal stripes."""
    stripes = np.broadcast_to(
        (np.arange(64) % 16 < 8)[:, None, None] * np.uint8(220), (1, 64, 64, 3)
    )
    output = texture([stripes], 96, default_rng(0))[0, :, :, 0].astype(float)
    power = abs(np.fft.rfft(output - output.mean(), axis=0)).mean(1)
    assert power.argmax() == 6 and abs(np.diff(output, axis=1)).mean() < 25


def test_examples_and_patches_that_are_too_small_are_refused():
    for examples in ([], [np.zeros((1, 4, 9, 3), np.uint8)]):
        with pytest.raises(ValueError, match="more than 4 pixels a side"):
            synthesize(examples, 16, default_rng(0))
    with pytest.raises(
        ValueError, match="side=9: patches must be at most as large as the frames, 9x8 pixels"
    ):
        patches_of(np.zeros((1, 8, 9, 3), np.uint8), 9, default_rng(0))


def test_patches_are_the_centre_and_a_random_one():
    coordinates = np.stack(
        np.meshgrid(np.arange(20), np.arange(30), [0], indexing="ij"), -1
    ).reshape(1, 20, 30, 3)
    corners = set()
    for seed in range(200):
        centre, other = patches_of(coordinates, 18, default_rng(seed))
        assert centre[0, 0, 0].tolist() == [1, 6, 0] and centre.shape == other.shape == (
            1,
            18,
            18,
            3,
        )
        corners.add(tuple(other[0, 0, 0, :2].tolist()))
    assert corners == {(r, c) for r in range(3) for c in range(13)}


def test_patch_side_is_the_published_one_and_scales_down():
    sides = [patch_side(96, short) for short in (500, 224, 112, 32, 16, 9)]
    assert sides == [96, 96, 48, 14, 9, 9]
    assert patch_side(300, 240) == 240, "not larger than the picture"


def test_guide_gives_the_texture_its_shapes_and_flat_areas_stay_flat():
    example = default_rng(0).integers(0, 256, (1, 24, 24, 1)).repeat(3, 3).astype(np.uint8)
    guide = np.ones((64, 64))
    guide[20:44, 20:44] = 0  # a black square before white
    output = texture([example], 64, default_rng(0), guide)[0].mean(2)
    inner, rows = output[24:40, 24:40].mean(), output[:, :16].mean(1)
    assert output[:16].mean() > inner + 60, "light where the guide is light"
    assert abs(rows[4:30].mean() - rows[34:60].mean()) < 12, "no slope in a flat area"

"""Test corruptions in time on videos whose frames show their number."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers import counting_frames, read_numbers
from vidrobust.corruptions import INDEX_MAPS, SEVERITIES, corrupt


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shown(name: str, severity: int, frames: int = 48, seed: int = 0, **options: float) -> list[int]:
    """Return the numbers of the frames that a corruption shows."""
    return read_numbers(corrupt(counting_frames(frames, 16), name, severity, rng(seed), **options))


@pytest.mark.parametrize("name", INDEX_MAPS)
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 64, 200])
def test_corruption_shows_the_frames_of_its_index_map(name, frames):
    for severity in SEVERITIES:
        indices = INDEX_MAPS[name](frames, severity, rng(4))
        assert indices.shape == (frames,) and indices.min() >= 0 and indices.max() < frames
        if frames > 1:
            assert shown(name, severity, frames, seed=4) == indices.tolist()


def test_frame_rate_holds_frames_and_shows_none_early():
    assert shown("frame_rate", 1, 11) == [
        0,
        0,
        2,
        3,
        4,
        5,
        5,
        7,
        8,
        9,
        10,
    ]  # 20 of 25 frames per second: every fifth frame is lost
    for severity, rate in enumerate((20, 16, 12, 9, 6), 1):
        output = shown("frame_rate", severity, 100)
        assert len(set(output)) == rate * 4 and output == sorted(output)
        assert all(0 <= index - number < 25 / rate for index, number in enumerate(output))
    assert shown("frame_rate", 3, fps=12) == list(range(48)), (
        "a video of 12 frames per second has no frames to lose"
    )
    assert (
        len(set(shown("frame_rate", 3, 120, fps=30))) == 48
        and len(set(shown("frame_rate_ssv2", 5, 100))) == 8
    )


def test_sampling_shows_every_nth_frame_and_starts_again():
    assert shown("sampling", 1, 10) == [0, 2, 4, 6, 8, 0, 2, 4, 6, 8]
    assert shown("sampling", 3, 20)[:6] == [0, 8, 16, 0, 8, 16]
    assert shown("reverse_sampling", 1, 10) == [8, 6, 4, 2, 0, 8, 6, 4, 2, 0]
    assert shown("reverse_sampling", 5, 40)[:3] == [32, 0, 32]


def test_jumble_shuffles_within_segments_and_box_jumble_shuffles_segments():
    for severity, length in enumerate((32, 16, 8, 4, 2), 1):
        output = shown("jumble", severity, 70)
        for start in range(0, 70, length):
            assert sorted(output[start : start + length]) == list(
                range(start, min(start + length, 70))
            )
        assert output != list(range(70))
    for severity, length in enumerate((4, 9, 16, 25, 36), 1):
        output = shown("box_jumble", severity, 120, seed=2)
        assert sorted(output) == list(range(120)) and output != list(range(120))
        jumps = [index for index in range(1, 120) if output[index] != output[index - 1] + 1]
        assert all(output[index] % length == 0 for index in [0, *jumps])


def test_freeze_holds_a_fraction_of_the_frames_each_until_the_next():
    for severity, kept in enumerate((40, 20, 10, 5, 1), 1):
        output = shown("freeze", severity, 100)
        assert len(set(output)) == kept and output == sorted(output)
        first = output[0]
        assert all(number <= index for index, number in enumerate(output) if index >= first), (
            "no frame is shown early"
        )
        assert all(output[number] == number for number in set(output))
    assert len(set(shown("freeze", 4, 10))) == 2 and len(set(shown("freeze", 2, 48))) == 9


def test_frame_drop_repeats_the_last_frame_that_arrived():
    for severity, chance in enumerate((0.1, 0.2, 0.35, 0.5, 0.7), 1):
        output = shown("frame_drop", severity, 2000)
        assert len(set(output)) / 2000 == pytest.approx(1 - chance, abs=0.05) and output[0] == 0
        assert all(
            number == index or number == output[index - 1] for index, number in enumerate(output)
        )


@pytest.mark.parametrize(
    ("name", "reaches"),
    [("temporal_blur", (3, 5, 7, 9, 11)), ("temporal_blur_ssv2", (1, 2, 3, 4, 6))],
)
def test_temporal_blur_is_the_mean_of_neighbouring_frames(name, reaches):
    clip = np.random.default_rng(0).integers(0, 256, (26, 5, 6, 3), dtype=np.uint8)
    for severity, reach in enumerate(reaches, 1):
        output = corrupt(clip, name, severity, rng())
        for t in range(26):
            expected = clip[max(t - reach, 0) : t + reach].astype(float).mean(0)
            assert np.abs(output[t] - expected).max() <= 0.51


def test_translations_are_whole_pixels_and_one_per_video_if_static():
    clip = np.random.default_rng(0).integers(1, 256, (6, 56, 60, 3), dtype=np.uint8)
    for name, same in (("static_translate", True), ("translate", False)):
        moves = []
        for before, after in zip(clip, corrupt(clip, name, 5, rng()), strict=True):
            dy, dx = next(
                (dy, dx)
                for dy in range(-10, 11)
                for dx in range(-10, 11)
                if (after == _moved(before, dy, dx)).all()
            )
            moves.append((dy, dx))
        assert (len(set(moves)) == 1) == same and moves[0] != (0, 0), moves


@pytest.mark.parametrize(("severity", "most"), enumerate((8, 16, 24, 32, 40), 1))
def test_translation_reaches_its_bounds_on_all_sides(severity, most):
    """Track a dot in frames of 56 pixels, where bounds are a quarter of those for 224."""
    clip = np.zeros((400, 57, 57, 3), np.uint8)
    clip[:, 28, 28] = 255
    y, x = np.nonzero(corrupt(clip, "translate", severity, rng())[..., 0])[1:]
    assert {*y, *x} == {28 + step for step in range(-most // 4, most // 4 + 1)}


def _moved(frame, dy, dx):
    padded = np.pad(frame, ((10, 10), (10, 10), (0, 0)))
    return padded[10 - dy : 66 - dy, 10 - dx : 70 - dx]


def test_rotations_match_pillow_at_the_published_angles():
    clip = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    turned = corrupt(clip, "static_rotate", 5, rng())
    assert (turned == np.rot90(clip, 1, (1, 2))).all()
    for severity, degrees in enumerate((7.5, 15, 30, 45), 1):
        assert (
            corrupt(clip, "static_rotate", severity, rng())[1] == _turned(clip[1], degrees)
        ).all()
    white = np.full((40, 40, 40, 3), 255, np.uint8)
    corners = corrupt(white, "rotate", 5, rng())
    black_fraction = [(frame == 0).mean() for frame in corners]
    assert len({round(s, 3) for s in black_fraction}) > 5 and max(black_fraction) < 0.25, (
        "each frame has its own angle, at most 31 degrees"
    )
    for severity, most in enumerate((7, 13, 19, 25, 31), 1):
        shown = corrupt(clip[:1].repeat(500, 0), "rotate", severity, rng())
        all_rotations = {_turned(clip[0], degrees).tobytes() for degrees in range(-most, most + 1)}
        assert {frame.tobytes() for frame in shown} == all_rotations


def _turned(frame, degrees):
    return np.asarray(Image.fromarray(frame).rotate(degrees, Image.Resampling.BILINEAR))

"""What holds for every corruption."""

import warnings

import numpy as np
import pytest

from tests.corruptions.clips import error, smooth_clip, still_clip
from vidrobust.corruptions import (
    BENCHMARKS,
    CORRUPTIONS,
    INDEX_MAPS,
    SEVERITIES,
    Corrupt,
    corrupt,
    expand,
)

# a draw a frame, or a motion of what is before the lens; all others leave a still video still
MOVING = {
    "gaussian_noise",
    "shot_noise",
    "shot_noise_p",
    "impulse_noise",
    "speckle_noise",
    "speckle_noise_p",
    "rain",
    "snow",
    "translate",
    "rotate",
}
CODED = {
    "h264_crf",
    "h264_abr",
    "h265_crf",
    "h265_abr",
    "mpeg1",
    "mpeg2",
    "bit_error",
    "packet_loss",
}
# what is published gets no worse, or becomes another thing, from some severity on
# (docs/corruptions.md)
NOT_RISING = {"jumble", "box_jumble", "elastic_transform", "reverse_sampling", "spatter"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_type_and_source(name):
    for clip in (smooth_clip(5, 45, 33), smooth_clip(1, 32, 32), smooth_clip(1, 33, 70)):
        before = clip.copy()
        for severity in (1, 5):
            found = corrupt(clip, name, severity, rng())
            assert found.shape == clip.shape and found.dtype == np.uint8
            assert (clip == before).all()
            found[:] = 0  # nor does the result share its memory
            assert (clip == before).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_decides_everything(name):
    clip = smooth_clip(6, 48, 48)
    first = [corrupt(clip, name, s, rng(3)) for s in (2, 5)]
    np.random.seed(1)
    assert all(
        (a == corrupt(clip, name, s, rng(3))).all() for a, s in zip(first, (2, 5), strict=True)
    )


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - NOT_RISING))
@pytest.mark.parametrize("size", [(24, 112, 112), (36, 64, 80)], ids=str)
def test_it_gets_worse(name, size):
    """From the mildest to the strongest, averaged over draws."""
    clip = smooth_clip(*size, seed=7)
    mild, middle, strong = (
        np.mean([error(clip, corrupt(clip, name, s, rng(seed))) for seed in range(3)])
        for s in (1, 3, 5)
    )
    assert 0.05 < mild < strong and middle < strong * 1.1, (mild, middle, strong)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - INDEX_MAPS.keys() - CODED))
def test_one_draw_a_video_or_one_a_frame(name):
    clip = still_clip(4, height=48, width=64)
    found = corrupt(clip, name, 3, rng())
    moves = any((frame != found[0]).any() for frame in found[1:])
    assert moves == (name in MOVING)


@pytest.mark.parametrize("name", INDEX_MAPS)
def test_a_choice_of_frames_leaves_one_frame_as_it_is(name):
    clip = smooth_clip(1, 40, 40)
    assert all((corrupt(clip, name, s, rng()) == clip).all() for s in SEVERITIES)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(
    ("clip", "severity", "reason"),
    [
        (smooth_clip(2), 0, "severity 0: a whole number from 1 to 5"),
        (smooth_clip(2), 6, "severity 6: a whole number from 1 to 5"),
        (smooth_clip(2), 2.5, "severity 2.5: a whole number from 1 to 5"),
        (smooth_clip(2), "3", "severity '3': a whole number"),
        (smooth_clip(2), True, "severity True: a whole number from 1 to 5"),
        (smooth_clip(2) / 255, 1, "a clip of float64: give a numpy array of uint8"),
        (
            np.zeros((2, 8, 8, 4), np.uint8),
            1,
            r"a clip of shape \(2, 8, 8, 4\): give \(T, H, W, 3\)",
        ),
        (np.zeros((8, 8, 3), np.uint8), 1, "an image is T = 1"),
        (np.zeros((0, 8, 8, 3), np.uint8), 1, "a clip of shape"),
        ([[[[1, 2, 3]]]], 1, "a clip of list"),
    ],
)
def test_bad_input_is_refused(name, clip, severity, reason):
    with pytest.raises(ValueError, match=reason):
        corrupt(clip, name, severity, rng())


def test_names():
    assert len(expand(["imagenet-c"])) == 15
    assert len(expand(["mini-kinetics-c"])) == 14 and "temporal_blur_ssv2" in expand(["ssv2-c"])
    assert len(expand(["ssv2-c"])) == 14 and len(expand(["ucf101-p"])) == 18
    assert len(expand(["quick"])) == 8 and set(expand(["all"])) == set(CORRUPTIONS)
    assert (
        expand(["fog", "imagenet-c", "fog"])[0] == "fog"
        and len(expand(["fog", "imagenet-c"])) == 15
    )
    assert all(name in CORRUPTIONS for names in BENCHMARKS.values() for name in names)
    with pytest.raises(ValueError, match="no corruption 'fogg'"):
        expand(["fogg"])
    for wrong, reason in (
        ("imagenet-c", "no corruption 'imagenet-c': that is a set, of gaussian_noise, "),
        ("gaussian-noise", "did you mean 'gaussian_noise'"),
        ("xyz", "there are gaussian_noise, "),
        (["fog"], "no corruption"),
    ):
        with pytest.raises(ValueError, match=reason):
            corrupt(smooth_clip(1), wrong, 1, rng())
    for generator in (None, 0, np.random.RandomState(0), np.random):
        with pytest.raises(ValueError, match=r"rng is \w+: give numpy.random.default_rng"):
            corrupt(smooth_clip(1), "fog", 1, generator)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_views_of_memory_are_as_good_as_copies(name):
    """Flipped, BGR read as RGB, transposed, every second frame, read-only."""
    clip = smooth_clip(4, 40, 48)
    fixed = clip.copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in (
            clip[..., ::-1],
            clip[:, :, ::-1],
            clip.transpose(0, 2, 1, 3),
            clip[::2],
            fixed,
        ):
            found, copied = (corrupt(x, name, 3, rng()).astype(int) for x in (view, view.copy()))
            assert np.abs(found - copied).max() <= 1


def test_augmentation_draws_names_and_severities_and_leaves_some_clips_alone():
    clip = smooth_clip(2, 32, 32)
    augment = Corrupt(["brightness", "contrast"], severities=(1, 5), chance=0.5)
    draws = rng()
    found = [augment(clip, draws) for _ in range(200)]
    untouched = sum((f == clip).all() for f in found)
    assert 70 < untouched < 130
    kinds = [corrupt(clip, n, s, rng()) for n in ("brightness", "contrast") for s in (1, 5)]
    counts = [sum((f == kind).all() for f in found) for kind in kinds]
    assert sum(counts) + untouched == 200 and min(counts) > 10
    again = rng()
    assert all((a == augment(clip, again)).all() for a in found)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"names": ["fogg"]}, "no corruption"),
        ({"names": []}, "at least one corruption"),
        ({"names": "fog"}, r"names 'fog': a list of them, such as \['fog'\]"),
        ({"names": None}, "names None: a list"),
        ({"names": [["fog"]]}, "no corruption"),
        ({"names": ["fog"], "severities": 3}, "severities 3: a list of them"),
        ({"names": ["fog"], "chance": "0.5"}, "chance '0.5': 0 to 1"),
        ({"names": ["fog"], "severities": (0, 1)}, "1 to 5"),
        ({"names": ["fog"], "severities": ()}, "each of 1 to 5"),
        ({"names": ["fog"], "chance": 1.5}, "chance 1.5: 0 to 1"),
    ],
)
def test_augmentation_refuses(words, reason):
    with pytest.raises(ValueError, match=reason):
        Corrupt(**words)

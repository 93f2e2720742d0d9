"""Test the properties that every corruption has."""

import warnings

import numpy as np
import pytest

from tests.corruptions.clips import error, smooth_clip, still_clip
from vidrobust.corruptions import (
    BENCHMARKS,
    CORRUPTIONS,
    INDEX_MAPS,
    OVER_TIME,
    SEVERITIES,
    Corrupt,
    CorruptionSpec,
    corrupt,
    expand,
)

# These change from frame to frame: random parameters per frame, or motion in front of the lens.
# All others leave a still video still.
MOVING = {
    "gaussian_noise",
    "shot_noise",
    "shot_noise_p",
    "impulse_noise",
    "salt_noise",
    "pepper_noise",
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
# The published tables of these do not get steadily worse, or change in kind at some severity
# (docs/corruptions.md).
NOT_RISING = {"jumble", "box_jumble", "elastic_transform", "reverse_sampling", "spatter"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_output_has_the_input_shape_and_type_and_its_own_memory(name):
    for clip in (smooth_clip(5, 45, 33), smooth_clip(1, 32, 32), smooth_clip(1, 33, 70)):
        before = clip.copy()
        for severity in (1, 5):
            output = corrupt(clip, name, severity, rng())
            assert output.shape == clip.shape and output.dtype == np.uint8
            assert (clip == before).all()
            output[:] = 0  # the output does not share memory with the clip
            assert (clip == before).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_generator_decides_everything(name):
    clip = smooth_clip(6, 48, 48)
    first = [corrupt(clip, name, s, rng(3)) for s in (2, 5)]
    np.random.seed(1)
    assert all(
        (a == corrupt(clip, name, s, rng(3))).all() for a, s in zip(first, (2, 5), strict=True)
    )


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - NOT_RISING))
@pytest.mark.parametrize("size", [(24, 112, 112), (36, 64, 80)], ids=str)
def test_error_increases_with_severity(name, size):
    """Compare severities 1, 3 and 5, averaged over seeds."""
    clip = smooth_clip(*size, seed=7)
    mild, middle, strong = (
        np.mean([error(clip, corrupt(clip, name, s, rng(seed))) for seed in range(3)])
        for s in (1, 3, 5)
    )
    assert 0.05 < mild < strong and middle < strong * 1.1, (mild, middle, strong)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - INDEX_MAPS.keys() - CODED))
def test_random_parameters_are_shared_by_frames_except_in_the_listed_corruptions(name):
    clip = still_clip(4, height=48, width=64)
    output = corrupt(clip, name, 3, rng())
    moves = any((frame != output[0]).any() for frame in output[1:])
    assert moves == (name in MOVING)


@pytest.mark.parametrize("name", INDEX_MAPS)
def test_index_maps_leave_a_single_frame_unchanged(name):
    clip = smooth_clip(1, 40, 40)
    assert all((corrupt(clip, name, s, rng()) == clip).all() for s in SEVERITIES)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_entries_declare_whether_they_change_a_single_frame(name):
    clip = smooth_clip(1, 40, 40)
    changes = any((corrupt(clip, name, s, rng()) != clip).any() for s in SEVERITIES)
    assert changes != CORRUPTIONS[name].over_time
    assert (name in OVER_TIME) == CORRUPTIONS[name].over_time


def test_a_new_corruption_needs_one_entry_only(monkeypatch):
    def darken(clip, severity, rng, fps):
        return clip // np.uint8(severity * fps)

    monkeypatch.setitem(CORRUPTIONS, "darken", CorruptionSpec(darken))
    clip = smooth_clip(2, 32, 32)
    assert (corrupt(clip, "darken", 2, rng(), fps=3.0) == clip // 6).all()
    assert (Corrupt(["darken"], severities=(2,))(clip, rng(), fps=3.0) == clip // 6).all()
    assert (CORRUPTIONS["fog"](clip, 3, rng()) == corrupt(clip, "fog", 3, rng())).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(
    ("clip", "severity", "reason"),
    [
        (smooth_clip(2), 0, "severity=0: must be a whole number from 1 to 5"),
        (smooth_clip(2), 6, "severity=6: must be a whole number from 1 to 5"),
        (smooth_clip(2), 2.5, "severity=2.5: must be a whole number from 1 to 5"),
        (smooth_clip(2), "3", "severity='3': must be a whole number"),
        (smooth_clip(2), True, "severity=True: must be a whole number from 1 to 5"),
        (smooth_clip(2) / 255, 1, "clip of type float64: must be a numpy array of uint8"),
        (
            np.zeros((2, 8, 8, 4), np.uint8),
            1,
            r"clip of shape \(2, 8, 8, 4\): must be \(T, H, W, 3\)",
        ),
        (np.zeros((8, 8, 3), np.uint8), 1, "an image is T = 1"),
        (np.zeros((0, 8, 8, 3), np.uint8), 1, "clip of shape"),
        ([[[[1, 2, 3]]]], 1, "clip of type list"),
    ],
)
def test_bad_input_is_refused(name, clip, severity, reason):
    with pytest.raises(ValueError, match=reason):
        corrupt(clip, name, severity, rng())


def test_benchmark_names_expand_to_their_members():
    assert len(expand(["imagenet-c"])) == 15
    assert len(expand(["mini-kinetics-c"])) == 14 and "temporal_blur_ssv2" in expand(["ssv2-c"])
    assert len(expand(["ssv2-c"])) == 14 and len(expand(["ucf101-p"])) == 18
    assert len(expand(["quick"])) == 8 and set(expand(["all"])) == set(CORRUPTIONS)
    assert (
        expand(["fog", "imagenet-c", "fog"])[0] == "fog"
        and len(expand(["fog", "imagenet-c"])) == 15
    )
    assert all(name in CORRUPTIONS for names in BENCHMARKS.values() for name in names)


def test_unknown_names_and_generators_are_refused():
    with pytest.raises(ValueError, match="unknown corruption 'fogg'"):
        expand(["fogg"])
    for wrong, reason in (
        (
            "imagenet-c",
            "unknown corruption 'imagenet-c': it is a set; name its members, gaussian_noise, ",
        ),
        ("gaussian-noise", "did you mean 'gaussian_noise'"),
        ("xyz", "must be one of gaussian_noise, "),
        (["fog"], "unknown corruption"),
    ):
        with pytest.raises(ValueError, match=reason):
            corrupt(smooth_clip(1), wrong, 1, rng())
    for generator in (None, 0, np.random.RandomState(0), np.random):
        with pytest.raises(ValueError, match=r"rng is \w+: pass numpy.random.default_rng"):
            corrupt(smooth_clip(1), "fog", 1, generator)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strided_and_read_only_clips_give_the_same_result_as_copies(name):
    """Test flipped, BGR, transposed, subsampled and read-only clips."""
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
            output, copied = (corrupt(x, name, 3, rng()).astype(int) for x in (view, view.copy()))
            assert np.abs(output - copied).max() <= 1


def test_augmentation_samples_names_and_severities_and_leaves_some_clips_unchanged():
    clip = smooth_clip(2, 32, 32)
    augment = Corrupt(["brightness", "contrast"], severities=(1, 5), chance=0.5)
    generator = rng()
    output = [augment(clip, generator) for _ in range(200)]
    untouched = sum((f == clip).all() for f in output)
    assert 70 < untouched < 130
    kinds = [corrupt(clip, n, s, rng()) for n in ("brightness", "contrast") for s in (1, 5)]
    counts = [sum((f == kind).all() for f in output) for kind in kinds]
    assert sum(counts) + untouched == 200 and min(counts) > 10
    again = rng()
    assert all((a == augment(clip, again)).all() for a in output)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"names": ["fogg"]}, "unknown corruption"),
        ({"names": []}, "at least one corruption"),
        ({"names": "fog"}, r"names='fog': must be a list of names, such as \['fog'\]"),
        ({"names": None}, "names=None: must be a list"),
        ({"names": [["fog"]]}, "unknown corruption"),
        ({"names": ["fog"], "severities": 3}, "severities=3: must be a list of numbers"),
        ({"names": ["fog"], "chance": "0.5"}, "chance='0.5': must be 0 to 1"),
        ({"names": ["fog"], "severities": (0, 1)}, "from 1 to 5"),
        ({"names": ["fog"], "severities": ()}, "must be a list of numbers from 1 to 5"),
        ({"names": ["fog"], "chance": 1.5}, "chance=1.5: must be 0 to 1"),
    ],
)
def test_augmentation_refuses_invalid_arguments(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Corrupt(**arguments)
